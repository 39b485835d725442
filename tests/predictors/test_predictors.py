"""Predictors against scikit-learn used directly, and in training, studies and selection."""

import numpy as np
import pytest
import torch
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, log_loss

import envariant
from envariant.core.environments import WEIGHT, Environment, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary, Multiclass, Regression
from envariant.predictors import BoostedTrees, MajorityClass, ScikitLearn, linear, predictor
from envariant.studies import Store, Study, begin, sweep
from envariant.studies.selection import Invariance, Oracle, SelectedRun, TrainingValidation, select
from envariant.training.store.records import record_of_run


def environments(task, rows=60, seed=0, classes=3) -> EnvironmentSet:
    """Return two training environments and the test environment "c"."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for name in "abc":
        x = torch.randn(rows, 4, generator=generator)
        score = x[:, 0] - x[:, 1]
        y = score if isinstance(task, Regression) else (score > 0).float()
        if isinstance(task, Multiclass):
            y = torch.bucketize(score, torch.tensor([-0.7, 0.7])) % classes
        parts.append(Environment(name, x, y))
    return EnvironmentSet("mine", tuple(parts), task, test=("c",))


def training(data: EnvironmentSet) -> EnvironmentSet:
    return EnvironmentSet("mine", tuple(data[name] for name in "ab"), data.task)


def pooled(data: EnvironmentSet) -> tuple[np.ndarray, np.ndarray]:
    return tuple(
        np.concatenate([part.numpy() for part in parts])
        for parts in zip(*(data[name].rows() for name in "ab"), strict=True)
    )


def test_boosted_trees_equal_scikit_learn_on_the_pooled_rows():
    data = environments(Binary())
    fitted = BoostedTrees().fit(training(data), 3)
    reference = HistGradientBoostingClassifier(early_stopping=False, min_samples_leaf=12, random_state=3).fit(
        *pooled(data)
    )
    inputs, _ = data["c"].rows()
    np.testing.assert_allclose(
        fitted.logits(inputs).numpy(), reference.decision_function(inputs.numpy()).clip(-15, 15), rtol=1e-5
    )
    assert fitted.iterations == reference.n_iter_


def test_boosted_trees_of_a_regression_equal_scikit_learn():
    data = environments(Regression())
    fitted = BoostedTrees().fit(training(data), 0)
    reference = HistGradientBoostingRegressor(early_stopping=False, min_samples_leaf=12, random_state=0).fit(
        *pooled(data)
    )
    inputs, _ = data["c"].rows()
    np.testing.assert_allclose(
        fitted.logits(inputs).numpy(), reference.predict(inputs.numpy()), rtol=1e-5, atol=1e-6
    )


def test_class_without_training_rows_has_the_lowest_logit():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(60, 2))).float()
    data = EnvironmentSet("two of three", (Environment("a", x, torch.tensor([0, 2] * 30)),), Multiclass(3))
    fitted = BoostedTrees().fit(data, 0)
    logits = fitted.logits(x)
    assert logits.shape == (60, 3)
    assert (logits[:, 1] < logits.max(dim=1).values).all()
    log_odds = fitted.estimator.decision_function(x.numpy()).clip(-15, 15)
    np.testing.assert_allclose((logits[:, 2] - logits[:, 0]).numpy(), log_odds, rtol=1e-5)


@pytest.mark.parametrize("task", [Binary(), Multiclass(3)])
def test_one_class_in_training_is_predicted_everywhere(task):
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    label = 1 if isinstance(task, Binary) else 2
    targets = torch.full((50,), label) if isinstance(task, Multiclass) else torch.full((50,), 1.0)
    data = EnvironmentSet("one", (Environment("a", x, targets),), task)
    logits = BoostedTrees().fit(data, 0).logits(x)
    predicted = (logits > 0).long() if isinstance(task, Binary) else logits.argmax(dim=1)
    assert (predicted == label).all()


def test_error_of_scikit_learn_is_one_line_with_the_name():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(11_900, 2))).float()
    rare = torch.zeros(11_900).long()
    rare[:5000], rare[7] = 1, 2
    data = EnvironmentSet("rare", (Environment("a", x, rare),), Multiclass(3))
    trees = ScikitLearn(HistGradientBoostingClassifier(max_iter=2), "mine")
    with pytest.raises(EnvariantError, match="^mine: The least populated class") as error:
        trees.fit(data, 0)
    assert "\n" not in str(error.value)
    assert BoostedTrees().fit(data, 0).iterations == 100, (
        "the library's trees are fitted without early stopping"
    )


@pytest.mark.parametrize("task", [Binary(), Multiclass(3)])
def test_majority_class_equals_the_dummy_classifier(task):
    data = environments(task)
    x, y = pooled(data)
    reference = DummyClassifier(strategy="prior").fit(x, y)
    inputs, targets = data["c"].rows()
    logits = MajorityClass().fit(training(data), 0).logits(inputs)
    probabilities = torch.sigmoid(logits) if isinstance(task, Binary) else torch.softmax(logits, 1)
    expected = reference.predict_proba(inputs.numpy())
    ours = probabilities.numpy()
    np.testing.assert_allclose(ours, expected[:, 1] if isinstance(task, Binary) else expected, rtol=1e-5)
    loss = float(task.losses(logits, targets).mean())
    assert loss == pytest.approx(log_loss(targets, expected, labels=reference.classes_), rel=1e-5)


def test_majority_class_of_a_regression_is_the_training_mean():
    data = environments(Regression())
    logits = MajorityClass().fit(training(data), 0).logits(data["c"].rows()[0])
    assert logits.numpy() == pytest.approx(pooled(data)[1].mean(), rel=1e-5)


def test_sample_weights_reach_the_estimator():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(80, 2, generator=generator), (torch.rand(80, generator=generator) > 0.5).float()
    weights = torch.rand(80, generator=generator)
    data = EnvironmentSet("weighted", (Environment("a", x, y, {WEIGHT: weights}),), Binary())
    ours = ScikitLearn(LogisticRegression()).fit(data, 0).logits(x).numpy()
    reference = LogisticRegression().fit(x.numpy(), y.numpy(), sample_weight=weights.numpy())
    np.testing.assert_allclose(ours, reference.decision_function(x.numpy()), rtol=1e-4, atol=1e-5)
    unweighted = LogisticRegression().fit(x.numpy(), y.numpy()).decision_function(x.numpy())
    assert not np.allclose(ours, unweighted, rtol=1e-3)


@pytest.mark.parametrize("own", [LogisticRegression(C=0.1), ScikitLearn(LogisticRegression(C=0.1))])
def test_scikit_learn_estimator_in_train_equals_scikit_learn(own):
    data = environments(Binary())
    result = envariant.train(data, own, replicas=2)
    reference = LogisticRegression(C=0.1).fit(*pooled(data))
    inputs, targets = (part.numpy() for part in data["c"].rows())
    accuracy = accuracy_score(targets, reference.predict(inputs))
    assert result.final("c", "accuracy").values == pytest.approx((accuracy, accuracy))
    loss = log_loss(targets, reference.predict_proba(inputs))
    assert result.final("c", "loss").mean == pytest.approx(loss, rel=1e-4)
    assert result.record.spec.algorithm == "LogisticRegression"
    assert result.finished == (0, 1)
    assert not hasattr(getattr(own, "estimator", own), "coef_"), "a copy is fitted"
    with pytest.raises(EnvariantError, match="is not a network"):
        result.model()


def test_regressor_in_train_equals_scikit_learn():
    data = environments(Regression())
    result = envariant.train(data, Ridge())
    reference = Ridge().fit(*pooled(data))
    inputs, targets = (part.numpy() for part in data["c"].rows())
    squared = float(np.square(reference.predict(inputs) - targets).mean())
    assert result.final("c", "loss").mean == pytest.approx(squared, rel=1e-4)


@pytest.mark.parametrize("name", ["boosted-trees", "linear", "majority-class"])
def test_named_predictor_is_stored_and_resumed_like_a_network(tmp_path, name):
    first = envariant.train("colored-digits", name, out=tmp_path)
    again = envariant.train("colored-digits", name, out=tmp_path)
    assert first.rows == again.rows
    assert first.record == again.record == envariant.TrainingResult.load(tmp_path).record
    assert first.record.changed == ()


def test_predictor_rejects_hyperparameters():
    with pytest.raises(EnvariantError, match="boosted-trees: takes no hyperparameters"):
        envariant.train("colored-digits", "boosted-trees", hyperparameters={"learning_rate": 0.5})


def test_names_and_estimators_become_predictors_and_others_do_not():
    assert predictor("boosted-trees") == BoostedTrees()
    assert predictor(LogisticRegression()).name == "LogisticRegression"
    for other in ("erm", LogisticRegression, object(), envariant.algorithms.VREx()):
        assert predictor(other) is None


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    declared = Study(
        (environments(Binary()),),
        ("erm", "majority-class", BoostedTrees(), LogisticRegression()),
        n_trials=2,
        replicas=2,
        test_environments="each",
        settings={"steps": 4, "model": "linear"},
    )
    begin(folder, declared).close()
    sweep(folder, declared)
    with Store(folder) as store:
        yield store


def test_predictors_are_runs_of_a_study_with_one_trial(study):
    listing = study.listing()
    assert set(listing["state"]) == {"done"}
    counts = listing.groupby("algorithm")["id"].count().to_dict()
    assert counts == {"erm": 12, "majority-class": 6, "boosted-trees": 6, "LogisticRegression": 6}


def test_study_measures_predictors_as_scikit_learn_does(study):
    from envariant.data.validation_split import ValidationSplit

    data = environments(Binary())
    split = ValidationSplit(data, 0.2, ("c",))
    listing = study.listing()
    logistic = listing[listing["algorithm"] == "LogisticRegression"]
    run = logistic[logistic["test_environments"].map(("c",).__eq__)].iloc[0]
    record = record_of_run(study, int(run["id"]))
    sample = split.sample(record.seeds[0].data)
    roles = sample.roles()
    parts = [sample[name].rows() for name, role in roles.items() if role == "train"]
    x, y = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    reference = LogisticRegression().fit(x, y)
    history = study.history([int(run["id"])])
    test = history[(history["role"] == "test") & (history["metric"] == "accuracy")]["value"].item()
    inputs, targets = (part.numpy() for part in data["c"].rows())
    assert test == pytest.approx(accuracy_score(targets, reference.predict(inputs)))


@pytest.mark.parametrize("rule", [TrainingValidation(), Invariance(), Oracle()])
def test_selection_rules_select_predictors(study, rule):
    selected = select(study.table(), rule)
    chosen = {each.algorithm for each in selected if isinstance(each.choice, SelectedRun)}
    assert chosen == {"erm", "majority-class", "boosted-trees", "LogisticRegression"}


@pytest.mark.parametrize("strength", [0.0, 0.3, 3.0])
def test_all_folds_at_once_choose_the_strength_of_separate_fits(monkeypatch, strength):
    rng = np.random.default_rng(int(10 * strength))
    x, w = rng.normal(size=(90, 3)), rng.uniform(0.5, 2.0, 90)
    y = (strength * x[:, 0] + rng.logistic(size=90) > 0).astype(int)
    fold = np.arange(90) % 5
    together = linear._binary_losses(x, y, w, fold)
    for k, inverse_penalty in enumerate(linear._INVERSE_PENALTIES):
        separate = 0.0
        for held in range(5):
            own = fold == held
            model = LogisticRegression(C=inverse_penalty, tol=1e-8).fit(
                x[~own], y[~own], sample_weight=w[~own]
            )
            separate += log_loss(y[own], model.predict_proba(x[own]), sample_weight=w[own]) * w[own].sum()
        assert together[k] == pytest.approx(separate, rel=1e-4)
    chosen = linear._strength(x, y, w, np.random.default_rng(0), None)
    monkeypatch.setattr(linear, "_MOST_AT_ONCE", 0)
    assert linear._strength(x, y, w, np.random.default_rng(0), None) == chosen


def test_a_fold_without_one_of_the_classes_in_training_is_left_out():
    y = np.array([1, 0, 0, 0, 0, 0])
    losses = linear._binary_losses(np.arange(6.0)[:, None], y, np.ones(6), np.array([0, 0, 1, 1, 2, 2]))
    assert np.isfinite(losses).all()
