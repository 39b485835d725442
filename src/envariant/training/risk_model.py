"""Linear model that maps an environment to its risk, and the task of this model.

Algorithms apply to environments as they apply to the rows of a batch: the risk of an environment takes the
place of the loss of a row. See `linear_risks` for the conditions.
"""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from envariant.algorithms.base import Parameters
from envariant.core.environments import EnvironmentBatch
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Task
from envariant.training.risk_functions import Curve, risk_and_gradient

WEIGHT, BIAS = "head.weight", "head.bias"
"""Names of the parameters of a linear model."""


@final
@dataclass(frozen=True)
class RiskModel:
    """Model passed to algorithms in place of `PureModel`; it maps every environment to its risk.

    An environment is one row of inputs. Its outputs take the place of logits; see `RiskTask`.

    Attributes:
        curve: Loss of a row.
        derivatives: Whether the outputs include two derivatives of the risk.
    """

    curve: Curve
    derivatives: bool

    @property
    def auxiliary_networks(self) -> tuple[str, ...]:
        """Names of the algorithm's auxiliary networks; there are none."""
        return ()

    def batch(self, inputs: Float[Tensor, "environments rows columns"]) -> EnvironmentBatch:
        """Return the batch of a step.

        Args:
            inputs: Inputs of the step, prepared by `linear_risks.replace`.
        """
        count = len(inputs)
        return EnvironmentBatch(inputs, inputs.new_zeros(count), (1,) * count, RiskTask())

    def __call__(self, params: Parameters, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return features of width 0, and the outputs, `[environments, 1]` or `[environments, 3]`."""
        # The same operations for one environment as for each of several, so that programs do not repeat them.
        apart = inputs.split((1,) * len(inputs)) if len(inputs) > 1 else (inputs,)
        outputs = torch.stack([self._outputs(params, each[0]) for each in apart])
        return outputs.new_zeros(len(outputs), 0), outputs

    def _outputs(self, params: Parameters, inputs: Float[Tensor, "rows columns"]) -> Tensor:
        own = torch.cat([params[BIAS], params[WEIGHT].flatten()])
        shares, rows = inputs[:, 0], inputs[:, 1:]
        # The targets of regression are an additional column, with weight 1.
        weights = own if rows.shape[1] == len(own) else torch.cat([own, own.new_ones(1)])
        risk, gradient = risk_and_gradient(weights, rows, shares, self.curve)
        if not self.derivatives:
            return risk[None]
        # A multiplier s of the logits multiplies bias and weights; a shift t is added to the bias.
        return torch.stack([risk, (own * gradient[: len(own)]).sum(), gradient[0]])

    def layers(self, params: Parameters, inputs: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return no layer outputs, and the outputs of the model."""
        return (), self(params, inputs)[1]

    def head(self, params: Parameters, features: Tensor) -> Tensor:
        """Raise an error, because single rows are not available."""
        raise EnvariantError("algorithm: a part that calls the head must require rows; see requires()")

    def network(self, name: str, params: Parameters, inputs: Tensor) -> Tensor:
        """Raise an error, because there are no auxiliary networks."""
        raise EnvariantError(f"algorithm: there is no auxiliary network '{name}'")

    def updated_buffers(self) -> dict[str, Tensor]:
        """Return no buffers, because a linear model has none."""
        return {}


@final
@dataclass(frozen=True)
class RiskTask(Task):
    """Task whose rows are environments.

    The outputs are the risk R(z) of the environment's logits z and, if the algorithm needs them, the
    derivatives ∂R(s·z)/∂s at s = 1 and ∂R(z + t)/∂t at t = 0.
    """

    name: ClassVar[str] = "risk"
    metric: ClassVar[str] = "risk"
    higher_is_better: ClassVar[bool] = False

    @property
    def outputs(self) -> int:
        return 1

    @property
    def chance(self) -> None:
        return None

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits[:, 0]

    def multiplier_derivatives(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits[:, 1]

    def residuals(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits[:, 2]

    def scores(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits[:, 0]

    def confidence(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        raise EnvariantError("algorithm: a part that uses probabilities must require rows; see requires()")

    def cast(self, targets: Tensor, where: str) -> Tensor:
        return targets
