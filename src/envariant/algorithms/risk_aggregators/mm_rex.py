"""MM-REx: minimize the largest affine combination of the risks, which may have negative weights."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

from torch import Tensor

from envariant.algorithms.base import Requirement, RiskAggregator, State, as_coefficient
from envariant.algorithms.risk_aggregators.worst import worst_risk
from envariant.core.environments import PredictedBatch
from envariant.core.errors import EnvariantError
from envariant.core.schedules import Constant, Schedule, Step
from envariant.core.search_space import LogUniform


@final
@dataclass(frozen=True)
class MMREx(RiskAggregator):
    """Largest affine combination max_λ Σ_e λ_e·R_e (Σ_e λ_e = 1, λ_e ≥ λ_min). Krueger et al. 2021, eq. 4–5.

    R_e is the risk of environment e. The maximum is R̄ + κ·(max_e R_e − R̄) with the mean R̄ of all E risks
    and κ = 1 − E·λ_min. κ = 0 is ERM, κ = 1 is the worst-case risk, and κ > 1 extrapolates beyond the largest
    risk.

    Attributes:
        coefficient: κ ≥ 0. With two environments, κ equals the weight c of |R_1 − R_2| in the REx code.
    """

    name: ClassVar[str] = "mm-rex"
    paper: ClassVar[str] = "Krueger et al. 2021, arXiv 2003.00688"
    minimum_environments: ClassVar[int] = 2
    coefficient: Annotated[Schedule, LogUniform(1e2, 1e6)] = Step(1.0, 1e4, at=100)

    def __post_init__(self) -> None:
        object.__setattr__(self, "coefficient", as_coefficient(self.coefficient, "MMREx"))
        super().__post_init__()

    @classmethod
    def with_minimum_weight(cls, minimum: float, environments: int) -> "MMREx":
        """Build the aggregator from the paper's parameter λ_min instead of κ.

        Args:
            minimum: λ_min, smallest weight of an environment; at most 1/E.
            environments: E, number of training environments.

        Raises:
            EnvariantError: If `minimum` exceeds 1/E, so that the weights cannot sum to 1.
        """
        if not environments * minimum <= 1 + 1e-9:
            raise EnvariantError(f"MMREx: minimum must be at most 1/{environments}, got {minimum:g}")
        return cls(Constant(max(0.0, 1 - environments * minimum)))

    def coefficient_at(self, step: int) -> float:
        return self.coefficient(step)

    def requires(self) -> Requirement:
        return "risks"

    def risk(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        risks = predicted.risks
        excess = worst_risk(risks) - risks.mean()
        return risks.mean() + self.coefficient(predicted.context.step) * excess, state
