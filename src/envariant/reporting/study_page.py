"""HTML page about a study: scores of every selection rule, significance, candidates and hyperparameters."""

import json
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from envariant.analysis.statistics import Interval
from envariant.core import schedules
from envariant.core.errors import EnvariantError
from envariant.core.files import write_text
from envariant.core.metrics import METRICS
from envariant.reporting import figures, html
from envariant.reporting.tables import NONE, TextTable, mean_sd, network_notes
from envariant.studies.selection import (
    SELECTIONS,
    Invariance,
    NoSelection,
    SelectedRun,
    Selection,
    SelectionResult,
    select,
)
from envariant.studies.selection.base import last_steps
from envariant.studies.significance import Comparison, compare
from envariant.studies.study_results import evaluated as finished
from envariant.training.run_spec import RunSpec
from envariant.training.store import Store

Pooled = Mapping[str, Sequence[SelectionResult]]


def render(store: Store) -> str:
    """Return a page about a study as HTML text.

    Args:
        store: Store with the runs of the study.

    Raises:
        EnvariantError: If no run is finished, or the data sets have different metrics.
    """
    study, table = store.declaration(), store.table()
    evaluated = finished(table)
    metric, higher_is_better = str(evaluated["metric"].iloc[0]), bool(evaluated["higher_is_better"].iloc[0])
    rules, networks = [rule() for rule in SELECTIONS.values()], store.networks()
    pooled = {rule.name: select(table, rule, pooled=True) for rule in rules}
    last = last_steps(evaluated)
    failed = table[table["state"] == "failed"].drop_duplicates("run")
    ranking = [
        figures.RankingRow(_label(rule), [run.test for run in _runs(pooled[rule.name])], {}) for rule in rules
    ]
    label = f"{metric} in the test environments"
    return html.render(
        "study.html.j2",
        heading=f"Study: {study['name']}",
        lead=_lead(store, metric),
        summary=summary(pooled, rules, networks),
        overview=figures.svg(
            figures.ranking([row for row in ranking if row.values], label, {}, METRICS[metric].bounds)
        ),
        selections=[
            _section(
                rule, select(table, rule), pooled[rule.name], networks, higher_is_better=higher_is_better
            )
            for rule in rules
        ],
        candidates=figures.svg(figures.candidates(last, metric, Invariance().alpha)),
        hyperparameters=[
            (name, figures.svg(figures.hyperparameters(values, last.loc[values.index], metric)))
            for name, values in _sampled_values(store, last).items()
        ],
        failures=[(_describe(row), row["error"]) for row in failed.to_dict("records")],
        commands=[(name, rerun(study, store, results)) for name, results in pooled.items()],
        settings=_settings(study),
    )


def write(store: Store, path: Path) -> None:
    """Write a page about a study to a file atomically.

    Args:
        store: Store with the runs of the study.
        path: HTML file to be written.

    Raises:
        EnvariantError: If no run is finished, or the file cannot be written.
    """
    html.check_page(path, "study")
    write_text(render(store), path)


def to_dict(selected: Sequence[SelectionResult]) -> dict[str, Any]:
    """Return the runs selected by one rule, with mean and worst test score, as a dictionary for JSON."""
    runs = _runs(selected)
    return {
        "test": _mean([run.test for run in runs]),
        "worst": min((run.test_worst for run in runs), default=math.nan),
        "choices": [
            {
                "data": each.data,
                "test_environments": list(each.test_environments),
                "replica": each.replica,
                **vars(each.choice),
            }
            for each in selected
        ],
    }


def overview(store: Store) -> tuple[TextTable, dict[str, Any]]:
    """Return the results of selecting among all algorithms by each rule, as a table and as JSON data."""
    table = store.table()
    rules = [rule() for rule in SELECTIONS.values()]
    pooled = {rule.name: select(table, rule, pooled=True) for rule in rules}
    selections = {name: to_dict(selected) for name, selected in pooled.items()}
    return summary(pooled, rules, store.networks()), selections


def _section(
    rule: Selection,
    selected: Sequence[SelectionResult],
    pooled: Sequence[SelectionResult],
    networks: Mapping[str, Sequence[str]],
    *,
    higher_is_better: bool,
) -> dict[str, Any]:
    """Return the values of the page's template that describe one selection rule."""
    comparison = compare(selected, higher_is_better=higher_is_better)
    names, ranking = [row.algorithm for row in comparison.rows], comparison.ranking
    return {
        "rule": rule,
        "reasons": [] if _runs(selected) else list(dict.fromkeys(_reasons(selected))),
        "verdict": comparison.verdict,
        "algorithms": algorithms(comparison, networks),
        "environments": environments(selected),
        "choices": choices(pooled),
        "ranks": ""
        if ranking is None
        else figures.svg(figures.critical_difference(names, ranking.ranks, ranking.critical_difference)),
    }


def summary(pooled: Pooled, rules: Sequence[Selection], networks: Mapping[str, Sequence[str]]) -> TextTable:
    """Return a table with one row per rule: scores of the runs that it selects among all algorithms.

    Args:
        pooled: Selected runs, by the name of the rule.
        rules: Selection rules.
        networks: Mapping from algorithm to the names of its models.
    """
    rows: list[tuple[str, ...]] = []
    for rule in rules:
        results = pooled[rule.name]
        runs = _runs(results)
        if not runs:
            rows.append((_label(rule), *(NONE,) * 4, _reasons(results)[0]))
            continue
        tests = [run.test for run in runs]
        rows.append(
            (
                _label(rule),
                f"{_mean([run.validation for run in runs]):.3f}",
                f"{_mean(tests):.3f}",
                f"{min(run.test_worst for run in runs):.3f} … {max(run.test_worst for run in runs):.3f}",
                f"{len(runs)} of {len(results)}",
                ", ".join(
                    f"{name} ({n})" for name, n in Counter(run.algorithm for run in runs).most_common()
                ),
            )
        )
    header = ("selection", "validation", "test environments", "lowest … highest", "selected", "algorithms")
    note = (
        "Means over test environments and replicas. For each of them a rule selects one run among all "
        "algorithms and trials. Oracle selection uses test scores and is no valid choice."
    )
    return TextTable(header, tuple(rows), (note, *network_notes(networks)))


def algorithms(comparison: Comparison, networks: Mapping[str, Sequence[str]]) -> TextTable:
    """Return a table with one row per algorithm: test scores under one rule, compared with ERM.

    Args:
        comparison: Scores of the algorithms under one rule.
        networks: Mapping from algorithm to the names of its models.
    """
    ranking = comparison.ranking
    rows = tuple(
        (
            row.algorithm,
            _interval(row.test),
            _number(row.worst),
            _number(row.interquartile_mean),
            NONE if row.gain is None else _interval(row.gain, signed=True),
            NONE if row.improvement is None else f"{row.improvement:.0%}",
            NONE if row.p_value is None else f"{row.p_value:.2g}",
            NONE if ranking is None else f"{ranking.ranks[i]:.2f}",
            str(row.test.count),
        )
        for i, row in enumerate(comparison.rows)
    )
    notes = [
        "Scores in the test environments. [a, b]: 95 % bootstrap interval of the mean over test environments "
        "and replicas. Gain over ERM: paired (same rows, initial weights and batches). p: Wilcoxon "
        "signed-rank test, Holm-corrected."
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
    header = (
        "algorithm", "mean", "worst environment", "interquartile mean", "gain over ERM", "better than ERM in",
        "p", "mean rank", "runs",
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
            tests = pd.Series([run.test for run in _runs(here)], dtype=float)
            notes |= dict.fromkeys(f"{name}, {label}: {reason}" for reason in _reasons(here))
            deviation = float(tests.std()) if len(tests) > 1 else None
            cells.append(
                f"{mean_sd(_mean(list(tests)), deviation)} ({len(tests)})"
                if len(tests)
                else "none, see below"
            )
        rows.append(tuple(cells))
    note = "Mean ± standard deviation over replicas (divisor n − 1); number of replicas in parentheses."
    return TextTable(("test environment", *labels), tuple(rows), (note, *notes))


def choices(selected: Sequence[SelectionResult]) -> TextTable:
    """Return a table of selected runs: one row per set of test environments and replica."""
    rows: list[tuple[str, ...]] = []
    for each in selected:
        name = f"{_environments(each.data, each.test_environments)}, replica {each.replica}"
        if isinstance(each.choice, NoSelection):
            rows.append((name, *(NONE,) * 5, each.choice.reason))
            continue
        run = each.choice
        p_value = NONE if run.p_value is None else f"{run.p_value:.2g}"
        scores = (f"{run.validation:.3f}", f"{run.test:.3f}", p_value)
        rows.append((name, f"{run.algorithm}, trial {run.trial}", str(run.step), *scores, run.remark))
    header = ("test environment", "selected", "step", "validation", "test", "invariance p", "remark")
    return TextTable(header, tuple(rows))


def rerun(study: Mapping[str, Any], store: Store, selected: Sequence[SelectionResult]) -> str:
    """Return the command that retrains the most frequently selected trial; "" if no run was selected."""
    listing = store.listing().set_index("id")
    runs = [listing.loc[run.run] for run in _runs(selected)]
    if not runs:
        return ""
    keys = [
        tuple(str(run[key]) for key in ("data", "test_environments", "algorithm", "trial")) for run in runs
    ]
    best = runs[keys.index(Counter(keys).most_common(1)[0][0])]
    spec = RunSpec(
        data=str(best["data"]),
        algorithm=str(best["algorithm"]),
        hyperparameters=json.loads(str(best["hyperparameters"])),
        learning_rate=json.loads(str(best["learning_rate"])) or None,
        test_environments=best["test_environments"],
        **{key: study[key] for key in ("holdout_fraction", "replicas", "seed")},
        **study["settings"],
    )
    return shlex.join(["envariant", "train", *spec.flags()])


def _sampled_values(store: Store, last: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return a table of varying hyperparameters for each algorithm, with one row per run in `last`."""
    listing = store.listing().set_index("id")
    tables: dict[str, pd.DataFrame] = {}
    for name, runs in last.groupby("algorithm", sort=False):
        rows = [listing.loc[run] for run in runs["run"]]
        values = pd.DataFrame(
            [_numbers(row) for row in rows],
            index=runs.index,
        )
        varied = values.loc[:, values.nunique() > 1]
        if varied.shape[1]:
            tables[str(name)] = varied
    return tables


def _numbers(row: Any) -> dict[str, float]:
    """Return the learning rate and the numeric hyperparameters of a run; schedules give their final value."""
    numbers: dict[str, float] = {}
    values = {"learning rate": json.loads(row["learning_rate"]), **json.loads(row["hyperparameters"])}
    for key, value in values.items():
        if isinstance(value, bool):
            continue
        if isinstance(value, int | float):
            numbers[key] = float(value)
        else:
            try:
                numbers[key] = schedules.schedule(value)(2**31)
            except EnvariantError:
                continue
    return numbers


def _lead(store: Store, metric: str) -> str:
    states = ", ".join(f"{count} {state}" for state, count in store.counts().items() if count)
    study = store.declaration()
    algorithms, data = ", ".join(study["algorithms"]), ", ".join(study["data"])
    return (
        f"{algorithms} on {data}: {study['n_trials']} trials per algorithm, {study['replicas']} replicas per "
        f"trial. {study['holdout_fraction']:.0%} of the training rows are kept for validation. "
        f"Runs: {states}. All scores are {metric}."
    )


def _settings(study: Mapping[str, Any]) -> TextTable:
    rows = [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in study.items()]
    return TextTable(("setting", "value"), tuple(rows))


def _runs(selected: Sequence[SelectionResult]) -> list[SelectedRun]:
    return [each.choice for each in selected if isinstance(each.choice, SelectedRun)]


def _reasons(selected: Sequence[SelectionResult]) -> list[str]:
    return [each.choice.reason for each in selected if isinstance(each.choice, NoSelection)]


def _describe(row: dict[Any, Any]) -> str:
    test = ", ".join(row["test_environments"])
    return (
        f"run {row['run']}: {row['algorithm']}, trial {row['trial']}, replica {row['replica']}, "
        f"test environments {test or 'none'}"
    )


def _label(rule: Selection) -> str:
    return f"{rule.name} (uses test labels)" if rule.uses_test else rule.name


def _environments(data: str, names: Sequence[str], *, with_data: bool = False) -> str:
    test = ", ".join(names) or "none"
    return f"{data}: {test}" if with_data else test


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else NONE


def _interval(interval: Interval, *, signed: bool = False) -> str:
    shape = "+.3f" if signed else ".3f"
    if not interval.count:
        return NONE
    if interval.count < 2:
        return f"{interval.mean:{shape}}"
    return f"{interval.mean:{shape}} [{interval.low:{shape}}, {interval.high:{shape}}]"
