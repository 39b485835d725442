"""IGA: penalize differences between the gradients of environments."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

from torch import Tensor

from envariant.algorithms.base import GradientPenalty, State
from envariant.core.schedules import Constant, Schedule
from envariant.core.search_space import LogUniform


@final
@dataclass(frozen=True)
class IGA(GradientPenalty):
    """Gradient variance Σ_e ‖g_e − ḡ‖² over all parameters, with g_e = ∇R_e. Koyama & Yamaguchi 2020, eq. 8.

    R_e is the risk of environment e, and ḡ is the mean of all g_e. The paper averages over environments;
    released implementations sum. Whether ḡ is differentiated or treated as a constant does not change the
    penalty's gradient, because Σ_e (g_e − ḡ) is 0.

    Attributes:
        coefficient: Weight of the penalty (λ in the paper).
        average: Whether to average over environments, as in the paper, instead of summing.
    """

    name: ClassVar[str] = "iga"
    paper: ClassVar[str] = "Koyama & Yamaguchi 2020, arXiv 2008.01883"
    minimum_environments: ClassVar[int] = 2
    coefficient: Annotated[Schedule, LogUniform(1e1, 1e5)] = Constant(1e3)
    average: bool = False

    def penalty(self, gradients: Mapping[str, Tensor], state: State) -> tuple[Tensor, State]:
        spreads = [(g - g.mean(dim=0)).square().sum() for g in gradients.values()]
        total = sum(spreads[1:], spreads[0])
        return total / len(next(iter(gradients.values()))) if self.average else total, state
