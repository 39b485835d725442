"""Properties of every algorithm on every kind of task, and the properties that each claims."""

from dataclasses import replace

import pytest
import torch

from algorithms.enrolment import IDENTICAL, ONE_IS_ERM, ORDER_OF_ENVIRONMENTS, ORDER_OF_ROWS, SHIFT
from algorithms.problems import (
    PROBLEMS,
    Problem,
    assert_same,
    assert_same_bits,
    autograd,
    central_differences,
)
from algorithms.references import ENROLLED, every_case, every_case_with
from envariant.algorithms import RECIPES, Composition
from envariant.core.step_context import StepContext
from envariant.testing import ALGORITHM_CHECKS, check_training, update


def built(name, problem, **changes):
    """Return the algorithm as enrolled, and the problem with its networks."""
    algorithm = ENROLLED[name].built(name, **changes)
    return algorithm, problem.with_networks_of(algorithm)


def test_every_recipe_is_enrolled():
    assert list(ENROLLED) == list(RECIPES)


@every_case()
@pytest.mark.parametrize(("differentiate", "tolerance"), [(autograd, 1e-11), (central_differences, 1e-8)])
def test_updates_equal_those_of_the_second_implementation(name, problem, differentiate, tolerance):
    algorithm, problem = built(name, problem)
    if RECIPES[name].default.returns_updates and differentiate is central_differences:
        # Adam's steps have the size of the learning rate whatever the gradient's, and so have their errors.
        tolerance *= 100
    assert_same(update(algorithm, problem), ENROLLED[name].reference(problem, differentiate), tolerance)


@every_case()
@pytest.mark.parametrize("check", ALGORITHM_CHECKS, ids=lambda check: check.__name__)
def test_every_algorithm_passes_the_checks_for_outside_authors(name, problem, check):
    check(*built(name, problem))


@pytest.mark.parametrize("name", ["vrex", "and-mask", "iga", "dann", "mixup"])
def test_kinds_of_algorithms_train_reproducibly(name):
    check_training(RECIPES[name].default)


@every_case_with(ORDER_OF_ENVIRONMENTS)
def test_the_order_of_environments_does_not_matter(name, problem):
    algorithm, problem = built(name, problem)
    shuffled = problem.with_batch([problem.environments()[e] for e in (2, 0, 1)])
    assert_same(update(algorithm, shuffled), update(algorithm, problem), 1e-12)


@every_case_with(ORDER_OF_ROWS)
def test_the_order_of_rows_within_an_environment_does_not_matter(name, problem):
    algorithm, problem = built(name, problem)
    reversed_rows = problem.with_batch([(x.flip(0), y.flip(0)) for x, y in problem.environments()])
    assert_same(update(algorithm, reversed_rows), update(algorithm, problem), 1e-12)


@every_case(lambda name, _: bool(RECIPES[name].default.penalties))
def test_identical_environments_have_zero_penalty_where_claimed(name, problem):
    row = ENROLLED[name]
    twins = problem.with_batch([problem.environments()[1]] * 2)
    algorithm, twins = built(name, twins, **row.plain)
    state = algorithm.init(twins.params, twins.context)
    _, _, metrics = algorithm.gradients(twins, twins.params, twins.batch, state, StepContext.at(0))
    penalties = [float(value) for key, value in metrics.items() if key.endswith("penalty")]
    if IDENTICAL in row.claims:
        assert max(penalties) <= 1e-14
        without = row.built(name, **row.zero, **row.plain)
        assert_same(update(algorithm, twins), update(without, twins), 1e-12)
    elif problem.task.name != "regression":
        # Real targets are equal only in their twins, so that no two rows are compared.
        assert max(penalties) > 1e-6


@every_case_with(ONE_IS_ERM)
def test_one_environment_equals_erm(name, problem):
    row, single = ENROLLED[name], problem.first(1)
    assert_same(update(row.built(name, l2=0.0, **row.plain), single), update(Composition(), single), 1e-13)


@every_case(lambda _, row: row.at_zero is not None)
def test_a_coefficient_of_zero_is_bit_identical_to_no_penalty(name, problem):
    row = ENROLLED[name]
    algorithm, problem = built(name, problem, **row.zero, l2=0.0)
    gradients = update(algorithm, problem)
    bare = replace(
        problem,
        own={},
        params={k: v for k, v in problem.params.items() if k.split(".")[0] not in problem.own},
    )
    expected = update(row.at_zero, bare)
    assert_same_bits({name: gradients[name] for name in expected}, expected)


@pytest.mark.parametrize("name", [name for name, row in ENROLLED.items() if "multiclass" in row.problems])
def test_a_constant_added_to_all_logits_of_a_row_changes_nothing_where_claimed(name):
    algorithm, problem = built(name, PROBLEMS["multiclass"])

    class Shifted(Problem):
        def __call__(self, params, inputs):
            features, logits = super().__call__(params, inputs)
            return features, logits + 2 * inputs[:, :1]

    shifted = Shifted(**vars(problem))
    gradients, expected = update(algorithm, shifted), update(algorithm, problem)
    if SHIFT in ENROLLED[name].claims:
        assert_same(gradients, expected, 1e-12)
    else:
        assert any(not torch.allclose(gradients[key], expected[key], rtol=1e-3) for key in gradients)
