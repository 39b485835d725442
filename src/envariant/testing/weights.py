"""Checks that environment sizes do not change a step, and that only trained parameters have weight decay."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from envariant.algorithms import Algorithm, Composition
from envariant.core.step_context import StepContext
from envariant.testing.problem import Problem, require

# Enough rows that divisors such as n − 1 hardly matter, and fewer than penalties on pairs of rows select.
_ROWS = 20
_TOLERANCE = 0.05


def check_environment_sizes(algorithm: Algorithm, problem: Problem) -> None:
    """Check that a step gives the same result after the rows of one environment are duplicated.

    The check is skipped if the algorithm declares `depends_on_sizes`. Gradients and states that depend on
    random numbers are not compared.
    """
    if algorithm.depends_on_sizes:
        return
    rows = [(torch.cat([x] * _ROWS), torch.cat([y] * _ROWS)) for x, y in problem.environments()]
    x, y = rows[0]
    usual = problem.with_batch(rows)
    larger = problem.with_batch([(torch.cat([x] * 3), torch.cat([y] * 3)), *rows[1:]])
    for step in (0, 100_000):
        runs = [
            (usual, StepContext.at(step)),
            (usual, StepContext.at(step, seed=1)),
            (larger, StepContext.at(step)),
        ]
        expected, redrawn, changed = (_tensors(each.step(algorithm, at)[:2]) for each, at in runs)
        for key, value in expected.items():
            if not value.numel() or not torch.equal(value, redrawn[key]):
                continue
            difference = float((changed[key] - value).abs().max())
            require(
                difference <= _TOLERANCE * float(value.abs().max()) + 1e-9,
                f"{algorithm.name}: repeating all rows of an environment must not change the step, but the "
                f"{key} changes by {difference:.3g}; use batch.risk or batch.mean instead of means over "
                f"rows, or declare depends_on_sizes",
            )


def check_weight_decay(algorithm: Algorithm, problem: Problem) -> None:
    """Check that L2 regularization and weight decay change only parameters that the algorithm trains."""
    plain = replace(algorithm, l2=0.0) if isinstance(algorithm, Composition) else algorithm
    state, trained = plain.init(problem.params, problem.context), set[str]()
    for step in (*range(9), 100_000):
        gradients, state, _ = problem.step(plain, StepContext.at(step), state=state)
        trained |= {name.split(".")[0] for name, value in gradients.items() if bool(value.any())}
    idle = sorted({name.split(".")[0] for name in problem.params} - trained)
    require(
        not idle,
        f"{algorithm.name}: the gradients of {', '.join(idle)} are always 0, but weight decay would change "
        f"these parameters; freeze them with requires_grad_(False)",
    )
    if isinstance(algorithm, Composition):
        first, second = (problem.step(replace(algorithm, l2=l2))[0] for l2 in (0.0, 0.1))
        require(
            any(not torch.equal(value, second[name]) for name, value in first.items()),
            f"{algorithm.name}: a step that returns updates must add context.weight_decay times the "
            f"parameters to their gradients",
        )


def _tensors(parts: tuple[Mapping[str, Any], ...]) -> dict[str, Tensor]:
    """Return all tensors in gradients and state, by name."""
    found: dict[str, Tensor] = {}

    def add(name: str, tree: Any) -> None:
        if isinstance(tree, Tensor):
            found[name] = tree
        else:
            for key, value in tree.items():
                add(f"{name} {key}", value)

    for name, part in zip(("gradient of", "state"), parts, strict=True):
        add(name, part)
    return found
