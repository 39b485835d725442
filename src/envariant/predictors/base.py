"""Abstract base classes of predictors that are fitted in one call, without gradient steps."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from envariant.core.environments import WEIGHT, EnvironmentSet


class FittedPredictor(ABC):
    """Predictor after fitting.

    Attributes:
        iterations: Number of iterations or trees of the fit; 1 if the predictor has no iterations.
    """

    iterations: int

    @abstractmethod
    def logits(self, inputs: Float[Tensor, "rows *input_shape"]) -> Float[Tensor, "rows *c"]:
        """Return logits `[rows]` or `[rows, classes]`, or the predicted targets `[rows]` for regression.

        Args:
            inputs: Inputs `[rows, *input_shape]`, encoded as in training.
        """


class Predictor(ABC):
    """Model fitted to the pooled rows of all training environments.

    Attributes:
        name: Name shown in tables; unique among the algorithms of a study.
        minimum_environments: Smallest number of training environments.
    """

    name: str
    minimum_environments: ClassVar[int] = 1

    @abstractmethod
    def fit(self, environments: EnvironmentSet, seed: int) -> FittedPredictor:
        """Fit the predictor to the training environments.

        Args:
            environments: Training environments only.
            seed: Random seed of the fit.

        Raises:
            EnvariantError: If the predictor cannot be fitted to the data.
        """


def pooled(
    environments: EnvironmentSet,
) -> tuple[Shaped[Tensor, "rows width"], Shaped[Tensor, " rows"], Float[Tensor, " rows"] | None]:
    """Concatenate the inputs, targets and sample weights of all environments.

    Args:
        environments: Environments with one input shape.

    Returns:
        Inputs `[rows, width]`, flattened; targets `[rows]`; weights `[rows]`, or None without weights.
    """
    rows: list[tuple[Tensor, Tensor]] = [environment.rows() for environment in environments.environments]
    inputs, targets = (torch.cat(parts) for parts in zip(*rows, strict=True))
    attributes: list[Any] = [environment.attributes for environment in environments.environments]
    weights = torch.cat([each[WEIGHT] for each in attributes]) if WEIGHT in attributes[0] else None
    return inputs.flatten(1), targets, weights
