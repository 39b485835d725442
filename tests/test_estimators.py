"""Scikit-learn estimators: the check suite of scikit-learn, then everything about environments."""

import doctest
import inspect
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
from envariant import algorithms
from envariant.algorithms import IRM, AndMask, Composition, Fish, Penalty, VREx, recipe
from envariant.core.errors import EnvariantWarning
from envariant.core.schedules import Constant, Schedule
from envariant.estimators import InvariantClassifier, InvariantRegressor
from envariant.models import MLP
from envariant.training.optimizers import Adam
from envariant.training.run_spec import RunSpec

QUICK = {"model": "mlp(hidden=16)", "steps": 60, "learning_rate": 0.03}
SMALL = {"model": "linear", "steps": 20, "learning_rate": 0.03, "random_state": 0}
NO_ENVIRONMENTS = "ignore:.*fit received none:UserWarning"


SHORT = {**QUICK, "steps": 30, "learning_rate": 0.06}


@parametrize_with_checks(
    [
        # The checks pass no environments, so ERM is trained: with a warning, or because it was requested.
        InvariantClassifier(IRM(), **{**SHORT, "model": MLP(hidden=16)}),
        InvariantRegressor("erm", **SHORT, clip=1.0, average="ema(0.5)"),
    ]
)
@pytest.mark.filterwarnings(NO_ENVIRONMENTS, "ignore::sklearn.exceptions.SkipTestWarning")
def test_scikit_learn_estimator_checks(estimator, check):
    check(estimator)


def flipped(flips, rows=2400, seed=0):
    """Colored MNIST as a table: shape agrees with the label in 3 of 4 rows, color in all but `flip` of them."""
    rng = np.random.default_rng(seed)
    y = rng.random(rows * len(flips)) < 0.5
    site = np.repeat([f"flip {flip}" for flip in flips], rows)
    shape = y ^ (rng.random(len(y)) < 0.25)
    color = y ^ (rng.random(len(y)) < np.repeat(flips, rows))
    noise = rng.normal(size=(len(y), 3))
    inputs = noise * [0.3, 0.3, 1] + np.column_stack([2 * shape - 1, 2 * color - 1, 0 * y])
    return inputs, y.astype(int), site


TRAIN, TEST = flipped((0.1, 0.2)), flipped((0.9,), seed=1)


def test_logistic_regression_and_erm_use_the_spurious_column():
    assert LogisticRegression().fit(*TRAIN[:2]).score(*TEST[:2]) < 0.25
    erm = InvariantClassifier("erm", random_state=0, steps=200).fit(*TRAIN[:2], environments=TRAIN[2])
    assert erm.score(*TEST[:2]) < 0.25


@pytest.mark.parametrize("algorithm", ["irm", "vrex"])
def test_irm_and_vrex_ignore_the_spurious_column(algorithm):
    inputs, y, site = TRAIN
    fitted = InvariantClassifier(algorithm, steps=400, learning_rate=3e-3, random_state=0)
    fitted.fit(inputs, y, environments=site)
    # The best that shape alone can do is 0.75 in every environment.
    assert 0.65 < fitted.score(*TEST[:2]) < 0.78
    assert 0.65 < fitted.score(inputs, y) < 0.82
    assert fitted.environments_.tolist() == ["flip 0.1", "flip 0.2"]


def test_irm_with_inferred_environments_ignores_the_spurious_column():
    inputs, y, _ = TRAIN
    fitted = InvariantClassifier(
        "irm", infer_environments=True, hyperparameters={"reference_steps": 100}, steps=300, random_state=0
    ).fit(inputs, y)
    assert fitted.score(*TEST[:2]) > 0.6
    assert fitted.environments_.tolist() == ["all"]
    assert fitted.settings_["algorithm"] == "irm"
    assert fitted.result_.record.spec.algorithm == "irm + eiil"


def problem(rows=90, seed=0):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(rows, 3))
    site = np.repeat(["south", "north", "east"], rows // 3)
    return inputs, inputs[:, 0] + 0.3 * rng.normal(size=rows), site


def frame():
    inputs, z, site = problem()
    return pd.DataFrame(inputs, columns=["age", "dose", "weight"]).assign(site=site), z > 0, site


@pytest.mark.parametrize("estimator", [InvariantClassifier, InvariantRegressor])
def test_penalty_of_the_documented_example_takes_effect(estimator):
    example = doctest.DocTestParser().get_doctest(
        inspect.getdoc(estimator), {estimator.__name__: estimator}, estimator.__name__, None, None
    )
    doctest.DocTestRunner(optionflags=doctest.DONT_ACCEPT_BLANKLINE).run(example, clear_globs=False)
    (fitted,) = (value for value in example.globs.values() if isinstance(value, estimator))
    (penalty,) = recipe(fitted.algorithm).default.penalties
    assert penalty.coefficient_at(fitted.steps - 1) > penalty.coefficient_at(0)
    names = example.globs
    inputs, site = names["X"], names.get("site", names.get("year"))
    targets = inputs[:, 0] > 0 if estimator is InvariantClassifier else 100 + inputs[:, 0]
    never = clone(fitted).set_params(algorithm=f"{fitted.algorithm}(coefficient={penalty.coefficient_at(0)})")
    never.fit(inputs, targets, environments=site)
    assert not np.allclose(never.weights_["head.weight"], fitted.weights_["head.weight"], atol=1e-3)


class OwnNetwork(torch.nn.Module):
    """A network of the user's, with a buffer."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1)
        )

    def forward(self, inputs):
        return self.layers(inputs)


class OwnPenalty(Penalty):
    """V-REx under another name, without a recipe."""

    name = "own"
    paper = "none"
    coefficient: Schedule = Constant(1.0)

    def penalty(self, predicted, state):
        return predicted.risks.var(correction=0), state


class OwnAlgorithm(algorithms.Algorithm):
    """ERM with twice the gradient, which is no composition."""

    name, minimum_environments, needs_features = "own", 1, False

    def init(self, params, context):
        return Composition().init(params, context)

    def gradients(self, model, params, batch, state, context):
        gradients, state, metrics = Composition().gradients(model, params, batch, state, context)
        return {name: 2 * value for name, value in gradients.items()}, state, metrics


def check_round_trip(estimator, table, y):
    fitted = estimator.fit(table, y, environments="site")
    expected = fitted.predict_proba(table)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(table), expected)
    refitted = clone(fitted).fit(table, y, environments="site")
    np.testing.assert_array_equal(refitted.predict_proba(table), expected)
    return fitted


@pytest.mark.parametrize(
    "model", [MLP(hidden=8), OwnNetwork(), OwnNetwork], ids=["config", "module", "function"]
)
def test_model_objects_are_trained_pickled_and_cloned(model):
    table, y, _ = frame()
    fitted = check_round_trip(InvariantClassifier("vrex", **{**SMALL, "model": model}), table, y)
    before = fitted.predict_proba(table)
    if isinstance(model, torch.nn.Module):
        assert not np.array_equal(fitted.weights_["layers.0.weight"], model.layers[0].weight.detach().numpy())
        with torch.no_grad():
            model.layers[0].weight.add_(1)
        model.layers[2] = torch.nn.Identity()
        np.testing.assert_array_equal(fitted.predict_proba(table), before)


def test_model_config_and_its_name_give_identical_predictions():
    table, y, _ = frame()
    first, second = (
        InvariantClassifier("vrex", **{**SMALL, "model": model}).fit(table, y, environments="site")
        for model in (MLP(hidden=8), "mlp(hidden=8)")
    )
    np.testing.assert_array_equal(first.predict_proba(table), second.predict_proba(table))


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [
        (VREx(coefficient=1.0), "vrex(coefficient=1.0)"),
        (AndMask(threshold=0.8), "and-mask(threshold=0.8)"),
        (Fish(), "fish"),
        (algorithms.GroupDRO(), "groupdro"),
        (recipe("vrex + and-mask"), "vrex + and-mask"),
    ],
    ids=lambda value: str(getattr(value, "name", value)),
)
def test_algorithm_objects_equal_their_names(algorithm, name):
    table, y, _ = frame()
    by_object = check_round_trip(InvariantClassifier(algorithm, **SMALL), table, y)
    by_name = InvariantClassifier(name, **SMALL).fit(table, y, environments="site")
    np.testing.assert_array_equal(by_object.predict_proba(table), by_name.predict_proba(table))


def test_own_penalty_and_own_algorithm():
    table, y, _ = frame()
    check_round_trip(InvariantClassifier(OwnPenalty(), **SMALL), table, y)
    check_round_trip(InvariantClassifier(OwnAlgorithm(), **SMALL), table, y)


def test_environments_are_inferred_for_parts_and_not_for_own_algorithms():
    inputs, z, _ = problem()
    fitted = InvariantClassifier(VREx(coefficient=1.0), infer_environments=True, **SMALL).fit(inputs, z > 0)
    assert fitted.result_.record.spec.algorithm == "vrex + eiil"

    class Greedy(OwnAlgorithm):
        minimum_environments = 2

    with pytest.raises(ValueError, match="^own: infer_environments needs a named algorithm or a Composition"):
        InvariantClassifier(Greedy(), infer_environments=True, **SMALL).fit(inputs, z > 0)


def test_optimizer_classes_and_configs_are_trained_pickled_and_cloned():
    table, y, _ = frame()
    by_name, config, own_class, other = (
        check_round_trip(InvariantClassifier("vrex", optimizer=optimizer, **SMALL), table, y).weights_[
            "head.weight"
        ]
        for optimizer in ("adam", Adam(), torch.optim.Adam, torch.optim.RMSprop)
    )
    np.testing.assert_array_equal(config, by_name)
    np.testing.assert_allclose(own_class, by_name, rtol=1e-4)
    assert not np.allclose(other, by_name, rtol=1e-3)


def test_fit_without_environments_warns_and_trains_erm():
    inputs, z, _ = problem()
    message = (
        r"^InvariantClassifier: irm needs environments, but fit received none, so ERM was trained instead\. "
        r"Pass fit\(…, environments=…\), or silence this warning with algorithm='erm' or infer_environments=True$"
    )
    with pytest.warns(UserWarning, match=message):
        fitted = InvariantClassifier(**SMALL, hyperparameters={"coefficient": 10.0}).fit(inputs, z > 0)
    assert (fitted.settings_["algorithm"], fitted.settings_["hyperparameters"]) == ("erm", {})
    asked_for = InvariantClassifier("erm", **SMALL).fit(inputs, z > 0)
    np.testing.assert_array_equal(fitted.predict_proba(inputs), asked_for.predict_proba(inputs))


@pytest.mark.parametrize("algorithm", ["erm", "sd", "eiil(reference_steps=2)"])
def test_algorithms_without_need_of_environments_train_without_a_warning(algorithm):
    inputs, z, site = problem()
    for infer in (False, True):
        fitted = InvariantClassifier(algorithm, infer_environments=infer, **SMALL).fit(inputs, z > 0)
        assert fitted.settings_["algorithm"] == algorithm
        assert not fitted.settings_["inferred"]
    fitted.fit(inputs, z > 0, environments=site)


def test_environments_passed_to_fit_are_not_inferred():
    inputs, z, site = problem()
    fitted = InvariantClassifier("vrex", infer_environments=True, **SMALL)
    fitted.fit(inputs, z > 0, environments=site)
    assert fitted.result_.record.spec.algorithm == "vrex"


def test_environment_column_is_not_an_input():
    table, y, site = frame()
    by_column = InvariantClassifier("vrex", **SMALL).fit(table, y, environments="site")
    assert by_column.feature_names_in_.tolist() == ["age", "dose", "weight"]
    assert (by_column.n_features_in_, by_column.environment_column_) == (3, "site")
    assert by_column.environments_.tolist() == ["east", "north", "south"]
    inputs = table.drop(columns="site")
    by_array = InvariantClassifier("vrex", **SMALL).fit(inputs, y, environments=site)
    for given in (table, inputs, table.assign(site="an unknown site")):
        np.testing.assert_array_equal(by_column.predict_proba(given), by_array.predict_proba(inputs))
    assert table.columns.tolist() == ["age", "dose", "weight", "site"], "the caller's table is unchanged"
    with pytest.raises(ValueError, match="feature names"):
        by_array.predict(table)


def test_environment_labels_of_any_type():
    inputs, z, _ = problem()
    years = np.repeat([2021, 2022, 9], 30)
    kinds = [years, years.tolist(), pd.Series(years).astype("category"), pd.Series(years, index=years)]
    for labels in kinds:
        fitted = InvariantClassifier("vrex", **SMALL).fit(inputs, z > 0, environments=labels)
        assert sorted(fitted.environments_.tolist()) == ["2021", "2022", "9"]


def test_text_classes():
    inputs, z, site = problem()
    two = np.where(z > 0, "sick", "healthy")
    fitted = InvariantClassifier("vrex", **QUICK, random_state=0).fit(inputs, two, environments=site)
    assert fitted.classes_.tolist() == ["healthy", "sick"]
    assert set(fitted.predict(inputs)) == {"healthy", "sick"}
    assert fitted.score(inputs, two) > 0.8
    proba, logits = fitted.predict_proba(inputs), fitted.decision_function(inputs)
    assert logits.shape == (90,)
    np.testing.assert_allclose(proba[:, 1], 1 / (1 + np.exp(-logits)))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 2, 3], "Int64"),
        ([2**60, 2**60 + 1, 7], "Int64"),
        ([True, False, False], "boolean"),
        (["u", "v", "w"], "string"),
        ([1.0, 2.0, 3.0], "Float64"),
    ],
)
def test_classes_of_nullable_types_are_predicted_as_they_are(values, dtype):
    classes = np.arange(30) % 3
    y = pd.Series([values[k] for k in classes], dtype=dtype)
    model = InvariantClassifier("erm", model="linear", steps=40, learning_rate=0.3, random_state=0)
    predictions = model.fit(np.eye(3)[classes], y, environments=np.arange(30) // 10).predict(
        np.eye(3)[classes]
    )
    assert predictions.tolist() == y.tolist()
    assert type(predictions.tolist()[0]) is type(y.tolist()[0])


def test_more_than_two_classes():
    inputs, z, site = problem()
    three = np.array(["low", "middle", "high"])[np.digitize(z, [-0.5, 0.5])]
    fitted = InvariantClassifier("irm", **QUICK, random_state=0).fit(inputs, three, environments=site)
    assert fitted.classes_.tolist() == ["high", "low", "middle"]
    proba, logits = fitted.predict_proba(inputs), fitted.decision_function(inputs)
    assert proba.shape == logits.shape == (90, 3)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    assert (fitted.classes_[proba.argmax(axis=1)] == fitted.predict(inputs)).all()
    assert fitted.score(inputs, three) > 0.8


def test_regression_predicts_in_the_unit_of_the_target():
    inputs, z, site = problem()
    how = {"algorithm": "vrex(coefficient=1.0)", **QUICK, "random_state": 0}
    plain = InvariantRegressor(**how).fit(inputs, z, environments=site)
    assert plain.score(inputs, z) > 0.8
    grams = 70_000 + 1000 * z
    scaled = InvariantRegressor(**how).fit(inputs, grams, environments=site)
    np.testing.assert_allclose(scaled.predict(inputs), 70_000 + 1000 * plain.predict(inputs), rtol=1e-3)
    assert scaled.target_mean_ == pytest.approx(grams.mean())
    assert scaled.target_scale_ == pytest.approx(grams.std())


def test_constant_columns_and_columns_of_any_scale():
    inputs, z, site = problem()
    odd = np.column_stack([1e6 * inputs[:, 0] + 1e7, 1e-6 * inputs[:, 1], np.full(90, 0.1)])
    same = np.column_stack([inputs[:, :2], np.zeros(90)])
    one, other = (
        InvariantRegressor("vrex", **SMALL).fit(x, z, environments=site).predict(x) for x in (odd, same)
    )
    np.testing.assert_allclose(one, other, atol=1e-4)
    constant = InvariantRegressor("vrex", **SMALL).fit(inputs, np.full(90, 7.0), environments=site)
    assert constant.predict(inputs) == pytest.approx(7.0, abs=2.0)


def test_random_state_is_reproducible_and_leaves_global_generators_alone():
    inputs, z, site = problem()
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()

    def weights(random_state):
        how = {**SMALL, "random_state": random_state, "batch_size": 8}
        return InvariantClassifier("irm", **how).fit(inputs, z > 0, environments=site).weights_["head.weight"]

    np.testing.assert_array_equal(weights(5), weights(5))
    states = np.random.RandomState(5)
    assert not np.array_equal(weights(states), weights(states)), "a generator advances"
    assert not np.array_equal(weights(None), weights(None))
    assert torch.equal(before[0], torch.get_rng_state())
    for was, now in zip(before[1], np.random.get_state(), strict=True):
        np.testing.assert_array_equal(was, now)


@pytest.mark.parametrize("algorithm", ["vrex", "mtl", "arm", "urm(width=8)"])
def test_unpickled_estimator_gives_identical_predictions(algorithm):
    """Also where the algorithm wraps the model."""
    table, y, _ = frame()
    settings = {**SMALL, "model": "mlp(hidden=8)"}
    fitted = InvariantClassifier(algorithm, **settings).fit(table, y, environments="site")
    assert fitted.result_ is not None
    again = pickle.loads(pickle.dumps(fitted))
    assert again.result_ is None
    np.testing.assert_array_equal(again.predict_proba(table), fitted.predict_proba(table))
    assert all(type(value) is np.ndarray for value in again.weights_.values())
    plain = (str, int, float, bool, type(None), np.ndarray, np.floating, dict)
    assert [k for k, v in vars(again).items() if not isinstance(v, plain)] == []


def test_pickled_estimator_holds_no_tensor():
    table, y, _ = frame()
    stored = pickle.dumps(InvariantClassifier("irm", **SMALL).fit(table, y, environments="site"))
    assert b"torch" not in stored


def test_parameters_are_the_options_of_a_run():
    """Every option that is added to `RunSpec` is a parameter, unless it is listed here."""
    omitted = {"data", "test_environments", "augmentation", "adapt", "execution", "memory", "replicas"}
    omitted |= {"shared_init", "seed"}
    own = {"infer_environments", "random_state", "verbose"}
    for estimator in (InvariantClassifier, InvariantRegressor):
        assert set(estimator().get_params()) == set(RunSpec.model_fields) - omitted | own
        assert estimator(clip=2.0).set_params(stop_early="patience(3)").get_params()["clip"] == 2.0
    with pytest.raises(ValueError, match="^unknown option 'clpi'; did you mean 'clip'. known: "):
        InvariantClassifier(clpi=1.0)


@pytest.mark.parametrize(
    "options",
    [
        {"clip": "norm(0.01)", "decay_weights_only": True, "weight_decay": 0.1},
        {"accumulate": 3},
        {"class_weights": {True: 9}},
        {"average": "ema(0.9)"},
        {"keep": "every(5)"},
        {"init": "erm(steps=5)"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_take_effect_and_are_cloned_and_pickled(options):
    table, y, _ = frame()
    how = {**SMALL, "batch_size": 16} | options
    fitted = check_round_trip(InvariantClassifier("vrex", **how), table, y)
    plain = InvariantClassifier("vrex", **{**SMALL, "batch_size": 16}).fit(table, y, environments="site")
    same = np.array_equal(fitted.predict_proba(table), plain.predict_proba(table))
    assert same == ("keep" in options)
    if "class_weights" in options:
        assert fitted.predict_proba(table)[:, 1].mean() > plain.predict_proba(table)[:, 1].mean() + 0.05
    assert sorted(fitted.result_.kept) == ([0, 5, 10, 15, 20] if "keep" in options else [])


def test_options_that_need_minibatches_set_the_automatic_batch_size():
    table, y, _ = frame()
    for options in ({"accumulate": 2}, {"class_weights": "balanced"}):
        fitted = InvariantClassifier("vrex", **SMALL, **options).fit(table, y, environments="site")
        assert fitted.result_.record.spec.batch_size == 256


def test_early_stopping_holds_out_a_share_of_every_environment():
    table, y, _ = frame()
    how = {**SMALL, "steps": 400, "learning_rate": 0.5, "evaluate_every": 5, "stop_early": "patience(2)"}
    fitted = InvariantClassifier("erm", **how, keep="best(validation loss)")
    result = fitted.fit(table, y, environments="site").result_
    assert result.stopped
    validation = [each for each in result.record.environments if each.role == "validation"]
    assert [each.rows for each in validation] == [6, 6, 6]
    kept = result.checkpoints[0].params["head.weight"].numpy()
    np.testing.assert_array_equal(fitted.weights_["head.weight"], kept)
    losses = {}
    for row in result.rows:
        if (row.role, row.metric, row.kind) == ("validation", "loss", "full"):
            losses[row.step] = losses.get(row.step, 0) + row.value
    assert result.checkpoints[0].step == min(losses, key=losses.get) < max(losses)
    half = clone(fitted).set_params(holdout_fraction=0.5).fit(table, y, environments="site").result_
    assert [each.rows for each in half.record.environments if each.role == "validation"] == [15, 15, 15]


def test_clone_is_not_fitted():
    inputs, z, site = problem()
    fitted = InvariantClassifier(
        Composition(penalties=(VREx(coefficient=1.0),), gradient_aggregator=AndMask()), **SMALL
    )
    again = clone(fitted.fit(inputs, z > 0, environments=site))
    assert again.get_params()["steps"] == 20
    with pytest.raises(NotFittedError):
        again.predict(inputs)
    again.fit(inputs, z > 0, environments=site)
    np.testing.assert_array_equal(again.predict_proba(inputs), fitted.predict_proba(inputs))


def test_failed_fit_keeps_the_earlier_fit():
    inputs, z, site = problem()
    fitted = InvariantClassifier("vrex", **SMALL).fit(inputs, z > 0, environments=site)
    before = fitted.predict_proba(inputs)
    fitted.set_params(steps=0)
    with pytest.raises(ValueError, match="^steps must be at least 1; got 0$"):
        fitted.fit(2 + inputs, z > 1, environments=site)
    np.testing.assert_array_equal(fitted.predict_proba(inputs), before)


def test_grid_search_with_leave_one_environment_out():
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


def test_pipeline():
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


INVALID = {
    "no such column": (
        {},
        {"environments": "cite"},
        "environments: unknown column 'cite'; did you mean 'site'? known: age, dose, site, weight",
    ),
    "a column of an array": (
        {},
        {"X": np.zeros((90, 2)), "environments": "site"},
        "environments='site' is a column name, but X is of type ndarray without column names; pass a DataFrame, or one label per row",
    ),
    "too few labels": (
        {},
        {"environments": ["a", "b"]},
        "InvariantClassifier: lengths must be equal; got 90 inputs, 90 targets, 2 environments",
    ),
    "a label is missing": (
        {},
        {"environments": [None, *["a"] * 44, *["b"] * 45]},
        "InvariantClassifier: environments are missing in 1 of 90 rows (first: row 0); fill in or remove them",
    ),
    "one environment": (
        {},
        {"environments": ["a"] * 90},
        "irm: needs at least 2 environments, but 'environments' contains 1. Pass more, or use algorithm='erm'",
    ),
    "a name that is taken": (
        {},
        {"environments": ["worst"] * 45 + ["b"] * 45},
        "environment 'worst': a name must be one line of text and not * or worst",
    ),
    "one class": (
        {},
        {"y": np.ones(90)},
        "y must hold at least two classes; got one class (1.0)",
    ),
    "no such algorithm": (
        {"algorithm": "virex"},
        {},
        "unknown algorithm 'virex'; did you mean 'vrex'? known: ",
    ),
    "no algorithm": (
        {"algorithm": 3},
        {},
        "algorithm must be a name such as 'vrex', a Recipe, a part such as VREx(), or an Algorithm, got 3",
    ),
    "no such hyperparameter": (
        {"hyperparameters": {"coeficient": 1.0}},
        {},
        "irm: unknown setting 'coeficient'; did you mean 'coefficient'? known: coefficient, form, l2, normalize_loss, risk_aggregator",
    ),
    "hyperparameters of an object": (
        {"algorithm": VREx(), "hyperparameters": {"coefficient": 1.0}},
        {},
        "hyperparameters can be passed only with the name of an algorithm or a recipe; for an algorithm object, set them when you construct the object",
    ),
    "no model": (
        {"model": 3},
        {},
        "model must be a name, a ModelConfig, a module or a function that returns a new module; got 3",
    ),
    "no such model": ({"model": "mpl"}, {}, "unknown model 'mpl'; did you mean 'mlp'? known: "),
    "batches": ({"batch_size": 0}, {}, "batch_size must be at least 1; got 0"),
    "a rate": (
        {"learning_rate": -1.0},
        {},
        "learning_rate must be a finite number above 0; got -1.0",
    ),
    "a device": ({"device": "gpu"}, {}, "device must be auto, cpu or cuda; got 'gpu'"),
    "a failure": (
        {"learning_rate": 1e12, "model": "mlp(hidden=4)"},
        {},
        "InvariantClassifier: training failed: ",
    ),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_arguments_are_rejected(name):
    settings, arguments, message = INVALID[name]
    table, y, _ = frame()
    arguments = {"X": table, "y": y, "environments": "site"} | arguments
    if isinstance(arguments["X"], pd.DataFrame) and not isinstance(arguments["environments"], str):
        arguments["X"] = table.drop(columns="site")
    # A trailing space marks a message of which only the beginning is given.
    whole = "" if message.endswith(" ") else "$"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}{whole}"):
        InvariantClassifier(**{**SMALL, **settings}).fit(**arguments)


def test_misspelled_hyperparameter_is_an_error_even_where_erm_is_trained():
    inputs, z, _ = problem()
    with pytest.raises(ValueError, match="^irm: unknown setting 'coeficient'"):
        InvariantClassifier(**SMALL, hyperparameters={"coeficient": 1.0}).fit(inputs, z > 0)


def test_environments_with_one_row_or_one_class():
    inputs, z, _ = problem()
    labels = np.array(["a"] * 59 + ["b"] * 30 + ["c"])
    for algorithm in ("irm", "vrex", "coral", "fishr", "groupdro"):
        fitted = InvariantClassifier(algorithm, **SMALL).fit(inputs, z > 0, environments=labels)
        assert np.isfinite(fitted.predict_proba(inputs)).all()


def test_optimizer_is_rejected_by_algorithms_that_make_their_own_updates():
    inputs, z, site = problem()
    fitted = InvariantClassifier("fish", **SMALL).fit(inputs, z > 0, environments=site)
    assert fitted.score(inputs, z > 0) > 0.6
    with pytest.raises(ValueError, match="has a built-in optimizer"):
        InvariantClassifier("fish", optimizer="adam", **SMALL).fit(inputs, z > 0, environments=site)


def test_auto_batch_size():
    def rows_per_step(rows, **settings):
        inputs, labels = np.random.default_rng(0).normal(size=(rows, 2)), np.arange(rows) % 2
        fitted = InvariantRegressor("vrex", **{**SMALL, "steps": 1, **settings})
        return fitted.fit(inputs, inputs[:, 0], environments=labels).result_.record.spec.batch_size

    assert rows_per_step(5000) == "full"
    assert rows_per_step(5001) == 256
    assert rows_per_step(5001, batch_size="full") == "full"
    assert rows_per_step(90, batch_size=7) == 7


def test_prediction_does_not_depend_on_blocks():
    inputs, z, site = problem()
    fitted = InvariantRegressor("vrex", **SMALL).fit(inputs, z, environments=site)
    many = np.tile(inputs, (100, 1))
    np.testing.assert_array_equal(fitted.predict(many), np.tile(fitted.predict(inputs), 100))


def test_package_exports_estimators_lazily():
    assert envariant.InvariantClassifier is InvariantClassifier
    assert envariant.InvariantRegressor is InvariantRegressor
    code = "import sys, envariant; print({'torch', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_fit_and_predict_emit_no_warning():
    inputs, z, site = problem()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        InvariantClassifier(**{**SMALL, "steps": 110}).fit(inputs, z > 0, environments=site).predict(inputs)


def test_classes_that_look_alike_are_said():
    X, y = np.arange(8.0)[:, None], ["Yes", "no", "yes ", "no"] * 2
    message = "InvariantClassifier: y: 'Yes' and 'yes ' differ in blanks or character form only"
    with pytest.warns(EnvariantWarning, match=message):
        InvariantClassifier("erm", steps=1).fit(X, y, environments=list("aabbaabb"))
