"""Checks that an algorithm has the properties required by training and studies."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from envariant.algorithms import Algorithm, Part, Recipe, as_algorithm, identity
from envariant.algorithms.base import Parameters, State
from envariant.algorithms.hyperparameters import numbers, with_numbers
from envariant.core.environments import EnvironmentBatch, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.schedules import Schedule
from envariant.core.step_context import START, StepContext
from envariant.core.tasks import Regression, Task
from envariant.testing.problem import TASKS, Problem, require
from envariant.testing.weights import check_environment_sizes, check_weight_decay

TOLERANCE = 1e-12
"""Largest accepted rounding difference in float64, relative to the largest absolute entry, or to 1 if
all entries are smaller."""


def update(
    algorithm: Algorithm,
    problem: Problem,
    *,
    context: StepContext = START,
    params: Parameters | None = None,
) -> dict[str, Tensor]:
    """Return the gradients that an algorithm computes in one step, starting from its initial state.

    Args:
        algorithm: Algorithm to check.
        problem: Problem with a batch and a network.
        context: Step number, learning rate and random numbers.
        params: Mapping from name to parameter. Default: the parameters of the problem.
    """
    return problem.step(algorithm, context, params)[0]


def check_algorithm(algorithm: Algorithm | Recipe | Part | str) -> None:
    """Check that an algorithm has the properties that training and studies require.

    The algorithm is checked on every task that its `init` accepts, and trained for a few steps.
    `ALGORITHM_CHECKS` lists the properties.

    Args:
        algorithm: Algorithm, part of a composition, recipe or name.

    Raises:
        AssertionError: If a property is violated; the message names it.

    Example:
        >>> from envariant.algorithms import VREx
        >>> check_algorithm(VREx(coefficient=3.0))
    """
    algorithm = as_algorithm(algorithm)
    name = algorithm.name
    require(bool(name) and name.isprintable(), f"{name!r}: name must be one line of printable text")
    minimum = algorithm.minimum_environments
    require(minimum >= 1, f"{name}: minimum_environments must be at least 1, got {minimum}")
    rejections: list[str] = []
    for task in TASKS.values():
        problem = Problem.example(task, max(3, minimum))
        try:
            problem = problem.with_networks_of(algorithm)
            algorithm.init(problem.params, problem.context)
        except EnvariantError as error:
            rejections.append(str(error))
            continue
        for check in ALGORITHM_CHECKS:
            check(algorithm, problem)
    require(
        len(rejections) < len(TASKS),
        f"{name}: must accept binary, multiclass or regression targets, but rejects all ({rejections[-1:]})",
    )
    check_training(algorithm)


def check_gradients(algorithm: Algorithm, problem: Problem) -> None:
    """Check that gradients are finite and have the names, order, shapes and dtypes of the parameters."""
    try:
        gradients, _, metrics = problem.step(algorithm)
    except EnvariantError as error:
        raise AssertionError(str(error)) from None
    except Exception as error:
        raise AssertionError(
            f"{algorithm.name}: a step must run without errors ({_first_line(error)})"
        ) from error
    require(
        list(gradients) == list(problem.params),
        f"{algorithm.name}: gradients must have the names of the parameters in their order, "
        f"got {list(gradients)} for {list(problem.params)}",
    )
    for key, value in problem.params.items():
        g = gradients[key]
        require(
            (g.shape, g.dtype) == (value.shape, value.dtype),
            f"{algorithm.name}: the gradient of '{key}' must have the shape and dtype of the parameter, "
            f"got {tuple(g.shape)} {g.dtype} for {tuple(value.shape)} {value.dtype}",
        )
        require(bool(g.isfinite().all()), f"{algorithm.name}: the gradient of '{key}' must be finite")
    for key, value in metrics.items():
        require(
            value.numel() == 1 and bool(value.isfinite().all()),
            f"{algorithm.name}: the metric '{key}' must be one finite number, got {value}",
        )
    attached = [key for key, value in {**gradients, **metrics}.items() if value.requires_grad]
    require(not attached, f"{algorithm.name}: gradients and metrics must be detached, but {attached} are not")


def check_purity(algorithm: Algorithm, problem: Problem) -> None:
    """Check that a step is deterministic, does not change its inputs, and uses no global random generator."""
    state = algorithm.init(problem.params, problem.context)
    inputs = (dict(problem.params), problem.batch.inputs, problem.batch.targets, state)
    before = copy.deepcopy(inputs)
    torch.manual_seed(11)
    generator = torch.get_rng_state()
    # The first call must not affect the second.
    first, second = (problem.step(algorithm, StepContext.at(3), state=state) for _ in range(2))
    require(
        torch.equal(torch.get_rng_state(), generator),
        f"{algorithm.name}: a step must draw random numbers from its context, not from the global generator",
    )
    for what, a, b in zip(("gradients", "state", "metrics"), first, second, strict=True):
        require(
            _same_bits(a, b),
            f"{algorithm.name}: a step must be deterministic, but equal inputs give different {what}",
        )
    for what, a, b in zip(("parameters", "inputs", "targets", "state"), inputs, before, strict=True):
        require(_same_bits(a, b), f"{algorithm.name}: a step must not change its {what} in place")


def check_state(algorithm: Algorithm, problem: Problem) -> None:
    """Check that the state after a step has the keys, shapes and dtypes of the state returned by `init`."""
    state = initial = algorithm.init(problem.params, problem.context)
    for step in range(2):
        _, state, _ = problem.step(algorithm, StepContext.at(step), state=state)
        require(
            _structure(state) == _structure(initial),
            f"{algorithm.name}: the state must keep the keys, shapes and dtypes of init, "
            f"got {_structure(state)} after {_structure(initial)}",
        )
    params = algorithm.eval_params(problem.params, state)
    require(
        _structure(params) == _structure(problem.params),
        f"{algorithm.name}: eval_params must return the names and shapes of the parameters",
    )


def check_stacked_models(algorithm: Algorithm, problem: Problem) -> None:
    """Check that each model has the same gradients in a step on a stack of models as in a step by itself."""
    stack = {key: torch.stack([value, 0.3 * value, value.flip(0)]) for key, value in problem.params.items()}

    def one(params: Parameters) -> dict[str, Tensor]:
        return update(algorithm, problem, params=params)

    stacked = _vmapped(algorithm, one, stack)
    for k in range(3):
        alone = update(algorithm, problem, params={key: value[k] for key, value in stack.items()})
        _require_close(
            {key: value[k] for key, value in stacked.items()}, alone, _STACKED.format(algorithm.name)
        )


def check_stacked_replicas(algorithm: Algorithm, problem: Problem) -> None:
    """Check that each replica has the same gradients in a stack as by itself.

    The replicas of the stack differ from each other in rows, seeds and parameters.
    """
    batch = problem.batch
    other = problem.with_batch([(x.flip(0) + 1, y.flip(0)) for x, y in problem.environments()])
    replicas, contexts = [problem, other], [StepContext.at(4, seed=1), StepContext.at(4, seed=2)]
    params = {key: torch.stack([value, 0.5 * value]) for key, value in problem.params.items()}

    def one(params: Parameters, inputs: Tensor, targets: Tensor, key: Tensor) -> dict[str, Tensor]:
        own = replace(problem, batch=EnvironmentBatch(inputs, targets, batch.sizes, batch.task))
        return update(algorithm, own, params=params, context=replace(contexts[0], key=key))

    stacked = _vmapped(
        algorithm,
        one,
        params,
        torch.stack([replica.batch.inputs for replica in replicas]),
        torch.stack([replica.batch.targets for replica in replicas]),
        torch.stack([cast("Tensor", context.key) for context in contexts]),
    )
    for k, replica in enumerate(replicas):
        own = {key: value[k] for key, value in params.items()}
        alone = update(algorithm, replica, params=own, context=contexts[k])
        _require_close(
            {key: value[k] for key, value in stacked.items()}, alone, _STACKED.format(algorithm.name)
        )


def check_numbers(algorithm: Algorithm, problem: Problem) -> None:
    """Check that hyperparameters may be tensors, so that they can differ between stacked replicas."""
    context, before = StepContext.at(3), numbers(algorithm)
    values = _numbers_at(algorithm, context.step)
    columns = [torch.tensor([v, 0.9 * v], dtype=torch.float64) for v in values]

    def one(values: Sequence[Tensor]) -> dict[str, Tensor]:
        return update(with_numbers(algorithm, values), problem, context=context)

    expected = update(algorithm, problem, context=context)
    message = f"{algorithm.name}: hyperparameters given as tensors must give the gradients of plain numbers"
    _require_close(one([column[0] for column in columns]), expected, message)
    require(numbers(algorithm) == before, f"{algorithm.name}: a step must not change the hyperparameters")
    if columns:
        stacked = _vmapped(algorithm, one, columns)
        for k in range(2):
            alone = one([column[k] for column in columns])
            _require_close({key: v[k] for key, v in stacked.items()}, alone, _STACKED.format(algorithm.name))


def check_recorded_step(algorithm: Algorithm, problem: Problem) -> None:
    """Check that a step can be recorded as tensor operations and replayed at another step number.

    The replayed operations must give the same gradients as running the step itself.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    batch, first, later = problem.batch, StepContext.at(0), StepContext.at(3)

    def one(
        params: Parameters,
        state: State,
        rows: tuple[Tensor, Tensor],
        key: Tensor,
        step: Tensor,
        values: Sequence[Tensor],
    ) -> Any:
        own = replace(problem, batch=EnvironmentBatch(*rows, batch.sizes, batch.task))
        context = replace(first, step=step, key=key)
        return own.step(with_numbers(algorithm, values), context, params, state)

    def inputs(context: StepContext) -> tuple[Any, ...]:
        state = algorithm.init(problem.params, problem.context)
        values = [torch.tensor(value, dtype=torch.float64) for value in _numbers_at(algorithm, context.step)]
        step = torch.tensor(context.step)
        return dict(problem.params), state, (batch.inputs, batch.targets), context.key, step, values

    try:
        with torch.no_grad():
            recorded = make_fx(one, tracing_mode="fake")(*inputs(first))
            gradients = recorded(*inputs(later))[0]
    except Exception as error:
        raise AssertionError(
            f"{algorithm.name}: a step must be recordable as tensor operations, without a Python branch on a "
            f"tensor such as the step number; use torch.where ({_first_line(error)})"
        ) from error
    message = f"{algorithm.name}: a recorded step must give the gradients of the plain step"
    _require_close(gradients, update(algorithm, problem, context=later), message)


def check_declarations(algorithm: Algorithm, problem: Problem) -> None:
    """Check that `needs_features`, `minimum_environments` and `environment_inference` are correct."""
    if not algorithm.needs_features:
        bare = replace(problem, has_features=False)
        message = f"{algorithm.name}: reads features, so it must declare needs_features"
        try:
            without = update(algorithm, bare)
        except Exception as error:
            raise AssertionError(f"{message} ({_first_line(error)})") from error
        _require_close(without, update(algorithm, problem), message)
    smallest = Problem.example(problem.task, algorithm.minimum_environments).with_networks_of(algorithm)
    try:
        gradients = update(algorithm, smallest)
    except Exception as error:
        raise AssertionError(
            f"{algorithm.name}: must work with minimum_environments = {algorithm.minimum_environments} "
            f"({_first_line(error)})"
        ) from error
    require(
        all(bool(g.isfinite().all()) for g in gradients.values()),
        f"{algorithm.name}: gradients must be finite with minimum_environments = "
        f"{algorithm.minimum_environments}",
    )
    if (inference := algorithm.environment_inference) is not None:
        logits = problem(problem.params, problem.batch.inputs)[1].detach()
        first, second = (
            inference.environments(logits, problem.batch.targets, problem.task) for _ in range(2)
        )
        require(torch.equal(first, second), f"{algorithm.name}: environment inference must be deterministic")
        valid = first.shape == (len(logits),) and bool(((first >= 0) & (first < inference.count)).all())
        require(
            valid and not first.is_floating_point(),
            f"{algorithm.name}: environment inference must return one integer from 0 to "
            f"{inference.count - 1} per row, got {first}",
        )


def check_identity(algorithm: Algorithm, problem: Problem) -> None:
    """Check that an algorithm and its copy have the same `identity`, which studies use to recognize it."""
    del problem
    first, second = (identity(each) for each in (algorithm, copy.deepcopy(algorithm)))
    require(
        first == second, f"{algorithm.name}: a copy must have the same identity, got {first} and {second}"
    )


ALGORITHM_CHECKS: tuple[Callable[[Algorithm, Problem], None], ...] = (
    check_gradients,
    check_purity,
    check_state,
    check_stacked_models,
    check_stacked_replicas,
    check_numbers,
    check_recorded_step,
    check_declarations,
    check_environment_sizes,
    check_weight_decay,
    check_identity,
)
"""Checks of one property each. Every check is called with the algorithm and with a problem prepared by
`problem.with_networks_of(algorithm)`."""


def check_training(algorithm: Algorithm) -> None:
    """Check that two short training runs with the same seed give finite, bit-identical results.

    Raises:
        AssertionError: If the runs differ or diverge, or if the algorithm accepts no task.
    """
    from envariant.training.train import train

    errors: list[str] = []
    for task in TASKS.values():
        data = _environments(task, max(2, algorithm.minimum_environments))
        try:
            runs = [train(data, algorithm, steps=3, replicas=2, model="mlp(hidden=8)") for _ in range(2)]
        except EnvariantError as error:
            errors.append(str(error))
            continue
        scores = [[row.value for row in run.rows] for run in runs]
        require(scores[0] == scores[1], f"{algorithm.name}: runs with the same seed must be bit-identical")
        failures = runs[0].failures
        require(not failures, f"{algorithm.name}: training must stay finite ({failures})")
    require(len(errors) < len(TASKS), f"{algorithm.name}: must train on some task ({errors[-1:]})")


def _environments(task: Task, count: int) -> EnvironmentSet:
    """Return a set of environments with targets so noisy that no model can predict all of them."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(24 * count, 3)).astype(np.float32)
    scores = inputs + 2 * generator.normal(size=inputs.shape)
    targets: Any = scores[:, 0]
    if not isinstance(task, Regression):
        targets = scores.argmax(axis=1) if task.outputs > 1 else (scores[:, 0] > 0).astype(np.int64)
    names = [f"site {row % count}" for row in range(len(inputs))]
    return EnvironmentSet.from_arrays(inputs, targets, names, task=task, label="check")


def _numbers_at(algorithm: Algorithm, step: int) -> list[float]:
    return [float(n(step)) if isinstance(n, Schedule) else n for n in numbers(algorithm)]


_STACKED = "{}: stacked replicas must get the gradients that each gets alone"


def _vmapped(algorithm: Algorithm, function: Callable[..., Any], *arguments: Any) -> dict[str, Tensor]:
    try:
        return vmap(function)(*arguments)
    except EnvariantError:
        raise
    except Exception as error:
        raise AssertionError(
            f"{algorithm.name}: a step must run under torch.func.vmap, without a Python branch on a tensor "
            f"or hyperparameter; use torch.where ({_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


def _require_close(values: Parameters, expected: Parameters, message: str) -> None:
    require(values.keys() == expected.keys(), message)
    for key, value in expected.items():
        scale = max(1.0, float(value.abs().max())) if value.numel() else 1.0
        same = torch.allclose(values[key], value, rtol=TOLERANCE, atol=TOLERANCE * scale)
        difference = float((values[key] - value).abs().max()) if not same else 0.0
        require(same, f"{message}; those of '{key}' differ by {difference:.3g}")


def _same_bits(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_same_bits(value, b[key]) for key, value in a.items())
    return a == b


def _structure(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return f"{tuple(tree.shape)} {tree.dtype}"
    return {key: _structure(value) for key, value in tree.items()}
