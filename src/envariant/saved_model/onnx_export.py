"""Export of a trained network to ONNX."""

import warnings
from importlib import import_module
from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from envariant.core.errors import EnvariantError
from envariant.core.files import replacing, write_text
from envariant.core.paths import check_overwrite, not_ours
from envariant.core.tasks import Regression, Task
from envariant.saved_model.folder import OURS
from envariant.training.network import TOGETHER


def export(network: nn.Module, task: Task, width: int, path: Path, description: str) -> None:
    """Write a network to an ONNX file, and its description to a JSON file of the same name.

    Args:
        network: Network in evaluation mode that maps inputs `[rows, width]` to raw outputs.
        task: Prediction task, which determines the outputs of the ONNX model.
        width: Number of inputs per row.
        path: File to write, ending in .onnx.
        description: Description of the network as JSON text.

    Raises:
        EnvariantError: If a package is missing, the file cannot be written, or the network processes several
            rows jointly.
    """
    if path.suffix != ".onnx":
        raise EnvariantError(f"{path}: the name of an ONNX file must end in .onnx")
    _check_overwrite(path, description)
    for package in ("onnx", "onnxscript"):
        try:
            import_module(package)
        except ImportError:
            raise EnvariantError(f"ONNX export needs {package}; pip install onnx onnxscript") from None
    if any(getattr(part, TOGETHER, 1) > 1 for part in network.modules()):
        raise EnvariantError(
            "ONNX export: this network predicts several rows jointly, which cannot be exported to ONNX"
        )
    with replacing(path) as part, warnings.catch_warnings():
        # PyTorch's exporter warns of future changes in PyTorch.
        warnings.simplefilter("ignore", FutureWarning)
        torch.onnx.export(
            _WithProbabilities(network, task).eval(),
            (torch.zeros(2, width),),
            part,
            input_names=["inputs"],
            output_names=["prediction"] if isinstance(task, Regression) else ["logits", "probabilities"],
            dynamic_shapes=({0: torch.export.Dim("rows")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    write_text(description, path.with_suffix(".json"))


def _check_overwrite(path: Path, description: str) -> None:
    """Check that the export overwrites no files except those of an earlier export."""
    about = path.with_suffix(".json")
    check_overwrite(about, OURS)
    if path.exists() and not about.exists():
        raise not_ours(path)
    # The description of a saved model in the same folder may be that of another model.
    if about.exists() and not path.exists() and about.read_bytes() != description.encode():
        raise not_ours(about)


def probabilities(logits: Float[Tensor, "rows *c"]) -> Float[Tensor, "rows classes"]:
    """Convert logits to class probabilities; logits are `[rows]` for two classes, else `[rows, classes]`."""
    # Compute both from the logit, because 1 − p loses precision for small probabilities.
    if logits.dim() == 1:
        return torch.sigmoid(torch.stack([-logits, logits], dim=1))
    return torch.softmax(logits, dim=1)


@final
class _WithProbabilities(nn.Module):
    """Network that returns logits and probabilities or, for regression, predictions in the original unit."""

    def __init__(self, network: nn.Module, task: Task) -> None:
        super().__init__()
        self.network, self.task = network, task

    def forward(self, inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits = self.task.logits(self.network(inputs))
        if isinstance(self.task, Regression):
            return logits * self.task.scale + self.task.center
        return logits, probabilities(logits)
