"""What a study would train and how long that would take, from a short measurement of each algorithm."""

import time
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, final

from envariant.core.errors import EnvariantError
from envariant.studies.jobs import Batch, perform, steps_of
from envariant.studies.store import Stored
from envariant.studies.study import Study
from envariant.training.execution import execution_request

_STEPS = 4


@final
@dataclass(frozen=True)
class Line:
    """Runs that would train as one batch.

    Attributes:
        data, test_environments, algorithm: which.
        runs: how many.
        steps: of each.
        seconds: for all of them, one after another; None where it could not be measured.
        problem: why it could not, if so.
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
    """The plan of a study.

    Attributes:
        batches: in order.
    """

    batches: tuple[Line, ...]

    def lines(self) -> list[str]:
        """For people."""
        found: list[str] = []
        for b in self.batches:
            what = f"{b.data}, held out {', '.join(b.test_environments) or 'nothing'}: {b.algorithm}, {b.runs} runs"
            cost = f" of {b.steps} steps, about {_span(b.seconds)}" if b.seconds is not None else ""
            found.append(what + cost + (f": {b.problem}" if b.problem else ""))
        total = sum(b.seconds or 0.0 for b in self.batches)
        return [*found, f"{sum(b.runs for b in self.batches)} runs, about {_span(total)} one after another"]

    def to_dict(self) -> dict[str, Any]:
        """One object for `--json`."""
        return {
            "runs": sum(b.runs for b in self.batches),
            "seconds": sum(b.seconds or 0.0 for b in self.batches),
            "batches": [vars(b) for b in self.batches],
        }


def estimate(study: Study) -> Estimate:
    """Plans the study and trains the first run of every batch for a few steps.

    Raises:
        EnvariantError: the study cannot be planned.
    """
    found: list[Line] = []
    measured: dict[tuple[str, str], tuple[float, float]] = {}
    for (data, test_environments, algorithm), members in groupby(
        study.runs(), key=lambda run: (run.data, run.test_environments, run.algorithm)
    ):
        runs = list(members)
        batch = Batch(study, (Stored(0, runs[0]),))
        try:
            steps = steps_of(batch)
            key = (data, algorithm)
            if key not in measured:
                measured[key] = _measured(batch)
            start, step = measured[key]
            found.append(
                Line(data, test_environments, algorithm, len(runs), steps, len(runs) * (start + steps * step))
            )
        except EnvariantError as error:
            found.append(Line(data, test_environments, algorithm, len(runs), None, None, str(error)))
    return Estimate(tuple(found))


def _measured(batch: Batch) -> tuple[float, float]:
    """Seconds until a run is ready, and of one of its steps."""
    started = time.perf_counter()
    news = perform(batch, execution_request("sequential"))
    # What is known of it, the measurement before the first step, and that step, which is slower.
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
