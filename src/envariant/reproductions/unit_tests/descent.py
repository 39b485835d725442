"""Full-batch gradient descent for many runs of linear models at once.

Every method combines the gradients g_e of the risks R_e, and products H_e v with their Hessians H_e, into
one gradient. With weights w, whose last entry is the bias, E environments, penalty weight λ, penalty
coefficient c and threshold τ, the combined gradients are

    ERM      mean_e g_e
    IRMv1    (1 − λ) mean_e g_e + λ Σ_e ∇[(w · g_e)² + (last entry of g_e)²]
             (derivatives with respect to a factor and an offset of the output)
    IGA      mean_e g_e + c Σ_e ∇‖g_e − mean g‖² = mean_e g_e + 2c Σ_e H_e (g_e − mean g)
    ANDMask  mean_e g_e where |Σ_e sign g_e| > τE, else 0
             (all entries of g_e except the bias are first scaled to a vector of length 1)

ANDMask changes the weights by plain gradient descent, all other methods by Adam.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Float

from envariant.reproductions.quadratic import Moments
from envariant.reproductions.unit_tests.hyperparameters import Hyperparameters, Method

Array = np.ndarray[Any, np.dtype[Any]]
Weights = Float[np.ndarray, "draws runs weights"]
Gradients = Float[np.ndarray, "draws environments runs weights"]

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


class Risks(ABC):
    """Risks of linear models in several environments, for several data draws and runs."""

    @abstractmethod
    def gradients(self, w: Weights) -> Gradients:
        """Return the gradient of every risk at given weights."""

    @abstractmethod
    def curvature(self, v: Gradients) -> Gradients:
        """Return the product of every Hessian with a vector, at the weights of the last call of `gradients`.

        Args:
            v: One vector per data draw, environment and run. If it contains only n runs, they are the first n
                runs of that call.
        """


@final
class QuadraticRisks(Risks):
    """Mean squared errors, computed from moments in float64.

    Args:
        moments: Moments of each data draw and environment, with an intercept.
    """

    def __init__(self, moments: Moments) -> None:
        self._gram, self._cross = 2 * moments.gram.numpy(), 2 * moments.cross.numpy()[:, :, None]

    def gradients(self, w: Weights) -> Gradients:
        return w[:, None] @ self._gram - self._cross

    def curvature(self, v: Gradients) -> Gradients:
        return v @ self._gram


@final
@dataclass(frozen=True)
class _Block:
    """Consecutive runs of one method, with one entry per run in every array."""

    method: Method
    place: slice
    rate: Array
    decay: Array
    strength: Array

    @classmethod
    def of(cls, method: Method, start: int, values: Sequence[Hyperparameters], dtype: Any) -> "_Block":
        def column(name: str) -> Array:
            return np.array([getattr(each, name) for each in values], dtype)[:, None]

        columns = map(column, ("learning_rate", "weight_decay", "strength"))
        return cls(method, slice(start, start + len(values)), *columns)


_ORDER: tuple[Method, ...] = ("IRMv1", "IGA", "ERM", "Oracle", "ANDMask")


def descend(
    risks: Risks,
    start: Weights,
    runs: Sequence[tuple[Method, Hyperparameters]],
    steps: int,
) -> Weights:
    """Return the weights of every run after full-batch training.

    Runs that diverge end with weights that are not finite.

    Args:
        risks: Risks of the training environments.
        start: Initial weights; their data type is used for the computation.
        runs: Method and hyperparameters of each run.
        steps: Number of updates.
    """
    # Methods with second derivatives come first, and ANDMask, which does not use Adam, comes last.
    order = sorted(range(len(runs)), key=lambda i: _ORDER.index(runs[i][0]))
    blocks: list[_Block] = []
    for method in _ORDER:
        values = [runs[i][1] for i in order if runs[i][0] == method]
        first = blocks[-1].place.stop if blocks else 0
        blocks += [_Block.of(method, first, values, start.dtype)] if values else []
    w = start[:, order].copy()
    adam = _Adam(w, [block for block in blocks if block.method != "ANDMask"])
    with np.errstate(all="ignore"):
        for _ in range(steps):
            gradients = risks.gradients(w)
            update = gradients.mean(axis=1)
            _add_penalties(update, gradients, w, risks, blocks)
            adam.step(w, update)
            if blocks[-1].method == "ANDMask":
                _masked_step(w, gradients, blocks[-1])
    result = np.empty_like(w)
    result[:, order] = w
    return result


def _add_penalties(
    update: Weights, gradients: Gradients, w: Weights, risks: Risks, blocks: Sequence[_Block]
) -> None:
    """Add the gradients of the penalties of IRMv1 and IGA to the mean gradients `update`, in place."""
    vectors: list[Gradients] = []
    for block in blocks:
        g, own = gradients[:, :, block.place], update[:, block.place]
        if block.method == "IRMv1":
            factor = 2 * block.strength * (g * w[:, None, block.place]).sum(axis=-1, keepdims=True)
            vector = factor * w[:, None, block.place]
            vector[..., -1] += 2 * block.strength[:, 0] * g[..., -1]
            vectors.append(vector)
            own *= 1 - block.strength
            own += (factor * g).sum(axis=1)
        elif block.method == "IGA":
            vectors.append(2 * block.strength * (g - own[:, None]))
    if vectors:
        products = risks.curvature(vectors[0] if len(vectors) == 1 else np.concatenate(vectors, axis=2))
        update[:, : products.shape[2]] += products.sum(axis=1)


@final
class _Adam:
    """Adam as in PyTorch, with weight decay added to the gradient, for the first runs of a stack."""

    def __init__(self, w: Weights, blocks: Sequence[_Block]) -> None:
        self._stop, self._steps = blocks[-1].place.stop if blocks else 0, 0
        if blocks:
            self._rate = np.concatenate([block.rate for block in blocks])
            self._decay = np.concatenate([block.decay for block in blocks])
        self._m, self._v = np.zeros_like(w[:, : self._stop]), np.zeros_like(w[:, : self._stop])

    def step(self, w: Weights, update: Weights) -> None:
        """Update the weights in place."""
        if not self._stop:
            return
        self._steps += 1
        own = w[:, : self._stop]
        g = update[:, : self._stop] + self._decay * own
        self._m += (1 - _BETA1) * (g - self._m)
        self._v *= _BETA2
        self._v += (1 - _BETA2) * np.square(g)
        scale = np.sqrt(self._v)
        scale *= 1 / (1 - _BETA2**self._steps) ** 0.5
        scale += _EPSILON
        own -= self._rate / (1 - _BETA1**self._steps) * self._m / scale


def _masked_step(w: Weights, gradients: Gradients, block: _Block) -> None:
    """Update the weights of ANDMask's runs in place; the mask is strict (> τE), as in the unit tests."""
    g = gradients[:, :, block.place].copy()
    weights = g[..., :-1]
    length = np.sqrt(np.square(weights).sum(axis=-1, keepdims=True))
    weights /= np.where(length > 0, length, 1)
    agreement = np.abs(np.sign(g).sum(axis=1))
    own = w[:, block.place]
    masked = np.where(agreement > block.strength * g.shape[1], g.mean(axis=1), 0)
    own -= block.rate * (masked + block.decay * own)
