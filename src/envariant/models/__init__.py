"""Model descriptions, such as `mlp(hidden=390)`; each builds a network for a given input shape."""

from envariant.core import specs
from envariant.core.plugins import Plugins, is_dataclass_of
from envariant.models.base import FeaturizerAndHead, ModelConfig
from envariant.models.efficientnet import EfficientNetLite0
from envariant.models.lenet import LeNet
from envariant.models.linear import Linear
from envariant.models.mlp import MLP
from envariant.models.mnist_cnn import MNISTCNN
from envariant.models.packed_inputs import InputPacking, pack_inputs
from envariant.models.timm import Timm

ENTRY_POINTS = "envariant.models"
"""Entry-point group of models from other packages: `name = "module:Class"`.

The class must be a `ModelConfig` and a frozen dataclass, and its `name` must equal the name of the entry
point. The fields are the settings.
"""
PLUGINS = Plugins[type[ModelConfig]](
    ENTRY_POINTS,
    "model",
    requirement="a ModelConfig and a frozen dataclass of that name",
    fits=lambda plugin, name: is_dataclass_of(plugin, ModelConfig) and getattr(plugin, "name", None) == name,
)

MODELS: dict[str, type[ModelConfig]] = {
    cls.name: cls for cls in (Linear, MLP, LeNet, MNISTCNN, Timm, EfficientNetLite0)
}


def model_config(text: str) -> ModelConfig:
    """Convert a string such as `mlp(hidden=390)` to a model description.

    Raises:
        EnvariantError: If the model or a setting is unknown or invalid, or a plug-in cannot be imported.
    """
    name = specs.parse_as("model", text).name
    known = MODELS if name in MODELS else {name: PLUGINS.load(name, MODELS)}
    return specs.build("model", text, known)


def installed_models() -> tuple[dict[str, type[ModelConfig]], tuple[str, ...]]:
    """Return the model classes of plug-ins by name, and an error message for each that failed to load."""
    return PLUGINS.load_all(MODELS)


__all__ = [
    "ENTRY_POINTS",
    "MLP",
    "MNISTCNN",
    "MODELS",
    "EfficientNetLite0",
    "FeaturizerAndHead",
    "InputPacking",
    "LeNet",
    "Linear",
    "ModelConfig",
    "Timm",
    "installed_models",
    "model_config",
    "pack_inputs",
]
