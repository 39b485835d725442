"""The scikit-learn face: its own check suite first, then what only environments bring."""

import pickle
import re
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import envariant
from envariant.algorithms import AndMask, Composition, VREx
from envariant.estimators import InvariantClassifier, InvariantRegressor

QUICK = {"model": "mlp(hidden=16)", "steps": 60, "learning_rate": 0.03}
SMALL = {"model": "linear", "steps": 20, "learning_rate": 0.03, "random_state": 0}
NO_ENVIRONMENTS = "ignore:.*fit was given no environments:UserWarning"


@parametrize_with_checks(
    [
        # The checks give no environments, so that ERM is trained: here with a warning, there as asked for.
        InvariantClassifier(**QUICK),
        InvariantRegressor("erm", **QUICK),
    ]
)
@pytest.mark.filterwarnings(NO_ENVIRONMENTS, "ignore::sklearn.exceptions.SkipTestWarning")
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def flipped(flips, rows=2400, seed=0):
    """Colored MNIST as a table: shape tells the label in 3 of 4 rows, color in all but `flip` of them."""
    rng = np.random.default_rng(seed)
    y = rng.random(rows * len(flips)) < 0.5
    site = np.repeat([f"flip {flip}" for flip in flips], rows)
    shape = y ^ (rng.random(len(y)) < 0.25)
    color = y ^ (rng.random(len(y)) < np.repeat(flips, rows))
    noise = rng.normal(size=(len(y), 3))
    inputs = noise * [0.3, 0.3, 1] + np.column_stack([2 * shape - 1, 2 * color - 1, 0 * y])
    return inputs, y.astype(int), site


TRAIN, TEST = flipped((0.1, 0.2)), flipped((0.9,), seed=1)


def test_a_logistic_regression_follows_the_column_that_flips():
    assert LogisticRegression().fit(*TRAIN[:2]).score(*TEST[:2]) < 0.25
    erm = InvariantClassifier("erm", random_state=0, steps=200).fit(*TRAIN[:2], environments=TRAIN[2])
    assert erm.score(*TEST[:2]) < 0.25


@pytest.mark.parametrize("algorithm", ["irm", "vrex"])
def test_an_invariant_classifier_does_not(algorithm):
    inputs, y, site = TRAIN
    found = InvariantClassifier(algorithm, steps=400, learning_rate=3e-3, random_state=0)
    found.fit(inputs, y, environments=site)
    # The best that shape alone can do is 0.75 in every environment.
    assert 0.65 < found.score(*TEST[:2]) < 0.78
    assert 0.65 < found.score(inputs, y) < 0.82
    assert found.environments_.tolist() == ["flip 0.1", "flip 0.2"]


def test_neither_does_one_that_has_to_find_the_environments():
    inputs, y, _ = TRAIN
    found = InvariantClassifier(
        "irm", infer_environments=True, hyperparameters={"reference_steps": 100}, steps=300, random_state=0
    ).fit(inputs, y)
    assert found.score(*TEST[:2]) > 0.6
    assert found.environments_.tolist() == ["all"]
    assert found.settings_["algorithm"] == "irm"
    assert found.result_.record.spec.algorithm == "irm + eiil"


def problem(rows=90, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(rows, 3))
    site = np.repeat(["south", "north", "east"], rows // 3)
    return inputs, inputs[:, 0] + 0.3 * rng.normal(size=rows), site


def frame():
    inputs, z, site = problem()
    return pd.DataFrame(inputs, columns=["age", "dose", "weight"]).assign(site=site), z > 0, site


def test_no_environments_is_said_aloud_and_trains_erm():
    inputs, z, _ = problem()
    said = (
        r"^InvariantClassifier: fit was given no environments, which irm cannot do without, so ERM was "
        r"trained instead and nothing about this model is invariant\. Give fit\(…, environments=…\), or "
        r"say that it is meant: algorithm='erm', or infer_environments=True$"
    )
    with pytest.warns(UserWarning, match=said):
        found = InvariantClassifier(**SMALL, hyperparameters={"coefficient": 10.0}).fit(inputs, z > 0)
    assert (found.settings_["algorithm"], found.settings_["hyperparameters"]) == ("erm", {})
    asked_for = InvariantClassifier("erm", **SMALL).fit(inputs, z > 0)
    np.testing.assert_array_equal(found.predict_proba(inputs), asked_for.predict_proba(inputs))


@pytest.mark.parametrize("algorithm", ["erm", "sd", "eiil(reference_steps=2)"])
def test_what_needs_no_environments_is_trained_without_a_warning(algorithm):
    inputs, z, site = problem()
    for infer in (False, True):
        found = InvariantClassifier(algorithm, infer_environments=infer, **SMALL).fit(inputs, z > 0)
        assert found.settings_["algorithm"] == algorithm
        assert not found.settings_["inferred"]
    found.fit(inputs, z > 0, environments=site)


def test_environments_that_are_given_are_not_inferred():
    inputs, z, site = problem()
    found = InvariantClassifier("vrex", infer_environments=True, **SMALL)
    found.fit(inputs, z > 0, environments=site)
    assert found.result_.record.spec.algorithm == "vrex"


def test_a_column_that_names_environments_is_taken_out():
    table, y, site = frame()
    by_column = InvariantClassifier("vrex", **SMALL).fit(table, y, environments="site")
    assert by_column.feature_names_in_.tolist() == ["age", "dose", "weight"]
    assert (by_column.n_features_in_, by_column.environment_column_) == (3, "site")
    assert by_column.environments_.tolist() == ["east", "north", "south"]
    inputs = table.drop(columns="site")
    by_array = InvariantClassifier("vrex", **SMALL).fit(inputs, y, environments=site)
    for given in (table, inputs, table.assign(site="a site of which nothing is known")):
        np.testing.assert_array_equal(by_column.predict_proba(given), by_array.predict_proba(inputs))
    assert table.columns.tolist() == ["age", "dose", "weight", "site"], "the caller's table is left alone"
    with pytest.raises(ValueError, match="feature names"):
        by_array.predict(table)


def test_labels_may_be_of_any_kind():
    inputs, z, _ = problem()
    years = np.repeat([2021, 2022, 9], 30)
    kinds = [years, years.tolist(), pd.Series(years).astype("category"), pd.Series(years, index=years)]
    for labels in kinds:
        found = InvariantClassifier("vrex", **SMALL).fit(inputs, z > 0, environments=labels)
        assert sorted(found.environments_.tolist()) == ["2021", "2022", "9"]


def test_words_are_classes():
    inputs, z, site = problem()
    two = np.where(z > 0, "sick", "healthy")
    found = InvariantClassifier("vrex", **QUICK, random_state=0).fit(inputs, two, environments=site)
    assert found.classes_.tolist() == ["healthy", "sick"]
    assert set(found.predict(inputs)) == {"healthy", "sick"}
    assert found.score(inputs, two) > 0.8
    proba, logits = found.predict_proba(inputs), found.decision_function(inputs)
    assert logits.shape == (90,)
    np.testing.assert_allclose(proba[:, 1], 1 / (1 + np.exp(-logits)))


def test_more_than_two_classes():
    inputs, z, site = problem()
    three = np.array(["low", "middle", "high"])[np.digitize(z, [-0.5, 0.5])]
    found = InvariantClassifier("irm", **QUICK, random_state=0).fit(inputs, three, environments=site)
    assert found.classes_.tolist() == ["high", "low", "middle"]
    proba, logits = found.predict_proba(inputs), found.decision_function(inputs)
    assert proba.shape == logits.shape == (90, 3)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    assert (found.classes_[proba.argmax(axis=1)] == found.predict(inputs)).all()
    assert found.score(inputs, three) > 0.8


def test_regression_answers_in_the_targets_own_unit():
    inputs, z, site = problem()
    how = {"algorithm": "vrex(coefficient=1.0)", **QUICK, "random_state": 0}
    plain = InvariantRegressor(**how).fit(inputs, z, environments=site)
    assert plain.score(inputs, z) > 0.8
    grams = 70_000 + 1000 * z
    scaled = InvariantRegressor(**how).fit(inputs, grams, environments=site)
    np.testing.assert_allclose(scaled.predict(inputs), 70_000 + 1000 * plain.predict(inputs), rtol=1e-3)
    assert scaled.target_mean_ == pytest.approx(grams.mean())
    assert scaled.target_scale_ == pytest.approx(grams.std())


def test_columns_without_spread_and_of_any_size_do_no_harm():
    inputs, z, site = problem()
    odd = np.column_stack([1e6 * inputs[:, 0] + 1e7, 1e-6 * inputs[:, 1], np.full(90, 0.1)])
    same = np.column_stack([inputs[:, :2], np.zeros(90)])
    one, other = (
        InvariantRegressor("vrex", **SMALL).fit(x, z, environments=site).predict(x) for x in (odd, same)
    )
    np.testing.assert_allclose(one, other, atol=1e-4)
    constant = InvariantRegressor("vrex", **SMALL).fit(inputs, np.full(90, 7.0), environments=site)
    assert constant.predict(inputs) == pytest.approx(7.0, abs=2.0)


def test_the_same_random_state_gives_the_same_bits_and_nobody_else_notices():
    inputs, z, site = problem()
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()

    def weights(random_state):
        how = {**SMALL, "random_state": random_state, "batch_size": 8}
        return InvariantClassifier("irm", **how).fit(inputs, z > 0, environments=site).weights_["head.weight"]

    np.testing.assert_array_equal(weights(5), weights(5))
    states = np.random.RandomState(5)
    assert not np.array_equal(weights(states), weights(states)), "a generator moves on"
    assert not np.array_equal(weights(None), weights(None))
    assert torch.equal(before[0], torch.get_rng_state())
    for was, now in zip(before[1], np.random.get_state(), strict=True):
        np.testing.assert_array_equal(was, now)


@pytest.mark.parametrize("algorithm", ["vrex", "mtl", "arm", "urm(width=8)"])
def test_a_stored_estimator_predicts_the_same(algorithm):
    """Also where the algorithm changes the model: it is built again from text and arrays."""
    table, y, _ = frame()
    settings = {**SMALL, "model": "mlp(hidden=8)"}
    found = InvariantClassifier(algorithm, **settings).fit(table, y, environments="site")
    assert found.result_ is not None
    again = pickle.loads(pickle.dumps(found))
    assert again.result_ is None
    np.testing.assert_array_equal(again.predict_proba(table), found.predict_proba(table))
    assert all(type(value) is np.ndarray for value in again.weights_.values())
    plain = (str, int, float, bool, type(None), np.ndarray, np.floating, dict)
    assert [k for k, v in vars(again).items() if not isinstance(v, plain)] == []


def test_a_stored_estimator_holds_no_tensor():
    table, y, _ = frame()
    stored = pickle.dumps(InvariantClassifier("irm", **SMALL).fit(table, y, environments="site"))
    assert b"torch" not in stored


def test_cloning_forgets_what_was_learned():
    inputs, z, site = problem()
    found = InvariantClassifier(
        Composition(penalties=(VREx(coefficient=1.0),), combination=AndMask()), **SMALL
    )
    again = clone(found.fit(inputs, z > 0, environments=site))
    assert again.get_params()["steps"] == 20
    with pytest.raises(NotFittedError):
        again.predict(inputs)
    again.fit(inputs, z > 0, environments=site)
    np.testing.assert_array_equal(again.predict_proba(inputs), found.predict_proba(inputs))


def test_a_fit_that_is_refused_leaves_what_was_learned():
    inputs, z, site = problem()
    found = InvariantClassifier("vrex", **SMALL).fit(inputs, z > 0, environments=site)
    before = found.predict_proba(inputs)
    found.set_params(steps=0)
    with pytest.raises(ValueError, match="^steps must be at least 1; got 0$"):
        found.fit(2 + inputs, z > 1, environments=site)
    np.testing.assert_array_equal(found.predict_proba(inputs), before)


def test_a_grid_is_searched_by_leaving_one_environment_out():
    table, y, site = frame()
    grid = {"algorithm": ["erm", "vrex", "irm(coefficient=10.0)"], "model": ["linear", "mlp(hidden=4)"]}
    small = {k: v for k, v in SMALL.items() if k != "model"}
    search = GridSearchCV(InvariantClassifier(**small), grid, cv=LeaveOneGroupOut())
    search.fit(table, y, groups=site, environments="site")
    by_array = GridSearchCV(InvariantClassifier(**small), grid, cv=LeaveOneGroupOut())
    by_array.fit(table.drop(columns="site"), y, groups=site, environments=site)
    scores = search.cv_results_["mean_test_score"]
    assert scores.shape == (6,)
    np.testing.assert_array_equal(scores, by_array.cv_results_["mean_test_score"])
    assert search.best_estimator_.environments_.tolist() == ["east", "north", "south"]


def test_inside_a_pipeline():
    table, y, site = frame()
    clf = InvariantClassifier("vrex", **SMALL)
    scaled = Pipeline([("scale", StandardScaler()), ("clf", clf)])
    scaled.fit(table.drop(columns="site"), y, clf__environments=site)
    assert scaled["clf"].environments_.tolist() == ["east", "north", "south"]
    columns = ColumnTransformer(
        [("scale", StandardScaler(), ["age", "dose", "weight"])],
        remainder="passthrough",
        verbose_feature_names_out=False,
    ).set_output(transform="pandas")
    named = Pipeline([("columns", columns), ("clf", clone(clf))]).fit(table, y, clf__environments="site")
    np.testing.assert_allclose(
        named.predict_proba(table), scaled.predict_proba(table.drop(columns="site")), atol=1e-6
    )


@pytest.mark.parametrize("request_it", [False, True])
def test_metadata_routing(request_it):
    table, y, site = frame()
    inputs = table.drop(columns="site")
    with config_context(enable_metadata_routing=True):
        clf = InvariantClassifier("vrex", **SMALL)
        if request_it:
            clf.set_fit_request(environments=True)
        search = GridSearchCV(
            Pipeline([("scale", StandardScaler()), ("clf", clf)]),
            {"clf__steps": [5, 20]},
            cv=LeaveOneGroupOut(),
        ).fit(inputs, y, environments=site, groups=site)
        assert search.best_estimator_["clf"].environments_.tolist() == ["east", "north", "south"]
        assert np.isfinite(search.cv_results_["mean_test_score"]).all()


REFUSED = {
    "no such column": (
        {},
        {"environments": "cite"},
        "environments: unknown column 'cite'; did you mean 'site'? known: age, dose, site, weight",
    ),
    "a column of an array": (
        {},
        {"X": np.zeros((90, 2)), "environments": "site"},
        "environments='site' names a column, and X, a ndarray, has no names; give a DataFrame, or an array with one label a row",
    ),
    "too few labels": (
        {},
        {"environments": ["a", "b"]},
        "InvariantClassifier: a row needs one of each; got 90 inputs, 90 targets, 2 environments",
    ),
    "a label is missing": (
        {},
        {"environments": [None, *["a"] * 44, *["b"] * 45]},
        "InvariantClassifier: environments are missing in 1 of 90 rows (first: row 0); fill in or remove them",
    ),
    "one environment": (
        {},
        {"environments": ["a"] * 90},
        "irm: needs at least 2 environments, to see what holds in all of them; environments has 1. Give more, or use algorithm='erm'",
    ),
    "a name that is taken": (
        {},
        {"environments": ["worst"] * 45 + ["b"] * 45},
        "environment 'worst': a name must be one line of text and not * or worst",
    ),
    "one class": (
        {},
        {"y": np.ones(90)},
        "y holds one class (1.0); a classifier needs two classes at least",
    ),
    "no such algorithm": (
        {"algorithm": "virex"},
        {},
        "unknown algorithm 'virex'; did you mean 'vrex'? known: ",
    ),
    "no algorithm": (
        {"algorithm": 3},
        {},
        "algorithm must be a name such as 'vrex', or a Composition; got 3",
    ),
    "no such hyperparameter": (
        {"hyperparameters": {"coeficient": 1.0}},
        {},
        "irm: unknown setting 'coeficient'; did you mean 'coefficient'? known: coefficient, form, l2, normalize_loss, weighting",
    ),
    "a module": (
        {"model": torch.nn.Linear(3, 1)},
        {},
        "model must be a name such as 'mlp(hidden=64)', by which a stored estimator builds it again; got Linear",
    ),
    "no such model": ({"model": "mpl"}, {}, "unknown model 'mpl'; did you mean 'mlp'? known: "),
    "batches": ({"batch_size": 0}, {}, "batch size must be at least 1; got 0"),
    "a rate": (
        {"learning_rate": -1.0},
        {},
        "learning rate must exceed 0 and weight decay be at least 0; got -1, 0",
    ),
    "a device": ({"device": "gpu"}, {}, "device must be auto, cpu or cuda; got 'gpu'"),
    "a failure": (
        {"learning_rate": 1e30, "model": "mlp(hidden=4)"},
        {},
        "InvariantClassifier: training failed: ",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_in_words(name):
    settings, arguments, message = REFUSED[name]
    table, y, _ = frame()
    arguments = {"X": table, "y": y, "environments": "site"} | arguments
    if isinstance(arguments["X"], pd.DataFrame) and not isinstance(arguments["environments"], str):
        arguments["X"] = table.drop(columns="site")
    # Where the message goes on, it ends here with a space.
    whole = "" if message.endswith(" ") else "$"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}{whole}"):
        InvariantClassifier(**{**SMALL, **settings}).fit(**arguments)


def test_a_misspelt_setting_is_an_error_even_where_erm_is_trained():
    inputs, z, _ = problem()
    with pytest.raises(ValueError, match="^irm: unknown setting 'coeficient'"):
        InvariantClassifier(**SMALL, hyperparameters={"coeficient": 1.0}).fit(inputs, z > 0)


def test_environments_of_one_row_and_of_one_class_are_trained_on():
    inputs, z, _ = problem()
    labels = np.array(["a"] * 59 + ["b"] * 30 + ["c"])
    for algorithm in ("irm", "vrex", "coral", "fishr", "groupdro"):
        found = InvariantClassifier(algorithm, **SMALL).fit(inputs, z > 0, environments=labels)
        assert np.isfinite(found.predict_proba(inputs)).all()


def test_steps_of_their_own_need_no_optimizer():
    inputs, z, site = problem()
    found = InvariantClassifier("fish", **SMALL).fit(inputs, z > 0, environments=site)
    assert found.score(inputs, z > 0) > 0.6
    with pytest.raises(ValueError, match="makes its own steps"):
        InvariantClassifier("fish", optimizer="adam", **SMALL).fit(inputs, z > 0, environments=site)


def test_batches_are_full_up_to_some_thousand_rows():
    def rows_a_step(rows, **settings):
        inputs, labels = np.random.default_rng(0).normal(size=(rows, 2)), np.arange(rows) % 2
        found = InvariantRegressor("vrex", **{**SMALL, "steps": 1, **settings})
        return found.fit(inputs, inputs[:, 0], environments=labels).result_.record.spec.batch_size

    assert rows_a_step(5000) is None
    assert rows_a_step(5001) == 256
    assert rows_a_step(5001, batch_size="full") is None
    assert rows_a_step(90, batch_size=7) == 7


def test_a_long_table_is_predicted_in_blocks_to_the_same_answers():
    inputs, z, site = problem()
    found = InvariantRegressor("vrex", **SMALL).fit(inputs, z, environments=site)
    many = np.tile(inputs, (100, 1))
    np.testing.assert_array_equal(found.predict(many), np.tile(found.predict(inputs), 100))


def test_the_package_offers_them_and_loads_nothing_for_it():
    assert envariant.InvariantClassifier is InvariantClassifier
    assert envariant.InvariantRegressor is InvariantRegressor
    code = "import sys, envariant; print({'torch', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_fit_warns_of_nothing_else():
    inputs, z, site = problem()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        InvariantClassifier(**SMALL).fit(inputs, z > 0, environments=site).predict(inputs)
