"""HTML page about a study: scores of every selection rule, significance, candidates and hyperparameters."""

import json
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from envariant.core import schedules
from envariant.core.errors import EnvariantError
from envariant.core.files import write_text
from envariant.core.metrics import METRICS
from envariant.reporting import charts, html
from envariant.reporting.labels import without_folders
from envariant.reporting.page import BigNumber, Block, Page, Section
from envariant.reporting.page import render as render_page
from envariant.reporting.study_tables import (
    Pooled,
    algorithms,
    choices,
    environments,
    interval_text,
    label,
    mean,
    number,
    p_text,
    reasons_of,
    runs_of,
    summary,
)
from envariant.reporting.tables import TextTable
from envariant.reporting.theme import baseline_first
from envariant.studies.selection import (
    SELECTIONS,
    Invariance,
    Selection,
    SelectionResult,
    select,
)
from envariant.studies.selection.base import last_steps
from envariant.studies.significance import BASELINE, LEVEL, Comparison, compare
from envariant.studies.study_results import evaluated as finished
from envariant.studies.trials import SEARCHABLE
from envariant.training.run_spec import RunSpec
from envariant.training.store import Store

_MOST_BULLETS = 4


def render(store: Store) -> str:
    """Return an HTML page about a study, as text.

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
    selected = {rule.name: select(table, rule) for rule in rules}
    last = last_steps(evaluated)
    failed = table[table["state"] == "failed"].drop_duplicates("run")
    main = next((rule for rule in rules if runs_of(selected[rule.name])), rules[0])
    comparison = compare(selected[main.name], higher_is_better=higher_is_better)
    failures = [Block("warning", f"{_describe(row)}: {row['error']}") for row in failed.to_dict("records")]
    compared = last[last["validation"].notna() & last["test"].notna()]
    candidates = [Block.chart(
        charts.candidates(compared, metric, Invariance().alpha),
        "Every run at its last step. Hollow: rejected by the invariance test at level 0.05.",
    )] if len(compared) else []  # fmt: skip
    varied = [
        block
        for name, values in _sampled_values(store, last).items()
        for block in (
            Block("heading", name),
            Block.chart(
                charts.hyperparameters(values, last.loc[values.index], metric),
                "Score of every run at its last step; for schedules, against the final value.",
            ),
        )
    ]
    sections = [
        Section(
            "summary", "Scores by selection rule",
            (Block.table(summary(pooled, rules, networks), "Selected among all algorithms and trials"),),
            is_open=True,
        ),
        *(
            _section(rule, selected[rule.name], pooled[rule.name], networks, metric, is_open=rule == main,
                     higher_is_better=higher_is_better)
            for rule in rules
        ),
        Section("candidates", "All candidates", candidates, f"{len(compared)} runs"),
        Section("hyperparameters", "Hyperparameters", varied),
        Section("failures", "Failed runs", failures, str(len(failures))),
        Section("rerun", "Commands to train again", _reruns(study, store, pooled)),
        Section("settings", "Declaration of the study", _settings(study)),
    ]  # fmt: skip
    return render_page(
        Page(
            "study",
            f"Study: {study['name']}",
            _lead(store, metric),
            _headline(comparison, metric),
            numbers=_numbers(comparison, metric, main),
            bullets=_bullets(pooled, rules, main, failures, metric),
            figure=_overview(comparison, selected[main.name], metric, main),
            sections=[section for section in sections if section.blocks],
            methods=list(study["algorithms"]),
        )
    )


def _headline(comparison: Comparison, metric: str) -> str:
    """Return a sentence on the algorithms that are significantly better than ERM."""
    sign = METRICS[metric].sign
    tested = [(row.algorithm, row.gain.mean, row.p_value) for row in comparison.rows
              if row.gain is not None and row.p_value is not None]  # fmt: skip
    if not tested:
        return comparison.verdict.removesuffix(".")
    better = [(sign * gain, name) for name, gain, p_value in tested if p_value < LEVEL and sign * gain > 0]
    if not better:
        return "No algorithm is significantly better than ERM"
    gain, best = max(better)
    if len(better) == 1:
        return f"{best} is significantly better than ERM, by {gain:.3f} {metric}"
    return (
        f"{len(better)} of {len(tested)} algorithms are significantly better than ERM; {best} gains most, "
        f"{gain:.3f} {metric}"
    )


def _numbers(comparison: Comparison, metric: str, rule: Selection) -> list[BigNumber]:
    """Return the test scores of ERM and of the best other algorithm under one selection rule."""
    known = [row for row in comparison.rows if row.test.count]
    higher = METRICS[metric].higher_is_better
    others = [row for row in known if row.algorithm != BASELINE]
    best = (max if higher else min)(others, key=lambda row: row.test.mean, default=None)
    shown = [row for row in known if row.algorithm == BASELINE or row is best]
    bounds = METRICS[metric].bounds
    numbers = [
        BigNumber(
            f"{row.algorithm}, test {metric}", f"{row.test.mean:.3f}",
            f"{interval_text(row.test.clipped(*bounds))} worst environment {number(row.worst)}",
        )
        for row in shown
    ]  # fmt: skip
    if best is not None and best.gain is not None:
        p = "" if best.p_value is None else f", p {p_text(best.p_value)}"
        numbers.append(BigNumber(f"gain of {best.algorithm}", f"{best.gain.mean:+.3f}", f"{rule.name}{p}"))
    return numbers


def _bullets(
    pooled: Pooled, rules: Sequence[Selection], main: Selection, failures: Sequence[Block], metric: str
) -> list[str]:
    """Return sentences on the runs that each rule selects among all algorithms, and on failed runs."""
    bullets: list[str] = []
    for rule in sorted(rules, key=lambda rule: rule != main):
        runs = runs_of(pooled[rule.name])
        if runs and len(bullets) < _MOST_BULLETS - bool(failures):
            often = ", ".join(f"{n} in {k}" for n, k in Counter(run.algorithm for run in runs).most_common(2))
            bullets.append(
                f"{label(rule)}: test {metric} {mean([run.test for run in runs]):.3f}; selects {often} of "
                f"{len(runs)} cases"
            )
    return [*bullets, *([f"{len(failures)} failed runs, listed below"] if failures else [])]


def _overview(
    comparison: Comparison, selected: Sequence[SelectionResult], metric: str, rule: Selection
) -> Block | None:
    scores = {row.algorithm: row.test for row in comparison.rows}
    rows = [
        charts.RankingRow(
            name,
            [run.test for run in runs_of([e for e in selected if e.algorithm == name])],
            {},
            scores[name],
        )
        for name in baseline_first(list(scores))
    ]
    rows = [row for row in rows if row.values]
    if not rows:
        return None
    chart = charts.ranking(rows, f"{metric} in the test environments", {}, METRICS[metric].bounds)
    return Block.chart(
        chart,
        f"Ticks: runs selected by {rule.name}, one per set of test environments and replica. Bars: mean over "
        "test environments, 95 % CI over replicas.",
    )


def write(store: Store, path: Path) -> None:
    """Write an HTML page about a study to a file atomically.

    Args:
        store: Store with the runs of the study.
        path: HTML file to be written.

    Raises:
        EnvariantError: If no run is finished, or the file cannot be written.
    """
    html.check_page(path, "study")
    write_text(render(store), path)


def to_dict(selected: Sequence[SelectionResult], *, higher_is_better: bool) -> dict[str, Any]:
    """Return a JSON-compatible dictionary with the runs that one rule selects, and their test scores.

    "test" is the mean test score of these runs, and "worst" the worst of their scores in a test environment.
    "choices" lists, for each combination of data, test environments and replica, the selected
    run or the reason why no run was selected.
    """
    runs = runs_of(selected)
    worst = min if higher_is_better else max
    return {
        "test": mean([run.test for run in runs]),
        "worst": worst((run.test_worst for run in runs), default=math.nan),
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
    """Return the runs that each rule selects among all algorithms' runs, as a table and a dictionary."""
    table = store.table()
    rules = [rule() for rule in SELECTIONS.values()]
    pooled = {rule.name: select(table, rule, pooled=True) for rule in rules}
    better = bool(finished(table)["higher_is_better"].iloc[0])
    selections = {name: to_dict(selected, higher_is_better=better) for name, selected in pooled.items()}
    return summary(pooled, rules, store.networks()), selections


def _section(
    rule: Selection,
    selected: Sequence[SelectionResult],
    pooled: Sequence[SelectionResult],
    networks: Mapping[str, Sequence[str]],
    metric: str,
    *,
    higher_is_better: bool,
    is_open: bool,
) -> Section:
    """Return the section about one selection rule."""
    anchor, title = rule.name.replace(" ", "-"), f"{rule.name[:1].upper()}{rule.name[1:]}"
    title += " (uses test labels; not a valid choice)" if rule.uses_test else ""
    about = Block("text", f"Criterion: {rule.about}.")
    if not runs_of(selected):
        reasons = dict.fromkeys(f"{text[:1].upper()}{text[1:]}." for text in reasons_of(selected))
        notes = [Block("note", reason) for reason in reasons]
        return Section(
            anchor, title, (about, Block("text", "No run was selected."), *notes), "no run selected"
        )
    comparison = compare(selected, higher_is_better=higher_is_better)
    names, ranking = [row.algorithm for row in comparison.rows], comparison.ranking
    ranks = [] if ranking is None else [Block.chart(
        charts.critical_difference(names, ranking.ranks, ranking.critical_difference),
        "Mean ranks over sets of test environments. Bars on the right join algorithms that do not differ "
        "significantly.",
    )]  # fmt: skip
    blocks = (
        about,
        Block("text", comparison.verdict),
        Block.table(
            algorithms(comparison, networks, METRICS[metric]),
            "Each algorithm with its selected trial and step",
        ),
        *ranks,
        Block.table(environments(selected), "Scores by test environment"),
        Block.table(choices(pooled), "Selected among all algorithms"),
    )
    return Section(anchor, title, blocks, is_open=is_open)


def rerun(study: Mapping[str, Any], store: Store, selected: Sequence[SelectionResult]) -> str:
    """Return the command that retrains the most frequently selected trial; "" if no run was selected."""
    listing = store.listing().set_index("id")
    runs = [listing.loc[run.run] for run in runs_of(selected)]
    if not runs:
        return ""
    keys = [
        tuple(str(run[key]) for key in ("data", "test_environments", "algorithm", "trial")) for run in runs
    ]
    best = runs[keys.index(Counter(keys).most_common(1)[0][0])]
    own = json.loads(str(best["hyperparameters"]))
    options = {key: value for key, value in own.items() if key in SEARCHABLE}
    settings = {key: value for key, value in study["settings"].items() if key != "learning_rate"}
    spec = RunSpec(
        data=str(best["data"]),
        algorithm=str(best["algorithm"]),
        hyperparameters={key: value for key, value in own.items() if key not in options},
        learning_rate=json.loads(str(best["learning_rate"])) or None,
        test_environments=best["test_environments"],
        **{key: study[key] for key in ("holdout_fraction", "replicas", "seed")},
        **{**settings, **options},
    )
    return shlex.join(["envariant", "train", *spec.flags()])


def _sampled_values(store: Store, last: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return a table of the varying hyperparameters of each algorithm, with one row per run in `last`."""
    listing = store.listing().set_index("id")
    tables: dict[str, pd.DataFrame] = {}
    for name, runs in last.groupby("algorithm", sort=False):
        rows = [listing.loc[run] for run in runs["run"]]
        values = pd.DataFrame(
            [_numeric(row) for row in rows],
            index=runs.index,
        )
        varied = values.loc[:, values.nunique() > 1]
        if varied.shape[1]:
            tables[str(name)] = varied
    return tables


def _numeric(row: Any) -> dict[str, float]:
    """Return the learning rate and numeric hyperparameters of a run; for schedules, the final values."""
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


def _settings(study: Mapping[str, Any]) -> list[Block]:
    pairs = [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in study.items()]
    return [Block("definitions", [(key, without_folders(value)) for key, value in pairs])]


def _reruns(study: Mapping[str, Any], store: Store, pooled: Pooled) -> list[Block]:
    blocks = [Block("text", "The trial that each rule selects most often:")]
    for name, results in pooled.items():
        command = rerun(study, store, results)
        blocks.append(Block("heading", name))
        blocks.append(Block("command", without_folders(command)) if command else
                      Block("note", "No run was selected."))  # fmt: skip
    return blocks


def _describe(row: dict[Any, Any]) -> str:
    test = ", ".join(row["test_environments"])
    return (
        f"run {row['run']}: {row['algorithm']}, trial {row['trial']}, replica {row['replica']}, "
        f"test environments {test or 'none'}"
    )
