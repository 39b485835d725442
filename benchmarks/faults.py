"""Inject faults: kill commands at random moments, fill the disk, damage files, and give hostile inputs.

Every command runs in a forked copy of this process, in which all packages are already loaded. After each
fault, the same command is given again, and its results are compared with those of an undisturbed run.
Counted:

* tracebacks: exceptions other than one line with exit code 2;
* silent differences: a command that succeeds with other results than the undisturbed one;
* lost runs: the command given again does not complete all runs;
* leftovers: partial files that stay behind.

A hostile input must give one line of error within limits of processor time and memory.

    python benchmarks/faults.py                        # everything; --write renews faults.md
    python benchmarks/faults.py mutations --count 100
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import hostile

FIGURES = Path(__file__).with_suffix(".md")
FAULTS = ("tracebacks", "silent differences", "lost runs", "leftovers")
# Smallest number of faults of each kind.
FEWEST = {"kills": 84, "disks": 36, "mutations": 600, "hostile": 60}
KINDS = tuple(FEWEST)
SIZES = 12
# Limits on a command with a hostile input; a sound one takes below a second.
_CPU_SECONDS, _WALL_SECONDS, _MORE_BYTES = 20, 300, 3 << 29
_PAGE = 4096
# Stored event after which a process is killed for the state of an interrupted run: within the second replica.
_LAST_STEP = 50
_SHARED = "--model linear --execution sequential --json --out out"
_UNSTORED = "--model linear --json"
# Results that differ between two undisturbed runs.
_TIMES = {"seconds", "sent", "size"}


@dataclass(frozen=True)
class Scenario:
    """Command that writes a folder, and commands that read it.

    Attributes:
        name: Name in the figures.
        train: Command that trains; given again, it resumes.
        look: Commands that read its files.
        files: Kinds of files to damage, as patterns.
    """

    name: str
    train: str
    look: tuple[str, ...]
    files: tuple[str, ...]


TRAIN = Scenario(
    "train",
    f"train --data colored-digits --algorithm irm --steps 30 --evaluate-every 10 --replicas 2 {_SHARED}",
    ("report out -o page.html --json", "runs list out --json", "runs export out -o all.csv"),
    ("runs.sqlite", "runs.sqlite-wal", "*.safetensors", "replica*.json"),
)
SWEEP = Scenario(
    "sweep",
    f"sweep --data colored-digits --algorithms erm irm --n-trials 2 --replicas 2 --steps 20 {_SHARED}",
    ("runs list out --json", "runs show out 3 --json", "runs export out -o all.csv"),
    ("runs.sqlite", "runs.sqlite-wal", "*.safetensors", "report.html", ".lock"),
)
COMPARE = Scenario(
    "compare",
    "compare table.csv -t sick -e site --algorithms vrex --n-trials 1 --replicas 2 --steps 20 "
    f"--min-rows 20 {_SHARED}",
    ("predict out/model table.csv", "predict out/model table.csv --check --json", "runs list out --json"),
    ("runs.sqlite", "model.safetensors", "model.json", "comparison.json", "report.html"),
)
IMAGES = Scenario(
    "images",
    f"train --data \"image-folders('photos', size=8, cache='out/cache')\" --steps 2 {_UNSTORED}",
    (),
    ("*.npy", "*.lock"),
)
TABLE = Scenario(
    "table",
    f"train --data \"table('out/table')\" --test-environments c --steps 2 {_UNSTORED}",
    (),
    ("table.safetensors",),
)
SCENARIOS = (TRAIN, SWEEP, COMPARE, IMAGES, TABLE)


@dataclass(frozen=True)
class Result:
    """Result of one command: exit code (negative: killed by a signal), output, end of the errors."""

    code: int
    output: str
    errors: str

    @property
    def traceback(self) -> bool:
        """Whether it ended by anything else than success or one line of error."""
        lines = [line for line in self.errors.splitlines() if line.startswith("envariant: ")]
        return "Traceback" in self.errors or self.code not in (0, 2) or (self.code == 2 and not lines)


@dataclass
class Tally:
    """Counts of one kind of fault.

    Attributes:
        faults: Number of injected faults.
        counts: Number of consequences by name.
        notes: One line per consequence that must not occur.
        seconds: Duration.
    """

    faults: int = 0
    counts: Counter[str] = field(default_factory=Counter[str])
    notes: list[str] = field(default_factory=list[str])
    seconds: float = 0.0

    def add(self, what: str, note: str = "") -> None:
        """Count a consequence."""
        self.counts[what] += 1
        if note:
            self.notes.append(f"{what}: {note}")

    def join(self, other: "Tally") -> None:
        """Add the counts of another tally."""
        self.faults += other.faults
        self.counts += other.counts
        self.notes += other.notes


def in_fork(action: Callable[[], Any], folder: Path, kill_after: float | None = None) -> Any:
    """Return the result of a function in a forked process; None if it was killed.

    Args:
        action: Function with a JSON-compatible result.
        folder: Working directory of the process.
        kill_after: Seconds until it is killed.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        try:
            os.chdir(folder)
            with os.fdopen(writing, "w", encoding="utf-8") as pipe:
                json.dump(action(), pipe)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        # The pipe is closed when the process ends.
        if kill_after is not None and not select.select([pipe], [], [], kill_after)[0]:
            os.kill(child, signal.SIGKILL)
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status and kill_after is None:
        return [[status, "", "the process died"]]
    return json.loads(text) if text else None


def run(
    commands: Sequence[str],
    folder: Path,
    kill_after: float | None = None,
    before: Callable[[], None] = lambda: None,
) -> list[Result]:
    """Run commands of the command line one after another in a forked process; return their results."""

    def action() -> list[tuple[int, str, str]]:
        before()
        return [_run_here(command) for command in commands]

    results = in_fork(action, folder, kill_after)
    return [Result(*each) for each in results or ()]


def _run_here(command: str) -> tuple[int, str, str]:
    from envariant.cli import main

    output, errors, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            main(shlex.split(command))
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            code = 1
            traceback.print_exc()
    text = output.getvalue()
    exported = Path("all.csv")
    if code == 0 and exported.exists():
        text += _table(exported)
        exported.unlink()
    # Some scenarios print the name of their folder.
    return code, _without_times(text.replace(str(Path.cwd()), ".")), errors.getvalue()[-20_000:]


def _table(path: Path) -> str:
    import pandas as pd

    return pd.read_csv(path).drop(columns="seconds").to_csv(index=False)


def _without_times(text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if key not in _TIMES}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def prepare(folder: Path) -> None:
    """Write the data of all scenarios to a folder, and load every package that their commands use."""
    import numpy as np
    import pandas as pd
    from PIL import Image

    rng = np.random.default_rng(0)
    x, site = rng.normal(size=(90, 2)), np.tile(["a", "b", "c"], 30)
    y = (x[:, 0] + 0.5 * rng.normal(size=90) > 0).astype(int)
    table = pd.DataFrame({"age": x[:, 0], "dose": x[:, 1], "site": site, "sick": y})
    table.to_csv(folder / "table.csv", index=False)
    for k in range(8):
        path = folder / "photos" / "ab"[k % 2] / "uv"[k // 2 % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)

    def everything() -> list[str]:
        from envariant.data.tables.table import read

        for scenario in SCENARIOS:
            if scenario is TABLE:
                read("table.csv", "sick", "site", min_rows=5).write(Path("out/table"))
            for command in (scenario.train, *scenario.look):
                code, _, errors = _run_here(command)
                assert code == 0, f"{command}: {errors}"
            target = Path(scenario.name)
            target.mkdir()
            Path("out").rename(target / "out")
        return sorted(name for name in sys.modules if name != "__main__")

    (folder / "hostile").mkdir()
    in_fork(lambda: hostile.prepare(folder / "hostile"), folder / "hostile")
    modules = in_fork(everything, folder)
    assert isinstance(modules[0], str), modules
    for name in modules:
        with contextlib.suppress(Exception):
            import_module(name)


def fresh(base: Path, target: Path, state: Path | None = None) -> Path:
    """Create a folder with the data of the scenarios, and a copy of a state of the output folder."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in ("table.csv", "photos"):
        (target / name).symlink_to(base / name)
    if state is not None:
        shutil.copytree(state, target / "out")
    return target


def leftovers(folder: Path) -> list[str]:
    """Return the partial files in a folder."""
    return [str(path) for path in folder.rglob("*") if path.suffix in (".partial", ".tmp")]


def judge(tally: Tally, what: str, reference: Sequence[Result], results: Sequence[Result]) -> None:
    """Compare the results of commands after a fault with those without."""
    if not results or len(results) < len(reference):
        tally.add("tracebacks", f"{what}: a command died: {results}")
    for expected, result in zip(reference, results, strict=False):
        if result.traceback:
            tally.add("tracebacks", f"{what}: {result.code}: {result.errors[-300:]}")
        elif result.code == 2:
            tally.add("refused")
        elif result != Result(expected.code, expected.output, result.errors):
            tally.add("silent differences", f"{what}: {_difference(expected.output, result.output)}")
        else:
            tally.add("same" if "is damaged" not in result.errors else "computed again")


def _difference(one: str, other: str) -> str:
    k = next(
        (k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    return f"…{one[max(0, k - 60) : k + 60]}… became …{other[max(0, k - 60) : k + 60]}…"


def kills(base: Path, scenario: Scenario, count: int, seed: int) -> Tally:
    """Kill a command at random moments, twice each, then let it finish."""
    tally, rng = Tally(), random.Random(f"{seed} {scenario.name}")
    folder = fresh(base, base / f"kills-{scenario.name}-{seed}")
    commands = (scenario.train, *scenario.look)
    started = time.monotonic()
    run([scenario.train], folder)
    duration = time.monotonic() - started
    reference = run(commands, folder)
    for k in range(count):
        fresh(base, folder)
        for _ in range(2):
            tally.faults += 1
            met = not run([scenario.train], folder, rng.uniform(0.05, 1.1) * duration)
            tally.add("met a running process" if met else "met a finished one")
        results = run(commands, folder)
        judge(tally, f"kill {k} of {scenario.name}", reference, results)
        if results and results[0].code:
            tally.add("lost runs", f"{scenario.name}: {results[0].errors[-300:]}")
        for path in leftovers(folder):
            tally.add("leftovers", path)
    return tally


def full_disks(base: Path, scenario: Scenario) -> Tally:
    """Run a command on disks of several sizes, then again on a large one; needs the right to mount."""
    tally, folder = Tally(), fresh(base, base / f"disk-{scenario.name}")
    commands = (scenario.train, *scenario.look)
    reference = run(commands, folder)
    needed = sum(path.stat().st_blocks // 2 for path in (folder / "out").rglob("*"))
    for k in range(SIZES):
        fresh(base, folder)
        (folder / "out").mkdir()
        size = max(8, round(needed * (k + 0.5) / (SIZES / 2)))
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "t", folder / "out"], check=True)
        try:
            tally.faults += 1
            (first,) = run([scenario.train], folder)
            what = f"{scenario.name} on {size} KiB"
            if first.traceback:
                tally.add("tracebacks", f"{what}: {first.errors[-300:]}")
            tally.add("refused" if first.code == 2 else "enough space")
            for path in leftovers(folder):
                tally.add("leftovers", f"{what}: {path}")
            subprocess.run(["mount", "-o", "remount,size=100m", "t", folder / "out"], check=True)
            results = run(commands, folder)
            judge(tally, what, reference, results)
            if results and results[0].code:
                tally.add("lost runs", f"{what}: {results[0].errors[-300:]}")
        finally:
            subprocess.run(["umount", folder / "out"], check=True)
    return tally


def mutations(base: Path, count: int, seed: int) -> Tally:
    """Damage one file at a time, and give all commands that read it."""
    tally, rng = Tally(), random.Random(seed)
    states = list(_states(base, seed))
    targets = [
        (scenario, state, reference, pattern)
        for scenario, state, reference in states
        for pattern in scenario.files
        if any(path.is_file() for path in state.rglob(pattern))
    ]
    for k in range(count):
        scenario, state, reference, pattern = targets[k % len(targets)]
        folder = fresh(base, base / f"mutations-{seed}", state)
        path = rng.choice(sorted(path for path in (folder / "out").rglob(pattern) if path.is_file()))
        kind = mutate(path, rng)
        tally.faults += 1
        tally.add(f"file {path.suffix if path.suffix != '.sqlite-wal' else '.sqlite, log of changes'}")
        is_log = path.suffix == ".sqlite-wal"
        # What a damaged log loses is trained again, so only the end of the study is compared.
        commands = (scenario.train,) if is_log else (*scenario.look, scenario.train)
        expected = reference[-1:] if is_log else reference
        judge(tally, f"{scenario.name} {state.name}, {kind} in {path.name}", expected, run(commands, folder))
    return tally


def _states(base: Path, seed: int) -> Iterator[tuple[Scenario, Path, list[Result]]]:
    """Yield finished and killed output folders of every scenario, with the results of its commands."""
    for scenario in SCENARIOS:
        finished = base / scenario.name / "out"
        folder = fresh(base, base / f"state-{seed}", finished)
        yield scenario, finished, run((*scenario.look, scenario.train), folder)
        if scenario in (TRAIN, SWEEP):
            killed = fresh(base, base / f"killed-{seed}-{scenario.name}")
            in_fork(lambda command=scenario.train: _die_within(command), killed, kill_after=60.0)
            folder = fresh(base, base / f"state-{seed}", killed / "out")
            yield scenario, killed / "out", run((*scenario.look, scenario.train), folder)


def _die_within(command: str) -> None:
    """Run a command with a checkpoint after every step, and kill the process between two steps."""
    from envariant.training.store import recorder

    add, calls = recorder.Recorder.add, []

    def add_and_die(*arguments: Any) -> None:
        add(*arguments)
        calls.append(0)
        if len(calls) == _LAST_STEP:
            os.kill(os.getpid(), signal.SIGKILL)

    recorder.CHECKPOINT_INTERVAL_S = -1.0
    recorder.Recorder.add = add_and_die
    _run_here(command)


def mutate(path: Path, rng: random.Random) -> str:
    """Damage a file in one of six ways; return the name of the way."""
    content = bytearray(path.read_bytes())
    # Half of the positions are near the start, where headers are.
    position = rng.randrange(max(1, min(len(content), rng.choice((512, 1 << 62)))))
    kind = rng.choice(("bit", "bit", "bit", "garbage", "zeroed page", "garbage page", "cut", "appended"))
    if kind == "bit" and content:
        content[position] ^= 1 << rng.randrange(8)
    elif kind == "garbage":
        content[position : position + 16] = rng.randbytes(16)
    elif kind in ("zeroed page", "garbage page"):
        start = position // _PAGE * _PAGE
        size = min(_PAGE, len(content) - start)
        content[start : start + size] = bytes(size) if kind == "zeroed page" else rng.randbytes(size)
    elif kind == "cut":
        del content[position:]
    else:
        content += rng.randbytes(100)
    path.write_bytes(content)
    return f"{kind} at {position}"


def hostile_inputs(base: Path, part: int, parts: int) -> Tally:
    """Give one part of the hostile inputs, each to a process of limited processor time and memory."""
    tally, folder = Tally(), base / f"hostile-{part}"
    for name, case in list(hostile.inputs().items())[part::parts]:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base / "hostile", folder)
        assert in_fork(lambda case=case: bool(case.make(folder)), folder) in (True, False), name
        tally.faults += 1
        (result,) = run([case.command], folder, _WALL_SECONDS, _limited) or [Result(-9, "", "it hangs")]
        if not (problem := hostile.problem(result.code, result.output, result.errors)):
            tally.add("refused")
        else:
            tally.add("tracebacks" if result.code else "silent differences", f"{name}: {problem}")
    return tally


def _limited() -> None:
    """Limit the processor time and the memory of this process."""
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    memory = pages * resource.getpagesize() + _MORE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def _part(arguments: tuple[str, Path, Any, int, int]) -> Tally:
    """Inject some faults of one kind, in a process of a pool."""
    kind, base, scenario, count, seed = arguments
    if kind == "kills":
        return kills(base, scenario, count, seed)
    if kind == "hostile":
        return hostile_inputs(base, seed, count)
    return full_disks(base, scenario) if kind == "disks" else mutations(base, count, seed)


def inject(kind: str, base: Path, count: int, workers: int) -> Tally:
    """Inject all faults of one kind.

    Args:
        kind: One of `KINDS`.
        base: Folder that `prepare` has filled.
        count: Number of kills or of mutations.
        workers: Number of processes.
    """
    trained = (TRAIN, SWEEP, COMPARE)
    parts: list[tuple[str, Path, Any, int, int]] = [
        *(("kills", base, scenario, count // 12, seed) for seed in range(2) for scenario in trained),
    ]
    if kind == "disks":
        parts = [("disks", base, scenario, 0, 0) for scenario in trained]
    elif kind == "hostile":
        parts = [("hostile", base, None, workers, seed) for seed in range(workers)]
    elif kind == "mutations":
        parts = [("mutations", base, None, count // workers, seed) for seed in range(workers)]
    tally, started = Tally(), time.monotonic()
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        for part in pool.imap_unordered(_part, parts):
            tally.join(part)
    tally.seconds = time.monotonic() - started
    return tally


def can_mount() -> bool:
    """Return whether this machine allows private mounts without further rights."""
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", "mount -t tmpfs t /mnt"], capture_output=True, check=False
    )
    return done.returncode == 0


def page(tallies: dict[str, dict[str, Any]]) -> str:
    """Return the figures as Markdown."""
    import torch

    from envariant.training import provenance

    hardware = provenance.hardware(torch.device("cpu"))
    lines = [
        "# Injected faults",
        "",
        "This page is written by `python benchmarks/faults.py --write`. After each fault, the script repeats",
        "the same command, reads the files, and compares the results with those of an undisturbed run. A",
        "damaged file must be rejected with a one-line error that names the file, or its content must be",
        "computed again. HTML reports and descriptions are not read again. A hostile input must be rejected",
        f"with a one-line error, within {_CPU_SECONDS} s of processor time and {_MORE_BYTES >> 20:,} MiB of",
        "additional memory.",
        "",
        f"Machine: {hardware['processor']}, {hardware['cores']} cores, {hardware['system']}.",
        "",
        "| kind | faults | " + " | ".join(FAULTS) + " | time |",
        "| --- |" + " --- |" * (len(FAULTS) + 2),
    ]
    names = {
        "kills": "SIGKILL at a random moment of `train`, `sweep` and `compare`",
        "disks": f"full disk: {SIZES} sizes for each of `train`, `sweep` and `compare`",
        "mutations": "one damaged file: flipped bits, garbage, zeroed pages, cut or extended files",
        "hostile": "hostile tables, models, studies, stores and images",
    }
    for kind, tally in tallies.items():
        found = " | ".join(str(tally["counts"].get(fault, 0)) for fault in FAULTS)
        lines.append(f"| {names[kind]} | {tally['faults']} | {found} | {tally['seconds']:.0f} s |")
    outcomes = {
        "met a finished one": "process already finished",
        "met a running process": "process killed while running",
        "refused": "rejected",
        "same": "same results",
        "file ": "file without suffix",
    }
    for kind, tally in tallies.items():
        others = {name: n for name, n in sorted(tally["counts"].items()) if name not in FAULTS}
        counts = ", ".join(f"{outcomes.get(name, name)} {n}" for name, n in others.items())
        lines += ["", f"Outcomes of {kind}: {counts}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, []], default=[])
    parser.add_argument("--count", type=int, help="number of kills or mutations (default 96 or 600)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", action="store_true", help=f"write the figures to {FIGURES.name}")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    # Read when PyTorch is imported. Threads of OpenMP do not survive a fork.
    os.environ["OMP_NUM_THREADS"] = "1"
    kinds = arguments.kinds or KINDS
    if "disks" in kinds and "ENVARIANT_MOUNTS" not in os.environ and can_mount():
        # Mounts of this process and its children are private to them.
        os.environ["ENVARIANT_MOUNTS"] = "1"
        os.execvp("unshare", ["unshare", "-rm", sys.executable, *sys.argv])
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ENVARIANT_CACHE"] = folder
        base = Path(folder)
        prepare(base)
        for kind in kinds:
            if kind == "disks" and "ENVARIANT_MOUNTS" not in os.environ:
                print("disks: left out, because this machine does not allow private mounts", file=sys.stderr)
                continue
            count = arguments.count or {"kills": 96, "mutations": 600}.get(kind, 0)
            tally = inject(kind, base, count, arguments.workers)
            results[kind] = {**vars(tally), "counts": dict(tally.counts)}
            print(kind, json.dumps(results[kind], indent=1), file=sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps(results))
    if arguments.write:
        FIGURES.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
