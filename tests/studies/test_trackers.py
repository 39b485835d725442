"""Export to trackers: complete runs arrive, and none is sent twice."""

import sys
import time
from typing import final

import pytest

from envariant.cli import main
from envariant.core.errors import EnvariantError
from envariant.studies import Store, Study, begin, sweep, trackers
from envariant.studies.trackers import TRACKERS, BackgroundTracking, track
from envariant.training.trackers import Tracker, _safe

SETTINGS = {"steps": 6, "evaluate_every": 3, "model": "linear"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracked")
    study = Study(
        ("colored-digits",), ("erm", "irm"), name="mine", n_trials=2, replicas=1, settings=SETTINGS
    )  # fmt: skip
    begin(folder, study).close()
    sweep(folder)
    return folder


def last_values(folder, run):
    """Return the last step and value of each metric of a run, by its name in trackers."""
    with Store(folder) as store:
        history = store.history([run])
    values = {}
    for row in history.sort_values("step").to_dict("records"):
        name = row["metric"] if row["environment"] == "*" else f"{row['metric']}/{row['environment']}"
        name += " (validation)" if row["role"] == "validation" else ""
        values[name] = (row["step"], row["value"])
    assert {"accuracy/flip-0.1", "accuracy/flip-0.1 (validation)", "accuracy/flip-0.9", "risk"} <= set(values)
    return values


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_every_run_once(folder, tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert track(folder, "tensorboard", str(tmp_path)) == (4, 0)
    assert track(folder, "tensorboard", str(tmp_path)) == (0, 4)
    with Store(folder) as store:
        runs = [int(run) for run in store.listing()["id"]]
    for run in runs:
        read = EventAccumulator(str(tmp_path / f"run-{run:06d}"))
        read.Reload()
        expected = last_values(folder, run)
        assert set(read.Tags()["scalars"]) == set(expected)
        for name, (step, value) in expected.items():
            found = read.Scalars(name)[-1]
            assert found.step == step
            assert found.value == pytest.approx(value, rel=1e-6)
    # An incomplete run, which a killed process left, is sent again.
    (tmp_path / f"run-{runs[0]:06d}" / "whole").unlink()
    main(["runs", "track", str(folder), "--to", "tensorboard", "--at", str(tmp_path), "--json"])
    assert '"sent": 1' in capsys.readouterr().out
    assert len(list((tmp_path / f"run-{runs[0]:06d}").glob("events.*"))) == 1


@pytest.mark.filterwarnings("ignore")
def test_mlflow_gets_every_run_once(folder, tmp_path, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    where = (tmp_path / "mlruns").as_uri()
    assert track(folder, "mlflow", where) == (4, 0)
    assert track(folder, "mlflow", where) == (0, 4)
    client = mlflow.MlflowClient(where)
    experiment = client.get_experiment_by_name("mine")
    found = client.search_runs([experiment.experiment_id])
    assert len(found) == 4
    for each in found:
        expected = last_values(folder, int(each.data.tags["envariant.run"]))
        assert each.data.params["algorithm"] in ("erm", "irm")
        assert each.data.metrics == pytest.approx({_safe(k): v for k, (_, v) in expected.items()})
    # An incomplete run, which a killed process left, is replaced.
    half = client.create_run(experiment.experiment_id, tags={"envariant.run": "1"})
    client.delete_run(next(each for each in found if each.data.tags["envariant.run"] == "1").info.run_id)
    assert track(folder, "mlflow", where) == (1, 3)
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(each.data.tags["envariant.run"] for each in runs) == ["1", "2", "3", "4"]
    assert half.info.run_id not in [each.info.run_id for each in runs]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_runs_are_sent_while_the_sweep_is_running(tmp_path):
    study = Study(("colored-digits",), ("erm",), n_trials=3, replicas=1, settings=SETTINGS)
    begin(tmp_path / "study", study).close()
    sent = []
    with BackgroundTracking(
        tmp_path / "study", "tensorboard", str(tmp_path / "board"), interval_s=0.05
    ) as tracking:

        def on_progress(run, done, of):
            if run == 2 and not sent:
                deadline = time.monotonic() + 30
                while tracking.sent < 1 and time.monotonic() < deadline:
                    time.sleep(0.02)
                sent.append(tracking.sent)

        sweep(tmp_path / "study", execution="sequential", on_progress=on_progress)
    assert sent == [1], "the first run is sent before the second ends"
    assert (tracking.sent, tracking.problem) == (3, "")
    assert track(tmp_path / "study", "tensorboard", str(tmp_path / "board")) == (0, 3)


@final
class Refusing(Tracker):
    """Tracker that accepts only some runs."""

    def __init__(self, error, *accepted):
        self.error, self.accepted, self.runs = error, accepted, []

    def has(self, run):
        return run in self.runs

    def send(self, run, settings, history):
        if run not in self.accepted:
            raise self.error
        self.runs.append(run)


def test_refused_run_does_not_hold_back_others_and_errors_in_the_thread_are_kept(folder, monkeypatch):
    server = Refusing(EnvariantError("server: no"), 1, 3, 4)
    monkeypatch.setitem(TRACKERS, "mlflow", lambda store, at: server)
    with BackgroundTracking(folder, "mlflow", interval_s=0.01) as tracking:
        pass
    assert server.runs == [1, 3, 4]
    assert (tracking.sent, tracking.problem) == (3, "server: no")
    monkeypatch.setitem(TRACKERS, "mlflow", lambda store, at: Refusing(RuntimeError()))
    with BackgroundTracking(folder, "mlflow", interval_s=0.01) as tracking:
        pass
    assert tracking.problem == "RuntimeError"


@final
class Silent(Tracker):
    """Tracker that does not answer in time."""

    def has(self, run):
        time.sleep(5)
        return True

    def send(self, run, settings, history):
        raise AssertionError


def test_tracker_without_an_answer_times_out(folder, monkeypatch):
    monkeypatch.setitem(TRACKERS, "mlflow", lambda store, at: Silent())
    monkeypatch.setattr(trackers, "TIMEOUT_S", 0.1)
    with BackgroundTracking(folder, "mlflow") as tracking:
        pass
    assert tracking.problem == "no answer within 0.1 seconds"


def test_refusing_tracker_does_not_stop_a_sweep(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(TRACKERS, "mlflow", lambda store, at: Refusing(EnvariantError("server: is down")))
    words = ["sweep", "--data", "colored-digits", "--algorithms", "erm", "--replicas", "1", "--steps", "2"]
    main([*words, "--out", str(tmp_path), "--track", "mlflow", "--track-at", "there"])
    output = " ".join(capsys.readouterr().out.split())
    assert "1 done" in output
    assert "not all runs were sent (server: is down)" in output
    assert f"envariant runs track {tmp_path} --to mlflow --at there" in output


def test_missing_packages_and_unknown_trackers_are_named(folder, monkeypatch):
    for name, module in (("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(EnvariantError, match=r'pip install "envariant\[tracking\]"'):
            track(folder, name)
    with pytest.raises(EnvariantError, match="did you mean 'mlflow'"):
        track(folder, "mlflov")
