"""EQRM: minimize a quantile of the distribution of risks over environments."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, final

import torch
from pydantic import NonNegativeInt
from torch import Tensor

from envariant.algorithms.base import Requirement, RiskAggregator, State
from envariant.core.environments import PredictedBatch
from envariant.core.errors import EnvariantError
from envariant.core.search_space import Choice, Uniform, UniformInteger

# The released code uses 32 steps; with 52 only rounding errors remain.
_BISECTION_STEPS = 52


@final
@dataclass(frozen=True)
class EQRM(RiskAggregator):
    """Quantile k with F(k) = α, where F is a smooth distribution of the risks. Eastwood et al. 2022, eq. 4.1.

    F is the distribution function of a Gaussian kernel density estimate from the risks R_e of E environments.
    Its bandwidth is b = 1.06·s·E^(−1/5), where s is the standard deviation of the risks (divisor E − 1). The
    first `burn_in` steps minimize the mean risk. The released code then restarts Adam with a learning rate of
    1e-6. To reproduce this, use `burn_in=2500`, optimizer `adam(reset=2500)` and learning rate
    `step(1e-3, 1e-6, at=2500)`. All three step numbers must be equal.

    Attributes:
        quantile: α in (0, 1) or, for α close to 1, the negative number a = log(1 − α). Given a, k is
            approximated by mean_e(R_e) + b·√(−2a).
        burn_in: Number of initial steps that minimize the mean risk. The random search of the released code
            samples fractional values. They never equal a step number, so that code never restarts Adam.
        slope: Derivative of k: "brackets" differentiates the ends of the initial bisection interval, as in
            the authors' code; "exact" differentiates F(k) = α.
        bandwidth: Formula of b: "gaussian" as above, or "silverman", b = 0.9·min(s, IQR/1.34)·E^(−1/5).
    """

    name: ClassVar[str] = "eqrm"
    paper: ClassVar[str] = "Eastwood et al. 2022, arXiv 2207.09944"
    minimum_environments: ClassVar[int] = 2
    quantile: Annotated[float, Uniform(0.5, 0.99)] = 0.75
    burn_in: Annotated[NonNegativeInt, UniformInteger(300, 3000)] = 100
    slope: Annotated[Literal["brackets", "exact"], Choice(("brackets", "exact"))] = "brackets"
    bandwidth: Literal["gaussian", "silverman"] = "gaussian"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.quantile < 0 or 0 < self.quantile < 1):
            raise EnvariantError(
                f"EQRM: quantile must be α in (0, 1), or the negative number log(1 − α); got "
                f"{self.quantile:g}"
            )

    def switch_steps(self) -> Mapping[str, int]:
        return {"burn_in": self.burn_in}

    def requires(self) -> Requirement:
        return "risks"

    def risk(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        mean, quantile = predicted.risks.mean(), self.of_risks(predicted.risks)
        return torch.where(torch.as_tensor(predicted.context.step) < self.burn_in, mean, quantile), state

    def of_risks(self, risks: Tensor) -> Tensor:
        """Return the quantile k of the risks, `[environments]`; their mean if all risks are equal."""
        if len(risks) == 1:
            return risks.mean()
        # The quantile and its slopes are computed without autograd, which cannot differentiate a bisection.
        fixed = risks.detach().double()
        value, slopes = self._value_and_slopes(fixed)
        surrogate = value.to(risks.dtype) + (slopes.to(risks.dtype) * (risks - risks.detach())).sum()
        apart = fixed.max() - fixed.min() > 1e-12 * fixed.abs().max()
        return torch.where(apart, surrogate, risks.mean())

    def _value_and_slopes(self, risks: Tensor) -> tuple[Tensor, Tensor]:
        """Return the quantile k of the risks R_e, and the derivatives ∂k/∂R_e, `[environments]`."""
        environments = len(risks)
        spread = risks.std()
        tiny = torch.finfo(risks.dtype).tiny
        scale = environments ** (-0.2)
        width, factor = spread, 1.06 * scale
        if self.bandwidth == "silverman":
            low, high = torch.quantile(risks, 0.25), torch.quantile(risks, 0.75)
            width, factor = torch.minimum(spread, (high - low) / 1.34), 0.9 * scale
        b = (factor * width).clamp(min=tiny)
        # b is proportional to s; the quartiles of "silverman" are treated as constants.
        s_slopes = (risks - risks.mean()) / ((environments - 1) * spread.clamp(min=tiny))
        b_slopes = factor * s_slopes if self.bandwidth == "gaussian" else torch.zeros_like(s_slopes)

        alpha = torch.as_tensor(self.quantile, dtype=risks.dtype, device=risks.device)
        root = (-2 * alpha.clamp(max=0)).sqrt()
        limit, limit_slopes = risks.mean() + b * root, 1 / environments + root * b_slopes

        inner = torch.where(alpha > 0, alpha, 0.5)
        z = torch.special.ndtri(inner)
        low, high = risks.min() + b * z, risks.max() + b * z
        left, right = low, high
        for _ in range(_BISECTION_STEPS):
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
