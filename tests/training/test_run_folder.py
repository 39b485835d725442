"""Runs on disk: written as they come, continued to the same bits, never overwritten."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import envariant
from envariant import TrainingResult
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary
from envariant.training import checkpoint, run_folder
from envariant.training.history import HistoryRow, read, write

LONG = {"steps": 400, "evaluate_every": 20, "replicas": 2, "batch_size": 32, "augmentation": "affine"}


def same(a: TrainingResult, b: TrainingResult) -> None:
    assert a.rows == b.rows
    for k, saved in a.checkpoints.items():
        assert all(torch.equal(v, b.checkpoints[k].params[n]) for n, v in saved.params.items())


def test_a_run_stored_is_the_run_read(tmp_path):
    result = envariant.train("colored-digits", "irm", steps=6, replicas=2, out=tmp_path / "run")
    stored = TrainingResult.load(tmp_path / "run")
    same(result, stored)
    assert stored.record == result.record
    assert json.dumps(stored.to_dict()) == json.dumps(result.to_dict())
    pickles = [p for p in (tmp_path / "run").rglob("*") if p.suffix in (".pt", ".pkl", ".pth")]
    assert not pickles


@pytest.mark.parametrize("execution", ["sequential", "stacked"])
def test_interrupted_at_any_step_and_called_again_gives_the_same_bits(tmp_path, monkeypatch, execution):
    long = {**LONG, "execution": execution}
    whole = envariant.train("colored-digits", "irm", **long)
    monkeypatch.setattr(run_folder, "CHECKPOINT_INTERVAL_S", 0.0)

    class Stop(Exception):
        pass

    stored = run_folder.RunFolder.store
    calls = 0

    def store(self, event):
        nonlocal calls
        stored(self, event)
        calls += 1
        if calls in (5, 130, 320):
            raise Stop

    monkeypatch.setattr(run_folder.RunFolder, "store", store)
    for _ in range(3):
        with pytest.raises(Stop):
            envariant.train("colored-digits", "irm", out=tmp_path, **long)
    same(whole, envariant.train("colored-digits", "irm", out=tmp_path, **long))
    same(whole, TrainingResult.load(tmp_path))


def test_killed_with_sigkill_and_called_again_gives_the_same_bits(tmp_path):
    command = [
        sys.executable, "-m", "envariant", "train",
        "--data", "colored-digits", "--algorithm", "vrex", "--steps", "1500", "--evaluate-every", "50",
        "--batch-size", "64", "--out",
    ]  # fmt: skip
    history = tmp_path / "killed" / "history.csv"
    process = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (history.exists() and history.stat().st_size > 2500):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    lines = len(read(history))
    assert 0 < lines < 31 * 8, "killed in the middle"
    for name in ("killed", "whole"):
        subprocess.run([*command, str(tmp_path / name)], check=True, stdout=subprocess.DEVNULL)
    same(TrainingResult.load(tmp_path / "killed"), TrainingResult.load(tmp_path / "whole"))


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = envariant.train("colored-digits", "erm", steps=5, out=tmp_path)
    before = (tmp_path / "checkpoints" / "replica-000.safetensors").stat().st_mtime_ns
    second = envariant.train("colored-digits", "erm", steps=5, out=tmp_path, progress=False)
    same(first, second)
    assert second.record == first.record
    assert (tmp_path / "checkpoints" / "replica-000.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 6}, "steps 5, not 6"),
        ({"seed": 1}, "seed 0, not 1"),
        ({"learning_rate": 0.1}, "learning_rate"),
        ({"hyperparameters": {"l2": 0.5}}, "hyperparameters"),
    ],
)
def test_other_settings_are_refused_and_nothing_is_lost(tmp_path, change, words):
    envariant.train("colored-digits", "erm", steps=5, out=tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(EnvariantError, match="holds a run with other settings") as error:
        envariant.train(
            **({"data": "colored-digits", "algorithm": "erm", "steps": 5, "out": tmp_path} | change)
        )
    assert words in str(error.value)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_folder_with_other_things_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(EnvariantError, match="holds no run; choose another"):
        envariant.train("colored-digits", "erm", steps=2, out=tmp_path)


def test_a_place_that_cannot_be_written_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(EnvariantError, match="cannot be written"):
        envariant.train("colored-digits", "erm", steps=10**9, out=tmp_path / "file" / "run")


def test_damaged_files_are_named(tmp_path):
    envariant.train("colored-digits", "erm", steps=2, out=tmp_path)
    saved = tmp_path / "checkpoints" / "replica-000.safetensors"
    saved.write_bytes(saved.read_bytes()[:100])
    with pytest.raises(EnvariantError, match="replica-000.safetensors: is not a checkpoint"):
        TrainingResult.load(tmp_path)
    (tmp_path / "run.json").write_text('{"settings": {}}')
    with pytest.raises(EnvariantError, match=r"run.json: is damaged at 'settings"):
        TrainingResult.load(tmp_path)
    with pytest.raises(EnvariantError, match="holds no run"):
        TrainingResult.load(tmp_path / "nowhere")


def test_a_history_keeps_every_bit_and_forgives_a_cut_last_line(tmp_path):
    rows = [HistoryRow(0, 5, "a, b", "train", "loss", 0.1 + 0.2), HistoryRow(1, 7, "ü", "test", "x", 1e-300)]
    path = tmp_path / "history.csv"
    write(path, rows)
    assert read(path) == rows
    path.write_text(path.read_text() + "1,9,ü,te")
    assert read(path) == rows


def test_a_checkpoint_carries_nested_algorithm_state(tmp_path):
    saved = checkpoint.Checkpoint(
        (2, 3), 7, 5, {"w": torch.randn(2, 3)}, {}, {"exp_avg": torch.randn(2, 3)},
        {"0": {"q": torch.arange(4.0).view(2, 2)}, "1": {}}, {"failed_at": torch.tensor([-1, 5])}, ("risk",),
        {3: checkpoint.Failure(5, "why")}, 3.0,
    )  # fmt: skip
    checkpoint.save(saved, tmp_path)
    (found,) = checkpoint.load(tmp_path)
    assert (found.replicas, found.step, found.measured, found.seconds) == ((2, 3), 7, 5, 3.0)
    assert found.failures == saved.failures
    assert torch.equal(found.algorithm["0"]["q"], saved.algorithm["0"]["q"])
    assert torch.equal(found.optimizer["exp_avg"], saved.optimizer["exp_avg"])
    states = found.states()
    assert [(s.step, s.failure, s.seconds) for s in states.values()] == [(7, None, 1.5), (5, "why", 1.5)]
    assert torch.equal(states[3].params["w"], saved.params["w"][1])
    assert json.loads((tmp_path / "replicas-002-003.json").read_text())["step"] == 7
    assert checkpoint.load(tmp_path / "nothing here") == []
    assert not list(Path(tmp_path).glob("*.partial"))


def a_set(seed: int) -> EnvironmentSet:
    generator = torch.Generator().manual_seed(seed)
    made = tuple(
        Environment(name, torch.randn(20, 2, generator=generator), torch.zeros(20)) for name in ("a", "b")
    )
    return EnvironmentSet("mine", made, Binary(), test=("b",))


def test_other_data_under_the_same_name_are_noticed(tmp_path):
    envariant.train(a_set(0), "erm", model="linear", steps=2, out=tmp_path)
    envariant.train(a_set(0), "erm", model="linear", steps=2, out=tmp_path)
    with pytest.raises(EnvariantError, match="other data under the same name"):
        envariant.train(a_set(1), "erm", model="linear", steps=2, out=tmp_path)


def test_an_unfinished_run_of_another_torch_does_not_go_on_but_a_finished_one_is_shown(tmp_path):
    envariant.train("colored-digits", "erm", steps=2, out=tmp_path)
    path = tmp_path / "run.json"
    stored = json.loads(path.read_text())
    stored["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(stored))
    assert envariant.train("colored-digits", "erm", steps=2, out=tmp_path).record.versions["torch"] == "1.0"
    (tmp_path / "checkpoints" / "replica-000.safetensors").unlink()
    with pytest.raises(EnvariantError, match=r"torch 1\.0, not"):
        envariant.train("colored-digits", "erm", steps=2, out=tmp_path)


def test_another_model_of_the_same_name_is_noticed(tmp_path):
    small = torch.nn.Sequential(torch.nn.Linear(2, 1))
    large = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    envariant.train(a_set(0), "erm", model=small, steps=2, out=tmp_path)
    with pytest.raises(EnvariantError, match="another model under the same name"):
        envariant.train(a_set(0), "erm", model=large, steps=2, out=tmp_path)


def test_a_checkpoint_without_its_measurements_is_trained_again(tmp_path):
    first = envariant.train("colored-digits", "erm", steps=4, out=tmp_path)
    write(tmp_path / "history.csv", [])
    assert TrainingResult.load(tmp_path).finished == ()
    same(first, envariant.train("colored-digits", "erm", steps=4, out=tmp_path))


def test_two_processes_do_not_share_a_folder(tmp_path):
    first = envariant.train("colored-digits", "erm", steps=2, out=tmp_path)
    held = run_folder.RunFolder(tmp_path, first.record)
    with pytest.raises(EnvariantError, match="another process is training into it"):
        envariant.train("colored-digits", "erm", steps=2, out=tmp_path)
    held.close()
    envariant.train("colored-digits", "erm", steps=2, out=tmp_path)


def test_another_thread_count_shows_a_finished_run_and_refuses_an_unfinished_one(tmp_path):
    envariant.train("colored-digits", "erm", steps=2, out=tmp_path)
    path = tmp_path / "run.json"
    stored = json.loads(path.read_text())
    stored["settings"]["threads"] += 1
    path.write_text(json.dumps(stored))
    envariant.train("colored-digits", "erm", steps=2, out=tmp_path)
    (tmp_path / "checkpoints" / "replica-000.safetensors").unlink()
    with pytest.raises(EnvariantError, match="threads"):
        envariant.train("colored-digits", "erm", steps=2, out=tmp_path)
