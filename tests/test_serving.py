"""Serving: probabilities, prediction sets, flags, accuracy without labels, and adaptation to a few labels."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from envariant.analysis.conformal import split_threshold
from envariant.analysis.few_labels import fit_labels, recalibrate
from envariant.comparison.serving import with_serving
from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.core.files import read_tensors, write_tensors
from envariant.predictors import predictor
from envariant.saved_model import TENSORS, SavedModel, load_model
from envariant.saved_model.served import WITHOUT_SERVING
from envariant.saved_model.serving import fit_serving
from tests.comparison.made import SEEDS, SHARE, made

TARGETS = ("sick", "stage", "days")
SITES = ("A", "B", "C", "D", "E")


def patients(rows=150, seed=0, sites=SITES, shift=0.0):
    """Return rows of several sites; `shift` moves the target, so that an intercept is needed."""
    draw, parts = np.random.default_rng(seed), []
    for site in sites:
        x, z = draw.normal(size=(2, rows))
        score = 1.5 * x + draw.logistic(size=rows) + shift + 0.3 * draw.normal()
        parts.append(
            pd.DataFrame(
                {
                    "x": x,
                    "z": z,
                    "color": draw.choice(["red", "green"], rows),
                    "site": site,
                    "sick": np.where(score > 0, "yes", "no"),
                    "stage": np.array(["a", "b", "c"])[np.digitize(score, [-1, 1])],
                    "days": 100 + 10 * score,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def served_model(target, seed=0):
    frame = patients(seed=seed).drop(columns=[name for name in TARGETS if name != target])
    models = None
    if target == "stage":
        models = {"linear": LogisticRegression()}
    source, results, folds = made(frame, target, "site", models, seeds=SEEDS[:1])
    model = SavedModel.of_predictor(source, predictor("linear"))
    model, lacking = with_serving(model, source, results, folds, SHARE, SEEDS[:1])
    assert lacking == ""
    return model


@pytest.fixture(scope="module")
def models():
    return {target: served_model(target) for target in TARGETS}


@pytest.mark.parametrize("target", TARGETS)
def test_sets_and_intervals_cover_new_environments(target, models):
    hits = []
    for seed in range(1, 9):
        new = patients(200, seed, ("new",))
        served = models[target].serve(new, level=0.8)
        table = served.table
        if target == "days":
            hits.append(((new[target] >= table["low"]) & (new[target] <= table["high"])).mean())
            np.testing.assert_allclose((table["low"] + table["high"]) / 2, table["prediction"])
            continue
        members = [truth in text.split(" | ") for truth, text in zip(new[target], table["set"], strict=True)]
        hits.append(np.mean(members))
        assert served.sets.sum(axis=1).tolist() == [len(t.split(" | ")) if t else 0 for t in table["set"]]
    assert np.mean(hits) == pytest.approx(0.8, abs=0.05)
    assert np.mean(list(served.coverage.values())) == pytest.approx(0.8, abs=0.02)
    assert set(served.coverage) == set(SITES)


@pytest.mark.parametrize("target", TARGETS)
def test_the_accuracy_of_a_batch_is_within_its_interval(target, models):
    for seed in range(1, 6):
        new = patients(300, seed, ("new",))
        served = models[target].serve(new)
        if target == "days":
            truth = math.sqrt(np.square(new[target] - served.table["prediction"]).mean())
        else:
            truth = (served.table["prediction"] == new[target]).mean()
        assert served.score_name == ("RMSE" if target == "days" else "accuracy")
        assert served.score.contains(truth)
        assert served.summary[0].startswith(
            f"estimated {served.score_name} {served.score.mean:.3g}, 95 % inter"
        )


@pytest.mark.parametrize("target", TARGETS)
def test_serving_data_survive_saving_and_contain_no_rows(target, models, tmp_path):
    model = models[target]
    model.save(tmp_path)
    loaded, new = load_model(tmp_path), patients(40, 3)
    first, second = (each.serve(new) for each in (model, loaded))
    pd.testing.assert_frame_equal(first.table, second.table, check_exact=True)
    assert first.to_dict() == second.to_dict()
    assert json.loads(json.dumps(first.to_dict()))["score"]["name"] == first.score_name
    assert model.serving.scores.shape == (5, 200)
    assert model.density.centers.shape[0] == 5


def test_serving_changes_no_predicted_class_and_predict_is_unchanged(models):
    new = patients(60, 4)
    hot = replace(models["stage"], serving=replace(models["stage"].serving, temperature=2.0))
    served, predicted = hot.serve(new).table, hot.predict(new)
    assert (served["prediction"] == predicted["prediction"]).all()
    p = predicted.filter(like="P(").to_numpy()
    expected = np.sqrt(p) / np.sqrt(p).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(served.filter(like="P("), expected, rtol=1e-4)


def test_rows_far_from_training_are_flagged(models):
    new = patients(100, 5)
    new.loc[:4, "x"] = -9.0
    served = models["sick"].serve(new)
    assert served.table["unlike"][:5].all()
    assert served.n_unlike < 20
    assert any("rows are unlike the training environments" in line for line in served.summary)
    assert models["sick"].serve(new, unlike_level=0.2).n_unlike > served.n_unlike


def test_what_cannot_be_given_is_said(models):
    plain = replace(models["sick"], serving=None, density=None)
    served = plain.serve(patients(30, 1))
    assert list(served.table.columns) == ["prediction", "P(no)", "P(yes)"]
    assert served.not_given[0] == WITHOUT_SERVING
    assert served.summary[-1].startswith("not given: flags of unlike rows")
    tiny = SavedModel.of_predictor(
        made(patients(10), "sick", "site", seeds=SEEDS[:1])[0], predictor("linear")
    )
    assert "50 training rows are too few for a level of 1 %" in tiny.serve(patients(9, 1)).not_given[-1]
    empty = models["days"].serve(patients(9, 1).iloc[:0])
    assert list(empty.table.columns) == ["prediction", "low", "high", "unlike"]
    assert empty.score is None
    with pytest.raises(EnvariantError, match="at least 3 held-out environments; got 2"):
        fit_serving([np.zeros(9)] * 2, [np.zeros(9)] * 2, ["a", "b"], regression=True)
    for level in (0, 1, 2, True, "x"):
        with pytest.raises(EnvariantError, match="serve: level must be between 0 and 1"):
            plain.serve(patients(9), level=level)


@pytest.mark.parametrize("target", TARGETS)
def test_an_adapted_model_predicts_better_and_is_that_of_recalibrate(target, models, tmp_path):
    model = models[target]
    few, new = (patients(n, seed, ("new",), shift=3.0) for n, seed in ((40, 7), (400, 8)))
    adapted = model.adapt(few)
    adapted.save(tmp_path)
    loaded = load_model(tmp_path)
    before, after = (each.predict(new)["prediction"] for each in (model, loaded))
    pd.testing.assert_series_equal(after, adapted.predict(new)["prediction"], check_exact=True)
    if target == "days":
        errors = [math.sqrt(np.square(each - new[target]).mean()) for each in (before, after)]
        assert errors[1] < 0.75 * errors[0]
        z = model.predict(few)["prediction"].to_numpy()
        fit = recalibrate(z, few[target], refit=adapted.adaptation.refit, regression=True)
        np.testing.assert_allclose(after, fit.apply(before.to_numpy()), rtol=1e-5)
    else:
        assert (after == new[target]).mean() > (before == new[target]).mean() + 0.08
    facts = adapted.adaptation
    assert facts.n_labels == 40
    assert loaded.adaptation == facts
    assert facts.gain > 2 * facts.gain_error
    assert facts.summary[0] == f"{facts.refit} fitted to 40 labels"
    # Prediction sets and accuracy come from the labels.
    served = loaded.serve(new, level=0.9)
    assert served.score_method == "labels"
    if target == "days":
        hit = (new[target] >= served.table["low"]) & (new[target] <= served.table["high"])
        assert hit.mean() == pytest.approx(0.9, abs=0.08)
    assert loaded.adapt(few).adaptation == facts, "an earlier adaptation is replaced"


def test_adaptation_of_two_classes_is_an_intercept_on_the_logit(models):
    model, few = models["sick"], patients(15, 7, ("new",), shift=3.0)
    adapted = model.adapt(few)
    p, q = (np.log(each.predict(few)["P(yes)"] / each.predict(few)["P(no)"]) for each in (model, adapted))
    fit = recalibrate(p, few["sick"] == "yes")
    np.testing.assert_allclose(q, fit.apply(p), atol=1e-4)
    assert adapted.adaptation.refit == "intercept"
    inputs = torch.randn(5, len(model.encoder.names), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        adapted.network()(inputs), model.network()(inputs) + adapted.adaptation.shift[0], atol=1e-5, rtol=1e-5
    )
    # 15 labels allow 93.75 % at most.
    served = adapted.serve(few, level=0.95)
    assert "set" not in served.table
    assert "15 labels allow at most 93.8 %" in served.not_given[0]


def test_dropped_labels_are_counted(models):
    few = patients(20, 7, ("new",)).astype({"sick": object})
    few.loc[:2, "sick"] = [None, "maybe", "maybe"]
    facts = models["sick"].adapt(few).adaptation
    assert facts.n_labels == 17
    assert facts.summary[1] == "3 of 20 rows dropped: 1 without a label; 2 with an unknown class ('maybe')"
    with pytest.raises(
        EnvariantError,
        match=r"at least 5 rows with a label in column 'sick' \(classes 'no', 'yes'\); got 3 of 6; 1 without a label; 2 with an unknown class",
    ):
        models["sick"].adapt(few.iloc[:6])
    with pytest.raises(EnvariantError, match="lacks column 'sick'"):
        models["sick"].adapt(few.drop(columns="sick"))
    with pytest.raises(EnvariantError, match="lacks column 'x'"):
        models["sick"].adapt(few.drop(columns="x"))


def test_labels_of_several_environments_are_said(models, tmp_path, recwarn):
    few = patients(20, 7, ("new",))
    models["sick"].adapt(few)
    models["sick"].adapt(few.drop(columns="site"))
    assert not recwarn.list
    several = patients(9, 7, ("A", "old", "new"))
    several.loc[several["site"] == "old", "sick"] = None
    several.to_csv(tmp_path / "few.csv", index=False)
    for table in (several, tmp_path / "few.csv"):
        with pytest.warns(EnvariantWarning, match=r"from 2 environments \(column 'site': A, new\)"):
            models["sick"].adapt(table)
    with pytest.warns(EnvariantWarning, match="from 3 environments"):
        models["days"].adapt(several)


def test_labels_without_gain_are_said(models):
    few = patients(12, 11, ("new",))
    facts = models["sick"].adapt(few).adaptation
    assert facts.gain <= facts.gain_error
    assert facts.summary[-1].startswith("these labels do not show that the adapted model is better")


@pytest.mark.parametrize("values", [[0, 1], [False, True], [2.0, 3.0]])
def test_labels_are_recognized_in_any_notation(values, tmp_path):
    frame = patients().drop(columns=["stage", "days"])
    frame["sick"] = np.array(values)[(frame["sick"] == "yes").to_numpy().astype(int)]
    model = SavedModel.of_predictor(made(frame, "sick", "site", seeds=SEEDS[:1])[0], predictor("linear"))
    few = frame.iloc[::25].drop(columns="site")
    few.to_csv(tmp_path / "few.csv", index=False)
    first = model.adapt(few).adaptation
    assert model.adapt(tmp_path / "few.csv").adaptation == first
    assert (first.n_labels, first.dropped) == (30, {})


def test_adapted_trees_are_saved_and_better(tmp_path):
    few, new = (patients(n, seed, ("new",), shift=3.0) for n, seed in ((30, 7), (300, 8)))
    frame = patients().drop(columns=["stage", "days"])
    model = SavedModel.of_predictor(
        made(frame, "sick", "site", seeds=SEEDS[:1])[0], predictor("boosted-trees")
    )
    model.adapt(few).save(tmp_path)
    before, after = (
        (each.predict(new)["prediction"] == new["sick"]).mean() for each in (model, load_model(tmp_path))
    )
    assert after > before + 0.05


def test_cross_validated_refit_prefers_the_slope_where_it_is_better():
    draw = np.random.default_rng(0)
    z = draw.normal(size=400)
    y = (0.2 * z + draw.logistic(size=400) > 0).astype(int)
    assert fit_labels(4 * z, y).refit == "intercept and slope"
    assert fit_labels(4 * z[:19], y[:19]).refit == "intercept"
    fit = fit_labels(z, z + 1 + draw.normal(size=400), regression=True)
    assert fit.errors is None
    assert fit.losses.mean(axis=1) == pytest.approx([2.0, 1.0], abs=0.25)


NAN = float("nan")
HOSTILE = {
    "temperature": (["serving", "temperature"], 0.0),
    "NaN temperature": (["serving", "temperature"], NAN),
    "temperature of regression": (["task"], "regression"),
    "one environment": (["serving", "same_environment"], True),
    "names": (["serving", "environments"], ["A"]),
    "equal names": (["serving", "environments"], ["A"] * 5),
    "unknown method": (["serving", "score", "method"], "magic"),
    "spread": (["serving", "score", "spread"], -1.0),
    "infinite offset": (["serving", "score", "offset"], math.inf),
    "freedom": (["serving", "score", "freedom"], 0),
    "unknown field of serving": (["serving", "code"], "import os"),
    "unknown field of the density": (["density", "code"], "import os"),
    "slope": (["adaptation", "slope"], NAN),
    "shift": (["adaptation", "shift"], [0.0, 1.0]),
    "refit": (["adaptation", "refit"], "all"),
    "scores of adaptation": (["adaptation", "after"], {}),
    "text as score": (["adaptation", "after"], {"accuracy": "<b>", "log loss": 1}),
}  # fmt: skip


@pytest.fixture(scope="module")
def stored(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    adapted = models["sick"].adapt(patients(20, 7, ("new",)))
    replace(adapted, serving=models["sick"].serving).save(folder)
    texts, tensors = read_tensors(folder / TENSORS, "")
    return json.loads(texts["envariant.model"]), tensors


def changed(value, path, new):
    copy = dict(value)
    copy[path[0]] = changed(copy[path[0]], path[1:], new) if len(path) > 1 else new
    return copy


@pytest.mark.parametrize(("path", "new"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_serving_data_are_one_line(path, new, stored, tmp_path):
    description, tensors = stored
    write_tensors(
        tmp_path / TENSORS, tensors, {"envariant.model": json.dumps(changed(description, path, new))}
    )
    with pytest.raises(EnvariantError, match=r"is damaged \(") as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["density/whitening", "density/centers", "density/distances", "serving/scores"]
)
@pytest.mark.parametrize(
    "change", [lambda v: v * NAN, lambda v: v[:0], lambda v: v[None], lambda v: v.float(), lambda v: -v - 1]
)
def test_hostile_arrays_are_one_line(name, change, stored, tmp_path):
    description, tensors = stored
    if name in ("density/whitening", "density/centers") and (change(torch.ones(2)) == -2).all():
        pytest.skip("these arrays may be negative")
    changes = {**tensors, name: change(tensors[name]).contiguous()}
    write_tensors(tmp_path / TENSORS, changes, {"envariant.model": json.dumps(description)})
    with pytest.raises(EnvariantError, match=r"is damaged \("):
        load_model(tmp_path)


def test_the_threshold_of_labels_is_that_of_split_conformal(models):
    few = patients(40, 7, ("new",))
    adapted = models["days"].adapt(few)
    threshold, coverage = adapted.serving.threshold(0.1)
    assert threshold.value == split_threshold(adapted.serving.scores[0], 0.1).value
    assert coverage == {}


@pytest.mark.parametrize("target", TARGETS)
def test_onnx_of_a_linear_model_and_of_an_adapted_one(target, models, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    few, new = patients(30, 7, ("new",), shift=3.0), patients(50, 8)
    for model in (models[target], models[target].adapt(few)):
        path = tmp_path / f"{model.adaptation is None}.onnx"
        model.to_onnx(path)
        ((_, columns),) = model._read(new, "utf-8")
        outputs = onnxruntime.InferenceSession(path).run(None, {"inputs": model.encoder.encode(columns)})
        expected = model.predict(new)
        if target == "days":
            np.testing.assert_allclose(outputs[0], expected["prediction"], rtol=1e-5)
        else:
            np.testing.assert_allclose(outputs[1], expected.filter(like="P("), atol=1e-5)
