"""Summaries of runs for testing claims: scores, paired differences, slopes, figures and tables.

Replicas are paired by their index: replica k has the same data in every run.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf

from envariant.analysis.statistics import Interval, difference, interval, slope
from envariant.core.metrics import METRICS
from envariant.reporting import charts, tables
from envariant.reproductions.base import CaptionedFigure, CaptionedTable, Finding
from envariant.training.result import TrainingResult


def only_test_environment(result: TrainingResult) -> str:
    """Return the name of the run's single test environment."""
    (name,) = result.record.test_environments
    return name


def training_environments(result: TrainingResult) -> list[str]:
    """Return the names of the training environments."""
    return [name for name, role in result.record.roles.items() if role == "train"]


def ood_score(result: TrainingResult) -> Interval:
    """Return the final score in the test environment, with its confidence interval over replicas."""
    values = result.final(only_test_environment(result), result.record.metric).values
    return interval(values).clipped(*METRICS[result.record.metric].bounds)


def id_score(result: TrainingResult, metric: str | None = None) -> Interval:
    """Return a final metric, averaged over training environments, with its confidence interval over replicas.

    Args:
        result: Result of the run.
        metric: Name of the metric. Default: the default metric of the task.
    """
    metric = metric or result.record.metric
    values = [result.final(name, metric).values for name in training_environments(result)]
    means = [statistics.fmean(each) for each in zip(*values, strict=True)]
    return interval(means).clipped(*METRICS[metric].bounds if metric in METRICS else (0.0, inf))


def gain(result: TrainingResult, over: TrainingResult) -> Interval:
    """Return the paired difference of final test scores, `result` − `over`, with its confidence interval.

    Each replica of `result` is paired with the replica of `over` that has the same index. Pairs in which a
    replica failed are omitted.
    """
    scores, others = (
        dict(zip(r.finished, r.final(only_test_environment(r), r.record.metric).values, strict=True))
        for r in (result, over)
    )
    common = [k for k in scores if k in others]
    largest = METRICS[result.record.metric].largest_difference
    return difference([scores[k] for k in common], [others[k] for k in common]).clipped(-largest, largest)


def risk_gap(result: TrainingResult) -> Interval:
    """Return the gap between the largest and the smallest training environment risk at the end of training.

    The gap is averaged over replicas.

    Returns:
        Mean gap with its confidence interval.
    """
    risks = [result.final(name, "loss").values for name in training_environments(result)]
    return interval([max(each) - min(each) for each in zip(*risks, strict=True)])


def curves(result: TrainingResult, environment: str, metric: str) -> dict[int, tuple[list[int], list[float]]]:
    """Return, by replica index, the evaluated steps and the values of a metric in one environment.

    Args:
        result: Result of the run.
        environment: Name of the environment; "*" for metrics that are computed from the whole batch.
        metric: Name of the metric.
    """
    by_replica: dict[int, tuple[list[int], list[float]]] = {k: ([], []) for k in result.finished}
    for row in result.rows:
        if (row.environment, row.metric) == (environment, metric) and row.replica in by_replica:
            steps, values = by_replica[row.replica]
            steps.append(row.step)
            values.append(row.value)
    return by_replica


def mean_curve(result: TrainingResult, environments: list[str], metric: str) -> tuple[list[int], list[float]]:
    """Return the evaluated steps and, at each step, the mean of a metric over replicas and environments."""
    each = [curve for name in environments for curve in curves(result, name, metric).values()]
    columns = zip(*(values for _, values in each), strict=True)
    return each[0][0], [statistics.fmean(values) for values in columns]


def final_batch_metric(result: TrainingResult, metric: str) -> Interval:
    """Return the final value of a whole-batch metric, such as "gradient rms", averaged over replicas.

    The result is the mean with its confidence interval.
    """
    return interval([values[-1] for _, values in curves(result, "*", metric).values()])


def ood_slope(result: TrainingResult, after: int) -> Interval:
    """Return the change of the test score per 100 steps, with its confidence interval over replicas.

    The change is the slope of a line fitted to all evaluations from step `after` on.
    """
    slopes: list[float] = []
    for steps, values in curves(result, only_test_environment(result), result.record.metric).values():
        late = [(s, v) for s, v in zip(steps, values, strict=True) if s >= after]
        slopes.append(100 * slope([s for s, _ in late], [v for _, v in late]))
    return interval(slopes)


def ood_score_at(result: TrainingResult, step: int) -> Interval:
    """Return the test score at a given step, with its confidence interval over replicas.

    If the model was not evaluated at this step, the last evaluation before it is used.
    """
    each = curves(result, only_test_environment(result), result.record.metric).values()
    values = [[v for s, v in zip(*curve, strict=True) if s <= step][-1] for curve in each]
    return interval(values).clipped(*METRICS[result.record.metric].bounds)


def show_runs(results: Mapping[str, TrainingResult], caption: str, name: str = "runs") -> Iterator[Finding]:
    """Yield a figure of learning curves, one panel per run, and a table of final scores."""
    yield CaptionedFigure(f"{name}-curves", charts.curves(list(results.values()), list(results)), caption)
    yield score_table(results, name)


def show_sweep(
    results: Mapping[float, TrainingResult],
    setting: str,
    caption: str,
    *,
    scale: str = "linear",
    name: str = "sweep",
) -> Iterator[Finding]:
    """Yield a chart and a table with the final scores of runs that differ in one setting."""
    yield CaptionedFigure(f"{name}-chart", charts.sweep(results, setting, scale), caption)
    yield score_table({f"{setting} = {short(value)}": result for value, result in results.items()}, name)


def score_table(
    results: Mapping[str, TrainingResult], name: str = "runs", caption: str = ""
) -> CaptionedTable:
    """Return a table of final scores, without footnotes, for one section of a reproduction report.

    Args:
        results: Results of runs, by label of the table row.
        name: Prefix of the table's file name.
        caption: Caption of the table. Default: the number of training steps.
    """
    steps = " or ".join(dict.fromkeys(f"{r.record.spec.steps:,}" for r in results.values()))
    table = replace(tables.scores(list(results.values()), list(results)), notes=())
    return CaptionedTable(f"{name}-scores", table, caption or f"After {steps} steps")


def mean_and_sd(values: Sequence[float], digits: int = 3) -> str:
    """Format the mean and standard deviation (divisor n − 1) of values, such as `0.669 ± 0.025`.

    Args:
        values: Values of one quantity. A single value is formatted alone; without values, the result is "–".
        digits: Number of decimal places.
    """
    if not values:
        return tables.NONE
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return tables.mean_sd(statistics.fmean(values), deviation, digits)


def short(value: float) -> str:
    """Format a number with a short exponent: 1e4 instead of 1e+04."""
    return (f"{value:g}" if abs(value) < 1e4 else f"{value:.2g}").replace("e+0", "e")


def signed(change: Interval) -> str:
    """Format a difference or slope, and its interval, with an explicit plus or minus sign on every number."""
    if change.count < 2:
        return f"{change.mean:+.3g} (one replica, no interval)"
    return f"{change.mean:+.3g} [{change.low:+.3g}, {change.high:+.3g}]"
