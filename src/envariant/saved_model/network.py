"""`SavedNetwork`: a trained network that can be rebuilt from its weights and the name of its model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Self, final

from pydantic import ConfigDict, Field, TypeAdapter
from torch import Tensor, nn

from envariant.core.tasks import Task
from envariant.data.with_loss import with_loss
from envariant.saved_model.validation import limited_to
from envariant.training.result import rebuilt

WEIGHTS = "weights/"
"""Prefix of the names of a predictor's arrays in the safetensors file."""
_LONGEST_TEXT = 10_000


@final
class _Linked(nn.Module):
    """Network whose outputs z are converted to predictions of the task, such as e^z for the Poisson loss."""

    def __init__(self, module: nn.Module, task: Task) -> None:
        super().__init__()
        self.module, self.task = module, task

    def forward(self, inputs: Tensor) -> Tensor:
        return self.task.predictions(self.module(inputs))


@final
@dataclass(frozen=True, eq=False)
class SavedNetwork:
    """Trained network of a saved model.

    Attributes:
        model: Specification of the model, such as `mlp(hidden=(32, 32))`.
        algorithm: Name of the training algorithm, which is needed because some algorithms wrap the model.
        hyperparameters: Values of the algorithm's hyperparameters, by name.
        weights: Parameters and buffers, by name.
        loss: Loss as text, such as `poisson`, because the loss can determine how outputs become predictions;
            "" if the loss was not given by name.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    model: Annotated[str, Field(max_length=_LONGEST_TEXT)]
    algorithm: Annotated[str, Field(max_length=_LONGEST_TEXT)]
    hyperparameters: Mapping[str, Any]
    weights: Mapping[str, Tensor] = field(repr=False)
    loss: Annotated[str, Field(max_length=_LONGEST_TEXT)] = ""

    def module(self, task: Task, width: int, environments: Sequence[str]) -> nn.Module:
        """Rebuild the trained network in evaluation mode.

        Args:
            task: Prediction task, which determines the number of outputs.
            width: Number of inputs per row.
            environments: Names of the training environments.

        Raises:
            EnvariantError: If this version of the library does not know the model or the algorithm.
        """
        with limited_to(self.weights):
            module = rebuilt(self.model, self.algorithm, self.hyperparameters, task, (width,), environments)
        module.load_state_dict(dict(self.weights))
        return (_Linked(module, with_loss(task, self.loss)) if self.loss else module).eval()

    def describe(self) -> dict[str, Any]:
        """Return the fields other than `weights` as a JSON-compatible dictionary."""
        return TypeAdapter(SavedNetwork).dump_python(self, mode="json", exclude={"weights"})

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the trained weights, by their names in the safetensors file."""
        return {f"{WEIGHTS}{name}": value for name, value in self.weights.items()}

    @classmethod
    def from_tensors(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Build a `SavedNetwork` from its description and its stored tensors.

        Args:
            description: Fields other than `weights`, by name.
            tensors: All tensors of the saved model, by name.
        """
        weights = {k.removeprefix(WEIGHTS): v for k, v in tensors.items() if k.startswith(WEIGHTS)}
        return TypeAdapter(cls).validate_python({**description, "weights": weights})
