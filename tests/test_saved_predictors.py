"""Saved models of predictors: the same predictions after loading, and one clear error for hostile files."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from envariant.core.errors import EnvariantError
from envariant.core.files import read_tensors, write_tensors
from envariant.data.tables import table as tables
from envariant.data.tables.source import TableSource
from envariant.predictors import PREDICTORS, predictor
from envariant.saved_model import TENSORS, SavedModel, load_model

HEADER = "envariant.model"
TARGETS = ("sick", "stage", "days")


def patients(rows=300, seed=0):
    """Three clinics; `marker` flips its sign in the second."""
    draw = np.random.default_rng(seed)
    clinic = np.repeat(["n", "s", "w"], rows // 3)
    x = draw.normal(size=rows)
    score = x + draw.normal(size=rows)
    marker = np.where(clinic == "s", -1, 1) * score + draw.normal(size=rows)
    return pd.DataFrame(
        {
            "clinic": clinic,
            "x": np.where(draw.random(rows) < 0.05, np.nan, x),
            "color": draw.choice(["red", "green"], rows),
            "marker": marker,
            "sick": np.where(score > 0, "yes", "no"),
            "stage": np.array(["a", "b", "c"])[np.digitize(score, [-0.7, 0.7])],
            "days": 100 + 10 * score,
        }
    )


def table_of(target, frame=None, **more):
    frame = patients() if frame is None else frame
    dropped = [name for name in TARGETS if name != target]
    source = TableSource(tables.read(frame, target, "clinic", exclude=dropped), "patients")
    return source.with_test_environments(more.get("test", ()))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "name", [n for n in PREDICTORS if n not in ("tsls", "icp", "drig", "causal-dantzig")]
)
def test_loaded_predictor_predicts_as_fitted(name, target, tmp_path):
    source = table_of(target)
    fitted = predictor(name).fit(source.sample(0), 3)
    model = SavedModel.of_predictor(source, fitted, name=name, seed=3)
    frame = patients(60, seed=1)
    predictions = model.predict(frame)
    model.save(tmp_path)
    loaded = load_model(tmp_path)
    again, drift = loaded.predict(frame), loaded.resembles(frame)
    if name != "boosted-trees":
        pd.testing.assert_frame_equal(predictions, again, check_exact=True)
    else:
        # Loaded trees are summed in another order.
        pd.testing.assert_frame_equal(predictions, again, rtol=1e-6)
        again_saved = tmp_path / "again"
        loaded.save(again_saved)
        pd.testing.assert_frame_equal(load_model(again_saved).predict(frame), again, check_exact=True)
    assert drift == model.resembles(frame)
    assert loaded.about["method"] == name
    assert loaded.to_dict() == model.to_dict()
    assert SavedModel.of_predictor(source, predictor(name), seed=3).predict(frame).equals(predictions)


def test_unstable_columns_are_left_out_and_named(tmp_path):
    source = table_of("sick", patients(900))
    model = SavedModel.of_predictor(source, predictor("stable-columns"))
    assert model.about["note"] == "left out as unstable: marker"
    frame = patients(60, seed=1)
    predictions = model.predict(frame)
    assert predictions.equals(model.predict(frame.assign(marker=0.0)))
    model.save(tmp_path)
    assert load_model(tmp_path).predictor.left_out == model.predictor.left_out
    stable = SavedModel.of_predictor(
        table_of("sick", patients(900).drop(columns="marker")), predictor("stable-columns")
    )
    assert stable.about["note"] == "none of 4 inputs is unstable, so this model equals the linear model"


def test_test_environments_are_not_used():
    frame = patients()
    other = frame.assign(x=lambda f: np.where(f.clinic == "w", 1000.0, f.x))
    for name in ("linear", "boosted-trees"):
        one, two = (
            SavedModel.of_predictor(table_of("sick", each, test=["w"]), predictor(name))
            for each in (frame, other)
        )
        assert one.environments == ("n", "s")
        assert one.about["test environments"] == "w"
        assert one.predict(patients(60, seed=1)).equals(two.predict(patients(60, seed=1)))


def test_only_networks_and_linear_models_have_a_network(tmp_path):
    linear, trees = (
        SavedModel.of_predictor(table_of("stage"), predictor(name)) for name in ("linear", "boosted-trees")
    )
    inputs = torch.randn(5, len(linear.encoder.names), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        linear.network()(inputs), linear.predictor.logits(inputs), atol=1e-5, rtol=1e-5
    )
    with pytest.raises(EnvariantError, match=r"^boosted-trees: is neither a network nor a linear model"):
        trees.to_onnx(tmp_path / "trees.onnx")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Description and tensors of a model of each kind."""
    files = {}
    for name in ("linear", "stable-columns", "boosted-trees", "majority-class"):
        folder = tmp_path_factory.mktemp("model")
        SavedModel.of_predictor(table_of("stage"), predictor(name)).save(folder)
        texts, tensors = read_tensors(folder / TENSORS, "")
        files[name] = json.loads(texts[HEADER]), tensors
    return files


def load_changed(folder, description, tensors):
    write_tensors(folder / TENSORS, tensors, {HEADER: json.dumps(description)})
    return load_model(folder)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("linear", {"kind": "unknown"}),
        ("linear", {"kind": ["linear"]}),
        ("linear", {"kind": "trees"}),
        ("stable-columns", {"left_out": [99]}),
        ("stable-columns", {"left_out": "x"}),
        ("boosted-trees", {"classes": [0, 1]}),
        ("boosted-trees", {"classes": [0, 2, 1]}),
        ("boosted-trees", {"classes": [0, 1, 7]}),
        ("boosted-trees", {"classes": [0]}),
        ("majority-class", {"kind": "estimator"}),
    ],
)
def test_hostile_descriptions_of_predictors_are_one_line(name, change, stored, tmp_path):
    description, tensors = stored[name]
    with pytest.raises(EnvariantError, match=r"is damaged \(") as error:
        load_changed(tmp_path, {**description, "predictor": {**description["predictor"], **change}}, tensors)
    assert "\n" not in str(error.value)


def beyond(value):
    value = value.clone()
    value[0] = 10**6
    return value


CHANGES = {
    "NaN": lambda value: value * float("nan"),
    "shape": lambda value: value[None],
    "empty": lambda value: value.flatten()[:0],
    "type": lambda value: value.to(torch.complex64),
}
ARRAYS = [("linear", "weight"), ("linear", "bias"), ("majority-class", "value")]
ARRAYS += [
    ("boosted-trees", name)
    for name in ("feature", "threshold", "left", "right", "value", "roots", "baseline")
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("name", "array"), ARRAYS)
def test_hostile_arrays_of_predictors_are_one_line(name, array, change, stored, tmp_path):
    description, tensors = stored[name]
    key = f"weights/{array}"
    with pytest.raises(EnvariantError, match=r"is damaged \("):
        load_changed(tmp_path, description, {**tensors, key: CHANGES[change](tensors[key])})


@pytest.mark.parametrize(
    ("array", "change"),
    [
        ("feature", beyond),
        ("feature", lambda value: value - 1),
        ("left", beyond),
        ("left", lambda value: value * 0),
        ("right", lambda value: -value),
        ("roots", beyond),
        ("roots", lambda value: value[:-1]),
        ("roots", lambda value: value * 0),
    ],
)
def test_hostile_trees_are_one_line(array, change, stored, tmp_path):
    description, tensors = stored["boosted-trees"]
    key = f"weights/{array}"
    with pytest.raises(EnvariantError, match=r"is damaged \("):
        load_changed(tmp_path, description, {**tensors, key: change(tensors[key])})
