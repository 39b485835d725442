"""The option `loss`: named losses, functions and tasks in runs, studies, the command line and saved models."""

import random

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

import envariant
from envariant import EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.multi_target import MultiLabel
from envariant.core.tasks import Binary
from envariant.data.tables import table as tables
from envariant.data.tables.source import TableSource
from envariant.saved_model import SavedModel, load_model
from envariant.studies import Study
from envariant.training.resolution import resolve
from envariant.training.result import TrainingResult
from envariant.training.run_spec import RunSpec

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 3, generator=GENERATOR)
WHERE = ["a", "b", "c"] * 20
DATA = EnvironmentSet.from_arrays(X, (X[:, 0] > 0).float(), WHERE, test="c")
QUICK = {"steps": 3, "model": "linear", "learning_rate": 0.05, "precision": "float32", "optimizer": "sgd"}


def smoothed(logits, targets):
    return F.binary_cross_entropy_with_logits(logits, targets * 0.8 + 0.1, reduction="none")


class Smoothed(Binary):
    """Task with label smoothing."""

    def losses(self, logits, targets):
        return smoothed(logits, targets)


@pytest.mark.parametrize("loss", ["label-smoothing(0.2)", smoothed, Smoothed()])
def test_irm_with_label_smoothing_trains_as_a_plain_loop(loss):
    start = torch.nn.Linear(3, 1)
    result = envariant.train(DATA, "irm(coefficient=3)", loss=loss, **{**QUICK, "model": start})
    weight, bias = (p.detach().clone().requires_grad_() for p in start.parameters())
    for _ in range(3):
        risks, slopes = [], []
        for name in "ab":
            x, y = DATA[name].rows()
            scale = torch.ones((), requires_grad=True)
            risks.append(smoothed(scale * (x @ weight.T + bias)[:, 0], y).mean())
            slopes.append(torch.autograd.grad(risks[-1], scale, create_graph=True)[0])
        total = (sum(risks) / 2 + 3 * sum(s.square() for s in slopes) / 2) / 3
        for p, g in zip((weight, bias), torch.autograd.grad(total, (weight, bias)), strict=True):
            p.data -= 0.05 * g
    trained = result.checkpoints[0].params
    torch.testing.assert_close(trained["weight"], weight.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(trained["bias"], bias.detach(), rtol=1e-5, atol=1e-6)


def test_default_losses_by_name_give_the_same_bits():
    plain, named = (envariant.train(DATA, "irm", loss=loss, **QUICK) for loss in (None, "cross-entropy"))
    assert plain.rows == named.rows
    assert "loss" in named.record.changed
    assert "loss" not in plain.record.changed


def test_replicas_agree_stacked_and_sequentially():
    runs = [
        envariant.train(DATA, "vrex", loss="focal", replicas=3, execution=how, **QUICK).rows
        for how in ("sequential", "stacked")
    ]
    for ours, theirs in zip(*runs, strict=True):
        assert ours.value == pytest.approx(theirs.value, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda logits, targets: (logits - targets)[targets < 0.5],
            r"of shape \(2,\) for 2 rows; got \(1,\)",
        ),
        (lambda logits, targets: logits - targets + 0j, "must be real numbers in float32; got complex64"),
        *(
            (
                lambda logits, targets, draw=draw: (logits + draw()).square(),
                "losses draw random numbers, which the seeds",
            )
            for draw in (
                lambda: torch.randn(2),
                np.random.rand,
                random.random,
                np.random.default_rng(0).random,
            )
        ),
    ],
)
def test_losses_that_depend_on_the_targets_shape_or_are_complex_are_one_error(loss, message):
    with pytest.raises(EnvariantError, match=message):
        envariant.train(DATA, loss=loss, **QUICK)


def scaled(factor):
    def loss(logits, targets):
        return factor * (logits - targets).square()

    return loss


def test_losses_are_part_of_the_identity_and_of_a_stored_run(tmp_path):
    losses = (None, "focal", "focal(gamma=1)", smoothed, Smoothed(), scaled(1.0), scaled(2.0))
    identities = [resolve(RunSpec(data=DATA, loss=loss)).identity for loss in losses]
    assert len(set(identities)) == len(losses)
    envariant.train(DATA, "erm", loss=scaled(1.0), out=tmp_path, **QUICK)
    with pytest.raises(EnvariantError, match="other loss under the same name"):
        envariant.train(DATA, "erm", loss=scaled(2.0), out=tmp_path, **QUICK)


def test_losses_in_studies_and_on_the_command_line(here):
    settings = {"steps": 2, "model": "linear"}
    scores = {}
    for loss in ("focal", smoothed):
        study = Study(DATA, ("irm",), replicas=1, settings={**settings, "loss": loss})
        runs = study.run(progress=False)
        with envariant.studies.Store(runs.folder) as store:
            rows = store.history([1])
        scores[loss] = float(rows[(rows.metric == "loss") & (rows.environment == "c")].value.iloc[0])
    assert scores["focal"] < scores[smoothed]
    with pytest.raises(EnvariantError, match="^unknown loss 'focl'; did you mean 'focal'"):
        Study(DATA, ("irm",), settings={"loss": "focl"})
    words = ("train", "--data", "colored-digits", "--algorithm", "erm", "--steps", "1", "--model", "linear")
    assert here(*words, "--loss", "label-smoothing(0.1)", "--json").returncode == 0
    wrong = here(*words, "--loss", "mse")
    assert (wrong.returncode, "loss mse: is for numbers, but the task is binary" in wrong.stderr) == (
        2,
        True,
    )


def test_predictors_take_no_loss():
    with pytest.raises(
        EnvariantError, match="^majority-class: is fitted without gradient steps, so .* remove them: loss"
    ):
        envariant.train(DATA, "majority-class", loss="focal")


def test_quantiles_are_remarked_on():
    data = EnvironmentSet.from_arrays(X, X[:, 0], WHERE, test="c")
    with pytest.warns(
        envariant.core.errors.EnvariantWarning, match="^loss quantile: the score is still the squared"
    ):
        envariant.train(data, "erm", loss="quantile(0.9)", **QUICK)


def test_saved_model_of_the_poisson_loss_predicts_counts(tmp_path):
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"site": ["0", "1", "2"] * 50, "age": draw.normal(size=150)})
    frame["visits"] = draw.poisson(np.exp(1 + 0.5 * frame.age)).astype(float)
    source = TableSource(tables.read(frame, "visits", "site", task="regression"))
    result = envariant.train(source, "erm", loss="poisson", test_environments=["2"], **QUICK)
    SavedModel.of(source, result).save(tmp_path / "model")
    predicted = load_model(tmp_path / "model").predict(frame)["prediction"].to_numpy()
    with torch.no_grad():
        logits = result.model()(source.with_test_environments(["2"]).sample(0)["2"].inputs)[:, 0]
    np.testing.assert_allclose(predicted[frame.site == "2"], logits.exp().numpy(), rtol=1e-5)
    error = float(np.square(predicted - frame.visits)[frame.site == "2"].mean())
    assert error == pytest.approx(result.final("2", "squared error").mean, rel=1e-5)


def test_multi_label_runs_are_stored_loaded_and_searched(tmp_path):
    data = EnvironmentSet.from_arrays(X, (X[:, :2] > 0).long(), WHERE, test="c")
    assert data.task == MultiLabel(2)
    result = envariant.train(data, "fishr", out=tmp_path / "run", **QUICK)
    loaded = TrainingResult.load(tmp_path / "run")
    with torch.no_grad():
        logits = loaded.model()(data["c"].inputs)
    right = ((logits > 0) == data["c"].targets.bool()).float().mean()
    assert float(right) == pytest.approx(loaded.final("c", "label accuracy").mean)
    assert 0.5 <= result.record.environments[0].majority <= 1
    settings = {"steps": 2, "model": "linear"}
    study = Study(data, ("irm",), replicas=1, settings=settings, metric="AUROC", store_predictions=True)
    assert "irm" in str(study.run(progress=False).table())


@pytest.mark.parametrize("name", ["cad", "cdann", "clove", "selfreg", "rsc"])
def test_algorithms_for_one_target_say_so(name):
    data = EnvironmentSet.from_arrays(X, X[:, :2], WHERE)
    with pytest.raises(
        EnvariantError,
        match=f"^{name}: supports only one target per row, but the task is multi-output",
    ):
        envariant.train(data, name, steps=1, model="mlp(hidden=4)")
    with pytest.raises(EnvariantError, match="^linear: predicts one target per row"):
        envariant.train(data, "linear")


def test_estimators_take_a_loss_and_predict_in_the_unit_of_the_targets():
    x = X.double().numpy()
    counts = np.random.default_rng(0).poisson(np.exp(1 + x[:, 0]))
    options = {"model": "linear", "steps": 50, "learning_rate": 0.2, "random_state": 0}
    regressor = envariant.InvariantRegressor("erm", loss="poisson", **options).fit(
        x, counts, environments=WHERE
    )
    predicted = regressor.predict(x)
    assert np.abs(np.log(predicted) - 1 - x[:, 0]).mean() < 0.3
    history = regressor.result_.history.query("metric == 'squared error' and step == 50")
    assert history.value.mean() == pytest.approx(np.square(predicted - counts).mean(), rel=1e-3)
    focal, plain = (
        envariant.InvariantClassifier("erm", loss=loss, **{**options, "steps": 3}).fit(
            x, x[:, 0] > 0, environments=WHERE
        )
        for loss in ("focal", None)
    )
    assert not np.allclose(focal.decision_function(x), plain.decision_function(x))
