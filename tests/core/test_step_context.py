"""Random numbers of a step: their distributions and their independence."""

import numpy as np
import pytest
import scipy.stats
import torch

from envariant.core.step_context import StepContext

LIKE = torch.zeros((), dtype=torch.float64)


def test_uniform_and_normal_numbers():
    context = StepContext.at(5)
    assert scipy.stats.kstest(context.uniform(20_000, like=LIKE), "uniform").pvalue > 1e-3
    assert scipy.stats.kstest(context.normal(20_000, draw=1, like=LIKE), "norm").pvalue > 1e-3
    assert context.normal(3, 2, like=LIKE).shape == (3, 2)


def beta_numbers(alpha, count):
    return np.array([float(StepContext.at(step).symmetric_beta(alpha, like=LIKE)) for step in range(count)])


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 10.0])
def test_symmetric_beta_numbers(alpha):
    assert scipy.stats.kstest(beta_numbers(alpha, 2000), scipy.stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_beta_numbers_with_small_alpha_stay_within_bounds():
    drawn = beta_numbers(0.01, 500)
    assert ((drawn >= 0) & (drawn <= 1)).all()
    assert 0.4 < np.mean(drawn > 0.5) < 0.6


def test_all_permutations_occur():
    seen = {tuple(StepContext.at(step).permutation(3, like=LIKE).tolist()) for step in range(100)}
    assert len(seen) == 6
    assert all(sorted(order) == [0, 1, 2] for order in seen)


def test_same_draw_repeats_and_other_draws_differ():
    context = StepContext.at(5, seed=1)
    draw = context.uniform(4, like=LIKE)
    assert torch.equal(draw, context.uniform(4, like=LIKE))
    others = [context.uniform(4, draw=1, like=LIKE), context.of_part(1).uniform(4, like=LIKE)]
    others += [
        StepContext.at(6, seed=1).uniform(4, like=LIKE),
        StepContext.at(5, seed=2).uniform(4, like=LIKE),
    ]
    assert len({tuple(value.tolist()) for value in (draw, *others)}) == 5


def test_stacked_keys_draw_as_each_alone():
    keys = torch.stack([StepContext.at(3, seed=s).key for s in (1, 2)])
    together = torch.func.vmap(lambda key: StepContext(3, 0.1, key).symmetric_beta(0.3, like=LIKE))(keys)
    alone = [StepContext.at(3, seed=s).symmetric_beta(0.3, like=LIKE) for s in (1, 2)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-14, atol=0)
