"""PyTorch Lightning with an objective: the steps of a plain loop, and the same numbers after a resumption."""

import pytest
import torch
from torch import nn

import envariant
from envariant import EnvariantError, EnvironmentSampler
from envariant.integrations.lightning import EnvironmentDataLoader, ObjectiveMixin

# Warnings of Lightning about its own code, a missing validation set and other things that do not matter here.
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)
OWNERS = [0] * 9 + [1] * 6 + [2] * 5


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("pytorch_lightning", reason="the extra `lightning` is not installed")


def rows():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(20, 4, generator=generator)
    return torch.utils.data.TensorDataset(inputs, (inputs[:, 0] > 0).long(), torch.tensor(OWNERS))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def objective(algorithm):
    return envariant.objective(algorithm, environments=3, features=8, loss=envariant.Multiclass(2))


def loader(**options):
    # Five batches per epoch, so that the end of an epoch is not a checkpoint.
    return EnvironmentDataLoader(rows(), EnvironmentSampler(OWNERS, 2, batches=5, seed=1), **options)


@pytest.fixture(scope="module")
def module_class(library):
    class Classifier(ObjectiveMixin, library.LightningModule):
        def __init__(self, algorithm):
            super().__init__()
            self.network, self.objective = network(), objective(algorithm)

        def training_step(self, batch, _):
            return self.objective_loss(self.network, *batch)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.05)

    return Classifier


def fitted(library, module, steps, folder, resume=None, **options):
    checkpoints = library.callbacks.ModelCheckpoint(
        folder, every_n_train_steps=3, save_top_k=-1, filename="{step}"
    )
    logger = library.loggers.CSVLogger(folder)
    trainer = library.Trainer(
        accelerator="cpu", max_steps=steps, logger=logger, callbacks=[checkpoints], log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(module, loader(), ckpt_path=resume)
    return trainer


@pytest.mark.parametrize("algorithm", ["groupdro + coral", "irm + and-mask", "mm-rex + selfreg"])
def test_lightning_takes_the_steps_of_a_loop_in_plain_pytorch(library, module_class, tmp_path, algorithm):
    module = module_class(algorithm)
    trainer = fitted(library, module, 7, tmp_path)

    expected, loss = network(), objective(algorithm)
    optimizer = torch.optim.Adam([*expected.parameters(), *loss.parameters()], lr=0.05)
    sampler = EnvironmentSampler(OWNERS, 2, batches=5, seed=1)
    for step in range(7):
        inputs, targets, environments = rows()[sampler.at(step)]
        features = expected[:-1](inputs)
        optimizer.zero_grad()
        loss.backward(expected, expected[-1](features), targets, environments, features=features)
        optimizer.step()
    for name, value in expected.named_parameters():
        torch.testing.assert_close(module.network.get_parameter(name), value, rtol=1e-5, atol=1e-6)
    assert (module.network[0].weight - network()[0].weight).abs().max() > 0.05
    assert {"train/loss", "train/risk 2"} <= set(trainer.logged_metrics)


@pytest.mark.parametrize(("checkpoint", "algorithm"), [(3, "groupdro + fishr"), (6, "mm-rex + selfreg")])
def test_a_resumed_run_ends_with_the_same_numbers(library, module_class, tmp_path, checkpoint, algorithm):
    """In the middle of the first epoch and after the first step of the second."""
    whole = module_class(algorithm)
    fitted(library, whole, 8, tmp_path / "whole")
    fitted(library, module_class(algorithm), checkpoint, tmp_path / "half")
    resumed = module_class(algorithm)
    file = tmp_path / "half" / f"step={checkpoint}.ckpt"
    trainer = fitted(library, resumed, 8, tmp_path / "again", resume=file)
    assert trainer.global_step == 8
    assert resumed.objective.state_dict()["_extra_state"][0] == 8
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_loader_with_worker_processes_resumes_after_the_batches_that_were_used():
    batches = loader(num_workers=1, multiprocessing_context="fork", prefetch_factor=2)
    used = [next(iterator := iter(batches)), next(iterator)]
    state = batches.state_dict()
    assert state == {"step": 2}
    again = loader()
    again.load_state_dict(state)
    sampler = EnvironmentSampler(OWNERS, 2, batches=5, seed=1)
    expected = [rows()[sampler.at(step)] for step in range(10)]
    for batch, reference in zip([*used, *again, *again], expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, reference, strict=True))


def test_wrong_arguments_are_rejected_in_one_line(library, module_class):
    module = module_class("vrex")
    with pytest.raises(EnvariantError, match=r"the network contains the objective; pass a submodule"):
        module.objective_loss(module, *rows()[:4])
    with pytest.raises(EnvariantError, match=r"unknown layer 'fc'; known: 0, 1, 2$"):
        module_class("coral").objective_loss(module.network, *rows()[:4], head="fc")
    with pytest.raises(EnvariantError, match=r"model ReLU: has no torch.nn.Linear; name its last layer"):
        module_class("coral").objective_loss(nn.ReLU(), *rows()[:4])
    with pytest.raises(EnvariantError, match=r"sampler must be an EnvironmentSampler; got 3$"):
        EnvironmentDataLoader(rows(), 3)
    del module.objective
    module.objective = "vrex"
    with pytest.raises(EnvariantError, match=r"must be an objective, such as envariant.objective\('vrex'\)"):
        module.objective_loss(module.network, *rows()[:4])
