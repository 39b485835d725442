"""EQRM: minimize a quantile of the risks over environments, between their mean and the worst of them."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, final

import torch
from torch import Tensor

from envariant.algorithms.base import RiskAggregator, State
from envariant.core import specs
from envariant.core.environments import PredictedBatch
from envariant.core.errors import EnvariantError
from envariant.core.search_space import Choice, Uniform, UniformInteger

# The released code makes 32; these leave nothing but rounding.
_HALVINGS = 52


@final
@dataclass(frozen=True)
class EQRM(RiskAggregator):
    """k with F(k) = α, F a Gaussian kernel density estimate of the risks. Eastwood et al. 2022, eq. 4.1.

    With s the standard deviation of the risks (divisor E − 1), the bandwidth is b = 1.06·s·E^(−1/5).
    Until `burn_in` the mean risk is minimized. The released code restarts Adam there, at a rate of 1e-6:
    `adam(reset=2500)`; see its page in the docs.

    Attributes:
        quantile: α in (0, 1); or a negative number, log(1 − α), for the limit mean_e(R_e + b·√(−2α)).
        burn_in: steps of the mean risk before; the code's random search draws it with a fraction, and then
            its reset never comes.
        slope: "brackets" differentiates the ends of the bisection's first interval, as the authors' code
            does; "exact" is the derivative of F(k) = α.
        bandwidth: "gaussian" as above, or "silverman", 0.9·min(s, IQR/1.34)·E^(−1/5).
    """

    name: ClassVar[str] = "eqrm"
    paper: ClassVar[str] = "Eastwood et al. 2022, arXiv 2207.09944"
    minimum_environments: ClassVar[int] = 2
    quantile: Annotated[float, Uniform(0.5, 0.99)] = 0.75
    burn_in: Annotated[int, UniformInteger(300, 3000)] = 100
    slope: Annotated[Literal["brackets", "exact"], Choice(("brackets", "exact"))] = "brackets"
    bandwidth: Literal["gaussian", "silverman"] = "gaussian"

    def __post_init__(self) -> None:
        specs.checked(EQRM, vars(self), "EQRM")
        if not (self.quantile < 0 or 0 < self.quantile < 1):
            raise EnvariantError(
                f"EQRM: quantile must lie between 0 and 1, or be log(1 − α) < 0; got {self.quantile:g}"
            )

    def risk(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        mean, quantile = predicted.risks.mean(), self.of_risks(predicted.risks)
        return torch.where(torch.as_tensor(predicted.context.step) < self.burn_in, mean, quantile), state

    def of_risks(self, risks: Tensor) -> Tensor:
        """The quantile of some risks; their mean where they are all the same, or one."""
        if len(risks) == 1:
            return risks.mean()
        # Its value and its slopes are constants of this step: both are known in closed form but for k.
        fixed = risks.detach().double()
        value, slopes = self._value_and_slopes(fixed)
        surrogate = value.to(risks.dtype) + (slopes.to(risks.dtype) * (risks - risks.detach())).sum()
        apart = fixed.max() - fixed.min() > 1e-12 * fixed.abs().max()
        return torch.where(apart, surrogate, risks.mean())

    def _value_and_slopes(self, risks: Tensor) -> tuple[Tensor, Tensor]:
        """k, and ∂k/∂R_e for every e."""
        environments = len(risks)
        spread = risks.std()
        tiny = torch.finfo(risks.dtype).tiny
        shrinking = environments ** (-0.2)
        width, coefficient_at = spread, 1.06 * shrinking
        if self.bandwidth == "silverman":
            low, high = torch.quantile(risks, 0.25), torch.quantile(risks, 0.75)
            width, coefficient_at = torch.minimum(spread, (high - low) / 1.34), 0.9 * shrinking
        b = (coefficient_at * width).clamp(min=tiny)
        # The bandwidth's slopes are those of s; Silverman's quartiles are held.
        own = (risks - risks.mean()) / ((environments - 1) * spread.clamp(min=tiny))
        b_slopes = coefficient_at * own if self.bandwidth == "gaussian" else torch.zeros_like(own)

        alpha = torch.as_tensor(self.quantile, dtype=risks.dtype, device=risks.device)
        root = (-2 * alpha.clamp(max=0)).sqrt()
        limit, limit_slopes = risks.mean() + b * root, 1 / environments + root * b_slopes

        inner = torch.where(alpha > 0, alpha, 0.5)
        z = torch.special.ndtri(inner)
        low, high = risks.min() + b * z, risks.max() + b * z
        left, right = low, high
        for _ in range(_HALVINGS):
            k = (left + right) / 2
            above = torch.special.ndtr((k - risks) / b).mean() > inner
            left, right = torch.where(above, left, k), torch.where(above, k, right)
        k = (left + right) / 2
        if self.slope == "exact":
            u = (k - risks) / b
            density = torch.exp(-u.square() / 2) / math.sqrt(2 * math.pi)
            slopes = (density + b_slopes * (density * u).sum()) / density.sum()
        else:
            share = (k - low) / (high - low).clamp(min=tiny)
            slopes = (1 - share) * _one_at(risks.argmin(), risks) + share * _one_at(risks.argmax(), risks)
            slopes = slopes + z * b_slopes
        tail = alpha < 0
        return torch.where(tail, limit, k), torch.where(tail, limit_slopes, slopes)


def _one_at(place: Any, like: Tensor) -> Tensor:
    return (torch.arange(len(like), device=like.device) == place).to(like.dtype)
