"""Ctrl-C, SIGTERM, a full output device and a deleted working directory: one line and an exit code."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from envariant.cli import app
from envariant.cli.interrupts import interruptible

RESUMES = "; repeat the command to resume from the results in its output folder"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_a_command_with_one_line(here, monkeypatch, number, code):
    def interrupted(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)

    # Raised within a command, as cyclopts runs it.
    monkeypatch.setattr("envariant.algorithms.catalogue.markdown", interrupted)
    before, inherited = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    # A shell starts background jobs with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        done = here("algorithms", "--markdown")
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert (done.returncode, done.stderr) == (code, "envariant: interrupted\n")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("command", "resumes"),
    [
        *((name, RESUMES) for name in ("train", "sweep", "compare", "reproduce", "demo")),
        *((name, "") for name in ("predict", "adapt", "runs", "report", "algorithms", "data", "--help")),
    ],
)
def test_only_commands_that_resume_say_so(capsys, command, resumes):
    with pytest.raises(SystemExit), interruptible([command, "x"]):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == f"envariant: interrupted{resumes}\n"


def test_other_threads_run_commands_without_handlers():
    results: list[object] = []

    def call() -> None:
        with interruptible():
            results.append(1)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert results == [1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_output_device_is_one_line():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "envariant", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "envariant: output: No space left on device; check the disk and its free space\n"


def test_deleted_working_directory_is_one_line(here, tmp_path, monkeypatch):
    def deleted() -> str:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(app.os, "getcwd", deleted)
    done = here("algorithms")
    assert done.returncode == 2
    assert done.stderr == "envariant: the working directory was deleted; change to another folder\n"


def test_error_of_the_operating_system_is_one_line(here, monkeypatch):
    def failing(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error", "/data/x.csv")

    monkeypatch.setattr("envariant.algorithms.catalogue.markdown", failing)
    done = here("algorithms", "--markdown")
    assert done.returncode == 2
    assert done.stderr == "envariant: /data/x.csv: Input/output error; check the disk and its free space\n"
