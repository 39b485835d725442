"""Networks of skorch with an objective: the steps of a plain loop, resumption, and scikit-learn's tools."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import nn

import envariant
from envariant import EnvariantError, EnvironmentSampler
from envariant.integrations.skorch import ObjectiveMixin

GENERATOR = np.random.default_rng(0)
INPUTS = GENERATOR.normal(size=(40, 3)).astype(np.float32)
TARGETS = (INPUTS[:, 0] + 0.3 * GENERATOR.normal(size=40) > 0).astype(np.int64)
ENVIRONMENTS = np.repeat([0, 1, 2], [20, 12, 8])
DATA = {"input": INPUTS, "environments": ENVIRONMENTS}
ARGUMENTS = {"environments": 3, "features": 6, "loss": envariant.Multiclass(2)}


@pytest.fixture(scope="module")
def library():
    pytest.importorskip("skorch", reason="the extra `skorch` is not installed")
    import skorch.helper

    return skorch


@pytest.fixture(scope="module")
def net_class(library):
    class InvariantNet(ObjectiveMixin, library.NeuralNetClassifier): ...

    # Pickle finds classes by their names.
    globals()["InvariantNet"] = InvariantNet
    InvariantNet.__qualname__ = "InvariantNet"
    return InvariantNet


def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))


def net(net_class, algorithm="vrex", **options):
    options = {"train_split": None, "batch_size": 12, "max_epochs": 4, "lr": 0.05, "verbose": 0, **options}
    named = {f"criterion__{name}": value for name, value in ARGUMENTS.items()}
    return net_class(module(), criterion__algorithm=algorithm, optimizer=torch.optim.Adam, **named, **options)


@pytest.mark.parametrize("algorithm", ["groupdro + coral", "irm + and-mask", "mm-rex + selfreg"])
def test_skorch_takes_the_steps_of_a_loop_in_plain_pytorch(net_class, algorithm):
    trained = net(net_class, algorithm, max_epochs=2, batch_seed=3).fit(DATA, TARGETS)
    expected, loss = module(), envariant.objective(algorithm, **ARGUMENTS)
    optimizer = torch.optim.Adam([*expected.parameters(), *loss.parameters()], lr=0.05)
    sampler = EnvironmentSampler(ENVIRONMENTS, 4, seed=3)
    assert len(sampler) == 4
    for step in range(8):
        rows = sampler.at(step)
        features = expected[:-1](torch.tensor(INPUTS[rows]))
        optimizer.zero_grad()
        batch = torch.tensor(TARGETS[rows]), torch.tensor(ENVIRONMENTS[rows])
        loss.backward(expected, expected[-1](features), *batch, features=features)
        optimizer.step()
    for name, value in expected.named_parameters():
        torch.testing.assert_close(trained.module_.get_parameter(name), value, rtol=1e-5, atol=1e-6)
    assert (trained.module_[0].weight - module()[0].weight).abs().max() > 0.05


@pytest.mark.parametrize("algorithm", ["groupdro + fishr", "mm-rex + selfreg"])
def test_a_resumed_run_ends_with_the_same_numbers(library, net_class, tmp_path, algorithm):
    callbacks = library.callbacks
    whole = net(net_class, algorithm).fit(DATA, TARGETS)
    saved = callbacks.Checkpoint(monitor=None, dirname=str(tmp_path), f_criterion="criterion.pt")
    net(net_class, algorithm, max_epochs=2, callbacks=[saved]).fit(DATA, TARGETS)
    load = callbacks.LoadInitState(callbacks.Checkpoint(dirname=str(tmp_path), f_criterion="criterion.pt"))
    resumed = net(net_class, algorithm, max_epochs=2, callbacks=[load]).fit(DATA, TARGETS)
    assert len(resumed.history) == 4
    for part in ("module_", "criterion_"):
        state, again = (getattr(each, part).state_dict() for each in (whole, resumed))
        assert state.keys() == again.keys()
        assert all(torch.equal(value, again[name]) for name, value in state.items())


def test_predictions_need_no_environments_and_are_probabilities(net_class, library):
    trained = net(net_class, max_epochs=20).fit(DATA, TARGETS)
    probabilities = trained.predict_proba({"input": INPUTS})
    with torch.no_grad():
        expected = trained.module_.eval()(torch.tensor(INPUTS)).softmax(dim=1).numpy()
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
    assert trained.score({"input": INPUTS}, TARGETS) > 0.85
    assert trained.score(DATA, TARGETS) == trained.score({"input": INPUTS}, TARGETS)

    class BinaryNet(ObjectiveMixin, library.NeuralNetBinaryClassifier): ...

    binary = BinaryNet(nn.Linear(3, 1), criterion__algorithm="vrex", verbose=0, max_epochs=20, lr=0.5)
    binary.fit(DATA, TARGETS.astype(np.float32))
    assert binary.score(DATA, TARGETS) > 0.85
    assert binary.predict_proba(DATA).shape == (40, 2)


def test_the_validation_loss_is_the_mean_loss_of_all_rows(net_class, library):
    other = library.dataset.Dataset({**DATA, "environments": ENVIRONMENTS + 7}, TARGETS)
    split = library.helper.predefined_split(other)
    trained = net(net_class, train_split=split, max_epochs=1).fit(DATA, TARGETS)
    with torch.no_grad():
        logits = trained.module_.eval()(torch.tensor(INPUTS))
    expected = nn.functional.cross_entropy(logits, torch.tensor(TARGETS)).item()
    assert trained.history[-1, "valid_loss"] == pytest.approx(expected, rel=1e-5)
    assert trained.criterion_.environments == ("0", "1", "2")


def test_networks_can_be_cloned_pickled_and_searched(net_class, library):
    copy = clone(net(net_class, head="2", batch_seed=5))
    assert (copy.head, copy.batch_seed, copy.batch_size) == ("2", 5, 12)
    search = GridSearchCV(
        net(net_class, max_epochs=1), {"criterion__algorithm": ["erm", "vrex(coefficient=10)"]}, cv=2
    )
    search.fit(library.helper.SliceDict(**DATA), TARGETS)
    assert search.best_params_["criterion__algorithm"] in {"erm", "vrex(coefficient=10)"}
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(again.predict(DATA), search.predict(DATA))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (INPUTS, "the inputs must be a mapping with the key 'environments'"),
        ({"input": INPUTS}, "the inputs must be a mapping with the key 'environments'"),
        ({**DATA, "environments": np.array(list("ab") * 20)}, r"whole numbers, one per row; got <U1 of shape \(40,\)"),
        ({**DATA, "environments": np.arange(40)}, "at least the number of training environments, 40; got 12"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_rejected_in_one_line(net_class, inputs, message):
    with pytest.raises(EnvariantError, match=message):
        net(net_class).fit(inputs, TARGETS)
