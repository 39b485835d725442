"""`TrainContext`: description of a training run, passed to algorithms."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from torch import nn

from envariant.core.errors import EnvariantError
from envariant.core.tasks import Task


@final
@dataclass(frozen=True)
class TrainContext:
    """Constant properties of a training run: environments, task and model.

    Attributes:
        environment_names: Names of the training environments, in batch order.
        environment_sizes: Number of training rows of each environment, independent of the batch size. May be
            empty in `wrap_model` and `auxiliary_networks`, which are also called before environments are
            inferred and when a saved model is rebuilt.
        task: Prediction task.
        features: Number of features per row that the head receives; 0 if the algorithm does not need
            features.
        input_shape: Shape of one row of inputs.
        linear_head: Whether the model's head, before `wrap_model`, is one linear layer.
        layers: Number of channels of each layer in `Algorithm.layers_used`, by name.
        build: Function that takes the shape of one input row and builds a model with the run's architecture
            and new random weights; None if the run was given a model object, which cannot be built again.
    """

    environment_names: tuple[str, ...]
    environment_sizes: tuple[int, ...]
    task: Task
    features: int = 0
    input_shape: Sequence[int] = ()
    linear_head: bool = False
    layers: Mapping[str, int] = field(default_factory=dict[str, int])
    build: Callable[[Sequence[int]], nn.Module] | None = None

    def __post_init__(self) -> None:
        if self.environment_sizes and len(self.environment_sizes) != len(self.environment_names):
            raise EnvariantError(
                f"TrainContext: environment_sizes must have one entry per environment, "
                f"got {len(self.environment_sizes)} for {len(self.environment_names)} names"
            )

    @property
    def environments(self) -> int:
        """Number of training environments."""
        return len(self.environment_names)

    def another(self, input_shape: Sequence[int] | None = None) -> nn.Module:
        """Build a second model with the run's architecture and new random weights.

        Args:
            input_shape: Shape of one input row. Default: the input shape of the run.

        Raises:
            EnvariantError: If `build` is None, because the run was given a model object.
        """
        if self.build is None:
            raise EnvariantError(
                "model: this algorithm builds a second copy of the model, so it cannot use a model object; "
                "pass a model name, or a function that returns a new model"
            )
        return self.build(self.input_shape if input_shape is None else input_shape)
