"""IRM for batches of linear problems with a square featurizer, computed from sufficient statistics.

The released program of Arjovsky et al. 2019 learns a featurizer Φ; the weights on the features are fixed to a
vector 1 of ones. Each environment has moments G, c and s (see `quadratic.py`). With v = Φ1, r = Gv − c,
q = Φᵀr and d inputs, its risk R and penalty P are

    R = vᵀGv − 2cᵀv + s        P = (4/d) ‖q‖²
    ∂R/∂Φ = 2 r 1ᵀ             ∂P/∂Φ = (8/d)(r qᵀ + (GΦq) 1ᵀ)

The loss reg Σ_e R_e + (1 − reg) Σ_e P_e is minimized by full-batch Adam, starting from the identity Φ.
"""

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from envariant.reproductions.quadratic import Moments

REGS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Candidate values of `reg`, the weight of the risk; the program selects one of them."""
RATE, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-8
# Problems in one batch: few enough that all arrays fit into the cache of a core.
_BATCH = 384


@final
@dataclass(frozen=True, eq=False)
class Selected:
    """Selected solutions: for each problem, the one with the smallest risk in a validation environment.

    Attributes:
        weights: Weights Φ1 of each problem, of shape `[problems, d]`.
        regs: Weight of the risk with which each selected solution was trained, of shape `[problems]`.
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
    """Run IRM with every risk weight in `REGS`; select the solution with the smallest validation risk.

    Args:
        train: Moments of shape `[problems, environments]`.
        validation: Moments of the validation environment, of shape `[problems]`.
        steps: Number of full-batch steps.
        dtype: Data type of the computation. The released program uses float32.
    """
    problems, count = len(train.square), len(REGS)
    index = torch.arange(problems).repeat_interleave(count)
    regs = torch.tensor(REGS, dtype=dtype).repeat(problems)
    batches: list[Tensor] = []
    for some, reg in zip(index.split(_BATCH), regs.split(_BATCH), strict=True):
        batches.append(featurizers(train[some].to(dtype), reg, steps).sum(-1).double())
    return selected(torch.cat(batches).view(problems, count, -1), validation)


def selected(weights: Tensor, validation: Moments) -> Selected:
    """Select, for each problem, the solution with the smallest risk in a validation environment.

    Args:
        weights: One solution for each problem and each value of `REGS`, of shape `[problems, regs, d]`.
        validation: Moments of the validation environment, of shape `[problems]`.
    """
    # Ties go to the first candidate, because the program's comparison is strict.
    best = validation[:, None].risk(weights).argmin(dim=1)
    return Selected(weights[torch.arange(len(best)), best], torch.tensor(REGS, dtype=torch.float64)[best])


def featurizers(train: Moments, reg: Tensor, steps: int) -> Tensor:
    """Train one featurizer Φ per problem, and return them as one tensor of shape `[problems, d, d]`.

    Args:
        train: Moments of shape `[problems, environments]`.
        reg: Weight of the risk in the loss of each problem; the weight of the penalty is 1 − reg.
        steps: Number of full-batch steps.
    """
    # With problems in the last dimension, NumPy's products take a third of the time of batched products in
    # PyTorch. Axes: e environment, i and j inputs, p problem.
    gram, cross = (np.ascontiguousarray(np.moveaxis(a.numpy(), 0, -1)) for a in (train.gram, train.cross))
    weight, d = reg.numpy(), cross.shape[1]
    number = gram.dtype.type
    on_risk, on_penalty = 2 * weight, number(8 / d) * (1 - weight)
    phi = np.repeat(np.eye(d, dtype=number)[..., None], len(weight), axis=2)
    first, second, gradient, buffer = (np.zeros_like(phi) for _ in range(4))
    for step in range(1, steps + 1):
        r = np.einsum("eijp,jp->eip", gram, phi.sum(axis=1)) - cross
        q = np.einsum("eip,ijp->ejp", r, phi) * on_penalty
        column = np.einsum("eijp,ejp->ip", gram, np.einsum("ejp,ijp->eip", q, phi)) + on_risk * r.sum(axis=0)
        np.einsum("eip,ejp->ijp", r, q, out=gradient)
        gradient += column[:, None]
        first += np.multiply(np.subtract(gradient, first, out=buffer), number(1 - BETA1), out=buffer)
        second *= number(BETA2)
        second += np.multiply(np.square(gradient, out=buffer), number(1 - BETA2), out=buffer)
        np.sqrt(second, out=buffer)
        buffer *= number(1 / math.sqrt(1 - BETA2**step))
        buffer += number(EPS)
        np.divide(first, buffer, out=buffer)
        phi -= np.multiply(buffer, number(RATE / (1 - BETA1**step)), out=buffer)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(phi, -1, 0)))
