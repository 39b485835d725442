"""Networks, each a frozen description that builds a featurizer and a head for the shapes at hand."""

from envariant.core import specs
from envariant.models.base import FeaturizerAndHead, ModelConfig
from envariant.models.lenet import LeNet
from envariant.models.linear import Linear
from envariant.models.mlp import MLP
from envariant.models.mnist_cnn import MNISTCNN
from envariant.models.timm import Timm

MODELS: dict[str, type[ModelConfig]] = {cls.name: cls for cls in (Linear, MLP, LeNet, MNISTCNN, Timm)}


def model_config(text: str) -> ModelConfig:
    """The family that a string such as `mlp(hidden=390)` names.

    Raises:
        EnvariantError: there is no such family, or it has no such setting.
    """
    return specs.build("model", text, MODELS)


__all__ = [
    "MLP",
    "MNISTCNN",
    "MODELS",
    "FeaturizerAndHead",
    "LeNet",
    "Linear",
    "ModelConfig",
    "Timm",
    "model_config",
]
