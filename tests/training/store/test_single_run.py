"""A run in a folder: stored as it trains, resumed bit-identically, never overwritten."""

import json
import os
import signal
import sqlite3
from pathlib import Path

import pytest
import torch

import envariant
import processes
from envariant import TrainingResult
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary
from envariant.training import checkpoint
from envariant.training.store import Store, recorder
from envariant.training.store.recorder import Recorder

LONG = {
    "steps": 120,
    "evaluate_every": 20,
    "model": "mlp(hidden=8)",
    "replicas": 2,
    "batch_size": 32,
    "augmentation": "affine",
}


SAVED = Path("jobs", "000001", "replica-000.safetensors")


def change_stored_record(folder: Path, change) -> None:
    """Apply `change` to the stored record, read as a dictionary."""
    with Store(folder) as store, store._transaction() as execute:
        (text,) = execute("SELECT record FROM jobs").fetchone()
        record = json.loads(text)
        change(record)
        execute("UPDATE jobs SET record = ?, checksum = NULL", (json.dumps(record),))


def assert_identical(a: TrainingResult, b: TrainingResult) -> None:
    assert a.rows == b.rows
    for k, saved in a.checkpoints.items():
        assert all(torch.equal(v, b.checkpoints[k].params[n]) for n, v in saved.params.items())


def test_loaded_run_equals_the_stored_run(tmp_path):
    result = envariant.train("colored-digits", "irm", steps=6, replicas=2, out=tmp_path / "run")
    stored = TrainingResult.load(tmp_path / "run")
    assert_identical(result, stored)
    assert stored.record == result.record
    assert json.dumps(stored.to_dict()) == json.dumps(result.to_dict())
    pickles = [p for p in (tmp_path / "run").rglob("*") if p.suffix in (".pt", ".pkl", ".pth")]
    assert not pickles


@pytest.mark.parametrize("execution", ["sequential", "stacked"])
def test_run_interrupted_three_times_resumes_bit_identically(tmp_path, monkeypatch, execution):
    long = {**LONG, "execution": execution}
    whole = envariant.train("colored-digits", "irm", **long)
    monkeypatch.setattr(recorder, "CHECKPOINT_INTERVAL_S", -1.0)

    class Stop(Exception):
        pass

    add = Recorder.add
    calls = 0

    def add_and_stop(self, event, rows=(), outcomes=()):
        nonlocal calls
        add(self, event, rows, outcomes)
        calls += 1
        if calls in (5, 60, 90):
            raise Stop

    monkeypatch.setattr(Recorder, "add", add_and_stop)
    for _ in range(3):
        with pytest.raises(Stop):
            envariant.train("colored-digits", "irm", out=tmp_path, **long)
    assert_identical(whole, envariant.train("colored-digits", "irm", out=tmp_path, **long))
    assert_identical(whole, TrainingResult.load(tmp_path))


def train_and_die(folder):
    add, calls = Recorder.add, []

    def add_and_die(*arguments):
        add(*arguments)
        calls.append(0)
        if len(calls) == 70:
            os.kill(os.getpid(), signal.SIGKILL)

    Recorder.add = add_and_die
    envariant.train("colored-digits", "vrex", steps=120, evaluate_every=10, batch_size=32, out=folder)


def test_run_killed_with_sigkill_resumes_bit_identically(tmp_path):
    assert processes.run(train_and_die, tmp_path) == -signal.SIGKILL
    with Store(tmp_path) as store:
        assert 0 < store.history()["step"].max() < 120
    options = {"steps": 120, "evaluate_every": 10, "batch_size": 32}
    resumed = envariant.train("colored-digits", "vrex", out=tmp_path, **options)
    assert_identical(resumed, envariant.train("colored-digits", "vrex", **options))
    assert_identical(resumed, TrainingResult.load(tmp_path))


def test_finished_run_is_not_trained_again(tmp_path):
    first = envariant.train("colored-digits", "erm", steps=5, out=tmp_path)
    before = (tmp_path / SAVED).stat().st_mtime_ns
    second = envariant.train("colored-digits", "erm", steps=5, out=tmp_path, progress=False)
    assert_identical(first, second)
    assert second.record == first.record
    assert (tmp_path / SAVED).stat().st_mtime_ns == before


def contents(folder: Path) -> dict[Path, bytes]:
    """Return every file; of the database, what it holds."""
    files = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and "sqlite" not in p.name}
    with sqlite3.connect(folder / "runs.sqlite") as connection:
        files[folder / "runs.sqlite"] = "\n".join(connection.iterdump()).encode()
    connection.close()
    return files


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 4}, "steps 5, not 4"),
        ({"seed": 1}, "seed 0, not 1"),
        ({"learning_rate": 0.1}, "learning_rate"),
        ({"hyperparameters": {"l2": 0.5}}, "hyperparameters"),
    ],
)
def test_other_settings_are_rejected_and_the_stored_run_is_unchanged(tmp_path, change, words):
    envariant.train("colored-digits", "erm", steps=5, out=tmp_path)
    before = contents(tmp_path)
    with pytest.raises(EnvariantError, match="holds a run with other settings") as error:
        envariant.train(
            **({"data": "colored-digits", "algorithm": "erm", "steps": 5, "out": tmp_path} | change)
        )
    assert words in str(error.value)
    assert contents(tmp_path) == before


def test_folder_with_other_files_is_rejected(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(EnvariantError, match="holds no run; choose another"):
        envariant.train("colored-digits", "erm", steps=2, out=tmp_path)


def test_unwritable_folder_is_rejected_before_training(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(EnvariantError, match="cannot be written"):
        envariant.train("colored-digits", "erm", steps=10**9, out=tmp_path / "file" / "run")


def test_damaged_files_are_named(tmp_path):
    envariant.train("colored-digits", "erm", steps=2, out=tmp_path)
    saved = tmp_path / SAVED
    saved.write_bytes(saved.read_bytes()[:100])
    with pytest.raises(EnvariantError, match="replica-000.safetensors: is damaged"):
        TrainingResult.load(tmp_path)
    change_stored_record(tmp_path, lambda record: record.pop("spec"))
    with pytest.raises(EnvariantError, match=r"runs.sqlite: is damaged \("):
        TrainingResult.load(tmp_path)
    with pytest.raises(EnvariantError, match="holds no runs"):
        TrainingResult.load(tmp_path / "nowhere")


def test_checkpoint_carries_nested_algorithm_state(tmp_path):
    saved = checkpoint.Checkpoint(
        (2, 3), 7, 5, {"w": torch.randn(2, 3)}, {}, {"exp_avg": torch.randn(2, 3)},
        {"0": {"q": torch.arange(4.0).view(2, 2)}, "1": {}}, {"failed_at": torch.tensor([-1, 5])}, ("risk",),
        {3: checkpoint.Failure(5, "why")}, 3.0,
    )  # fmt: skip
    checkpoint.save(saved, tmp_path)
    (loaded,) = checkpoint.load(tmp_path)
    assert (loaded.replicas, loaded.step, loaded.measured, loaded.seconds) == ((2, 3), 7, 5, 3.0)
    assert loaded.failures == saved.failures
    assert torch.equal(loaded.algorithm["0"]["q"], saved.algorithm["0"]["q"])
    assert torch.equal(loaded.optimizer["exp_avg"], saved.optimizer["exp_avg"])
    states = loaded.states()
    assert [(s.step, s.failure, s.seconds) for s in states.values()] == [(7, None, 1.5), (5, "why", 1.5)]
    assert torch.equal(states[3].params["w"], saved.params["w"][1])
    assert json.loads((tmp_path / "replicas-002-003.json").read_text())["step"] == 7
    assert checkpoint.load(tmp_path / "missing") == []
    assert not list(Path(tmp_path).glob("*.partial"))


def random_environments(seed: int) -> EnvironmentSet:
    generator = torch.Generator().manual_seed(seed)
    environments = tuple(
        Environment(name, torch.randn(20, 2, generator=generator), torch.zeros(20)) for name in ("a", "b")
    )
    return EnvironmentSet("mine", environments, Binary(), test=("b",))


def test_other_data_under_the_same_name_are_rejected(tmp_path):
    envariant.train(random_environments(0), "erm", model="linear", steps=2, out=tmp_path)
    envariant.train(random_environments(0), "erm", model="linear", steps=2, out=tmp_path)
    with pytest.raises(EnvariantError, match="other data under the same name"):
        envariant.train(random_environments(1), "erm", model="linear", steps=2, out=tmp_path)


def test_only_finished_runs_of_another_torch_version_are_shown(tmp_path):
    envariant.train("colored-digits", "erm", steps=2, out=tmp_path)
    change_stored_record(tmp_path, lambda record: record["versions"].update(torch="1.0"))
    assert envariant.train("colored-digits", "erm", steps=2, out=tmp_path).record.versions["torch"] == "1.0"
    (tmp_path / SAVED).unlink()
    with pytest.raises(EnvariantError, match=r"torch 1\.0, not"):
        envariant.train("colored-digits", "erm", steps=2, out=tmp_path)


def test_another_model_of_the_same_name_is_rejected(tmp_path):
    small = torch.nn.Sequential(torch.nn.Linear(2, 1))
    large = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    envariant.train(random_environments(0), "erm", model=small, steps=2, out=tmp_path)
    with pytest.raises(EnvariantError, match="other model under the same name"):
        envariant.train(random_environments(0), "erm", model=large, steps=2, out=tmp_path)


def test_replica_without_its_measurements_is_trained_again(tmp_path):
    first = envariant.train("colored-digits", "erm", steps=4, out=tmp_path)
    with sqlite3.connect(tmp_path / "runs.sqlite") as connection:
        connection.execute("DELETE FROM history")
    connection.close()
    assert TrainingResult.load(tmp_path).finished == ()
    assert_identical(first, envariant.train("colored-digits", "erm", steps=4, out=tmp_path))


def test_folder_in_use_by_another_process_is_rejected(tmp_path):
    envariant.train("colored-digits", "erm", steps=2, out=tmp_path)
    with Store(tmp_path) as store:
        held = Recorder.open(store, 1)
    with pytest.raises(EnvariantError, match="another process is using this folder"):
        envariant.train("colored-digits", "erm", steps=2, out=tmp_path)
    held.close()
    envariant.train("colored-digits", "erm", steps=2, out=tmp_path)


def test_only_finished_runs_of_another_thread_count_are_shown(tmp_path):
    envariant.train("colored-digits", "erm", steps=2, out=tmp_path)
    change_stored_record(tmp_path, lambda record: record.update(threads=record["threads"] + 1))
    envariant.train("colored-digits", "erm", steps=2, out=tmp_path)
    (tmp_path / SAVED).unlink()
    with pytest.raises(EnvariantError, match="threads"):
        envariant.train("colored-digits", "erm", steps=2, out=tmp_path)
