"""Random numbers by counting: against splitmix64 in plain integers, and whether they are random."""

import numpy as np
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from envariant.core.counter_rng import coins, integers, mixed, step_key, step_keys, uniforms
from envariant.training.replicas import Seeds

CPU = torch.device("cpu")
GOLDEN = 0x9E3779B97F4A7C15


def unsigned(values):
    return [value % 2**64 for value in values]


def test_mixing_is_splitmix64():
    """The first outputs for seed 1234567, as published with the generator."""
    state, found = 1234567, []
    for _ in range(3):
        state = (state + GOLDEN) % 2**64
        found.append(mixed(state))
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3), st.integers(0, 10**7))
def test_tensor_arithmetic_equals_integer_arithmetic(seeds, step):
    keys = step_keys(seeds, step, 2, CPU)
    assert keys.shape == (2, len(seeds))
    for i in (0, 1):
        assert unsigned(keys[i].tolist()) == [step_key(seed, step + i) for seed in seeds]
    assert Seeds(0, 0, seeds[0]).at(step) == step_key(seeds[0], step) >> 1
    drawn = uniforms(keys[0], 3, 2)
    for k, seed in enumerate(seeds):
        for i in (0, 1):
            z = mixed(step_key(seed, step) + GOLDEN * ((3 << 32) + i + 1))
            assert drawn[k, i].item() == (z >> 40) * 2.0**-24


def test_numbers_are_uniform_and_neighbors_share_nothing():
    keys = step_keys([1, 2, 3], 0, 50, CPU)
    values = uniforms(keys, 0, 400)
    assert float(values.min()) >= 0
    assert float(values.max()) < 1
    assert scipy.stats.kstest(values.flatten().numpy(), "uniform").pvalue > 0.01
    flat = values.reshape(150, 400).numpy()
    off = np.corrcoef(flat)[~np.eye(150, dtype=bool)]
    # 22,350 correlations of independent numbers with standard deviation 1/√400.
    assert np.abs(off).max() < 5.5 / 20
    assert not torch.equal(values, uniforms(keys, 1, 400)), "another stream, other numbers"


def test_integers_stay_below_their_bounds_and_reach_all_of_them():
    below = torch.tensor([1, 3, 7, 10**6])
    found = integers(step_keys([5], 0, 4000, CPU), 0, below)[:, 0]
    assert bool((found >= 0).all())
    assert bool((found < below).all())
    for column, bound in ((1, 3), (2, 7)):
        counts = torch.bincount(found[:, column], minlength=bound).numpy()
        assert scipy.stats.chisquare(counts).pvalue > 0.001


def test_coins_are_16_bits_of_the_numbers_of_a_row():
    key = step_keys([3], 7, 1, torch.device("cpu"))[0, 0]
    drawn = coins(key, 5, 4, 6, 0.3, first_row=2)
    # Six values per row need two numbers per row; the lowest 16 bits come first, as signed numbers.
    for row in range(4):
        for column in range(6):
            word = mixed(int(key) + 0x9E3779B97F4A7C15 * ((2 + row) * 2 + column // 4 + 1 + (5 << 32)))
            lane = (word >> (16 * (column % 4))) & 0xFFFF
            signed = lane - 0x10000 if lane >= 0x8000 else lane
            assert bool(drawn[row, column]) == (signed < round(0.3 * 2**16) - 2**15)
    assert not coins(key, 5, 300, 100, 0.0).any()
    # The type of the 16-bit numbers has no number above all of them.
    for almost in (1 - 1e-6, 1.0):
        assert coins(key, 5, 300, 100, almost).double().mean() > 0.999
    many = coins(key, 6, 300, 1001, 0.3)
    assert abs(many.double().mean().item() - 0.3) < 0.004
