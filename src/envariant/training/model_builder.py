"""Convert the option `model` to a function that builds networks."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from torch import nn

from envariant.core.errors import EnvariantError, first_line, shown
from envariant.models import ModelConfig, model_config
from envariant.training.memory_budget import require
from envariant.training.network import ModelBuilder


def model_builder(model: object) -> ModelBuilder:
    """Convert the option `model` to a function `(input_shape, outputs) → module`.

    Raises:
        EnvariantError: If `model` is not a name, `ModelConfig`, module or function.
    """
    if isinstance(model, str):
        model = model_config(model)
    if isinstance(model, ModelConfig):
        return partial(_built, model)
    if isinstance(model, nn.Module):
        return lambda _shape, _outputs: _copied(model)
    if isinstance(model, type) and issubclass(model, ModelConfig):
        return partial(_built, model())
    if callable(model):
        function = cast("Callable[[], nn.Module]", model)
        return lambda _shape, _outputs: function()
    raise wrong_type(
        "model", "a name, a ModelConfig, a module or a function that returns a new module", model
    )


def _built(model: ModelConfig, input_shape: Sequence[int], outputs: int) -> nn.Module:
    """Build a network; raise an error if its weights would not fit in memory."""
    count, shape = model.size(input_shape, outputs), tuple(input_shape)
    what = f"{model} for inputs of shape {shape}, with {count:,} parameters,"
    require(4 * count, torch.device("cpu"), what, "use a smaller model")
    return model.build(input_shape, outputs)


def _copied(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:
        # For example lazy buffers, which have no values to copy.
        raise EnvariantError(
            f"model {type(module).__name__}: cannot be copied ({first_line(error)}); pass a function that "
            f"returns a new module"
        ) from error


def wrong_type(option: str, allowed: str, value: object) -> EnvariantError:
    """Return the error for an option with a value of the wrong type."""
    if isinstance(value, type):
        return EnvariantError(
            f"{option}: {value.__name__} is a class; pass an instance, as in {value.__name__}(…)"
        )
    return EnvariantError(f"{option} must be {allowed}; got {shown(value)}")
