"""Callbacks: they see every step and evaluation, change no bits, and an error in one leaves the run resumable."""

import pickle
import sys
import types

import pytest

import envariant
from envariant.cli import main
from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.studies import Study
from envariant.training.callbacks import Callback, CallbackRunner
from envariant.training.engine import Stepped
from envariant.training.trackers import LiveTracker, MLflow, TensorBoard, WeightsAndBiases, live_tracker

QUICK = {"steps": 4, "evaluate_every": 2, "model": "linear", "precision": "float32"}
SETTINGS = {key: value for key, value in QUICK.items() if key != "precision"}


class Listener(Callback):
    """Callback that remembers what it is told."""

    def __init__(self):
        self.told, self.rows = [], []

    def on_step(self, state):
        self.told.append(("step", state.step, state.metrics))

    def on_evaluation(self, state):
        self.told.append(("evaluation", state.step, state.metrics))
        self.rows += state.rows

    def on_end(self, state):
        self.told.append(("end", state.step, sorted(state.states)))


@pytest.mark.parametrize("execution", ["sequential", "stacked"])
def test_callbacks_see_steps_evaluations_and_metrics_of_every_part(execution):
    listener = Listener()
    options = {"replicas": 2, "execution": execution, **QUICK}
    result = envariant.train("colored-digits", "irm", callbacks=[listener], **options)
    assert result.rows == envariant.train("colored-digits", "irm", **options).rows
    groups = 1 if execution == "stacked" else 2
    kinds = [kind for kind, *_ in listener.told]
    once = ["evaluation", "step", "step", "evaluation", "step", "step", "evaluation", "end"]
    assert kinds == once * groups
    assert sorted(listener.rows, key=str) == sorted(result.rows, key=str)
    by_name = {(row.replica, row.step, row.metric): row.value for row in result.rows if row.role == "batch"}
    for _, step, metrics in (each for each in listener.told if each[0] == "evaluation" and each[1]):
        for replica, values in metrics.items():
            assert set(values) == {"risk", "irm penalty", "irm coefficient"}
            assert values == {name: by_name[replica, step, name] for name in values}


class OnlyEvaluation:
    """Callback without a base class, and with one method."""

    def __init__(self, fails_at=None):
        self.fails_at, self.steps = fails_at, []

    def on_evaluation(self, state):
        self.steps.append(state.step)
        if state.step == self.fails_at:
            raise ValueError("disk\nfull")


def test_steps_cost_nothing_when_no_callback_asks_for_them():
    def checkpoint():
        raise AssertionError("the state was asked for")

    called = CallbackRunner([OnlyEvaluation(), Callback.__new__(type("Silent", (Callback,), {}))], None, {})
    called(Stepped((0,), 1, checkpoint))


def test_failing_callback_is_one_error_and_the_run_resumes_bit_identically(tmp_path):
    with pytest.raises(
        EnvariantError, match=r"^callback OnlyEvaluation: on_evaluation fails at step 2 \(disk\)"
    ):
        envariant.train("colored-digits", "irm", callbacks=OnlyEvaluation(2), out=tmp_path, **QUICK)
    resumed = envariant.train("colored-digits", "irm", callbacks=OnlyEvaluation(), out=tmp_path, **QUICK)
    assert resumed.rows == envariant.train("colored-digits", "irm", **QUICK).rows


def test_callbacks_in_a_study_and_resumption_after_an_error(tmp_path):
    study = Study("colored-digits", ("erm", "irm"), replicas=1, settings=SETTINGS)
    listener = Listener()
    with pytest.raises(EnvariantError, match="^callback OnlyEvaluation: on_evaluation fails at step 2"):
        study.run(tmp_path, callbacks=[listener, OnlyEvaluation(2)], progress=False)
    study.run(tmp_path, callbacks=[listener], progress=False)
    assert [kind for kind, *_ in listener.told].count("end") == 2
    with envariant.studies.Store(tmp_path) as store:
        stored = store.history([1])
        assert store.counts()["done"] == 2
    ours = {(r.step, r.environment, r.role, r.metric): r.value for r in listener.rows if r.replica == 1}
    for row in stored.itertuples():
        assert ours[row.step, row.environment, row.role, row.metric] == pytest.approx(row.value)
    with pytest.raises(EnvariantError, match="^callbacks are called on this machine only"):
        study.run(tmp_path, callbacks=listener, executor="ray", progress=False)


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (3, "3"),
        ([Listener], "the class Listener; pass an object"),
        (object(), "<object"),
        ("tensorboard", "'tensorboard'"),
    ],
)
def test_other_objects_are_no_callbacks(wrong, got):
    with pytest.raises(EnvariantError, match=f"^callbacks must be objects with a method on_step.* got {got}"):
        envariant.train("colored-digits", "erm", callbacks=wrong, **QUICK)


class Reads(OnlyEvaluation):
    """Callback that reads what TensorBoard has written so far."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.seen = folder, []

    def on_evaluation(self, state):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        read = EventAccumulator(str(self.folder / state.labels[0].label))
        read.Reload()
        self.seen.append({name: read.Scalars(name)[-1].value for name in read.Tags()["scalars"]})
        self.label = state.labels[0].label


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_has_the_values_while_training(tmp_path):
    reads = Reads(tmp_path)
    result = envariant.train("colored-digits", "irm", callbacks=[TensorBoard(tmp_path), reads], **QUICK)
    assert len(reads.seen) == 3
    assert reads.seen[-1]["accuracy/flip-0.9"] == pytest.approx(result.final("flip-0.9", "accuracy").mean)
    assert {"irm penalty", "loss/flip-0.1"} <= set(reads.seen[-1])
    assert (tmp_path / reads.label / "whole").exists()
    # The command writes to the same place, as the run is the same.
    words = [
        "--steps",
        "4",
        "--evaluate-every",
        "2",
        "--model",
        "linear",
        "--track-at",
        str(tmp_path / "cli"),
    ]
    with pytest.raises(SystemExit):
        main(["train", "--data", "colored-digits", "--algorithm", "irm", "--track", "tensorboard", *words])
    assert len(list((tmp_path / "cli").glob("irm-*-replica-0/events.*"))) == 1


class Memory(LiveTracker):
    """Tracker that keeps its log, or refuses it."""

    def __init__(self, refuses=False):
        self.log_, self.refuses = [], refuses

    def begin(self, label, settings, step):
        self.log_.append(("begin", step))

    def log(self, label, points):
        if self.refuses:
            raise EnvariantError("server: is down")
        self.log_.append(("log", points[0][0]))

    def end(self, label):
        self.log_.append(("end",))


def test_tracker_that_refuses_is_a_warning_and_training_continues():
    memory, refusing = Memory(), Memory(refuses=True)
    with pytest.warns(EnvariantWarning, match="^server: is down; training continues, and no more values"):
        result = envariant.train("colored-digits", "erm", callbacks=[refusing, memory], **QUICK)
    assert result.finished == (0,)
    assert memory.log_ == [("begin", 0), ("log", 0), ("log", 2), ("log", 4), ("end",)]
    assert refusing.log_ == [("begin", 0)]


class FakeMLflow:
    """Client of an MLflow server in memory."""

    def __init__(self, runs):
        self.runs, self.created, self.deleted, self.values, self.ended = runs, [], [], [], []

    def get_experiment_by_name(self, name):
        return types.SimpleNamespace(experiment_id="1")

    def search_runs(self, experiments, page_token=None):
        page = type("Page", (list,), {"token": None})()
        page += self.runs
        return page

    def create_run(self, experiment, tags, run_name):
        self.created.append(run_name)
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=f"id of {run_name}"))

    def delete_run(self, run_id):
        self.deleted.append(run_id)

    def log_batch(self, run_id, params=(), metrics=()):
        self.values += [(run_id, name, step) for name, _, _, step in metrics]

    def set_terminated(self, run_id):
        self.ended.append(run_id)


def fake_mlflow(monkeypatch, runs):
    client = FakeMLflow(runs)
    entities = types.SimpleNamespace(Metric=lambda *values: values, Param=lambda *values: values)
    errors = types.SimpleNamespace(MlflowException=KeyError)
    fake = types.SimpleNamespace(MlflowClient=lambda at: client, entities=entities, exceptions=errors)
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return client


def test_mlflow_continues_the_log_of_an_interrupted_run_and_replaces_that_of_a_new_one(monkeypatch):
    info = types.SimpleNamespace(status="RUNNING", run_id="left")
    left = types.SimpleNamespace(info=info, data=types.SimpleNamespace(tags={"envariant.run": "irm-1"}))
    for step, created, deleted in ((2, [], []), (0, ["irm-1"], ["left"])):
        client = fake_mlflow(monkeypatch, [left])
        tracker = pickle.loads(pickle.dumps(MLflow()))
        tracker.begin("irm-1", {"algorithm": "irm"}, step)
        tracker.log("irm-1", [(step, "risk", 0.5)])
        tracker.end("irm-1")
        number = "id of irm-1" if created else "left"
        assert (client.created, client.deleted) == (created, deleted)
        assert (client.values, client.ended) == ([(number, "risk", step)], [number])


def test_weights_and_biases_gets_the_values_of_every_replica(monkeypatch):
    runs = []

    class Run:
        def __init__(self, **options):
            self.options, self.values, self.is_over = options, [], False
            runs.append(self)

        def log(self, values, step):
            self.values.append((step, values))

        def finish(self):
            self.is_over = True

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=Run))
    tracker = pickle.loads(pickle.dumps(WeightsAndBiases("mine", mode="offline")))
    result = envariant.train("colored-digits", "irm", callbacks=tracker, replicas=2, **QUICK)
    assert len({run.options["id"] for run in runs}) == 2
    for k, run in enumerate(runs):
        assert run.is_over
        assert (run.options["project"], run.options["mode"]) == ("mine", "offline")
        assert run.options["config"]["algorithm"] == "irm"
        assert [step for step, _ in run.values] == [0, 2, 4]
        assert run.values[-1][1]["accuracy/flip-0.9"] == result.final("flip-0.9", "accuracy").values[k]
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **_: 1 / 0))
    with pytest.warns(EnvariantWarning, match="^Weights & Biases: division by zero; training continues"):
        envariant.train("colored-digits", "erm", callbacks=WeightsAndBiases(), **QUICK)


def test_trackers_that_are_not_installed_are_named(monkeypatch):
    for name, module, package in (
        ("wandb", "wandb", "pip install wandb$"),
        ("mlflow", "mlflow", r'pip install "envariant\[tracking\]"$'),
        ("tensorboard", "torch.utils.tensorboard", r'pip install "envariant\[tracking\]"$'),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(EnvariantError, match=package):
            live_tracker(name)
    with pytest.raises(EnvariantError, match="did you mean 'wandb'"):
        live_tracker("wandbb")
