"""`envariant.EnvironmentSampler`: balance, weights, epochs, processes and resumption."""

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import envariant
from envariant.core.errors import EnvariantError

HOSPITALS = ["north"] * 5 + ["south"] * 11 + ["west"] * 2
SHUFFLED = [HOSPITALS[k] for k in torch.randperm(18, generator=torch.Generator().manual_seed(0)).tolist()]


def sampler(**options):
    return envariant.EnvironmentSampler(SHUFFLED, **{"batch_size": 4, **options})


def test_every_batch_has_the_same_number_of_rows_of_every_environment():
    for batch in sampler():
        assert Counter(SHUFFLED[k] for k in batch) == {"north": 4, "south": 4, "west": 4}


def test_a_batch_size_per_environment_gives_some_more_weight():
    sizes = {"north": 1, "south": 2, "west": 3}
    assert all(Counter(SHUFFLED[k] for k in batch) == sizes for batch in sampler(batch_size=sizes))


def test_an_epoch_has_at_least_as_many_rows_as_the_data():
    assert len(sampler()) == len(list(sampler())) == 2
    assert len(sampler(batches=7)) == len(list(sampler(batches=7))) == 7


def test_rows_are_sampled_in_proportion_to_their_weights():
    weights = torch.arange(18.0)
    counts = Counter(itertools.chain(*sampler(weights=weights, batches=1000)))
    for name in set(SHUFFLED):
        own = [k for k in range(18) if SHUFFLED[k] == name]
        expected = weights[own] / weights[own].sum()
        drawn = torch.tensor([counts[k] for k in own]) / 4_000
        # Four standard deviations of a share.
        assert bool(((drawn - expected).abs() <= 4 * (expected * (1 - expected) / 4_000).sqrt()).all())


@given(st.integers(1, 7), st.integers(0, 3))
@settings(max_examples=15)
def test_without_replacement_every_row_is_used_once_per_pass(batch_size, seed):
    batches = list(sampler(batch_size=batch_size, replacement=False, batches=30, seed=seed))
    for name in set(SHUFFLED):
        own = [k for batch in batches for k in batch if SHUFFLED[k] == name]
        size = SHUFFLED.count(name)
        for start in range(0, len(own) - size + 1, size):
            assert sorted(own[start : start + size]) == [k for k in range(18) if SHUFFLED[k] == name]


def test_passes_have_different_orders():
    batches = list(sampler(batch_size=11, replacement=False, batches=4))
    orders = {tuple(k for k in batch if SHUFFLED[k] == "south") for batch in batches}
    assert len(orders) == 4


def test_batches_depend_only_on_seed_and_number():
    first, second = sampler(seed=3), sampler(seed=3)
    later = [second.at(number) for number in reversed(range(6))]
    assert [*first, *first, *first] == later[::-1]
    assert list(sampler(seed=4)) != list(sampler(seed=3))


@pytest.mark.parametrize("options", [{}, {"replacement": False}, {"per_batch": 2}, {"weights": range(1, 19)}])
def test_a_resumed_sampler_returns_the_remaining_batches(options):
    whole = list(sampler(batches=8, **options))
    interrupted = sampler(batches=8, **options)
    for _ in zip(range(3), interrupted, strict=False):
        state = interrupted.state_dict()
    resumed = sampler(batches=8, **options)
    resumed.load_state_dict(state)
    assert list(resumed) == whole[3:]
    assert resumed.state_dict() == {"step": 8}
    resumed.set_epoch(0)
    assert list(resumed) == whole


def test_a_loader_with_workers_resumes_at_the_given_batch():
    whole = list(sampler(batches=6))
    requested = sampler(batches=6)
    loader = iter(DataLoader(range(18), batch_sampler=requested, num_workers=1))
    used = [next(loader).tolist() for _ in range(2)]
    resumed = sampler(batches=6)
    resumed.load_state_dict(requested.state_dict(batches=2))
    assert used + list(resumed) == whole


@given(st.sampled_from((1, 2, 3, 6)), st.booleans())
@settings(max_examples=8)
def test_processes_share_the_batch_of_one_process(processes, replacement):
    options = {"batch_size": 6, "replacement": replacement, "batches": 4}
    parts = [list(sampler(processes=processes, rank=rank, **options)) for rank in range(processes)]
    for number, batch in enumerate(sampler(**options)):
        joined = list(itertools.chain(*(part[number] for part in parts)))
        assert sorted(joined) == sorted(batch)
        assert {len(part[number]) for part in parts} == {18 // processes}
        # Grouped by environment, the joined batch has the order of the batch of one process.
        assert sorted(joined, key=lambda k: SHUFFLED[k]) == batch


def test_a_batch_may_have_some_of_the_environments():
    batches = list(sampler(per_batch=2, batches=200))
    names = [tuple(dict.fromkeys(SHUFFLED[k] for k in batch)) for batch in batches]
    assert {len(each) for each in names} == {2}
    counts = Counter(names)
    assert len(counts) == 3
    assert all(abs(count - 200 / 3) < 4 * (200 * 2 / 9) ** 0.5 for count in counts.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "sampler: batch_size must be a whole number of at least 1; got 0"),
        (
            {"batch_size": {"nroth": 1}},
            "sampler: batch_size: unknown environment 'nroth'; did you mean 'north'?",
        ),
        ({"batch_size": {"north": 1, "south": 1}}, "batch_size has no number of rows for environment 'west'"),
        ({"weights": [1.0]}, "sampler: lengths must be equal; got 18 environments, 1 weights"),
        ({"weights": [-1.0] * 18}, "sampler: weights must be finite numbers of at least 0"),
        ({"weights": [0.0] * 18}, "sampler: all weights of environment 'north' are 0"),
        ({"weights": [1.0] * 18, "replacement": False}, "sampler: weights need replacement=True"),
        ({"per_batch": 4}, "sampler: per_batch must be at most 3; got 4"),
        ({"per_batch": 2, "replacement": False}, "sampler: per_batch needs replacement=True"),
        (
            {"processes": 3, "rank": 0},
            "the 4 rows of environment 'north' cannot be divided among 3 processes",
        ),
        ({"processes": 2, "rank": 2}, "sampler: rank must be from 0 to 1; got 2"),
        ({"batches": 1.5}, "sampler: batches must be a whole number of at least 1; got 1.5"),
    ],
)
def test_errors(options, message):
    with pytest.raises(EnvariantError) as error:
        sampler(**options)
    assert message in str(error.value)


def test_epochs_of_few_environments_have_no_batch_too_many():
    """1/49·49 is less than 1 in floating-point numbers."""
    assert len(envariant.EnvironmentSampler(range(49), batch_size=1, per_batch=1)) == 49
