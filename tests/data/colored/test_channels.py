"""The report's own environments: one color channel each, made from the protocol that it uses."""

import pytest
import torch

from envariant.data import ColorChannels, ColoredMNIST, source


@pytest.fixture(scope="module")
def drawn():
    return ColorChannels(size=7).sample(3)


def test_each_environment_holds_one_channel_of_every_training_row(drawn):
    thirds = ColoredMNIST("thirds", size=7).sample(3)
    rows = torch.cat([thirds[name].inputs for name in ("train1", "train2")])
    targets = torch.cat([thirds[name].targets for name in ("train1", "train2")])
    assert drawn.names == ("red", "green", "blue", "test")
    assert drawn.roles() == {"red": "train", "green": "train", "blue": "train", "test": "test"}
    background = torch.tensor([-0.1307 / 0.3081, -0.1307 / 0.3081, 0.0])
    for channel, name in enumerate(("red", "green", "blue")):
        own = drawn[name]
        assert torch.equal(own.targets, targets)
        assert torch.equal(own.inputs[:, channel], rows[:, channel])
        for other in {0, 1, 2} - {channel}:
            flat = own.inputs[:, other]
            torch.testing.assert_close(flat, background[other].expand_as(flat))
    assert torch.equal(drawn["test"].inputs, thirds["test"].inputs)


def test_the_source_is_found_by_name():
    assert source("colored-mnist-channels") == ColorChannels()
    assert source("colored-mnist-channels(size=28)").name == "colored-mnist-channels(size=28)"
