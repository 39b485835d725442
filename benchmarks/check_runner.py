"""Run checks one after another, each in its own process and with a time limit, and write a summary.

A check that fails, ends with an error or exceeds its limit does not affect the next one. The summary is
rewritten after every check, so that the results of an interrupted run are kept.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, final

from envariant.core.files import write_text

Status = Literal["passed", "failed", "ran", "skipped", "timeout", "error"]
"""Outcome of a check; "ran" means that it finished and has no criterion."""

STATUSES: tuple[Status, ...] = ("passed", "failed", "ran", "skipped", "timeout", "error")
BAD: frozenset[Status] = frozenset({"failed", "timeout", "error"})


_T = TypeVar("_T")


class Unavailable(Exception):  # noqa: N818 - it is no error
    """Something that a check needs is missing, so that the check is skipped."""


@final
@dataclass(frozen=True)
class Setup:
    """Conditions of all checks.

    Attributes:
        folder: Folder for figures and runs.
        device: Device to check, "cpu" or "cuda".
        tiny: Whether to rehearse with small sizes.
    """

    folder: Path
    device: str
    tiny: bool

    @property
    def runs(self) -> Path:
        """Folder for stored runs and data, which a rehearsal does not share."""
        return self.folder / self.pick(full="runs", tiny="rehearsal")

    def pick(self, *, full: _T, tiny: _T) -> _T:
        """Return the full size, or the small one for a rehearsal."""
        return tiny if self.tiny else full


@final
@dataclass(frozen=True)
class Outcome:
    """Outcome of a check.

    Attributes:
        passed: Whether the criterion holds; None if there is no criterion.
        summary: One line with the most important figures.
        figures: Measured values in JSON types; a list of rows becomes a table.
    """

    passed: bool | None
    summary: str
    figures: Mapping[str, Any] = field(default_factory=dict[str, Any])


@final
@dataclass(frozen=True)
class Check:
    """Check with its criterion.

    Attributes:
        criterion: Criterion, as a sentence without a subject.
        work: Function that measures.
        limit: Time limit in seconds.
        of_sizes: Whether the criterion is about speed or accuracy, which a rehearsal cannot judge.
        needs: Name of a check that must pass first; "" for none.
        environment: Environment variables to set.
    """

    criterion: str
    work: Callable[[Setup], Outcome]
    limit: float
    of_sizes: bool = False
    needs: str = ""
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


@final
@dataclass(frozen=True)
class Job:
    """Command of one check, which writes its result to a file.

    Attributes:
        name: Name of the check, from which the names of its files follow.
        command: Command line. The path of the result file is added as its last argument.
        limit: Time limit in seconds.
        needs: Name of a check that must pass first; "" for none.
        environment: Environment variables to set.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    needs: str = ""
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


@final
@dataclass(frozen=True)
class Result:
    """Result of one check.

    Attributes:
        name: Name of the check.
        status: Outcome.
        seconds: Duration in seconds.
        summary: One line with the most important figures, or with the reason for the outcome.
        figures: Measured values in JSON types, by name.
    """

    name: str
    status: Status
    seconds: float
    summary: str
    figures: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __str__(self) -> str:
        return f"{self.status.upper():8}{self.name:16}{self.seconds:7.1f} s  {self.summary}"


def write_result(path: Path, status: Status, summary: str, figures: Mapping[str, Any]) -> None:
    """Write the result of a check to the file that its runner reads."""
    content = {"status": status, "summary": summary, "figures": figures}
    write_text(json.dumps(content, indent=1) + "\n", path)


def answer(check: Check, setup: Setup, path: Path) -> None:
    """Run a check in this process, and write its result to a file."""
    try:
        outcome = check.work(setup)
    except Unavailable as reason:
        write_result(path, "skipped", str(reason), {})
        return
    judged = None if setup.tiny and check.of_sizes else outcome.passed
    status = "ran" if judged is None else "passed" if judged else "failed"
    write_result(path, status, outcome.summary, outcome.figures)


def execute(job: Job, folder: Path, limit: float) -> Result:
    """Run one check, and end all of its processes after the time limit.

    Args:
        job: Check to run.
        folder: Folder for the result and the output of the check.
        limit: Time limit in seconds.
    """
    answer, log = folder / f"{job.name}.json", folder / f"{job.name}.log"
    answer.unlink(missing_ok=True)
    start, code = time.monotonic(), None
    with log.open("wb") as output:
        # A session of its own, so that the processes that a check starts can be ended with it.
        process = subprocess.Popen(
            [*job.command, str(answer)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **job.environment},
            start_new_session=True,
        )
        try:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(limit)
        finally:
            _end(process)
    seconds = time.monotonic() - start
    if code is None:
        return Result(job.name, "timeout", seconds, f"stopped after {limit:.0f} s; {_last_line(log)}")
    if code != 0 or not answer.exists():
        return Result(job.name, "error", seconds, f"exit status {code}; {_last_line(log)}")
    return Result(job.name, seconds=seconds, **json.loads(answer.read_text(encoding="utf-8")))


def run_all(
    jobs: Sequence[Job], folder: Path, seconds: float, clock: Callable[[], float] = time.monotonic
) -> Iterator[Result]:
    """Run the checks in order within a total time, and yield the result of each.

    A check is skipped if the check that it needs has not passed, or if no time is left. The last check before
    the end of the time gets what is left of it.

    Args:
        jobs: Checks to run.
        folder: Folder for results and output.
        seconds: Total time in seconds.
        clock: Function that returns the time in seconds.
    """
    deadline, results = clock() + seconds, dict[str, Result]()
    for job in jobs:
        left = deadline - clock()
        needed = results.get(job.needs)
        if job.needs and (needed is None or needed.status != "passed"):
            reason = "it was not run" if needed is None else needed.summary
            results[job.name] = Result(job.name, "skipped", 0.0, f"no {job.needs}: {reason}")
        elif left <= 1:
            results[job.name] = Result(job.name, "skipped", 0.0, f"the {seconds:.0f} s are used up")
        else:
            results[job.name] = execute(job, folder, min(job.limit, left))
        yield results[job.name]


def total(results: Sequence[Result]) -> str:
    """Return one line with the number of checks of each status and the total time."""
    counts = {status: sum(each.status == status for each in results) for status in STATUSES}
    parts = [f"{count} {status}" for status, count in counts.items() if count]
    return f"{', '.join(parts) or 'no checks'} in {sum(each.seconds for each in results):.0f} s"


def to_json(results: Sequence[Result], conditions: Mapping[str, Any]) -> str:
    """Return all results and the conditions of the measurement as JSON."""
    content = {"conditions": conditions, "total": total(results), "checks": [asdict(r) for r in results]}
    return json.dumps(content, indent=1) + "\n"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all processes of its session's group, and wait for it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"last line: {lines[-1].strip()[:200]}" if lines else "no output"
