"""The protocol of predictors that are fitted as a whole rather than trained by gradient steps."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from envariant.core.environments import WEIGHT, EnvironmentSet


class FittedPredictor(ABC):
    """A fitted predictor.

    Attributes:
        iterations: Number of iterations or trees that fitting took; 1 where there are none.
    """

    iterations: int

    @abstractmethod
    def logits(self, inputs: Float[Tensor, "rows *input_shape"]) -> Float[Tensor, "rows *c"]:
        """Return logits, or the predicted target of a regression: `[rows]`, or `[rows, classes]`.

        Args:
            inputs: Rows `[rows, *input_shape]`, encoded as in training.
        """


class Predictor(ABC):
    """A model that is fitted to the pooled rows of all training environments.

    Attributes:
        name: Name shown in tables; unique among the algorithms of a study.
        minimum_environments: Number of training environments that it needs.
    """

    name: str
    minimum_environments: ClassVar[int] = 1

    @abstractmethod
    def fit(self, environments: EnvironmentSet, seed: int) -> FittedPredictor:
        """Fit to training environments.

        Args:
            environments: The training environments only.
            seed: Seed of everything random in fitting.

        Raises:
            EnvariantError: If the data do not suit the predictor.
        """


def pooled(
    environments: EnvironmentSet,
) -> tuple[Shaped[Tensor, "rows width"], Shaped[Tensor, " rows"], Float[Tensor, " rows"] | None]:
    """Return inputs, targets and sample weights of all environments end to end.

    Args:
        environments: Environments with one input shape.

    Returns:
        Inputs `[rows, width]`, flattened; targets `[rows]`; weights `[rows]`, or None where rows have none.
    """
    rows: list[tuple[Tensor, Tensor]] = [environment.rows() for environment in environments.environments]
    inputs, targets = (torch.cat(parts) for parts in zip(*rows, strict=True))
    attributes: list[Any] = [environment.attributes for environment in environments.environments]
    weights = torch.cat([each[WEIGHT] for each in attributes]) if WEIGHT in attributes[0] else None
    return inputs.flatten(1), targets, weights
