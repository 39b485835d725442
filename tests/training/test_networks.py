"""Networks of users: recurrent, lazy, with other outputs or side effects. They train, or one error explains."""

import collections
import random
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import envariant
from envariant import Environment, EnvironmentSet, InvariantClassifier
from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.core.tasks import Binary, Multiclass, Regression
from envariant.studies.study import Study
from envariant.training.evaluator import Evaluator
from envariant.training.execution import Execution
from envariant.training.module_outputs import logits_of, remark_on
from envariant.training.network import Network
from envariant.training.run_config import built

QUICK = {"steps": 3, "evaluate_every": 3, "learning_rate": 0.05, "precision": "float32"}


def environments(shape=(3,), task=None):
    generator = torch.Generator().manual_seed(0)
    parts = []
    for name, rows in (("a", 16), ("b", 12), ("c", 10)):
        inputs = torch.randn(rows, *shape, generator=generator)
        targets = (inputs.flatten(1)[:, -1] > 0).float()
        parts.append(Environment(name, inputs, targets))
    return EnvironmentSet("own", tuple(parts), task or Binary(), test=("c",))


FLAT, SERIES = environments(), environments((5, 3))


class Recurrent(nn.Module):
    """Recurrent body and linear head."""

    def __init__(self, body):
        super().__init__()
        self.body, self.last = body, nn.Linear(6, 1)

    def forward(self, inputs):
        return self.last(self.body(inputs)[0][:, -1])


@pytest.mark.parametrize("body", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("algorithm", ["erm", "irm(coefficient=3)", "iga(coefficient=1)"])
def test_recurrent_networks_train_as_in_a_plain_loop(body, algorithm):
    torch.manual_seed(0)
    module = Recurrent(body(3, 6, batch_first=True))
    result = envariant.train(SERIES, algorithm, model=module, optimizer="sgd", **QUICK)
    own = Recurrent(body(3, 6, batch_first=True))
    own.load_state_dict(module.state_dict())
    pairs = [SERIES[name].rows() for name in "ab"]
    task = SERIES.task
    # PyTorch's own kernels; those of oneDNN have no second derivatives.
    enabled = torch.backends.mkldnn.set_flags(not algorithm.startswith("iga"), _fp32_precision=None)[0]
    try:
        for _ in range(3):
            multipliers = [torch.ones((), requires_grad=True) for _ in pairs]
            risks = [
                task.losses(m * own(x).flatten(), y).mean()
                for m, (x, y) in zip(multipliers, pairs, strict=True)
            ]
            total = (risks[0] + risks[1]) / 2
            if algorithm.startswith("irm"):
                slopes = torch.autograd.grad(sum(risks), multipliers, create_graph=True)
                total = (total + 3 * sum(s.square() for s in slopes) / 2) / 3
            if algorithm.startswith("iga"):
                params = list(own.parameters())
                each = [torch.autograd.grad(risk, params, create_graph=True) for risk in risks]
                total = total + sum(((a - b) / 2).square().sum() * 2 for a, b in zip(*each, strict=True))
            own.zero_grad()
            total.backward()
            with torch.no_grad():
                for p in own.parameters():
                    p -= QUICK["learning_rate"] * p.grad
    finally:
        torch.backends.mkldnn.set_flags(enabled, _fp32_precision=None)
    for name, value in own.state_dict().items():
        torch.testing.assert_close(result.checkpoints[0].params[name], value, rtol=1e-4, atol=1e-6)


def test_recurrent_replicas_train_one_at_a_time_by_any_choice():
    options = {"model": lambda: Recurrent(nn.LSTM(3, 6, batch_first=True)), "replicas": 2, **QUICK}
    with pytest.raises(EnvariantError, match=r"cannot be stacked .*lstm.*; set execution to sequential"):
        envariant.train(SERIES, "erm", execution="stacked", **options)
    plain = envariant.train(SERIES, "erm", execution="sequential", **options)
    with pytest.warns(EnvariantWarning, match="continued one at a time"):
        forced = envariant.train(SERIES, "erm", execution=Execution("stacked", 2, "test"), **options)
    assert forced.rows == plain.rows


class Returns(nn.Module):
    """Linear model whose output is passed through a function."""

    def __init__(self, change, outputs=1):
        super().__init__()
        torch.manual_seed(5)
        self.only, self.change = nn.Linear(3, outputs), change

    def forward(self, inputs):
        return self.change(self.only(inputs), inputs)


Named = collections.namedtuple("Named", "hidden scores")


@dataclass
class ModelOutput:
    """Object with logits, as of Hugging Face."""

    logits: torch.Tensor
    loss: object = None


class OrderedOutput(collections.OrderedDict):
    """Mapping with logits and another tensor of the same shape."""


USED = {
    "dict": lambda z, x: {"logits": z},
    "named logits": lambda z, x: {"other": -z, "logits": z},
    "only one fits": lambda z, x: {"out": z, "hidden": x},
    "tuple": lambda z, x: (z, x),
    "list": lambda z, x: [z],
    "namedtuple": lambda z, x: Named(x, z),
    "object": lambda z, x: ModelOutput(z),
    "ordered": lambda z, x: OrderedOutput(logits=z, other=-z),
}


@pytest.mark.parametrize("name", USED)
def test_logits_in_a_collection_are_trained_on_and_predicted(name):
    model = Returns(USED[name])
    result = envariant.train(FLAT, "erm", model=model, **QUICK)
    plain = envariant.train(FLAT, "erm", model=Returns(lambda z, x: z), **QUICK)
    assert result.rows == plain.rows
    inputs, _ = FLAT["c"].rows()
    logits = Evaluator.of_module(result.model(), FLAT.task).logits(inputs)
    assert torch.equal(logits, Evaluator.of_module(plain.model(), FLAT.task).logits(inputs))


REFUSED = {
    "None": (lambda z, x: None, "for 2 rows it returned None (does forward lack a return statement?)"),
    "two fit": (lambda z, x: (z, -z), "returned tuple (0 (2, 1), 1 (2, 1)), and several of them could be"),
    "none fits": (
        lambda z, x: {"a": x},
        "returned dict (a (2, 3)), and none of it has that shape; return the",
    ),
    "text": (lambda z, x: "logits", "for 2 rows it returned str"),
    "too many": (lambda z, x: x * z, "for 2 rows it returned a tensor of shape (2, 3)"),
    "integers": (lambda z, x: (z > 0).long(), "returned a tensor of type int64 of shape (2, 1)"),
    "no graph": (lambda z, x: z.detach(), "its output does not depend on its trained parameters"),
    "numpy": (lambda z, x: torch.from_numpy(z.detach().numpy()), "its output does not depend on its trained"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_outputs_are_refused_with_what_was_returned(name):
    change, message = REFUSED[name]
    with pytest.raises(EnvariantError) as refusal:
        envariant.train(FLAT, "erm", model=Returns(change), **QUICK)
    assert str(refusal.value).startswith("model Returns: ")
    assert message in str(refusal.value)
    assert "cannot take inputs" not in str(refusal.value)


class Parts(nn.Module):
    """Model of a featurizer and a head."""

    def __init__(self, featurizer, head):
        super().__init__()
        self.featurizer, self.head = featurizer, head

    def forward(self, inputs):
        return self.head(self.featurizer(inputs))


def test_featurizer_that_returns_a_tuple_is_named():
    with pytest.raises(
        EnvariantError, match=r"^model Parts: its featurizer must return one tensor .*tuple \(0"
    ):
        envariant.train(SERIES, "coral", model=Parts(nn.LSTM(3, 6), nn.Linear(6, 1)), **QUICK)


def lazy():
    return nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(1))


def small():
    return nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(1))


@pytest.mark.parametrize("model", [lazy, small()], ids=["function", "module"])
def test_lazy_layers_train(model):
    result = envariant.train(FLAT, "vrex", model=model, replicas=2, execution="stacked", **QUICK)
    assert result.finished == (0, 1)
    assert result.model().state_dict()["0.weight"].shape == (4, 3)
    weights = [c.params["0.weight"] for c in result.checkpoints.values()]
    assert not torch.equal(*weights)
    again = envariant.train(FLAT, "vrex", model=model, replicas=2, execution="stacked", **QUICK)
    assert again.rows == result.rows


def test_module_that_cannot_be_copied_is_one_error():
    with pytest.raises(EnvariantError, match="^model Sequential: cannot be copied .*; pass a function that"):
        envariant.train(FLAT, "erm", model=lazy(), **QUICK)


def test_estimator_predicts_with_lazy_layers():
    x = np.random.default_rng(0).normal(size=(30, 3))
    estimator = InvariantClassifier("erm", model=lazy, steps=30, random_state=0)
    estimator.fit(x, x[:, 0] > 0, environments=np.arange(30) % 2)
    assert estimator.predict(x).shape == (30,)


class Unused(nn.Module):
    """Network with a lazy layer that forward does not use."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(3, 1), nn.LazyLinear(1)

    def forward(self, inputs):
        return self.used(inputs)


@pytest.mark.parametrize(
    ("model", "reason"),
    [(Unused, r"\(forward does not use it\)"), (lambda: nn.Sequential(nn.LazyConv2d(2, 3)), r"\(.+\)")],
)
def test_lazy_layer_that_cannot_be_initialized_is_one_error(model, reason):
    with pytest.raises(
        EnvariantError, match=rf"a lazy layer cannot be initialized .*{reason}; give its size"
    ):
        built(lambda _shape, _outputs: model(), (3,), 1)


def test_model_that_cannot_be_built_is_one_error():
    with pytest.raises(EnvariantError, match=r"^model: cannot be built \(Linear.*missing 2 required"):
        envariant.train(FLAT, "erm", model=nn.Linear, **QUICK)


class ChangesInputs(nn.Module):
    """Network that changes its inputs in place."""

    def __init__(self):
        super().__init__()
        self.only = nn.Linear(3, 1)

    def forward(self, inputs):
        return self.only(inputs.mul_(2))


@pytest.mark.parametrize("batch_size", [None, 4])
def test_network_that_changes_its_inputs_does_not_change_the_data(batch_size):
    data, same = environments(), environments()
    seeds = {"batch_size": batch_size or "full", **QUICK}
    ours = envariant.train(data, "erm", model=ChangesInputs, **seeds)
    theirs = envariant.train(data, "erm", model=lambda: Returns(lambda z, x: z), **seeds)
    assert len(ours.rows) == len(theirs.rows)
    for name in "abc":
        assert torch.equal(data[name].rows()[0], same[name].rows()[0])
    longer = envariant.train(data, "erm", model=ChangesInputs, **{**seeds, "steps": 6})
    first = [row.value for row in ours.rows if row.metric == "loss"]
    assert first == [row.value for row in longer.rows if row.metric == "loss" and row.step <= 3]


class Branches(nn.Module):
    """Network whose control flow depends on its weights."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 1), nn.Linear(3, 1)

    def forward(self, inputs):
        return self.a(inputs) if self.a.weight.sum() > 0 else self.b(inputs)


def test_control_flow_on_data_is_not_recorded_and_not_stacked():
    options = {"model": Branches, "replicas": 2, **QUICK, "steps": 6}
    with pytest.raises(EnvariantError, match="cannot be stacked"):
        envariant.train(FLAT, "erm", execution="stacked", **options)
    assert envariant.train(FLAT, "erm", execution="sequential", **options).finished == (0, 1)


class FailsLater(nn.Module):
    """Network that fails on more than two rows."""

    def __init__(self):
        super().__init__()
        self.only = nn.Linear(3, 1)

    def forward(self, inputs):
        return self.only(inputs) + torch.zeros(2, 1)


def test_failure_during_training_names_the_network():
    with pytest.raises(EnvariantError, match=r"^model FailsLater: fails in training at step 0 \(The size of"):
        envariant.train(FLAT, "erm", model=FailsLater, **QUICK)


def test_dropout_is_never_stacked():
    model = lambda: nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))  # noqa: E731
    options = {"model": model, "replicas": 2, **QUICK}
    plain = envariant.train(FLAT, "erm", execution="sequential", **options)
    forced = envariant.train(FLAT, "erm", execution=Execution("stacked", 2, "test"), **options)
    assert forced.rows == plain.rows


class Counts(nn.Module):
    """Network with a counter that is no buffer, so that its output depends on the number of calls."""

    def __init__(self):
        super().__init__()
        self.only, self.calls = nn.Linear(3, 1), 0

    def forward(self, inputs):
        self.calls += 1
        return self.only(inputs) * (1 + self.calls % 2)


def test_network_that_changes_its_attributes_is_neither_recorded_nor_stacked():
    options = {
        "model": Counts,
        "replicas": 2,
        **QUICK,
        "optimizer": "sgd",
        "steps": 2100,
        "evaluate_every": 2100,
    }
    with pytest.raises(EnvariantError, match="cannot be stacked"):
        envariant.train(FLAT, "erm", execution="stacked", **options)
    net = Network(Counts(), Binary(), "float32", torch.device("cpu"), needs_features=False, input_shape=(3,))
    assert net.stochastic


@pytest.mark.parametrize("draw", [random.random, np.random.random])
def test_random_numbers_of_python_and_numpy_in_a_network_are_refused(draw):
    with pytest.raises(EnvariantError, match=r"its forward\(\) draws random numbers from Python or NumPy"):
        envariant.train(FLAT, "erm", model=Returns(lambda z, x: z * draw()), **QUICK)


def remark(model, task, shape=(3,)):
    net = Network(model, task, "float32", torch.device("cpu"), needs_features=False, input_shape=shape)
    return net.remark


def after(function, outputs=1):
    return Returns(lambda z, x: function(z), outputs)


@pytest.mark.parametrize(
    ("model", "task", "layer"),
    [
        (nn.Sequential(nn.Linear(3, 1), nn.Sigmoid()), Binary(), "sigmoid"),
        (after(torch.sigmoid), Binary(), "sigmoid"),
        (after(lambda z: torch.sigmoid(z).squeeze(1)), Binary(), "sigmoid"),
        (after(lambda z: torch.sigmoid(z).clamp(1e-6, 1 - 1e-6)), Binary(), "sigmoid"),
        (after(lambda z: z.softmax(1), 3), Multiclass(3), "softmax"),
        (after(torch.sigmoid, 3), Multiclass(3), "sigmoid"),
        # Without a layer that PyTorch names.
        (after(lambda z: 1 / (1 + torch.exp(-z))), Binary(), "sigmoid"),
        (after(lambda z: z.exp() / z.exp().sum(1, keepdim=True), 3), Multiclass(3), "softmax"),
    ],
)
def test_outputs_that_are_probabilities_are_remarked_on(model, task, layer):
    text = remark(model, task)
    assert text == (
        f"model {type(model).__name__}: its outputs are probabilities in [0, 1], as after a {layer}, where "
        f"logits are expected; remove the last {layer}, which is part of the loss"
    )


class OwnLoss(Binary):
    """Task whose loss takes probabilities."""

    def losses(self, logits, targets):
        return nn.functional.binary_cross_entropy(logits, targets, reduction="none")


@pytest.mark.parametrize(
    ("model", "task"),
    [
        (nn.Linear(3, 1), Binary()),
        (nn.Sequential(nn.Linear(3, 1), nn.Tanh()), Binary()),
        (nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 1)), Binary()),
        (after(lambda z: 4 * torch.sigmoid(z) - 2), Binary()),
        (after(lambda z: z.log_softmax(1), 3), Multiclass(3)),
        # Right for a regression of shares, and for a loss of probabilities.
        (after(torch.sigmoid), Regression()),
        (after(torch.sigmoid), OwnLoss()),
    ],
)
def test_other_outputs_are_not_remarked_on(model, task):
    assert remark(model, task) == ""


def test_outputs_of_one_sign_are_remarked_on():
    text = remark(after(nn.functional.softplus), Binary())
    assert "never negative where logits are expected, so class 0 is never predicted" in text
    text = remark(after(nn.functional.logsigmoid), Binary())
    assert "never positive where logits are expected, so class 1 is never predicted" in text


def test_a_model_without_values_is_one_line():
    with pytest.raises(EnvariantError, match="has parameters without values"):
        remark(nn.Linear(3, 1, device="meta"), Binary())


def sigmoid():
    return nn.Sequential(nn.Linear(3, 1), nn.Sigmoid())


def test_network_that_ends_in_a_sigmoid_is_warned_of_and_diagnosed():
    with pytest.warns(EnvariantWarning, match="remove the last sigmoid") as caught:
        result = envariant.train(FLAT, "erm", model=sigmoid, **{**QUICK, "steps": 60})
    assert [str(w.message) for w in caught] == list(result.record.remarks)
    (found,) = [d for d in result.diagnoses if d.name == "training score near chance"]
    assert "probabilities in [0, 1], as after a sigmoid" in found.cause
    assert found.remedy == "remove the last sigmoid, which is part of the loss"


def test_studies_and_estimators_warn_of_it_as_well():
    study = Study(FLAT, ("erm", "vrex(coefficient=1)"), settings={"model": sigmoid, "steps": 2})
    assert [text for text in study.remarks() if "sigmoid" in text] == [remark(sigmoid(), Binary())]
    x = np.random.default_rng(0).normal(size=(30, 3))
    with pytest.warns(EnvariantWarning, match="remove the last sigmoid"):
        InvariantClassifier("erm", model=sigmoid, steps=2).fit(x, x[:, 0] > 0, environments=np.arange(30) % 2)


def test_single_rows_and_integers_are_no_logits():
    module = nn.Linear(3, 1)
    assert logits_of((torch.zeros(1, 1), torch.zeros(1, 1).long()), 1, Binary(), module).shape == (1, 1)
    assert remark_on(module, torch.zeros(2, 1), Binary(), (3,)) == ""


class Changed(nn.Module):
    """Linear network with an operation before its last layer."""

    def __init__(self, change):
        super().__init__()
        self.change, self.first, self.last = change, nn.Linear(3, 8), nn.Linear(8, 1)

    def forward(self, inputs):
        return self.last(self.change(self.first(inputs)))


def test_outputs_that_are_nan_before_training_are_not_blamed_on_the_learning_rate():
    result = envariant.train(FLAT, "erm", model=Changed(torch.log), **QUICK)
    assert result.failures[0].startswith(
        "outputs of the network are infinite or NaN in 'a' before the first update; usual causes: operations "
        "such as log"
    )
    assert "learning rate" not in result.failures[0]


def test_gradient_that_is_nan_at_the_first_step_is_not_blamed_on_the_learning_rate():
    result = envariant.train(FLAT, "erm", model=Changed(lambda hidden: (hidden - hidden).sqrt()), **QUICK)
    assert result.failures[0].startswith("the gradient became infinite or NaN at step 0")
    assert "learning rate" not in result.failures[0]


def test_warning_about_slow_operations_is_not_shown(recwarn):
    def slow(hidden):
        warnings.warn("of the user", UserWarning, stacklevel=1)
        return torch.renorm(hidden, 2, 0, 1.0)

    warnings.simplefilter("default")
    before = list(warnings.filters)
    stacked = Execution("stacked", 2, "")
    envariant.train(FLAT, "erm", model=Changed(slow), replicas=2, execution=stacked, **QUICK)
    assert [str(each.message) for each in recwarn] == ["of the user"]
    assert warnings.filters == before
