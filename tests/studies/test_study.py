"""The runs that a study plans: the same trials for all replicas, and none changes when more are added."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

import envariant
from envariant.algorithms import Penalty, VREx
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.core.schedules import Constant, Schedule, schedule
from envariant.core.tasks import Binary
from envariant.data import colored_digits, source
from envariant.data.tables import table as tables
from envariant.studies import Store, Study, begin, sweep
from envariant.studies.jobs import Job
from envariant.studies.study import of, read
from envariant.training.store import StoredRun

SMALL = Study(("colored-digits",), ("erm", "irm"), n_trials=4, replicas=3)


def by_place(study):
    return {(r.algorithm, r.test_environments, r.trial.number, r.replica): r.trial for r in study.runs()}


def test_plan_is_the_product_of_the_declaration():
    runs = SMALL.runs()
    assert len(runs) == 2 * 4 * 3
    assert len({run.identity for run in runs}) == len(runs)
    assert {run.test_environments for run in runs} == {("flip-0.9",)}
    assert {run.test_environments for run in replace(SMALL, test_environments="each").runs()} == {
        ("flip-0.2",),
        ("flip-0.1",),
        ("flip-0.9",),
    }
    pairs = {run.test_environments for run in replace(SMALL, test_environments="each-and-pairs").runs()}
    assert {len(names) for names in pairs} == {1, 2}
    assert len(pairs) == 6


def test_more_algorithms_trials_and_replicas_leave_planned_runs_unchanged():
    before = by_place(SMALL)
    after = by_place(
        Study(("colored-digits",), ("vrex", "irm", "erm"), n_trials=9, replicas=5, test_environments="each")
    )
    assert before.items() <= after.items()
    assert by_place(replace(SMALL, seed=1)) != before


def test_trial_is_the_same_for_every_replica_and_trial_0_is_suggested_by_the_data():
    n_trials = {}
    for run in SMALL.runs():
        assert n_trials.setdefault((run.algorithm, run.trial.number), run.trial) == run.trial
    usual = n_trials["irm", 0]
    assert usual.hyperparameters == {}
    assert usual.learning_rate == colored_digits().default_settings("irm").learning_rate
    assert len({d.learning_rate for (name, _), d in n_trials.items() if name == "irm"}) == 4


def test_last_value_of_a_schedule_is_sampled_within_its_range():
    mnist = source("colored-mnist")
    for trial in replace(SMALL, n_trials=40).trials_of("irm", mnist)[1:]:
        course = schedule(trial.hyperparameters["coefficient"])
        assert course(0) == 1.0, "as the protocol has it until its step 190"
        assert 1e2 <= course(10**6) <= 1e6
    rates = [d.learning_rate for d in replace(SMALL, n_trials=40).trials_of("erm", mnist)]
    usual = mnist.default_settings("erm").learning_rate
    assert usual / 10**0.5 <= min(rates) < usual < max(rates) <= usual * 10**0.5


def test_settings_in_brackets_are_not_sampled():
    for trial in SMALL.trials_of("irm(coefficient=7) + and-mask", colored_digits())[1:]:
        assert "coefficient" not in trial.hyperparameters
        assert 0.5 <= trial.hyperparameters["threshold"] <= 1


def test_ranges_of_the_study_replace_those_of_the_algorithm():
    own = {"irm": {"coefficient": "loguniform(10, 100)", "l2": [0.5], "learning_rate": [0.25, 0.125]}}
    study, mnist = replace(SMALL, n_trials=30, ranges=own), source("colored-mnist")
    n_trials = study.trials_of("irm", mnist)
    assert n_trials[0] == replace(SMALL, n_trials=30).trials_of("irm", mnist)[0], "what the data suggest"
    coefficients = [schedule(trial.hyperparameters["coefficient"])(10**6) for trial in n_trials[1:]]
    assert 10 <= min(coefficients) < 30 < max(coefficients) <= 100
    assert {trial.hyperparameters["l2"] for trial in n_trials[1:]} == {0.5}
    assert {trial.learning_rate for trial in n_trials[1:]} == {0.25, 0.125}
    assert study.trials_of("erm", mnist) == replace(SMALL, n_trials=30).trials_of("erm", mnist)
    assert of(study.to_dict(), "again") == study


def test_invalid_range_is_rejected_when_planned():
    for own, message in (
        ({"coefficient": ["a"]}, "study: ranges of irm: unknown schedule 'a'"),
        ({"form": ["thirds"]}, "study: ranges of irm: irm: form must be squared or halves or dummies"),
        (
            {"learning_rate": "uniform(-2, -1)"},
            "study: ranges of irm: learning_rate must be a finite number above 0; got -1",
        ),
        ({"learning_rate": [True]}, "ranges of irm: learning_rate must be a number or a schedule; got True"),
    ):
        with pytest.raises(EnvariantError) as error:
            replace(SMALL, ranges={"irm": own}).runs()
        assert message in str(error.value)


def test_nothing_to_search_gives_one_trial():
    assert len(replace(SMALL, lr_range=1.0).trials_of("erm", colored_digits())) == 1
    assert len(replace(SMALL, lr_range=1.0).trials_of("irm", colored_digits())) == 4


def test_file_is_read_as_written(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(
        'name = "mine"\ndata = ["colored-digits"]\nalgorithms = ["erm", "vrex + and-mask"]\nn_trials = 2\n'
        'test_environments = [["flip-0.9"], ["flip-0.1", "flip-0.9"]]\n[settings]\nsteps = 9\n'
    )
    study = read(path)
    assert study == Study(
        ("colored-digits",),
        ("erm", "vrex + and-mask"),
        name="mine",
        n_trials=2,
        test_environments=(("flip-0.9",), ("flip-0.1", "flip-0.9")),
        settings={"steps": 9},
    )
    assert of(study.to_dict(), "again") == study


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_trails = 2", "unknown key 'n_trails'; did you mean 'n_trials'?"),
        ("n_trials = 0", "study: n_trials must be a whole number of at least 1; got 0"),
        ('n_trials = "many"', "study: n_trials must be a whole number of at least 1; got 'many'"),
        ('algorithms = ["imr"]', "unknown algorithm 'imr'; did you mean 'irm'?"),
        ("algorithms = []", "study: algorithms is empty"),
        ("holdout_fraction = 1.5", "study: holdout_fraction must be a number above 0 and below 1; got 1.5"),
        ("[settings]\nstesp = 3", "unknown setting 'stesp'; did you mean 'steps'?"),
        ('test_environments = "every"', "test_environments"),
        ("n_trials = = 2", "is not valid TOML"),
        ("[ranges.erm]\nl2 = [2024-01-01]", "values of a range must be numbers, strings, true or false"),
        ('[ranges.erm]\nl2 = "integer(1, 99999999999999999999)"', "low and high must lie within 2⁶²"),
        ("[ranges.imr]", "study: ranges: unknown algorithm 'imr'"),
        ("[ranges.erm]\nl3 = [1]", "ranges of erm: unknown hyperparameter 'l3'"),
        (
            "[ranges.erm]\nl2 = 1",
            "ranges of erm: l2: a range must be a list of values or one of uniform(low, high)",
        ),
        ('[ranges.erm]\nl2 = "uniform(2, 1)"', "ranges of erm: l2: Uniform: low must lie below high"),
        (
            'algorithms = ["irm(l2=1)"]\n[ranges."irm(l2=1)"]\nl2 = [2]',
            "l2 already has a fixed value in the algorithm's name; remove",
        ),
    ],
)
def test_invalid_file_is_one_line(tmp_path, text, message):
    path = tmp_path / "study.toml"
    usual = 'data = ["colored-digits"]\n' + ("" if "algorithms" in text else 'algorithms = ["erm"]\n')
    path.write_text(usual + text + "\n")
    with pytest.raises(EnvariantError) as error:
        read(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(EnvariantError, match="there is no such file"):
        read(tmp_path / "nowhere.toml")


@dataclass(frozen=True)
class OwnPenalty(Penalty):
    """Variance of the risks."""

    name, paper = "own", "none"
    coefficient: Schedule = Constant(1.0)

    def penalty(self, outputs, state):
        return outputs.risks.var(correction=0), state


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))


def environments(seed=0) -> EnvironmentSet:
    generator = torch.Generator().manual_seed(seed)
    parts = tuple(
        Environment(
            name, torch.randn(20, 2, generator=generator), (torch.rand(20, generator=generator) > 0.5).float()
        )
        for name in "abc"
    )
    return EnvironmentSet("mine", parts, Binary(), test=("c",))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": ()}, "study: data is empty"),
        ({"data": 3}, "data must be a name"),
        ({"data": "colored-digit"}, "did you mean 'colored-digits'?"),
        ({"algorithms": []}, "study: algorithms is empty"),
        ({"algorithms": "IRM"}, "unknown algorithm 'IRM'; did you mean 'irm'?"),
        ({"algorithms": 3}, "algorithm must be a name"),
        ({"algorithms": VREx}, "algorithm: VREx is a class; pass an instance"),
        ({"algorithms": (OwnPenalty(), OwnPenalty())}, "'own' occurs twice in algorithms"),
        ({"name": 3}, "study: name must be text; got 3"),
        ({"n_trials": "many"}, "study: n_trials must be a whole number of at least 1; got 'many'"),
        ({"n_trials": 2.5}, "study: n_trials must be a whole number"),
        ({"replicas": 0}, "study: replicas must be a whole number of at least 1; got 0"),
        ({"replicas": True}, "study: replicas must be a whole number of at least 1; got True"),
        ({"test_environments": "every"}, "unknown test_environments 'every'"),
        ({"test_environments": 3}, "test_environments must be suggested, each, each-and-pairs or lists"),
        ({"test_environments": [["east"]]}, "unknown environment 'east'"),
        ({"holdout_fraction": 0}, "study: holdout_fraction must be a number above 0 and below 1; got 0"),
        ({"holdout_fraction": "half"}, "study: holdout_fraction must be a number above 0 and below 1"),
        ({"lr_range": 0.5}, "study: lr_range must be a number of at least 1; got 0.5"),
        ({"lr_range": "wide"}, "study: lr_range must be a number of at least 1; got 'wide'"),
        ({"ranges": 3}, "study: ranges must be a mapping"),
        ({"ranges": {"erm": 3}}, "study: ranges of erm must be a mapping; got 3"),
        ({"seed": -1}, "study: seed must be a whole number in [0, 2³²); got -1"),
        ({"seed": "a"}, "study: seed must be a whole number"),
        ({"settings": 3}, "study: settings must be a mapping"),
        ({"settings": {"stesp": 3}}, "study: unknown setting 'stesp'; did you mean 'steps'?"),
        ({"settings": {"steps": "ten"}}, "steps must be a whole number; got 'ten'"),
        ({"settings": {"optimizer": 3}}, "optimizer: must be a name"),
        ({"settings": {"model": 3}}, "model must be a name"),
        ({"metric": 3}, "study: metric must be the name of a metric; got 3"),
        ({"metric": "auroc"}, "study: unknown metric 'auroc'"),
        ({"store_predictions": "yes"}, "study: store_predictions must be true or false; got 'yes'"),
    ],
)
def test_invalid_declaration_is_one_sentence(fields, message):
    def plan():
        study = Study(**{"data": "colored-digits", "algorithms": "erm", **fields})
        Job(study, (StoredRun(1, study.runs()[0]),)).steps()

    with pytest.raises(EnvariantError) as error:
        plan()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_single_names_need_no_tuple():
    one = Study(data="colored-digits", algorithms="erm")
    assert one == Study(("colored-digits",), ("erm",))
    assert Study("colored-digits", "erm", test_environments=["flip-0.1"]).test_environments == (
        ("flip-0.1",),
    )


OBJECTS = {
    "data": (environments(),),
    "algorithms": (OwnPenalty(), "erm", LogisticRegression()),
    "replicas": 1,
    "settings": {"steps": 2, "model": network, "optimizer": torch.optim.SGD},
}


def test_objects_are_trained_as_by_train_and_resumed_in_a_moved_folder(tmp_path):
    study = Study(**OBJECTS)
    begin(tmp_path / "old", study).close()
    sweep(tmp_path / "old", study)
    with Store(tmp_path / "old") as store:
        listing, history = store.listing(), store.history()
        assert store.counts()["done"] == 3
    result = envariant.train(
        environments(), OwnPenalty(), model=network, optimizer=torch.optim.SGD, steps=2, holdout_fraction=0.2
    )
    run = int(listing[listing["algorithm"] == "own"]["id"].item())
    ours = {
        (r.step, r.environment, r.role, r.metric): r.value
        for r in history[history["run"] == run].itertuples()
    }
    assert ours == {(r.step, r.environment, r.role, r.metric): r.value for r in result.rows}
    (tmp_path / "old").rename(tmp_path / "new")
    saved = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "new").rglob("*.safetensors")}
    again = Study(**OBJECTS)
    begin(tmp_path / "new", again).close()
    sweep(tmp_path / "new", again)
    with Store(tmp_path / "new") as store:
        pd.testing.assert_frame_equal(store.listing(), listing)
        pd.testing.assert_frame_equal(store.history(), history)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "new").rglob("*.safetensors")} == saved
    with pytest.raises(EnvariantError, match=r"the study contains Python objects \(mine, own, "):
        sweep(tmp_path / "new")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": (environments(1),)}, "has runs on different data named 'mine'"),
        ({"settings": {**OBJECTS["settings"], "optimizer": torch.optim.Adam}}, "runs made with settings"),
        ({"seed": 1}, "runs made with seed 0, not 1"),
    ],
)
def test_other_objects_of_the_same_name_are_rejected(tmp_path, change, message):
    begin(tmp_path, Study(**OBJECTS)).close()
    with pytest.raises(EnvariantError, match=message):
        begin(tmp_path, Study(**{**OBJECTS, **change}))


def test_own_class_with_other_settings_or_model_code_is_rejected(tmp_path):
    def network_of_other_width() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))

    begin(tmp_path, Study(**OBJECTS)).close()
    network_of_other_width.__qualname__ = network.__qualname__
    settings = {**OBJECTS["settings"], "model": network_of_other_width}
    with pytest.raises(EnvariantError, match="with other settings or hyperparameters"):
        begin(tmp_path, Study(**{**OBJECTS, "settings": settings}))


def test_study_on_a_table_that_was_moved_trains_nothing_again(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"x": rng.normal(size=90), "y": rng.random(90) > 0.5, "s": np.repeat(["a", "b", "c"], 30)}
    )
    table = tables.read(frame, "y", "s", min_rows=5)
    identities = []
    for folder in ("one", "two"):
        table.write(tmp_path / folder / "table")
        study = Study(f"table({str(tmp_path / folder / 'table')!r})", ("erm", "vrex"), n_trials=2)
        identities.append([(run.slot, run.identity) for run in study.runs()])
    assert identities[0] == identities[1]


def test_relative_switch_points_and_learning_rate_schedules_in_a_study(tmp_path):
    ranges = {"irm": {"coefficient": ["step(1, 1e4, at=40%)"], "learning_rate": ["step(1e-2, 1e-3, at=60%)"]}}
    study = Study(
        "colored-digits", "irm", n_trials=2, replicas=1, ranges=ranges,
        settings={"steps": 5, "evaluate_every": 5, "model": "linear", "precision": "float32"},
    )  # fmt: skip
    begin(tmp_path, study).close()
    sweep(tmp_path)
    with Store(tmp_path) as store:
        history = store.history([2])
    absolute = envariant.train(
        "colored-digits", "irm", hyperparameters={"coefficient": "step(1, 1e4, at=2)"},
        learning_rate="step(1e-2, 1e-3, at=3)", holdout_fraction=0.2, **study.settings,
    )  # fmt: skip
    ours = {(r.step, r.environment, r.role, r.metric): r.value for r in history.itertuples()}
    assert ours == {(r.step, r.environment, r.role, r.metric): r.value for r in absolute.rows}


def test_sweep_warns_once_of_a_schedule_that_never_takes_effect(tmp_path):
    settings = {"steps": 2, "model": "linear"}
    late = "irm(coefficient=step(1, 1e4, at=100))"
    study = Study("colored-digits", (late, "erm"), n_trials=3, replicas=2, settings=settings)
    remarks = study.remarks()
    assert [remark.partition(": ")[0] for remark in remarks] == [late]
    begin(tmp_path, study).close()
    with pytest.warns(EnvariantWarning) as caught:
        sweep(tmp_path)
    assert [str(warning.message) for warning in caught] == list(remarks)
    longer = replace(study, settings={**settings, "steps": 200})
    assert longer.remarks() == ()


def test_sweep_command_prints_each_remark_once_on_standard_error(here, tmp_path):
    done = here(
        "sweep", "--data", "colored-digits", "--algorithms", "irm(coefficient=step(1, 5, at=9))", "--n-trials", 2, "--replicas", 1, "--steps", 2,
        "--model", "linear", "--out", tmp_path, "--json", "--memory", "1GB",
    )  # fmt: skip
    assert done.returncode == 0
    lines = [line for line in done.stderr.splitlines() if "changes only after" in line]
    assert len(lines) == 1
    assert lines[0].startswith("envariant: irm(coefficient=step(1, 5, at=9)): irm coefficient: step(")
