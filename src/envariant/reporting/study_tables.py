"""Tables of a study: scores under each selection rule, significance, environments and selected runs."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd

from envariant.analysis.statistics import Interval
from envariant.core.metrics import Metric
from envariant.reporting.tables import NONE, TextTable, mean_sd, network_notes
from envariant.studies.selection import NoSelection, SelectedRun, Selection, SelectionResult
from envariant.studies.significance import Comparison

Pooled = Mapping[str, Sequence[SelectionResult]]
"""Runs that a rule selects among all algorithms, by the name of the rule."""


def summary(pooled: Pooled, rules: Sequence[Selection], networks: Mapping[str, Sequence[str]]) -> TextTable:
    """Return a table of model selection: the scores of the runs that each rule selects.

    Args:
        pooled: Runs that each rule selects among the runs of all algorithms, by name of the rule.
        rules: Selection rules, one per row of the table.
        networks: Names of the models of each algorithm, by name of the algorithm.
    """
    rows: list[tuple[str, ...]] = []
    for rule in rules:
        results = pooled[rule.name]
        runs = runs_of(results)
        if not runs:
            rows.append((label(rule), *(NONE,) * 4, reasons_of(results)[0]))
            continue
        tests = [run.test for run in runs]
        rows.append(
            (
                label(rule),
                f"{mean([run.validation for run in runs]):.3f}",
                f"{mean(tests):.3f}",
                f"{min(run.test_worst for run in runs):.3f} … {max(run.test_worst for run in runs):.3f}",
                f"{len(runs)} of {len(results)}",
                ", ".join(
                    f"{name} ({n})" for name, n in Counter(run.algorithm for run in runs).most_common()
                ),
            )
        )
    header = ("selection", "validation", "test environments", "lowest … highest", "selected", "algorithms")
    note = (
        "Scores are means over test environments and replicas. For each test environment and replica, a rule "
        "selects one run among all algorithms and trials. Oracle selection uses test scores, so its scores "
        "cannot be attained in practice."
    )
    return TextTable(header, tuple(rows), (note, *network_notes(networks)))


def algorithms(comparison: Comparison, networks: Mapping[str, Sequence[str]], metric: Metric) -> TextTable:
    """Return a table of test scores under one selection rule, one row per algorithm, compared with ERM.

    Args:
        comparison: Scores of the algorithms under one selection rule.
        networks: Names of the models of each algorithm, by name of the algorithm.
        metric: Metric of the scores.
    """
    ranking, largest = comparison.ranking, metric.largest_difference
    rows = tuple(
        (
            row.algorithm,
            _interval(row.test.clipped(*metric.bounds)),
            NONE if row.gain is None else _interval(row.gain.clipped(-largest, largest), signed=True),
            NONE if row.p_value is None else p_text(row.p_value),
            NONE if row.improvement is None else f"{row.improvement:.0%}",
            number(row.worst),
            number(row.interquartile_mean),
            *(() if ranking is None else (f"{ranking.ranks[i]:.2f}",)),
            str(row.test.count),
        )
        for i, row in enumerate(comparison.rows)
    )
    notes = [
        "Scores in the test environments. [a, b]: 95 % interval of the mean over test environments "
        "(Student's t over replicas, or over environments if there is one replica). Gain over ERM: paired "
        "difference (same rows, initial weights and batches). p: paired t test, Holm-corrected; the interval "
        "of the gain is corrected in the same way, so it excludes 0 if and only if p < 0.05. Both apply to "
        "these test environments only, and do not include the sampling noise of the test rows, which all "
        "replicas share."
    ]
    if ranking is not None:
        notes.append(
            f"Mean ranks over {ranking.n_datasets} sets of test environments. Two ranks that are at least "
            f"{ranking.critical_difference:.2f} apart differ significantly (Nemenyi; Friedman p = "
            f"{ranking.p_value:.2g})."
        )
    notes += network_notes(networks)
    notes += [
        f"{row.algorithm}: no run selected in {row.n_missing} cases: {row.missing_reason}"
        for row in comparison.rows
        if row.n_missing
    ]
    ranks = () if ranking is None else ("mean rank",)
    header = (
        "algorithm", "mean", "gain over ERM", "p", "better than ERM in", "worst environment",
        "interquartile mean", *ranks, "replicas",
    )  # fmt: skip
    return TextTable(header, rows, tuple(notes))


def environments(selected: Sequence[SelectionResult]) -> TextTable:
    """Return a table of test scores: one row per algorithm, one column per set of test environments."""
    columns = list(dict.fromkeys((each.data, each.test_environments) for each in selected))
    with_data = len({data for data, _ in columns}) > 1
    labels = [_environments(*column, with_data=with_data) for column in columns]
    notes: dict[str, None] = {}
    rows: list[tuple[str, ...]] = []
    for name in dict.fromkeys(each.algorithm for each in selected):
        cells = [name]
        for column, label in zip(columns, labels, strict=True):
            here = [e for e in selected if e.algorithm == name and (e.data, e.test_environments) == column]
            tests = pd.Series([run.test for run in runs_of(here)], dtype=float)
            notes |= dict.fromkeys(f"{name}, {label}: {reason}" for reason in reasons_of(here))
            deviation = float(tests.std()) if len(tests) > 1 else None
            cells.append(
                f"{mean_sd(mean(list(tests)), deviation)} ({len(tests)})" if len(tests) else "none, see below"
            )
        rows.append(tuple(cells))
    note = "Mean ± standard deviation over replicas (divisor n − 1); number of replicas in parentheses."
    return TextTable(("test environment", *labels), tuple(rows), (note, *notes))


def choices(selected: Sequence[SelectionResult]) -> TextTable:
    """Return a table of selected runs, with one row per combination of test environments and replica.

    Args:
        selected: Results of a rule that selects one run among all algorithms for each combination.
    """
    rows: list[tuple[str, ...]] = []
    for each in selected:
        name = f"{_environments(each.data, each.test_environments)}, replica {each.replica}"
        if isinstance(each.choice, NoSelection):
            rows.append((name, *(NONE,) * 5, each.choice.reason))
            continue
        run = each.choice
        p_value = NONE if run.p_value is None else p_text(run.p_value)
        scores = (f"{run.validation:.3f}", f"{run.test:.3f}", p_value)
        rows.append((name, f"{run.algorithm}, trial {run.trial}", str(run.step), *scores, run.remark))
    header = ("test environment", "selected", "step", "validation", "test", "invariance p", "remark")
    return TextTable(header, tuple(rows))


def runs_of(selected: Sequence[SelectionResult]) -> list[SelectedRun]:
    """Return the selected runs; skip the cases in which no run was selected."""
    return [each.choice for each in selected if isinstance(each.choice, SelectedRun)]


def reasons_of(selected: Sequence[SelectionResult]) -> list[str]:
    """Return the reason for every case in which no run was selected."""
    return [each.choice.reason for each in selected if isinstance(each.choice, NoSelection)]


def label(rule: Selection) -> str:
    """Return the name of a selection rule, with a remark if the rule uses test labels."""
    return f"{rule.name} (uses test labels)" if rule.uses_test else rule.name


def _environments(data: str, names: Sequence[str], *, with_data: bool = False) -> str:
    test = ", ".join(names) or "none"
    return f"{data}: {test}" if with_data else test


def mean(values: Sequence[float]) -> float:
    """Return the mean of values; NaN if there are none."""
    return sum(values) / len(values) if values else math.nan


def number(value: float) -> str:
    """Format a score, or return a dash if it is not finite."""
    return f"{value:.3f}" if math.isfinite(value) else NONE


def p_text(value: float) -> str:
    """Format a p-value; values below 0.001 are shown as "< 0.001"."""
    return f"{value:.2g}" if value >= 0.001 else "< 0.001"


def interval_text(interval: Interval) -> str:
    """Format the confidence interval of a score; return "" if the interval is not known."""
    is_known = interval.count > 1 and math.isfinite(interval.high - interval.low)
    return f"95 % CI [{interval.low:.3f}, {interval.high:.3f}];" if is_known else ""


def _interval(interval: Interval, *, signed: bool = False) -> str:
    shape = "+.3f" if signed else ".3f"
    if not interval.count:
        return NONE
    if interval.count < 2 or not math.isfinite(interval.high - interval.low):
        return f"{interval.mean:{shape}}"
    return f"{interval.mean:{shape}} [{interval.low:{shape}}, {interval.high:{shape}}]"
