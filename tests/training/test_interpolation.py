"""WiSE-FT's interpolation: the numbers of the paper's definition, buffers, and wrong arguments."""

import pytest
import torch
from torch import nn

from envariant.core.errors import EnvariantError
from envariant.training.averaging import WiSEFT
from envariant.training.interpolation import interpolated
from envariant.training.train import train

BEFORE = {"w": torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)}
AFTER = {"w": torch.tensor([3.0, 0.0, 1.0], dtype=torch.float64)}


def test_the_numbers_of_the_definition():
    mixed = interpolated(BEFORE, AFTER, 0.4)["w"]
    torch.testing.assert_close(mixed, torch.tensor([1.8, 1.2, -0.2], dtype=torch.float64))
    fisher = [{"w": torch.tensor(v, dtype=torch.float64)} for v in ([1, 4, 0.5], [2, 1, 1e-9])]
    mixed = interpolated(BEFORE, AFTER, 0.4, fisher_before=fisher[0], fisher_after=fisher[1], floor=1e-6)["w"]
    expected = torch.tensor([2.1428571429, 1.7142857143, -0.9999973333], dtype=torch.float64)
    torch.testing.assert_close(mixed, expected, atol=1e-9, rtol=0)


def test_running_statistics_are_interpolated_and_counters_are_not():
    before, after = (nn.BatchNorm1d(2) for _ in range(2))
    after(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    mixed = nn.BatchNorm1d(2)
    mixed.load_state_dict(interpolated(before.state_dict(), after.state_dict(), 0.25))
    torch.testing.assert_close(mixed.running_mean, 0.25 * after.running_mean)
    assert mixed.num_batches_tracked == 1
    for share, weights in ((0.0, before), (1.0, after)):
        ends = interpolated(before.state_dict(), after.state_dict(), share)
        torch.testing.assert_close(ends["running_var"], weights.running_var)


@pytest.mark.parametrize(
    ("other", "share", "message"),
    [(AFTER, 1.5, r"in \[0, 1\], got 1.5"), ({"v": AFTER["w"]}, 0.5, "the same weights")],
)
def test_wrong_arguments_give_one_sentence(other, share, message):
    with pytest.raises(EnvariantError, match=message):
        interpolated(BEFORE, other, share)


def test_a_run_predicts_between_its_initial_and_trained_weights():
    options = {"steps": 4, "batch_size": 16, "replicas": 1, "progress": False, "model": "linear"}
    start = train("colored-digits", "erm", learning_rate=1e-30, **options).model(0).state_dict()
    end = train("colored-digits", "erm", **options).model(0).state_dict()
    mixed = train("colored-digits", "erm", average="wise-ft(0.25)", **options).model(0).state_dict()
    for name, value in interpolated(start, end, 0.25).items():
        torch.testing.assert_close(mixed[name], value)
    rule = WiSEFT(0.4)
    state = rule.update(rule.init(BEFORE["w"][None]), AFTER["w"][None], 1)
    torch.testing.assert_close(state["average"][0], torch.tensor([1.8, 1.2, -0.2], dtype=torch.float64))
