"""Two processes with `DistributedDataParallel` (gloo): loss and gradients of one process on the joined batch."""

import itertools

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import envariant
from envariant.objectives.requirements import has_loss
from processes import start

NAMES = (
    "erm",
    "irm(coefficient=5, l2=0.1)",
    "vrex(coefficient=5)",
    "coral",
    "groupdro(rate=0.5)",
    "fishr(coefficient=5)",
    "iga(coefficient=2)",
    "causirl-mmd(max_rows=4)",
    "selfreg",
    "eqrm(burn_in=0)",
    "vrex(coefficient=2) + and-mask(threshold=0.5)",
    "iga(coefficient=2) + pcgrad",
)
# The first process has fewer rows, and none of environment 2.
PARTS = slice(0, 13), slice(13, 40)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.featurizer, self.head = nn.Linear(5, 8), nn.Linear(8, 1)

    def forward(self, inputs):
        features = torch.tanh(self.featurizer(inputs))
        return features, self.head(features)


def rows():
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    targets = (torch.rand(40, generator=generator) > 0.5).double()
    environments = torch.randint(0, 3, (40,), generator=generator)
    environments[PARTS[0]] = environments[PARTS[0]].clamp(max=1)
    return inputs, targets, environments


def training(name, part, wrap):
    """Return loss and gradients of three steps of gradient descent, and the objective's state."""
    net, results = Net().double(), []
    objective = envariant.objective(name, features=8, loss=envariant.Binary())
    objective.networks.double()
    inputs, targets, environments = (each[part] for each in rows())
    forward = wrap(net) if has_loss(objective.algorithm) else net
    for _ in range(3):
        net.zero_grad()
        objective.zero_grad()
        features, logits = forward(inputs)
        if has_loss(objective.algorithm):
            loss = objective(logits, targets, environments, features=features, model=net)
            loss.backward()
        else:
            loss = objective.backward(net, logits, targets, environments, features=features)
        gradients = [parameter.grad.clone() for parameter in (*net.parameters(), *objective.parameters())]
        results.append([loss.detach(), *gradients])
        with torch.no_grad():
            for parameter in net.parameters():
                parameter -= 0.1 * parameter.grad
    return results, list(objective.state_dict().values())


def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(
        [training(name, PARTS[rank], DistributedDataParallel) for name in NAMES], folder / f"{rank}.pt"
    )
    dist.barrier()
    # Evaluation by a single process does not wait for the other one.
    if rank == 0:
        objective = envariant.objective("vrex").eval()
        objective(torch.zeros(2), torch.ones(2), torch.tensor([0, 1]))
    sampler = envariant.EnvironmentSampler([0, 0, 0, 1, 1, 1], batch_size=4)
    torch.save([sampler.at(step) for step in range(3)], folder / f"sampler{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    processes = [start(work, rank, folder, output=folder / f"output{rank}") for rank in (0, 1)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0], (folder / "output0").read_text()
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_loss_gradients_and_state_equal_those_of_one_process_on_the_joined_batch(name, folder):
    expected, state = training(name, slice(0, 40), lambda net: net)
    for rank in (0, 1):
        results, other_state = torch.load(folder / f"{rank}.pt")[NAMES.index(name)]
        for value, reference in zip(itertools.chain(*results), itertools.chain(*expected), strict=True):
            torch.testing.assert_close(value, reference, rtol=1e-11, atol=1e-13)
        for value, reference in zip(other_state, state, strict=True):
            torch.testing.assert_close(value, reference, rtol=1e-11, atol=1e-13)


def test_processes_get_the_halves_of_one_batch(folder):
    parts = [torch.load(folder / f"sampler{rank}.pt") for rank in (0, 1)]
    whole = envariant.EnvironmentSampler([0, 0, 0, 1, 1, 1], batch_size=4)
    for step in range(3):
        first, second = parts[0][step], parts[1][step]
        assert [*first[:2], *second[:2], *first[2:], *second[2:]] == whole.at(step)
