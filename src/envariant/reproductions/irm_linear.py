"""IRM for linear models with a square featurizer, from sufficient statistics, many problems in one batch.

The released program of Arjovsky et al. 2019 learns Φ with w = 1 fixed. With v = Φ1, r = Gv − c and q = Φᵀr of
each environment, and d inputs,

    R = vᵀGv − 2cᵀv + s        P = (4/d) ‖q‖²        loss = reg Σ_e R_e + (1 − reg) Σ_e P_e
    ∂R/∂Φ = 2 r 1ᵀ             ∂P/∂Φ = (8/d)(r qᵀ + (GΦq) 1ᵀ)

Φ starts from the identity; Adam with full batches moves it.
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from envariant.reproductions.quadratic import Moments

REGS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Weights of the risk among which the program chooses."""
RATE, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-8
# Problems in one batch: few enough that all arrays fit into the cache of a core.
_BATCH = 192


@final
@dataclass(frozen=True, eq=False)
class Selected:
    """Solution with the smallest risk in a validation environment.

    Attributes:
        weights: Weights Φ1 of each problem, of shape `[problems, d]`.
        regs: Chosen weight of the risk of each problem, of shape `[problems]`.
    """

    weights: Tensor
    regs: Tensor


def select(
    train: Moments,
    validation: Moments,
    steps: int,
    *,
    dtype: torch.dtype = torch.float32,
) -> Selected:
    """Run IRM with every weight of `REGS`, and select by the risk in a validation environment.

    Args:
        train: Moments of shape `[problems, environments]`.
        validation: Moments of the validation environment, of shape `[problems]`.
        steps: Number of full-batch steps.
        dtype: Type of the computation. The program uses float32.
    """
    problems, count = len(train.square), len(REGS)
    index = torch.arange(problems).repeat_interleave(count)
    regs = torch.tensor(REGS, dtype=dtype).repeat(problems)
    batches: list[Tensor] = []
    for some, reg in zip(index.split(_BATCH), regs.split(_BATCH), strict=True):
        batches.append(featurizers(train[some].to(dtype), reg, steps).sum(-1).double())
    weights = torch.cat(batches).view(problems, count, -1)
    # The first of equals, as the program's strict comparison.
    best = validation[:, None].risk(weights).argmin(dim=1)
    return Selected(weights[torch.arange(problems), best], torch.tensor(REGS, dtype=torch.float64)[best])


def featurizers(train: Moments, reg: Tensor, steps: int) -> Tensor:
    """Return Φ after a number of steps, of shape `[problems, d, d]`.

    Args:
        train: Moments of shape `[problems, environments]`.
        reg: Weight of the risk of each problem; the penalty has weight 1 − reg.
        steps: Number of full-batch steps.
    """
    problems, environments, d = train.cross.shape
    gram = train.gram.reshape(problems, environments * d, d)
    cross = train.cross.reshape(problems, environments * d, 1)
    # Gᵀ = G; a contiguous copy is faster in products.
    transposed = gram.mT.contiguous()
    on_risk, on_penalty = 2 * reg[:, None, None], (8 / d) * (1 - reg[:, None, None])
    phi = torch.eye(d, dtype=gram.dtype).repeat(problems, 1, 1)
    first, second, denominator = torch.zeros_like(phi), torch.zeros_like(phi), torch.empty_like(phi)
    for step in range(1, steps + 1):
        r = torch.baddbmm(cross, gram, phi.sum(-1, keepdim=True), beta=-1).view(problems, environments, d)
        q = torch.bmm(r, phi).mul_(on_penalty)
        column = torch.bmm(transposed, torch.bmm(q, phi.mT).view(problems, -1, 1))
        column.addcmul_(r.sum(1)[..., None], on_risk)
        gradient = torch.baddbmm(column, r.mT, q)
        first.lerp_(gradient, 1 - BETA1)
        second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        torch.sqrt(second, out=denominator)
        denominator.div_(math.sqrt(1 - BETA2**step)).add_(EPS)
        phi.addcdiv_(first, denominator, value=-RATE / (1 - BETA1**step))
    return phi
