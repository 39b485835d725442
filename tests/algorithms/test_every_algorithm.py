"""What every algorithm owes on every kind of problem, and the properties that each claims for itself."""

import copy
from dataclasses import replace

import pytest
import torch

import helpers
from envariant.algorithms import RECIPES, Composition
from envariant.core.environments import EnvironmentBatch
from envariant.core.step_context import StepContext
from helpers import (
    ENROLLED,
    IDENTICAL,
    ONE_IS_ERM,
    ORDER_OF_ENVIRONMENTS,
    ORDER_OF_ROWS,
    PROBLEMS,
    SHIFT,
    assert_same,
    assert_same_bits,
    every_case,
    those_that_claim,
    update,
)


def fitting(name, problem, **changes):
    """The algorithm as the table sets it, and the problem with the networks that it brings."""
    algorithm = ENROLLED[name].built(name, **changes)
    return algorithm, problem.with_networks_of(algorithm)


def test_the_table_holds_every_recipe():
    assert ENROLLED.keys() == RECIPES.keys()


@every_case()
@pytest.mark.parametrize(
    ("differentiate", "tolerance"), [(helpers.autograd, 1e-11), (helpers.central_differences, 1e-8)]
)
def test_the_update_is_the_one_written_a_second_time(name, problem, differentiate, tolerance):
    algorithm, problem = fitting(name, problem)
    if RECIPES[name].default.returns_updates and differentiate is helpers.central_differences:
        # Adam's steps have the size of the rate whatever the gradient's, and so has their error.
        tolerance *= 100
    assert_same(update(algorithm, problem), ENROLLED[name].reference(problem, differentiate), tolerance)


@those_that_claim(ORDER_OF_ENVIRONMENTS)
def test_the_order_of_environments_does_not_matter(name, problem):
    algorithm, problem = fitting(name, problem)
    shuffled = problem.with_batch([problem.environments()[e] for e in (2, 0, 1)])
    assert_same(update(algorithm, shuffled), update(algorithm, problem), 1e-12)


@those_that_claim(ORDER_OF_ROWS)
def test_the_order_of_rows_within_an_environment_does_not_matter(name, problem):
    algorithm, problem = fitting(name, problem)
    reversed_rows = problem.with_batch([(x.flip(0), y.flip(0)) for x, y in problem.environments()])
    assert_same(update(algorithm, reversed_rows), update(algorithm, problem), 1e-12)


@every_case(lambda name, _: bool(RECIPES[name].default.penalties))
def test_identical_environments_give_zero_penalty_to_those_that_say_so(name, problem):
    row = ENROLLED[name]
    twins = problem.with_batch([problem.environments()[1]] * 2)
    algorithm, twins = fitting(name, twins, **row.plain)
    state = algorithm.init(twins.params, twins.context)
    _, _, metrics = algorithm.gradients(twins, twins.params, twins.batch, state, StepContext.at(0))
    penalties = [float(value) for key, value in metrics.items() if key.endswith("penalty")]
    if IDENTICAL in row.claims:
        assert max(penalties) <= 1e-14
        without = row.built(name, **row.zero, **row.plain)
        assert_same(update(algorithm, twins), update(without, twins), 1e-12)
    elif problem.task.name != "regression":
        # Real targets are alike only in their twins, which is nothing to hold against one another.
        assert max(penalties) > 1e-6


@those_that_claim(ONE_IS_ERM)
def test_one_environment_equals_erm(name, problem):
    row, single = ENROLLED[name], problem.first(1)
    assert_same(update(row.built(name, l2=0.0, **row.plain), single), update(Composition(), single), 1e-13)


@every_case(lambda _, row: row.at_zero is not None)
def test_coefficient_zero_is_as_if_the_term_were_not_there_bit_for_bit(name, problem):
    row = ENROLLED[name]
    algorithm, problem = fitting(name, problem, **row.zero, l2=0.0)
    found = update(algorithm, problem)
    bare = replace(
        problem,
        own={},
        params={k: v for k, v in problem.params.items() if k.split(".")[0] not in problem.own},
    )
    expected = update(row.at_zero, bare)
    assert_same_bits({name: found[name] for name in expected}, expected)


@every_case()
def test_gradients_have_the_names_shapes_and_type_of_the_parameters(name, problem):
    algorithm, problem = fitting(name, problem)
    found = update(algorithm, problem)
    assert list(found) == list(problem.params)
    for key, value in problem.params.items():
        assert (found[key].shape, found[key].dtype) == (value.shape, value.dtype)


@every_case()
def test_a_step_is_a_pure_function(name, problem):
    algorithm, problem = fitting(name, problem)
    state = algorithm.init(problem.params, problem.context)
    untouched = copy.deepcopy((dict(problem.params), problem.batch.inputs, problem.batch.targets, state))
    torch.manual_seed(11)
    generator = torch.get_rng_state()
    first, second = (
        algorithm.gradients(problem, problem.params, problem.batch, state, StepContext.at(3))
        for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), generator)
    assert_same_bits(first[0], second[0])
    assert_same_bits(first[2], second[2])
    params, inputs, targets, before = untouched
    assert_same_bits(params, problem.params)
    assert torch.equal(inputs, problem.batch.inputs)
    assert torch.equal(targets, problem.batch.targets)
    torch.testing.assert_close(state, before, rtol=0, atol=0)
    assert not any(value.requires_grad for value in (*first[0].values(), *first[2].values()))


@every_case()
def test_a_stack_of_models_gets_what_each_gets_alone(name, problem):
    algorithm, problem = fitting(name, problem)
    stack = {key: torch.stack([value, 0.3 * value, value.flip(0)]) for key, value in problem.params.items()}
    together = torch.func.vmap(lambda params: update(algorithm, problem, params=params))(stack)
    for k in range(3):
        alone = update(algorithm, problem, params={key: value[k] for key, value in stack.items()})
        assert_same({key: value[k] for key, value in together.items()}, alone, 1e-12)


@every_case()
def test_a_stack_of_replicas_may_have_data_of_their_own(name, problem):
    """As the engine runs them: K models, each with its own draw of the rows and its own random numbers."""
    algorithm, problem = fitting(name, problem)
    batch = problem.batch
    flipped = problem.with_batch([(x.flip(0) + 1, y.flip(0)) for x, y in problem.environments()])
    replicas, nows = [problem, flipped], [StepContext.at(4, seed=1), StepContext.at(4, seed=2)]
    params = {key: torch.stack([value, 0.5 * value]) for key, value in problem.params.items()}

    def one(params, inputs, targets, key):
        own = EnvironmentBatch(inputs, targets, batch.sizes, batch.task)
        state = algorithm.init(params, problem.context)
        return algorithm.gradients(problem, params, own, state, replace(nows[0], key=key))[0]

    together = torch.func.vmap(one)(
        params,
        torch.stack([p.batch.inputs for p in replicas]),
        torch.stack([p.batch.targets for p in replicas]),
        torch.stack([context.key for context in nows]),
    )
    for k, replica in enumerate(replicas):
        own = {key: value[k] for key, value in params.items()}
        alone = update(algorithm, replica, params=own, context=nows[k])
        assert_same({key: value[k] for key, value in together.items()}, alone, 1e-12)


@pytest.mark.parametrize("name", [name for name, row in ENROLLED.items() if "multiclass" in row.problems])
def test_a_constant_added_to_all_logits_of_a_row_changes_nothing_for_those_that_say_so(name):
    algorithm, problem = fitting(name, PROBLEMS["multiclass"])

    class Shifted(helpers.Problem):
        def __call__(self, params, inputs):
            features, logits = super().__call__(params, inputs)
            return features, logits + 2 * inputs[:, :1]

    shifted = Shifted(**vars(problem))
    found, expected = update(algorithm, shifted), update(algorithm, problem)
    if SHIFT in ENROLLED[name].claims:
        assert_same(found, expected, 1e-12)
    else:
        assert any(not torch.allclose(found[key], expected[key], rtol=1e-3) for key in found)
