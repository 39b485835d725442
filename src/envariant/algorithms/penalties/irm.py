"""IRMv1: learn features for which one classifier is optimal in every environment."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, final

import torch
from torch import Tensor

from envariant.algorithms.base import Penalty, Requirement, State
from envariant.core.environments import PredictedBatch
from envariant.core.schedules import Schedule, Step
from envariant.core.search_space import LogUniform


@final
@dataclass(frozen=True)
class IRM(Penalty):
    """Squared gradient (1/E) Σ_e ‖∇_{w|w=1} R_e(w·f)‖² with logit multiplier w. Arjovsky et al. 2019.

    This is equation IRMv1 of the paper. R_e(w·f) is the risk of environment e if the logits of the model f
    are multiplied by w; E is the number of environments. For loss ℓ_i and logits z_i of row i, the derivative
    is the mean of d_i = ∂ℓ_i/∂z_i · z_i over the rows of e (`Task.multiplier_derivatives`), so no second
    differentiation is needed.

    Attributes:
        coefficient: Weight of the penalty (λ in the paper). The penalty of a constant predictor is 0, so a
            large weight from the first step on leads to chance accuracy. By default, the weight increases at
            step 100.
        form: Estimator of the squared gradient. "squared" is the formula above, for large batches. "halves"
            is the product of the derivatives on even and odd rows: unbiased for small batches, but possibly
            negative (DomainBed). "dummies" is "squared" plus the squared derivative with respect to a
            constant added to all logits (Aubin et al. 2021).
    """

    name: ClassVar[str] = "irm"
    paper: ClassVar[str] = "Arjovsky, Bottou, Gulrajani, Lopez-Paz 2019, arXiv 1907.02893"
    minimum_environments: ClassVar[int] = 2
    coefficient: Annotated[Schedule, LogUniform(1e2, 1e6)] = Step(1.0, 1e4, at=100)
    form: Literal["squared", "halves", "dummies"] = "squared"

    def requires(self) -> Requirement:
        return "rows" if self.form == "halves" else "derivatives"

    def penalty(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        batch, derivatives = predicted.batch, predicted.multiplier_derivatives()
        if self.form == "halves":
            return torch.stack([_of_halves(d) for d in batch.split(derivatives)]).mean(), state
        squares = batch.per_environment_mean(derivatives).square()
        if self.form == "dummies":
            residuals = batch.task.residuals(predicted.logits, batch.targets)
            shifts = residuals.reshape(len(residuals), -1).sum(dim=1)
            squares = squares + batch.per_environment_mean(shifts).square()
        return squares.mean(), state


def _of_halves(derivatives: Tensor) -> Tensor:
    """Return the mean over even rows times the mean over odd rows; 0 for a single row."""
    even, odd = derivatives[::2], derivatives[1::2]
    return even.mean() * odd.mean() if len(odd) else derivatives.new_zeros(())
