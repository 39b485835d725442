"""Look up backbones by name."""

from torch import nn

from envariant.core import specs
from envariant.core.errors import EnvariantError, shown, unknown_name
from envariant.features.backbones import TextEncoder
from envariant.features.text import TEXT_ENCODERS
from envariant.models import MODELS, ModelConfig, model_config


def backbone_of(backbone: object) -> "ModelConfig | nn.Module | TextEncoder":
    """Convert a string such as `timm(resnet18, pretrained=true)` to a backbone; return backbones unchanged.

    Raises:
        EnvariantError: If the string names neither a model nor a text encoder, or a setting is invalid.
    """
    if isinstance(backbone, ModelConfig | nn.Module | TextEncoder):
        return backbone
    if not isinstance(backbone, str):
        raise EnvariantError(
            f"features: backbone must be a name, a model, a module or a text encoder; got {shown(backbone)}"
        )
    name = specs.parse_as("backbone", backbone).name
    if name in TEXT_ENCODERS:
        return specs.build("backbone", backbone, TEXT_ENCODERS)
    try:
        return model_config(backbone)
    except EnvariantError:
        if name in MODELS:
            raise
        raise unknown_name("backbone", name, (*MODELS, *TEXT_ENCODERS)) from None
