"""Cores and memory within the limits of a container, on systems with and without /proc."""

import os
from pathlib import Path

import pytest

from envariant.core import machine
from envariant.training import memory_budget


@pytest.fixture
def system(monkeypatch, tmp_path):
    """Return a function that replaces /proc and /sys by given files, on a machine of 8 cores."""
    read_text = Path.read_text
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)

    def replace(files: dict[str, str]) -> None:
        def read(path: Path, *rest: object, **more: object) -> str:
            if path.parts[1:2] in (("proc",), ("sys",)):
                if str(path) not in files:
                    raise FileNotFoundError(2, "No such file or directory", str(path))
                return files[str(path)]
            return read_text(path, *rest, **more)

        monkeypatch.setattr(Path, "read_text", read)

    return replace


GROUP = "/sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"/proc/self/cgroup": "0::/\n", f"{GROUP}/cpu.max": "max 100000\n"}, 8),
        ({"/proc/self/cgroup": "0::/\n", f"{GROUP}/cpu.max": "250000 100000\n"}, 3),
        ({"/proc/self/cgroup": "0::/a/b\n", f"{GROUP}/a/cpu.max": "50000 100000\n"}, 1),
        (
            {
                "/proc/self/cgroup": "2:cpu,cpuacct:/docker/x\n1:cpuset:/\n",
                f"{GROUP}/cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
                f"{GROUP}/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            {
                "/proc/self/cgroup": "2:cpu:/\n",
                f"{GROUP}/cpu/cpu.cfs_quota_us": "-1\n",
                f"{GROUP}/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
)
def test_cores_are_those_of_the_affinity_and_the_quota(system, files, expected):
    system(files)
    assert machine.cores() == expected


def test_memory_is_that_of_the_system_or_of_the_container(system):
    meminfo = {"/proc/meminfo": "MemTotal: 900 kB\nMemAvailable:  600 kB\n", "/proc/self/cgroup": "0::/x\n"}
    system(meminfo)
    assert machine.memory() == 600 * 1024
    used = {f"{GROUP}/memory.max": "500000\n", f"{GROUP}/memory.current": "200000\n"}
    system(meminfo | used)
    assert machine.memory() == 300_000
    system(meminfo | used | {f"{GROUP}/memory.stat": "anon 7\ninactive_file 1000\n"})
    assert machine.memory() == 301_000
    system(meminfo | {f"{GROUP}/memory.max": "max\n", f"{GROUP}/memory.current": "1\n"})
    assert machine.memory() == 600 * 1024


def test_systems_without_proc_and_sysconf_work(system, monkeypatch):
    """As on Windows."""
    import torch

    system({})
    assert machine.memory() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    monkeypatch.delattr(os, "sysconf")
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.memory() is None
    assert machine.cores() == os.cpu_count()
    assert memory_budget.available(torch.device("cpu")) == 4 * 2**30


def test_threads_sleep_while_they_wait_and_settings_of_the_user_are_kept(system, monkeypatch):
    monkeypatch.delitem(machine.sys.modules, "torch")
    system({"/proc/self/cgroup": "0::/\n", f"{GROUP}/cpu.max": "200000 100000\n"})
    environ: dict[str, str] = {}
    machine.limit_threads(environ)
    assert environ == {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "OMP_NUM_THREADS": "2"}
    own = {"OMP_WAIT_POLICY": "ACTIVE", "KMP_BLOCKTIME": "200", "OMP_NUM_THREADS": "7"}
    environ = dict(own)
    machine.limit_threads(environ)
    assert environ == own
    system({})
    environ = {}
    machine.limit_threads(environ)
    assert "OMP_NUM_THREADS" not in environ
