"""Errors of models trained on the linear unit tests (a benchmark), for many model and data seeds at once."""

from collections.abc import Sequence
from typing import Any

import joblib
import numpy as np
import torch
from threadpoolctl import threadpool_limits

from envariant.core.machine import cores
from envariant.data.linear_unit_tests import LinearUnitTests, Problem
from envariant.reproductions.quadratic import Moments
from envariant.reproductions.unit_tests.descent import Array, QuadraticRisks, descend
from envariant.reproductions.unit_tests.hyperparameters import Method, hyperparameters, initial_weights
from envariant.reproductions.unit_tests.logistic import LogisticRisks, error_rates

STEPS, ROWS = 10_000, 10_000

_LONG = 10_000_000
"""Number of steps times rows from which data draws are distributed among processes."""


def errors(
    problem: Problem,
    environments: int,
    dim_spu: int,
    runs: Sequence[tuple[Method, int]],
    data_seeds: Sequence[int],
    steps: int = STEPS,
    rows: int = ROWS,
) -> dict[str, Any]:
    """Train a model for every run and data draw; return the validation and test errors.

    Args:
        problem: Name of the problem.
        environments: Number of training environments.
        dim_spu: Number of spurious inputs.
        runs: Method and model seed of each run.
        data_seeds: Seeds of the data draws.
        steps: Number of updates.
        rows: Number of rows of each environment in each split.

    Returns:
        Errors `[runs, data seeds, environments]` on the splits "validation" and "test"; NaN for runs that
        diverged. They are mean squared errors in regression and error rates in classification.
    """
    result = {split: np.empty((len(runs), len(data_seeds), environments)) for split in ("validation", "test")}
    solve = _quadratic if problem.startswith("example1") else _logistic
    for oracle in (False, True):
        chosen = [i for i, (method, _) in enumerate(runs) if (method == "Oracle") == oracle]
        if chosen:
            source = LinearUnitTests(problem, environments, dim_spu=dim_spu, rows=rows, oracle=oracle)
            found = solve(source, [runs[i] for i in chosen], data_seeds, steps)
            for split, values in found.items():
                result[split][chosen] = values
    return {split: values.tolist() for split, values in result.items()}


def _parts(source: LinearUnitTests, runs: Sequence[tuple[Method, int]]) -> tuple[Any, Array]:
    described = [(method, hyperparameters(method, seed)) for method, seed in runs]
    return described, initial_weights([seed for _, seed in runs], source.dim_inv + source.dim_spu)


def _quadratic(
    source: LinearUnitTests, runs: Sequence[tuple[Method, int]], data_seeds: Sequence[int], steps: int
) -> dict[str, Array]:
    described, start = _parts(source, runs)
    draws: dict[str, list[Moments]] = {}
    for seed in data_seeds:
        for split, rows in source.draw(seed):
            x, y = torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows])
            draws.setdefault(split, []).append(Moments.of(x, y, intercept=True))
    moments = {
        split: Moments(*(torch.stack([getattr(m, key) for m in each]) for key in ("gram", "cross", "square")))
        for split, each in draws.items()
    }
    first = np.broadcast_to(start.astype(np.float64), (len(data_seeds), *start.shape))
    w = descend(QuadraticRisks(moments["train"]), first, described, steps)
    return {split: _risks(moments[split], w) for split in ("validation", "test")}


def _risks(moments: Moments, w: Array) -> Array:
    values = moments[:, :, None].risk(torch.from_numpy(w)[:, None]).numpy()
    return np.where(np.isfinite(values), values, np.nan).transpose(2, 0, 1)


def _logistic(
    source: LinearUnitTests, runs: Sequence[tuple[Method, int]], data_seeds: Sequence[int], steps: int
) -> dict[str, Array]:
    described, start = _parts(source, runs)
    # Each data draw uses one core, because its matrix products are too small for several threads. Threads of
    # one process would mostly wait for each other's turn in Python; a new process takes seconds to start.
    processes = min(cores(), len(data_seeds)) if steps * source.rows >= _LONG else 1
    with threadpool_limits(1), joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        found: Any = joblib.Parallel(n_jobs=processes)(
            joblib.delayed(_trained)(source, described, start, seed, steps) for seed in data_seeds
        )
    return {split: np.stack([each[split] for each in found], axis=1) for split in found[0]}


def _trained(
    source: LinearUnitTests, described: Any, start: Array, seed: int, steps: int
) -> dict[str, Array]:
    draws = source.draw(seed)
    w = descend(LogisticRisks(next(draws)[1]), start[None], described, steps)[0]
    return {split: error_rates(rows, w) for split, rows in draws}
