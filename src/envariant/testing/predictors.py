"""Checks that a predictor has the properties required by training and studies."""

from collections.abc import Sequence

import torch
from torch import Tensor

from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.tasks import Multiclass, Regression, Task
from envariant.predictors import FittedPredictor, Predictor
from envariant.predictors import predictor as predictor_of
from envariant.testing.problem import TASKS, require


def check_predictor(predictor: object, tasks: Sequence[str] = tuple(TASKS)) -> None:
    """Check that a predictor has the properties that training and studies require.

    Args:
        predictor: Predictor, its name, or a scikit-learn estimator. It is fitted several times on 90 rows.
        tasks: Names of the tasks that the predictor supports: "binary", "multiclass", "regression".

    Raises:
        AssertionError: If a property is violated; the message names it.

    Example:
        >>> from sklearn.linear_model import LogisticRegression
        >>> check_predictor(LogisticRegression(), tasks=("binary", "multiclass"))
    """
    checked = predictor_of(predictor)
    require(checked is not None, f"{predictor!r}: must be a Predictor, its name, or a scikit-learn estimator")
    if checked is None:
        return
    require(
        bool(checked.name) and checked.name.isprintable(),
        f"{checked.name!r}: name must be one line of printable text",
    )
    require(checked.minimum_environments >= 1, f"{checked.name}: minimum_environments must be at least 1")
    for name in tasks:
        _check_task(checked, TASKS[name])


def _check_task(predictor: Predictor, task: Task) -> None:
    where = f"{predictor.name}, {task.name}"
    data = _example(task, max(2, predictor.minimum_environments))
    fingerprint, generator = data.fingerprint(), torch.get_rng_state()
    description = repr(predictor)
    first, second = (predictor.fit(data, 3) for _ in range(2))
    require(data.fingerprint() == fingerprint, f"{where}: fit must not change the environments")
    require(repr(predictor) == description, f"{where}: fit must leave the predictor unchanged")
    require(
        torch.equal(torch.get_rng_state(), generator),
        f"{where}: fit must draw random numbers from its seed, not from PyTorch's global generator",
    )
    require(first.iterations >= 1, f"{where}: iterations must be at least 1, got {first.iterations}")
    inputs = data.environments[0].rows()[0]
    logits = _logits(first, inputs, task, where)
    require(torch.equal(logits, first.logits(inputs)), f"{where}: logits must be the same at every call")
    require(torch.equal(logits, second.logits(inputs)), f"{where}: one seed must give bit-identical logits")
    single = torch.cat([first.logits(row[None]) for row in inputs[:5]])
    require(
        torch.allclose(single, logits[:5], rtol=1e-4, atol=1e-5),
        f"{where}: the logits of a row must not depend on the other rows",
    )


def _logits(fitted: FittedPredictor, inputs: Tensor, task: Task, where: str) -> Tensor:
    before = inputs.clone()
    logits = fitted.logits(inputs)
    require(torch.equal(inputs, before), f"{where}: logits must not change the inputs")
    shape = (len(inputs), task.outputs) if isinstance(task, Multiclass) else (len(inputs),)
    actual = tuple(logits.shape)
    require(actual == shape, f"{where}: logits must have the shape {shape}, got {actual}")
    require(logits.dtype == torch.float32, f"{where}: logits must be float32, got {logits.dtype}")
    require(bool(logits.isfinite().all()), f"{where}: logits must be finite")
    return logits


def _example(task: Task, count: int) -> EnvironmentSet:
    """Return training environments of different sizes, with a target that can be learned."""
    generator = torch.Generator().manual_seed(5)
    environments: list[Environment] = []
    for number in range(count):
        inputs = torch.randn(40 + 10 * number, 3, generator=generator)
        score = inputs[:, 0] - inputs[:, 1] + 0.3 * torch.randn(len(inputs), generator=generator)
        if isinstance(task, Regression):
            targets = score
        elif isinstance(task, Multiclass):
            targets = torch.bucketize(score, torch.tensor([-0.6, 0.6]))
        else:
            targets = (score > 0).float()
        environments.append(Environment(f"e{number}", inputs, targets))
    return EnvironmentSet("example", tuple(environments), task)
