"""What every algorithm owes on every kind of problem, and the properties that each claims for itself."""

import copy

import pytest
import torch

import helpers
from envariant.algorithms import RECIPES, Composition
from envariant.environments import EnvironmentBatch
from helpers import (
    ENROLLED,
    IDENTICAL,
    ONE_IS_ERM,
    ORDER_OF_ENVIRONMENTS,
    ORDER_OF_ROWS,
    PROBLEMS,
    assert_same,
    assert_same_bits,
    update,
)

every_algorithm = pytest.mark.parametrize("name", ENROLLED)
every_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


def those_that_claim(claim):
    return pytest.mark.parametrize("name", helpers.claiming(claim))


def test_the_table_holds_every_recipe():
    assert ENROLLED.keys() == RECIPES.keys()


@every_problem
@every_algorithm
@pytest.mark.parametrize(
    ("differentiate", "tolerance"), [(helpers.autograd, 1e-11), (helpers.central_differences, 1e-8)]
)
def test_the_update_is_the_one_written_a_second_time(name, problem, differentiate, tolerance):
    row = ENROLLED[name]
    assert_same(update(row.built(name), problem), row.reference(problem, differentiate), tolerance)


@every_problem
@those_that_claim(ORDER_OF_ENVIRONMENTS)
def test_the_order_of_environments_does_not_matter(name, problem):
    shuffled = problem.with_batch([problem.environments()[e] for e in (2, 0, 1)])
    algorithm = ENROLLED[name].built(name)
    assert_same(update(algorithm, shuffled), update(algorithm, problem), 1e-12)


@every_problem
@those_that_claim(ORDER_OF_ROWS)
def test_the_order_of_rows_within_an_environment_does_not_matter(name, problem):
    reversed_rows = problem.with_batch([(x.flip(0), y.flip(0)) for x, y in problem.environments()])
    algorithm = ENROLLED[name].built(name)
    assert_same(update(algorithm, reversed_rows), update(algorithm, problem), 1e-12)


@every_problem
@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if r.default.penalties])
def test_identical_environments_give_zero_penalty_to_those_that_say_so(name, problem):
    row = ENROLLED[name]
    algorithm = row.built(name, **row.plain)
    twins = problem.with_batch([problem.environments()[1]] * 2)
    state = algorithm.init(twins.params, 2)
    _, _, metrics = algorithm.gradients(twins.forward, twins.params, twins.batch, state, 0)
    penalties = [float(value) for key, value in metrics.items() if key.endswith("penalty")]
    if IDENTICAL in row.claims:
        assert max(penalties) <= 1e-30
        without = row.built(name, coefficient=0.0, **row.plain)
        assert_same(update(algorithm, twins), update(without, twins), 1e-12)
    else:
        assert min(penalties) > 1e-6


@every_problem
@those_that_claim(ONE_IS_ERM)
def test_one_environment_equals_erm(name, problem):
    row, single = ENROLLED[name], problem.first(1)
    assert_same(update(row.built(name, l2=0.0, **row.plain), single), update(Composition(), single), 1e-13)


@every_problem
@pytest.mark.parametrize("name", [n for n, row in ENROLLED.items() if row.at_zero])
def test_coefficient_zero_is_as_if_the_term_were_not_there_bit_for_bit(name, problem):
    row = ENROLLED[name]
    assert_same_bits(update(row.built(name, coefficient=0.0, l2=0.0), problem), update(row.at_zero, problem))


@every_problem
@every_algorithm
def test_gradients_have_the_names_shapes_and_type_of_the_parameters(name, problem):
    found = update(ENROLLED[name].built(name), problem)
    assert list(found) == list(problem.params)
    for key, value in problem.params.items():
        assert (found[key].shape, found[key].dtype) == (value.shape, value.dtype)


@every_problem
@every_algorithm
def test_a_step_is_a_pure_function(name, problem):
    algorithm = ENROLLED[name].built(name)
    state = algorithm.init(problem.params, 3)
    untouched = copy.deepcopy((dict(problem.params), problem.batch.inputs, problem.batch.targets, state))
    torch.manual_seed(11)
    generator = torch.get_rng_state()
    first, second = (
        algorithm.gradients(problem.forward, problem.params, problem.batch, state, 3) for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), generator)
    assert_same_bits(first[0], second[0])
    assert_same_bits(first[2], second[2])
    params, inputs, targets, before = untouched
    assert_same_bits(params, problem.params)
    assert torch.equal(inputs, problem.batch.inputs)
    assert torch.equal(targets, problem.batch.targets)
    assert state == before
    assert not any(value.requires_grad for value in (*first[0].values(), *first[2].values()))


@every_problem
@every_algorithm
def test_a_stack_of_models_gets_what_each_gets_alone(name, problem):
    algorithm = ENROLLED[name].built(name)
    stack = {key: torch.stack([value, 0.3 * value, value.flip(0)]) for key, value in problem.params.items()}
    together = torch.func.vmap(lambda params: update(algorithm, problem, params=params))(stack)
    for k in range(3):
        alone = update(algorithm, problem, params={key: value[k] for key, value in stack.items()})
        assert_same({key: value[k] for key, value in together.items()}, alone, 1e-12)


@every_problem
@every_algorithm
def test_a_stack_of_replicas_may_have_data_of_their_own(name, problem):
    """As the engine runs them: K models, each with its own draw of the rows."""
    algorithm, batch = ENROLLED[name].built(name), problem.batch
    flipped = problem.with_batch([(x.flip(0) + 1, y.flip(0)) for x, y in problem.environments()])
    replicas = [problem, flipped]
    params = {key: torch.stack([value, 0.5 * value]) for key, value in problem.params.items()}

    def one(params, inputs, targets):
        own = EnvironmentBatch(inputs, targets, batch.sizes, batch.task)
        state = algorithm.init(params, len(batch.sizes))
        return algorithm.gradients(problem.forward, params, own, state, 0)[0]

    together = torch.func.vmap(one)(
        params,
        torch.stack([p.batch.inputs for p in replicas]),
        torch.stack([p.batch.targets for p in replicas]),
    )
    for k, replica in enumerate(replicas):
        alone = update(algorithm, replica, params={key: value[k] for key, value in params.items()})
        assert_same({key: value[k] for key, value in together.items()}, alone, 1e-12)


@every_algorithm
def test_a_constant_added_to_all_logits_of_a_row_changes_nothing_with_cross_entropy(name):
    problem = PROBLEMS["multiclass"]

    def shifted(params, inputs):
        features, logits = problem.forward(params, inputs)
        return features, logits + 2 * inputs[:, :1]

    algorithm = ENROLLED[name].built(name)
    assert_same(update(algorithm, problem, forward=shifted), update(algorithm, problem), 1e-12)
