"""Count the runs of a study, and estimate their training time by running a few steps of each algorithm."""

import time
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, final

from envariant.core.errors import EnvariantError
from envariant.studies.jobs import Job, perform
from envariant.studies.study import Study
from envariant.training.store import StoredRun

_STEPS = 4


@final
@dataclass(frozen=True)
class JobEstimate:
    """Estimated training time of the runs of one job.

    Attributes:
        data: Name of the data source.
        test_environments: Names of the test environments.
        algorithm: Name of the algorithm.
        runs: Number of runs of the job.
        steps: Number of updates per run; None if the time could not be measured.
        seconds: Total time in seconds if the runs are trained one after another; None if the time could not
            be measured.
        problem: Reason why the time could not be measured; None if there was no problem.
    """

    data: str
    test_environments: tuple[str, ...]
    algorithm: str
    runs: int
    steps: int | None
    seconds: float | None
    problem: str | None = None


@final
@dataclass(frozen=True)
class Estimate:
    """Estimated training time of a study.

    Attributes:
        jobs: Estimated training time of each job, in the order of the study.
    """

    jobs: tuple[JobEstimate, ...]

    def lines(self) -> list[str]:
        """Return the estimate as lines of text: one line per job, and a last line with the totals."""
        lines: list[str] = []
        for job in self.jobs:
            names = ", ".join(job.test_environments) or "none"
            what = f"{job.data}, test environments {names}: {job.algorithm}, {job.runs} runs"
            cost = f" of {job.steps} steps, about {_span(job.seconds)}" if job.seconds is not None else ""
            lines.append(what + cost + (f": {job.problem}" if job.problem else ""))
        total = sum(job.seconds or 0.0 for job in self.jobs)
        count = sum(job.runs for job in self.jobs)
        return [*lines, f"{count} runs, about {_span(total)} one after another"]

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate as a JSON-compatible dictionary."""
        return {
            "runs": sum(job.runs for job in self.jobs),
            "seconds": sum(job.seconds or 0.0 for job in self.jobs),
            "jobs": [vars(job) for job in self.jobs],
        }


def estimate(study: Study) -> Estimate:
    """Estimate the training time of a study by running a few steps of each algorithm on each data set.

    Args:
        study: Study whose runs are estimated.

    Raises:
        EnvariantError: If the study cannot be planned, or none of its runs can be trained.
    """
    estimates: list[JobEstimate] = []
    measured: dict[tuple[str, str], tuple[float, float]] = {}
    for (data, names, algorithm), members in groupby(
        study.runs(), key=lambda run: (run.data, run.test_environments, run.algorithm)
    ):
        runs = list(members)
        job = Job(study, (StoredRun(0, runs[0]),), "sequential")
        try:
            steps, key = job.steps(), (data, algorithm)
            if key not in measured:
                # The first measurement includes the loading of modules and data, which all runs share.
                first, second = _measured(job), _measured(job)
                measured[key] = min(first[0], second[0]), min(first[1], second[1])
            start, step = measured[key]
            seconds = len(runs) * (start + steps * step)
            estimates.append(JobEstimate(data, names, algorithm, len(runs), steps, seconds))
        except EnvariantError as error:
            estimates.append(JobEstimate(data, names, algorithm, len(runs), None, None, str(error)))
    if (first := estimates[0].problem) and all(each.problem for each in estimates):
        raise EnvariantError(first)
    return Estimate(tuple(estimates))


def _measured(job: Job) -> tuple[float, float]:
    """Measure the start-up time of a run and the time per step, in seconds."""
    started = time.perf_counter()
    news = perform(job)
    # The record, the evaluation before the first step, and the first step, which is slower.
    for _ in islice(news, 3):
        pass
    ready = time.perf_counter()
    made = sum(1 for _ in islice(news, _STEPS))
    news.close()
    return ready - started, (time.perf_counter() - ready) / max(1, made)


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
