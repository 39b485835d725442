"""Compute the features, logits and layer outputs of a network in one forward pass."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Self, final

from torch import Tensor, nn

from envariant.core.errors import EnvariantError, unknown_name
from envariant.core.tasks import Task
from envariant.training.module_outputs import features_of, logits_of

FEATURES = "features"
"""Name that stands for the inputs of the head."""


@final
class FeaturesAndOutput(nn.Module):
    """Module that returns features, outputs of the head, and outputs of layers.

    Args:
        module: Model.
        needs_features: Whether the inputs of the head are needed; if not, features have width 0.
        task: Task of the model.
        frozen: Submodules that stay in evaluation mode.
    """

    def __init__(
        self, module: nn.Module, needs_features: bool, task: Task, frozen: Sequence[nn.Module] = ()
    ) -> None:
        super().__init__()
        self.frozen = tuple(frozen)
        self.module = module
        self.needs_features = needs_features
        self.task = task

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def forward(
        self, inputs: Tensor, layers: Sequence[str] = (), from_features: bool = False
    ) -> tuple[Tensor, ...]:
        """Return features, logits, and the outputs of layers; the inputs may be the features themselves."""
        with recorded_outputs(self.module, layers) as recorded:
            features, output = self._after_features(inputs) if from_features else self._both(inputs)
        recorded |= {FEATURES: [features]}
        return features, output, *(output_of(name, recorded[name], len(inputs)) for name in layers)

    def _both(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        rows = len(inputs)
        if not self.needs_features:
            output = logits_of(self.module(inputs), rows, self.task, self.module)
            # Returning unused features would cost a copy per step.
            return output.new_zeros(rows, 0), output
        featurizer, head = (getattr(self.module, part) for part in ("featurizer", "head"))
        features = features_of(featurizer(inputs), rows, self.module)
        return features, logits_of(head(features), rows, self.task, self.module)

    def _after_features(self, features: Tensor) -> tuple[Tensor, Tensor]:
        rows, head = len(features), getattr(self.module, "head")  # noqa: B009 (a module has no typed head)
        output = logits_of(head(features), rows, self.task, self.module)
        return features if self.needs_features else output.new_zeros(rows, 0), output


def check_layers(module: nn.Module, names: Sequence[str]) -> None:
    """Check that every given name is a submodule of a model, or `FEATURES`.

    Args:
        module: Model.
        names: Names of layers.

    Raises:
        EnvariantError: If the model has no submodule of that name.
    """
    known = [FEATURES, *(name for name, _ in module.named_modules() if name)]
    for name in names:
        if name not in known:
            raise unknown_name("layer", name, known, where=f"model {type(module).__name__}")


@contextmanager
def recorded_outputs(module: nn.Module, names: Sequence[str]) -> Generator[dict[str, list[object]]]:
    """Record the outputs of submodules in the forward passes within a `with` statement.

    Args:
        module: Model.
        names: Names of submodules. `FEATURES` is allowed too, but its outputs are not recorded.

    Yields:
        For each name, a list of outputs with one entry per call; for `FEATURES`, an empty list.
    """
    outputs: dict[str, list[object]] = {name: [] for name in names}
    handles = [
        module.get_submodule(name).register_forward_hook(
            # A copy, because the next layer may change its inputs in place, as nn.ReLU(inplace=True) does.
            lambda _module, _inputs, output, recorded=recorded: recorded.append(_copied(output))
        )
        for name, recorded in outputs.items()
        if name != FEATURES
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def output_of(name: str, outputs: Sequence[object], rows: int) -> Tensor:
    """Return the output of a layer in one forward pass.

    Args:
        name: Name of the layer.
        outputs: Outputs of the layer, one for each call.
        rows: Number of rows of the inputs.

    Raises:
        EnvariantError: If the layer was not called exactly once, or its output is not a tensor of numbers
            with one entry per row and at least two axes.
    """
    if len(outputs) != 1:
        raise EnvariantError(
            f"layer '{name}': must be called once per forward pass, but is called {len(outputs)} times; "
            f"use another layer"
        )
    (output,) = outputs
    if isinstance(output, Tensor) and output.is_floating_point() and output.dim() > 1 and len(output) == rows:
        return output
    got = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise EnvariantError(
        f"layer '{name}': its output must be a tensor [rows, channels, …] with {rows} rows; got {got}"
    )


def channels_of(output: Tensor) -> int:
    """Return the number of channels in the output of a layer.

    Outputs with three axes have the shape `[rows, positions, channels]`; all others have the shape
    `[rows, channels, *positions]`.
    """
    return output.shape[-1] if output.dim() == 3 else output.shape[1]


def _copied(output: object) -> object:
    return output.clone() if isinstance(output, Tensor) else output
