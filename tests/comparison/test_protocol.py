"""Duration, rows, folds, metric and stages of a comparison, and what is rejected before anything runs."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression

from envariant.comparison import protocol
from envariant.comparison.gathering import gather
from envariant.core.errors import EnvariantError
from envariant.data.tables import table as tables
from envariant.data.tables.source import TableSource
from envariant.saved_model import load_model
from envariant.studies import Store, Study, begin
from envariant.studies.executors import local
from envariant.training.store import RunOutcome, Trial


def table(sizes=(200, 100, 80), rare=0.5, task=None):
    rng = np.random.default_rng(0)
    site = np.repeat([f"s{k:02}" for k in range(len(sizes))], sizes)
    x = rng.normal(size=len(site))
    y = x if task == "regression" else np.where(rng.random(len(site)) < rare, "ill", "well")
    return tables.read(pd.DataFrame({"x": x, "y": y, "site": site}), "y", "site", min_rows=10, task=task)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), (30, 30), ("45", 45), (" 2M ", 120)]
)
def test_durations_with_units_are_parsed(text, seconds):
    assert protocol.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["soon", "", "-5m", "0", "inf", "nan", "10 minutes"])
def test_an_invalid_duration_is_rejected(text):
    with pytest.raises(EnvariantError, match="budget: expected a duration such as 90s, 10m or 1.5h"):
        protocol.parse_duration(text)


def test_rows_are_subsampled_per_environment_and_logged():
    whole = table()
    part = protocol.subsample(whole, 90, 0)
    assert np.bincount(part.environment.values).tolist() == [90, 90, 80]
    assert (
        part.preprocessing_log[-1].what
        == "methods are compared on 260 of 380 rows, at most 90 per environment"
    )
    # Rows stay intact: x and its target still belong together.
    pairs = set(zip(whole.columns[0].values.tolist(), whole.target.values.tolist(), strict=True))
    assert set(zip(part.columns[0].values.tolist(), part.target.values.tolist(), strict=True)) <= pairs
    same = protocol.subsample(whole, 90, 0)
    np.testing.assert_array_equal(part.columns[0].values, same.columns[0].values)
    other = protocol.subsample(whole, 90, 1)
    assert not np.array_equal(part.columns[0].values, other.columns[0].values)
    assert protocol.subsample(whole, None, 0) is whole is protocol.subsample(whole, 200, 0)
    with pytest.raises(EnvariantError, match="max_rows: must be at least 5, got 0"):
        protocol.subsample(whole, 0, 0)


def test_many_environments_are_grouped_into_folds_each_once():
    few = protocol.make_folds(table())
    assert few == (("s00",), ("s01",), ("s02",))
    many = protocol.make_folds(table(sizes=tuple(range(20, 70, 2))))
    assert len(many) == 10
    assert sorted(name for fold in many for name in fold) == [f"s{k:02}" for k in range(25)]
    # No fold of one among folds of two.
    assert min(map(len, many)) >= 2
    assert min(map(len, protocol.make_folds(table(sizes=(20,) * 13)))) >= 2


def with_shares(*shares):
    """Return a table with a share of the second class by environment."""
    own = table()
    generator = np.random.default_rng(0)
    values = generator.random(len(own)) < np.array(shares)[own.environment.values]
    return replace(own, target=replace(own.target, values=values.astype(own.target.values.dtype)))


def test_the_default_metric_suits_the_target():
    def usual(found, name=None):
        return protocol.choose_metric(name, found, TableSource(found).task).name

    assert usual(table()) == "accuracy"
    assert usual(table(rare=0.1)) == "AUROC"
    # Accuracy changes with the share of a class although the ranking holds.
    assert usual(with_shares(0.2, 0.5, 0.5)) == "AUROC"
    assert usual(with_shares(0.45, 0.5, 0.5)) == "accuracy"
    assert usual(table(task="regression")) == "RMSE"
    assert usual(table(task="regression"), "r2") == "R²"
    assert usual(table(), "auroc") == "AUROC"
    with pytest.raises(EnvariantError, match="unknown metric 'acuracy'; did you mean 'accuracy'"):
        usual(table(), "acuracy")


def test_algorithms_that_need_more_environments_are_not_applicable():
    places = (("a",), ("b",))
    assert protocol.applicable_algorithms(("erm", "boosted-trees", "irm"), places, 2) == (
        ("erm", "boosted-trees"),
        ("irm needs 2 training environments, but only 1 would be left",),
    )
    assert protocol.applicable_algorithms(("erm", "irm"), places, 3) == (("erm", "irm"), ())
    with pytest.raises(EnvariantError, match="unknown algorithm 'irmm'; did you mean 'irm'"):
        protocol.applicable_algorithms(("irmm",), places, 3)


def test_pairs_of_more_than_50_environments_are_not_compared(tmp_path):
    for count, left_out in ((50, False), (51, True)):
        source = TableSource(table(sizes=(12,) * count), "t")
        found = protocol.plan(source, "c", ["erm", "coral"], None, 1, 1, 0, {})
        assert (found.study.algorithms == ("erm",)) is left_out
        assert any("coral: takes minutes and gigabytes" in why for why in found.not_applicable) is left_out


def test_the_same_table_resumes_and_another_is_rejected(tmp_path):
    def start(own):
        plan = protocol.plan(TableSource(own), "name", ["erm"], None, 1, 1, 0, {})
        begin(tmp_path, plan.study).close()

    start(table())
    start(table())
    with pytest.raises(EnvariantError, match="has runs on different data named 'table'; use another folder"):
        start(table(sizes=(200, 100, 81)))
    with pytest.raises(EnvariantError, match="choose another folder"):
        start(table(task="regression"))


class Clock:
    """A clock that advances only while runs train, in place of the module `time`."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(protocol, "time", clock)
    return clock


class Runner:
    """Mark planned runs as done, each after some seconds of the clock, until the deadline."""

    def __init__(self, folder, clock, seconds, study=None):
        self.folder, self.clock, self.seconds, self.left = folder, clock, seconds, []
        self.study = study or STUDY

    def __call__(self, left, until):
        self.left.append(left)
        with Store(self.folder) as store:
            while (job := store.claim(among=1_000, declares=self.study.declares)) is not None:
                if until is not None and self.clock.now > until:
                    store.finish(job, "out of time")
                    return
                self.clock.now += self.seconds
                store.add((), [RunOutcome(stored.id, None, 0.0, None) for stored in store.members(job)])
                store.finish(job)


STUDY = Study(("colored-digits",), ("vrex",), n_trials=8, replicas=1)


def test_without_a_deadline_all_trials_are_one_stage(tmp_path, clock):
    run = Runner(tmp_path, clock, 1.0)
    assert protocol.run_within_budget(tmp_path, STUDY, None, run) == STUDY
    assert run.left == [8]


@pytest.mark.parametrize(
    ("budget", "completed", "stages"),
    # One second per run: after 2 trials the next 2 would end at 4 s, after 4 the next 4 at 8 s.
    [(60, 8, [1, 1, 2, 4]), (3.5, 2, [1, 1]), (7.5, 4, [1, 1, 2]), (8.5, 8, [1, 1, 2, 4])],
)
def test_with_a_deadline_trials_are_added_while_time_remains(tmp_path, clock, budget, completed, stages):
    run = Runner(tmp_path, clock, 1.0)
    done = protocol.run_within_budget(tmp_path, STUDY, clock.now + budget, run)
    assert done.n_trials == completed
    assert run.left == stages


@pytest.mark.parametrize(
    ("budget", "methods", "replicas", "n_trials", "stages"),
    # Methods one by one, then the second replica of all, then all five, then the second trial.
    [
        (0.5, 1, 1, 1, [1]),
        (1.5, 2, 1, 1, [1, 1]),
        (5.5, 3, 1, 1, [1, 1, 1]),
        (6.5, 3, 2, 1, [1, 1, 1, 3]),
        (16, 3, 5, 1, [1, 1, 1, 3, 9]),
        (99, 3, 5, 2, [1, 1, 1, 3, 9, 15]),
    ],
)
def test_with_a_deadline_every_method_is_tried_before_replicas_are_added(
    tmp_path, clock, budget, methods, replicas, n_trials, stages
):
    study = replace(STUDY, algorithms=("erm", "vrex", "irm"), n_trials=2, replicas=5)
    run = Runner(tmp_path, clock, 1.0, study)
    done = protocol.run_within_budget(tmp_path, study, clock.now + budget, run)
    assert (len(done.algorithms), done.replicas, done.n_trials) == (methods, replicas, n_trials)
    assert run.left == stages


def test_planned_runs_of_another_comparison_do_not_make_this_one_partial(tmp_path, clock):
    begin(tmp_path, replace(STUDY, algorithms=("irm",))).close()
    run = Runner(tmp_path, clock, 1.0)
    assert protocol.run_within_budget(tmp_path, STUDY, None, run) == STUDY
    assert run.left == [8]


def test_an_environment_whose_classes_are_new_gets_no_verdict():
    own = table()
    names = np.where(own.environment.values == 2, own.target.values + 2, own.target.values).astype(np.int32)
    target = replace(own.target, values=names, categories=("ill", "well", "Ill", "Well"))
    changed = replace(own, target=target, task="multiclass")
    plan = protocol.plan(TableSource(changed), "name", ["erm"], None, 1, 1, 0, {})
    assert list(plan.tasks) == ["s00", "s01"]
    assert plan.undefined == (
        "s02: no verdict, because 100% of its rows have classes that no training environment has ('Ill', 'Well')",
    )
    assert plan.study.test_environments == (("s00",), ("s01",), ("s02",))
    alone = replace(
        changed, target=replace(target, values=own.environment.values, categories=("x", "y", "z"))
    )
    with pytest.raises(
        EnvariantError, match=r"no site can be tested \(s00: no verdict, .* use the same spelling of classes"
    ):
        protocol.plan(TableSource(alone), "name", ["erm"], None, 1, 1, 0, {})


def test_networks_and_methods_may_be_linear(tmp_path):
    """With `model="linear"`, log-odds are linear, and V-REx makes the risks of environments more equal."""
    rng, flips = np.random.default_rng(0), (0.05, 0.35, 0.2)
    site, x = np.repeat(["a", "b", "c"], 300), rng.normal(size=900)
    y = x + 0.9 * rng.normal(size=900) > 0
    marker = np.where(rng.random(900) < np.repeat(flips, 300), ~y, y) + 0.3 * rng.normal(size=900)
    frame = pd.DataFrame({"x": x, "marker": marker, "y": y.astype(int), "site": site})
    source = TableSource(tables.read(frame, "y", "site", min_rows=10), "table")
    options = {"model": "linear", "steps": 20}
    plan = protocol.plan(source, "linear", ("erm", "vrex(coefficient=100)"), "accuracy", 1, 1, 0, options)
    begin(tmp_path, plan.study).close()
    local.sweep(tmp_path, plan.study, execution="sequential")
    with Store(tmp_path) as store:
        results = gather(store, plan.study, plan.tasks, plan.metric, source.table)
    assert results.networks == {"erm": ("linear",), "vrex(coefficient=100)": ("linear",)}
    assert all(results.is_complete(method) for method in results.networks)
    spread = {}
    for method in results.networks:
        trial = replace(plan.study.trials_of(method, source)[0], learning_rate=0.3)
        model = protocol.train_final_model(source.table, method, trial, 0, {**options, "steps": 60})
        model.save(tmp_path / "model")
        predicted = load_model(tmp_path / "model").predict(frame)
        log_odds = np.log(predicted["P(1)"] / predicted["P(0)"]).to_numpy()
        fit = LinearRegression().fit(frame[["x", "marker"]], log_odds)
        assert fit.score(frame[["x", "marker"]], log_odds) == pytest.approx(1, abs=1e-5)
        losses = np.log1p(np.exp(np.where(y, -log_odds, log_odds)))
        spread[method] = np.ptp([losses[site == name].mean() for name in "abc"])
    assert spread["vrex(coefficient=100)"] < 0.7 * spread["erm"]


@pytest.mark.parametrize(
    "rule", [{"stop_early": "patience(1)"}, {"keep": "best(validation loss)"}, {"average": "swad"}]
)
def test_rules_that_use_validation_scores_get_evaluations_and_validation_rows(rule):
    """They were evaluated at the end only, so no replica stopped, and the final model could not be trained."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=60), "y": [0, 1] * 30, "site": np.repeat(["a", "b"], 30)})
    table = tables.read(frame, "y", "site", min_rows=10)
    options = {"model": "linear", "steps": 20, "optimizer": "sgd", **rule}
    assert protocol.run_settings(table, options)["evaluate_every"] is None
    assert protocol.run_settings(table, {"steps": 20})["evaluate_every"] == 20
    assert protocol.run_settings(table, {"evaluate_every": 7, **rule})["evaluate_every"] == 7
    model = protocol.train_final_model(table, "erm", Trial(0, {}, 0.5), 0, options)
    assert len(model.predict(frame)) == 60
