"""Kills, full disks and damaged files, in a process that has trained nothing yet: `make verify`."""

import json
import subprocess
import sys

import pytest

from benchmarks import faults

pytestmark = pytest.mark.verify


@pytest.mark.skipif(not hasattr(faults.os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kind", ["kills", "disks", "mutations"])
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
    assert figures[kind]["faults"] >= {"kills": 84, "disks": 36, "mutations": 600}[kind]
