"""Image networks of timm (PyTorch Image Models, Wightman 2019) as featurizers, with a linear head.

timm is imported only when a timm network is built: `pip install 'envariant[vision]'`.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, final

import torch
from torch import nn

from envariant.core.errors import EnvariantError, first_line, unknown_name
from envariant.models.base import FeaturizerAndHead, ModelConfig


@final
@dataclass(frozen=True)
class Timm(ModelConfig):
    """Image network of timm, in which a linear head replaces the classifier.

    An architecture with a fixed input size is built for the size of the images in the data.

    Attributes:
        architecture: Name of the architecture in timm, in quotes if it contains a dot.
        pretrained: Whether to start from pretrained weights, which timm downloads or reads from its cache.
    """

    name: ClassVar[str] = "timm"
    rgb: ClassVar[bool] = True
    architecture: str = "resnet18"
    pretrained: bool = False

    def build(self, input_shape: Sequence[int], outputs: int) -> nn.Module:
        if len(input_shape) != 3:
            raise EnvariantError(
                f"timm: requires channels-first images [channels, height, width]; got inputs of shape "
                f"{tuple(input_shape)}"
            )
        backbone = self._backbone(_timm(), input_shape)
        try:
            with torch.no_grad():
                # Measured, because `num_features` of timm is not always the output width. Evaluation mode
                # leaves running statistics unchanged.
                features = backbone.eval()(torch.zeros(1, *input_shape))
        except Exception as error:
            problem = f"cannot take inputs of shape {tuple(input_shape)} ({first_line(error)})"
            raise EnvariantError(f"timm: {self.architecture} {problem}") from None
        return FeaturizerAndHead(backbone, nn.Linear(features.shape[1], outputs)).train()

    def size(self, input_shape: Sequence[int], outputs: int) -> float:
        # All architectures of timm fit in memory, and building one twice may load its weights twice.
        return 0

    def _backbone(self, timm: Any, input_shape: Sequence[int]) -> nn.Module:
        if not timm.is_model(self.architecture):
            names: list[str] = timm.list_models()
            similar = difflib.get_close_matches(self.architecture, names, n=5, cutoff=0.5)
            # Only five of more than a thousand names.
            raise unknown_name("timm architecture", self.architecture, similar or names[:5], where="timm")
        config = timm.get_pretrained_cfg(self.architecture)
        fixed = {"img_size": tuple(input_shape[1:])} if getattr(config, "fixed_input_size", False) else {}
        try:
            return timm.create_model(
                self.architecture, pretrained=self.pretrained, num_classes=0, in_chans=input_shape[0], **fixed
            )
        except Exception as error:
            hint = "; is there a connection? pretrained=false needs none" if self.pretrained else ""
            problem = f"cannot be built for inputs of shape {tuple(input_shape)} ({first_line(error)})"
            raise EnvariantError(f"timm: {self.architecture} {problem}{hint}") from None


def _timm() -> Any:
    try:
        return import_module("timm")
    except ImportError as error:
        remedy = "pip install 'envariant[vision]'"
        raise EnvariantError(f"timm: cannot be imported ({first_line(error)}); {remedy}") from None
    except (RuntimeError, OSError) as error:
        # Raised by a torchvision built for another version of PyTorch.
        raise EnvariantError(
            f"timm: cannot be imported ({first_line(error)}); torchvision must match torch: pip install "
            f"--upgrade torch torchvision 'envariant[vision]'"
        ) from None
