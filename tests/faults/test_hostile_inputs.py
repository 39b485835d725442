"""Hostile inputs of `benchmarks/hostile.py`: one line of error, soon, and without much memory."""

import shlex
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import hostile

resource = pytest.importorskip("resource")

INPUTS = hostile.inputs()
# Every third input is fast enough for the ordinary suite; those that are left out take seconds to write.
FAST = [name for name in [*INPUTS][::3] if not any(slow in name for slow in ("bomb", "100,000", "1 MB"))]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    hostile.prepare(folder)
    return folder


@contextmanager
def limits(seconds=60, more=3 << 29):
    """Limit time, after which `TimeoutError` interrupts even the opening of a pipe, and memory."""

    def stop(*_: object) -> None:
        raise TimeoutError

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits memory as on Linux")
@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.verify) for name in INPUTS]
)
def test_hostile_input_is_one_line_soon(name, sound, here, tmp_path, monkeypatch):
    folder = tmp_path / "x"
    shutil.copytree(sound, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ENVARIANT_CACHE", "c")
    INPUTS[name].make(folder)
    before = {*tmp_path.iterdir()}
    with limits():
        result = here(*shlex.split(INPUTS[name].command))
    assert hostile.problem(result.returncode, result.stdout, result.stderr) == ""
    assert {*tmp_path.iterdir()} == before, "nothing is written outside"


def test_there_are_enough_hostile_inputs():
    assert len(INPUTS) >= 60
