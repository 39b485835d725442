"""Logistic risks of linear models and their full-batch gradients.

Runs are processed in blocks whose intermediate results fit the cache of a core. With targets ±1 multiplied
into the inputs, u = −y (x, 1), the risk is the mean of log(1 + exp(u · w)). Its gradient is the mean of
σ(u · w) u. Because σ(s) = (1 + tanh(s/2))/2, only tanh is computed for each row.
"""

from collections.abc import Sequence
from typing import final

import numpy as np
from torch import Tensor

from envariant.reproductions.unit_tests.descent import Array, Gradients, Risks, Weights

_STACK = 8
"""Runs that are computed together: with more, intermediate results do not fit the cache of one core."""


@final
class LogisticRisks(Risks):
    """Mean logistic losses of one data draw, computed in float32.

    Args:
        rows: Inputs and targets of each environment; targets are 0 or 1.
    """

    def __init__(self, rows: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._inputs: list[Array] = []
        for x, y in rows:
            signs = (1 - 2 * y.numpy()).astype(np.float32)
            # One input per row of the array, so that products run along the many rows of the data.
            columns = np.concatenate([x.numpy().T, np.ones((1, len(x)), np.float32)])
            self._inputs.append(np.ascontiguousarray(columns * (signs / 2)))
        self._offsets = [u.sum(axis=1, dtype=np.float64).astype(np.float32) for u in self._inputs]
        self._tanh: list[list[Array]] = []

    def gradients(self, w: Weights) -> Gradients:
        groups = _groups(w[0])
        # Half inputs u/2 give tanh(u·w/2) and, times 1 + tanh, the gradient σ(u·w) u.
        self._tanh = []
        result = np.empty((1, len(self._inputs), *w.shape[1:]), w.dtype)
        for e, (u, offset) in enumerate(zip(self._inputs, self._offsets, strict=True)):
            values: list[Array] = []
            for place, part in groups:
                t = part @ u
                np.tanh(t, out=t)
                values.append(t)
                own = result[0, e, place]
                np.add(t @ u.T, offset, out=own)
                own /= u.shape[1]
            self._tanh.append(values)
        return result

    def curvature(self, v: Gradients) -> Gradients:
        result = np.empty_like(v)
        for e, u in enumerate(self._inputs):
            for (place, part), t in zip(_groups(v[0, e]), self._tanh[e], strict=False):
                # σ' = (1 − tanh²)/4; the halves of both factors u give another 4.
                slope = np.square(t[: len(part)])
                np.subtract(1, slope, out=slope)
                slope *= part @ u
                np.divide(slope @ u.T, u.shape[1], out=result[0, e, place])
        return result


def _groups(rows: Array) -> list[tuple[slice, Array]]:
    places = (slice(start, start + _STACK) for start in range(0, len(rows), _STACK))
    return [(place, np.ascontiguousarray(rows[place])) for place in places]


def error_rates(rows: Sequence[tuple[Tensor, Tensor]], w: Array) -> Array:
    """Return the error rate of every run in every environment; class 1 is predicted if the output is > 0.

    Args:
        rows: Inputs and targets of each environment; targets are 0 or 1.
        w: Weights of each run, with the bias as the last entry.

    Returns:
        Error rates `[runs, environments]`; NaN for weights that are not finite.
    """
    outputs = [x.numpy() @ w[:, :-1].T + w[:, -1] for x, _ in rows]
    targets = [np.asarray(y[:, None]) for _, y in rows]
    wrong = [np.not_equal(z > 0, y > 0.5).mean(axis=0) for z, y in zip(outputs, targets, strict=True)]
    return np.where(np.isfinite(w.sum(axis=1)).reshape(-1, 1), np.stack(wrong, axis=1), np.nan)
