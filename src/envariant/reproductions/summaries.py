"""What claims are made of: scores by replica, differences in pairs, slopes of curves, and exhibits of runs.

A replica is compared with the replica of the same number in another run, which had the same data.
"""

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import replace

from envariant.analysis.statistics import Interval, difference, interval, slope
from envariant.reporting import charts, figures, tables
from envariant.reproductions.base import Finding, Listing, Picture
from envariant.training.result import TrainingResult


def test_environments(result: TrainingResult) -> str:
    """The name of the one environment that was held out."""
    (name,) = result.record.test_environments
    return name


def training(result: TrainingResult) -> list[str]:
    """The names of the environments trained on."""
    return [name for name, role in result.record.roles.items() if role == "train"]


def unseen(result: TrainingResult) -> Interval:
    """The last score in the held-out environment."""
    return interval(result.final(test_environments(result), result.record.metric).values)


def seen(result: TrainingResult, metric: str | None = None) -> Interval:
    """The last value of a metric (the task's own for None) in the training environments, their mean."""
    each = [result.final(name, metric or result.record.metric).values for name in training(result)]
    return interval([statistics.fmean(values) for values in zip(*each, strict=True)])


def gain(result: TrainingResult, over: TrainingResult) -> Interval:
    """By how much the held-out score exceeds another run's, replica by replica that finished in both."""
    ours, theirs = (
        dict(zip(r.finished, r.final(test_environments(r), r.record.metric).values, strict=True))
        for r in (result, over)
    )
    common = [k for k in ours if k in theirs]
    return difference([ours[k] for k in common], [theirs[k] for k in common])


def risk_gap(result: TrainingResult) -> Interval:
    """The last difference between the largest and the smallest training risk."""
    each = [result.final(name, "loss").values for name in training(result)]
    return interval([max(risks) - min(risks) for risks in zip(*each, strict=True)])


def curves(result: TrainingResult, environment: str, metric: str) -> dict[int, tuple[list[int], list[float]]]:
    """Steps and values of one metric, by replica that finished; the environment "*" is the whole batch."""
    found: dict[int, tuple[list[int], list[float]]] = {k: ([], []) for k in result.finished}
    for row in result.rows:
        if (row.environment, row.metric) == (environment, metric) and row.replica in found:
            steps, values = found[row.replica]
            steps.append(row.step)
            values.append(row.value)
    return found


def mean_curve(result: TrainingResult, environments: list[str], metric: str) -> tuple[list[int], list[float]]:
    """Steps, and the mean of a metric over replicas and environments."""
    found = [curve for name in environments for curve in curves(result, name, metric).values()]
    each = zip(*(values for _, values in found), strict=True)
    return found[0][0], [statistics.fmean(values) for values in each]


def last(result: TrainingResult, metric: str) -> Interval:
    """The last value that the algorithm or the engine reported of its batch."""
    return interval([values[-1] for _, values in curves(result, "*", metric).values()])


def trend(result: TrainingResult, after: int) -> Interval:
    """The slope of the held-out score from a step on, per 100 steps: one slope a replica, then their mean."""
    slopes: list[float] = []
    for steps, values in curves(result, test_environments(result), result.record.metric).values():
        late = [(s, v) for s, v in zip(steps, values, strict=True) if s >= after]
        slopes.append(100 * slope([s for s, _ in late], [v for _, v in late]))
    return interval(slopes)


def at(result: TrainingResult, step: int) -> Interval:
    """The held-out score at the last measurement not after a step."""
    found = curves(result, test_environments(result), result.record.metric).values()
    return interval([[v for s, v in zip(*curve, strict=True) if s <= step][-1] for curve in found])


def compared(results: Mapping[str, TrainingResult], caption: str, name: str = "runs") -> Iterator[Finding]:
    """The curves of some runs, a panel each, and the table of their last scores."""
    yield Picture(f"{name}-curves", figures.curves(list(results.values()), list(results)), caption)
    yield listed(results, name)


def swept(
    results: Mapping[float, TrainingResult],
    setting: str,
    caption: str,
    *,
    scale: str = "linear",
    name: str = "sweep",
) -> Iterator[Finding]:
    """The last scores of runs that differ in one setting, as a chart and as a table."""
    yield Picture(f"{name}-chart", charts.sweep(results, setting, scale), caption)
    yield listed({f"{setting} = {short(value)}": result for value, result in results.items()}, name)


def listed(results: Mapping[str, TrainingResult], name: str = "runs", caption: str = "") -> Listing:
    """The table of some runs' last scores; what ± and "worst" mean is said once, on top of the page."""
    steps = " or ".join(dict.fromkeys(f"{r.record.spec.steps:,}" for r in results.values()))
    table = replace(tables.scores(list(results.values()), list(results)), notes=())
    return Listing(f"{name}-scores", table, caption or f"After {steps} steps")


def short(value: float) -> str:
    """A setting's value as people write it: 1e4 and not 1e+04."""
    return (f"{value:g}" if abs(value) < 1e4 else f"{value:.2g}").replace("e+0", "e")


def signed(found: Interval) -> str:
    """The interval of a difference or a slope, with its signs."""
    if found.count < 2:
        return f"{found.mean:+.3g} (one replica, no interval)"
    return f"{found.mean:+.3g} [{found.low:+.3g}, {found.high:+.3g}]"
