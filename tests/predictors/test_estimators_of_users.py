"""Estimators of users: environments, weights, raw columns; XGBoost, LightGBM, TabPFN-like; saved and loaded."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from envariant.core.environments import WEIGHT, Environment, EnvironmentSet
from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.core.files import read_tensors, write_tensors
from envariant.core.tasks import Binary, Multiclass, Regression
from envariant.data.tables import table as tables
from envariant.data.tables.source import TableSource
from envariant.predictors import FORMATS, ScikitLearn, predictor, stored_format
from envariant.saved_model import TENSORS, SavedModel, load_model
from envariant.studies import Store, Study, begin, sweep

HEADER = "envariant.model"


class TabPFNLike:
    """Nearest class mean, without get_params, as packages without scikit-learn's base classes have it."""

    def __init__(self):
        self.random_state = None

    def fit(self, X, y):
        self.means = [X[y == k].mean(axis=0) for k in np.unique(y)]

    def predict(self, X):
        return self.predict_proba(X).argmax(axis=1)

    def predict_proba(self, X):
        scores = np.stack([-((X - mean) ** 2).sum(axis=1) for mean in self.means], axis=1)
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)


class Recording(ClassifierMixin, BaseEstimator):
    """Constant classifier that records the arguments of `fit`."""

    def __init__(self, random_state=None):
        self.random_state = random_state

    def fit(self, X, y, sample_domain=None, sample_weight=None):
        self.arguments_ = (X, y, sample_domain, sample_weight)
        return self

    def predict(self, X):
        return np.zeros(len(X), dtype=int)


def xgboost(regression=False, **more):
    package = pytest.importorskip("xgboost")
    kind = package.XGBRegressor if regression else package.XGBClassifier
    return kind(n_estimators=5, n_jobs=1, **more)


def lightgbm(regression=False, **more):
    package = pytest.importorskip("lightgbm")
    kind = package.LGBMRegressor if regression else package.LGBMClassifier
    return kind(n_estimators=5, n_jobs=1, verbose=-1, **more)


def visits(rows=180, seed=0):
    """Three clinics, with a column of free text."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=rows)
    words = np.where(draw.random(rows) < 0.5, "cough", "fever")
    score = x + 2 * (words == "fever") - 1 + draw.normal(size=rows)
    return pd.DataFrame(
        {
            "clinic": np.repeat(["n", "s", "w"], rows // 3),
            "x": np.where(draw.random(rows) < 0.1, np.nan, x),
            "ward": draw.choice(["red", "green"], rows),
            "seen": pd.Timestamp("2020-01-01") + pd.to_timedelta(draw.integers(0, 700, rows), unit="D"),
            "notes": [f"{w} since {n} days, seen twice by doctor {n}" for n, w in enumerate(words)],
            "sick": np.where(score > 0, "yes", "no"),
        }
    )


@pytest.fixture(scope="module")
def source():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EnvariantWarning)
        return TableSource(tables.read(visits(), "sick", "clinic"), "visits")


def pipeline(last=None):
    columns = [
        ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), ["x"]),
        ("words", TfidfVectorizer(), "notes"),
        ("wards", OneHotEncoder(handle_unknown="ignore"), ["ward"]),
    ]
    return make_pipeline(ColumnTransformer(columns), LogisticRegression() if last is None else last)


def arrays(task, weighted=False, rows=60) -> EnvironmentSet:
    draw = torch.Generator().manual_seed(0)
    parts = []
    for name in "ab":
        x = torch.randn(rows, 3, generator=draw)
        y = x[:, 0] + 0.3 * torch.randn(rows, generator=draw)
        if isinstance(task, Binary):
            y = (y > 0).float()
        if isinstance(task, Multiclass):
            # The second class has no rows.
            y = torch.where(y > 0, torch.where(y > 1, 3, 2), 0)
        attributes = {WEIGHT: torch.rand(rows, generator=draw)} if weighted else {}
        parts.append(Environment(name, x, y, attributes))
    return EnvironmentSet("arrays", tuple(parts), task)


@pytest.mark.parametrize("task", [Binary(), Multiclass(4), Regression()])
@pytest.mark.parametrize("make", [xgboost, lightgbm])
def test_xgboost_and_lightgbm_equal_the_packages(make, task):
    data = arrays(task, weighted=True)
    regression = isinstance(task, Regression)
    # A seed above 2³¹ is too large for these packages.
    fitted = predictor(make(regression)).fit(data, 4_000_000_000)
    x, y = (torch.cat(part) for part in zip(*(e.rows() for e in data.environments), strict=True))
    w = torch.cat([e.attributes[WEIGHT] for e in data.environments]).numpy()
    codes = np.unique(y.numpy(), return_inverse=True)[1] if not regression else y.numpy()
    reference = make(regression, random_state=4_000_000_000 % 2**31).fit(x.numpy(), codes, sample_weight=w)
    logits = fitted.logits(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if regression:
            np.testing.assert_allclose(logits, reference.predict(x.numpy()), rtol=1e-5)
            return
        expected = reference.predict_proba(x.numpy())
    ours = torch.sigmoid(logits) if isinstance(task, Binary) else torch.softmax(logits, 1)[:, [0, 2, 3]]
    np.testing.assert_allclose(ours, expected[:, 1] if isinstance(task, Binary) else expected, atol=1e-5)


def test_environments_weights_and_seed_reach_the_last_step():
    data = arrays(Binary(), weighted=True)
    for estimator in (Recording(), make_pipeline(StandardScaler(), Recording())):
        fitted = predictor(estimator).fit(data, 7)
        last = fitted.estimator[-1] if hasattr(fitted.estimator, "steps") else fitted.estimator
        _, y, domains, weights = last.arguments_
        assert y.dtype.kind == "i"
        np.testing.assert_array_equal(domains, [1] * 60 + [2] * 60)
        np.testing.assert_array_equal(
            weights, np.concatenate([e.attributes[WEIGHT] for e in data.environments])
        )
        assert last.random_state == 7


def test_groups_reach_a_search_over_environments():
    data = arrays(Binary())
    search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=LeaveOneGroupOut())
    assert predictor(search).fit(data, 0).estimator.n_splits_ == 2


def test_estimator_without_sample_weights_warns():
    class Unweighted(TabPFNLike):
        pass

    with pytest.warns(EnvariantWarning, match="Unweighted: takes no sample weights"):
        predictor(Unweighted()).fit(arrays(Binary(), weighted=True), 0)


def test_objects_without_get_params_are_copied_and_seeded():
    own = TabPFNLike()
    fitted = predictor(own).fit(arrays(Binary()), 5)
    assert not hasattr(own, "means")
    assert fitted.estimator.random_state == 5
    assert predictor(TabPFNLike) is None


def test_class_labels_without_probabilities_become_likely_but_not_certain():
    fitted = predictor(Recording()).fit(arrays(Multiclass(4)), 0)
    shares = torch.softmax(fitted.logits(torch.zeros(2, 3)), 1)
    np.testing.assert_allclose(shares[0], [0.95, 0, 0.025, 0.025], atol=1e-5)


def test_regressor_for_classes_is_rejected():
    with pytest.raises(EnvariantError, match="Ridge: is a regressor, but the target has classes"):
        predictor(Ridge()).fit(arrays(Binary()), 0)


def test_errors_of_any_kind_are_one_line():
    class Broken(TabPFNLike):
        def fit(self, X, y):
            raise RuntimeError("no\nway")

    with pytest.raises(EnvariantError, match="^Broken: RuntimeError: no$"):
        predictor(Broken()).fit(arrays(Binary()), 0)


def test_raw_columns_reach_a_column_transformer(source):
    frame = source.sample(0)["s"].input_store.frame()
    expected = visits()[lambda f: f.clinic == "s"].reset_index(drop=True)
    pd.testing.assert_frame_equal(frame, expected[frame.columns], check_dtype=False, check_column_type=False)
    assert list(frame.columns) == ["x", "ward", "seen", "notes"]
    selected = source.sample(0)["s"].select(torch.tensor([5, 2]))
    assert selected.input_store.frame()["notes"].tolist() == expected["notes"][[5, 2]].tolist()
    fitted = predictor(pipeline()).fit(source.sample(0), 0)
    assert fitted.columns == ("x", "ward", "notes")
    data = visits().drop(columns=["clinic", "sick"])
    reference = pipeline().fit(data, visits().sick == "yes")
    sample = source.sample(0)
    logits = torch.cat([fitted.logits(e.inputs, e.input_store.frame()) for e in sample.environments])
    np.testing.assert_allclose(logits, reference.decision_function(data), atol=1e-4)


def test_pipelines_that_choose_columns_need_a_table():
    with pytest.raises(EnvariantError, match="mine: chooses columns by name, but 'arrays' is not a table"):
        ScikitLearn(pipeline(), "mine").fit(arrays(Binary()), 0)


def test_missing_column_of_a_pipeline_is_one_line(source):
    wrong = make_pipeline(ColumnTransformer([("n", StandardScaler(), ["Age"])]), LogisticRegression())
    with pytest.raises(EnvariantError, match="^Pipeline: .*Age") as error:
        predictor(wrong).fit(source.sample(0), 0)
    assert "\n" not in str(error.value)


def test_tables_with_free_text_are_stored(source, tmp_path):
    source.table.write(tmp_path)
    again = tables.load(tmp_path)
    assert again.fingerprint == source.table.fingerprint
    assert [column.name for column in again.texts] == ["notes"]
    assert again.rows(np.arange(5)).texts[0].texts() == visits()["notes"][:5].tolist()


def test_study_of_estimators_and_importance_of_raw_columns(source, tmp_path):
    declared = Study(
        (source,),
        (ScikitLearn(pipeline(), "mine"), TabPFNLike(), xgboost(), lightgbm(), "linear"),
        replicas=1,
        test_environments=[["w"]],
        store_predictions=True,
        settings={},
    )
    begin(tmp_path, declared).close()
    sweep(tmp_path, declared)
    with Store(tmp_path) as store:
        listing = store.listing()
        assert set(listing["state"]) == {"done"}
        history = store.history(listing["id"].tolist())
        run = int(listing[listing["algorithm"] == "mine"]["id"].item())
    own = history[history["replica" if "replica" in history else "run"] == run]
    own = own[(own["role"] == "test") & (own["metric"] == "accuracy")]
    subsample = own[own["kind"] == "subsample"]["value"].item()
    shuffled = own[own["kind"] == "shuffled"].set_index("column")["value"]
    replaced = own[own["kind"] == "replaced"].set_index("column")["value"]
    assert shuffled["x"] < subsample
    assert replaced["x"] < subsample
    # The pipeline does not use the date.
    assert shuffled["seen"] == replaced["seen"] == subsample


ESTIMATORS = {
    "pipeline": pipeline,
    "xgboost": xgboost,
    "lightgbm": lightgbm,
    "scaled xgboost": lambda: make_pipeline(StandardScaler(), xgboost()),
    "forest": lambda: RandomForestClassifier(5),
    "forest of texts": lambda: pipeline(RandomForestClassifier(5)),
}


@pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)
def test_saved_estimators_predict_the_same(make, source, tmp_path):
    model = SavedModel.of_predictor(source, ScikitLearn(make(), "mine"), seed=1)
    model.save(tmp_path)
    loaded = load_model(tmp_path)
    frame = visits(60, seed=1)
    pd.testing.assert_frame_equal(loaded.predict(frame), model.predict(frame), check_exact=True)
    gone = frame.assign(notes=None, x=np.nan, ward="blue")
    pd.testing.assert_frame_equal(loaded.predict(gone), model.predict(gone), check_exact=True)
    frame.to_csv(tmp_path / "new.csv", index=False)
    pd.testing.assert_frame_equal(loaded.predict(tmp_path / "new.csv"), model.predict(frame))
    assert len(loaded.predict(frame[:0])) == 0
    assert loaded.about["method"] == "mine"
    assert loaded.to_dict() == model.to_dict()


def test_saved_regressors_predict_the_same(tmp_path):
    frame = visits().assign(days=lambda f: 50 + 10 * f.x.fillna(0)).drop(columns=["sick", "notes"])
    source = TableSource(tables.read(frame, "days", "clinic"), "visits")
    for number, estimator in enumerate((xgboost(True), lightgbm(True), RandomForestRegressor(3), Ridge())):
        model = SavedModel.of_predictor(source, predictor(estimator))
        model.save(tmp_path / str(number))
        pd.testing.assert_frame_equal(
            load_model(tmp_path / str(number)).predict(frame), model.predict(frame), check_exact=True
        )


def test_only_used_columns_are_needed_at_prediction(source):
    estimator = make_pipeline(ColumnTransformer([("n", SimpleImputer(), ["x"])]), LogisticRegression())
    model = SavedModel.of_predictor(source, predictor(estimator))
    assert [column.name for column in model.other_columns] == []
    assert len(model.predict(visits(30, seed=2).drop(columns="notes"))) == 30


def test_types_of_a_stranger_are_named_and_run_only_if_trusted(source, tmp_path):
    model = SavedModel.of_predictor(source, predictor(TabPFNLike()))
    model.save(tmp_path)
    name = f"{TabPFNLike.__module__}.TabPFNLike"
    with pytest.raises(EnvariantError, match=rf"may run code: {name}; .* pass trusted=\['{name}'\]") as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)
    loaded = load_model(tmp_path, trusted=[name])
    frame = visits(30, seed=1)
    pd.testing.assert_frame_equal(loaded.predict(frame), model.predict(frame), check_exact=True)
    with pytest.raises(EnvariantError, match="TabPFNLike: is neither a network nor a linear model"):
        model.to_onnx(tmp_path / "model.onnx")


def test_estimator_that_cannot_be_stored_is_one_line(source, tmp_path):
    estimator = TabPFNLike()
    estimator.function = lambda value: value
    model = SavedModel.of_predictor(source, predictor(estimator))
    with pytest.raises(EnvariantError, match="^TabPFNLike: cannot be saved") as error:
        model.save(tmp_path)
    assert "\n" not in str(error.value)


def bomb(data: bytes) -> bytes:
    import io
    import zipfile

    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
        new.writestr("zeros.npy", bytes(10**7))
    return content.getvalue()


def renamed(data: bytes) -> bytes:
    return data.replace(b"LogisticRegression", b"LogisticRegressiom")


CONTENTS = {
    "not a zip": lambda data: b"import os",
    "empty": lambda data: b"",
    "cut": lambda data: data[:-100],
    "compressed": bomb,
    "unknown class": renamed,
    "pickle": lambda data: b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
}


@pytest.fixture(scope="module")
def stored(source, tmp_path_factory):
    files = {}
    for name, estimator in {
        "logistic": LogisticRegression(),
        "forest": RandomForestClassifier(2, max_depth=3),
    }.items():
        folder = tmp_path_factory.mktemp("model")
        SavedModel.of_predictor(source, predictor(estimator)).save(folder)
        texts, tensors = read_tensors(folder / TENSORS, "")
        files[name] = json.loads(texts[HEADER]), tensors
    return files


def load_changed(folder, description, tensors):
    write_tensors(folder / TENSORS, tensors, {HEADER: json.dumps(description)})
    return load_model(folder)


@pytest.mark.parametrize("change", CONTENTS.values(), ids=CONTENTS)
def test_hostile_estimators_are_one_line(change, stored, tmp_path):
    description, tensors = stored["logistic"]
    data = change(tensors["weights/estimator"].numpy().tobytes())
    content = torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())
    with pytest.raises(EnvariantError, match=r"is damaged \(|may run code") as error:
        load_changed(tmp_path, description, {**tensors, "weights/estimator": content})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"classes": [0]},
        {"classes": "ab"},
        {"name": 3},
        {"columns": [1], "frame_columns": [1]},
        {"columns": ["nowhere"], "frame_columns": ["nowhere"]},
    ],
)
def test_hostile_descriptions_of_estimators_are_one_line(change, stored, tmp_path):
    description, tensors = stored["logistic"]
    with pytest.raises(EnvariantError, match=r"is damaged \("):
        load_changed(tmp_path, {**description, "predictor": {**description["predictor"], **change}}, tensors)


@pytest.mark.parametrize("change", [{"kind": "picture"}, {"name": "x"}, {"name": "notes", "more": 1}])
def test_hostile_other_columns_are_one_line(change, stored, tmp_path):
    description, tensors = stored["logistic"]
    other = {**description["encoder"]["columns"][0], "name": "notes", **change}
    with pytest.raises(EnvariantError, match=r"is damaged \("):
        load_changed(tmp_path, {**description, "other_columns": [other]}, tensors)


def test_hostile_trees_of_a_forest_are_found_before_they_are_followed(source, tmp_path):
    fitted = predictor(RandomForestClassifier(2, max_depth=3)).fit(source.sample(0), 0)
    tree = fitted.estimator.estimators_[1].tree_
    for name, value in (("children_left", 10**6), ("children_right", 0), ("feature", 99)):
        array = getattr(tree, name)
        before, array[0] = array[0], value
        SavedModel.of_predictor(source, fitted).save(tmp_path)
        array[0] = before
        with pytest.raises(EnvariantError, match=r"is damaged \(.*tree"):
            load_model(tmp_path)


def test_formats_are_found_by_the_name_that_their_class_declares():
    for kind in ("constant", "estimator", "linear", "trees"):
        assert stored_format(kind).kind == kind
    assert len(FORMATS) == 4
    assert stored_format("pickle") is None


def test_functions_of_numpy_are_trusted(source, tmp_path):
    estimator = make_pipeline(FunctionTransformer(np.abs), GaussianNB())
    model = SavedModel.of_predictor(source, predictor(estimator))
    model.save(tmp_path)
    assert load_model(tmp_path).predict(visits(30)).equals(model.predict(visits(30)))
