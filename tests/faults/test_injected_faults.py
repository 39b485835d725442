"""Kills, full disks, damaged files and hostile inputs, each command in a process of its own: `make verify`."""

import json
import subprocess
import sys

import pytest

from benchmarks import faults

pytestmark = pytest.mark.verify


@pytest.mark.skipif(sys.platform != "linux", reason="forks processes, mounts disks and limits memory")
@pytest.mark.parametrize("kind", faults.KINDS)
def test_no_fault_loses_a_run_or_changes_a_result(kind):
    done = subprocess.run(
        [sys.executable, faults.__file__, kind, "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout)
    if not figures:
        pytest.skip("this machine does not allow private mounts")
    print(kind, {key: value for key, value in figures[kind].items() if key != "notes"})
    assert figures[kind]["notes"] == []
    assert figures[kind]["faults"] >= faults.FEWEST[kind]
