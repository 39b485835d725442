"""The page of a study: which method, by which selection, in which held-out environment, and what is noise."""

import json
import math
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from envariant.analysis.statistics import Interval
from envariant.core import schedules
from envariant.core.errors import EnvariantError
from envariant.reporting import figures, html
from envariant.reporting.charts import Bar, critical_difference, ranking
from envariant.reporting.figures import INK, MUTED, TEST, TRAIN, plain_text, quiet
from envariant.reporting.tables import NONE, TextTable
from envariant.studies.selection import SELECTIONS, Chosen, Missing, Selection, select
from envariant.studies.selection.base import Selected, last_steps
from envariant.studies.significance import Comparison, compare
from envariant.studies.store import Store
from envariant.studies.study import Study


def render(store: Store) -> str:
    """The page as text; nothing in it is fetched from anywhere.

    Raises:
        EnvariantError: nothing of the study is done.
    """
    study, table = store.study, store.table()
    measured = _measured(table)
    metric, better = str(measured["metric"].iloc[0]), bool(measured["higher_is_better"].iloc[0])
    ways = [way() for way in SELECTIONS.values()]
    each = {way.name: select(table, way) for way in ways}
    pooled = {way.name: select(table, way, pooled=True) for way in ways}
    compared = {name: compare(found, higher_is_better=better) for name, found in each.items()}
    failed = table[table["state"] == "failed"].drop_duplicates("run")
    return html.render(
        "study.html.j2",
        heading=f"Study: {study.name}",
        lead=_lead(store, metric),
        summary=summary(pooled, ways),
        overview=figures.svg(ranking(_bars(pooled, ways), f"{metric}, held-out environments", {})),
        selections=[
            (
                way,
                _nothing(each[way.name]),
                compared[way.name].verdict,
                algorithms(compared[way.name]),
                places(each[way.name]),
                choices(pooled[way.name]),
                _ranks(compared[way.name]),
            )
            for way in ways
        ],
        candidates=figures.svg(candidates(measured, metric)),
        hyperparameters=[
            (name, figures.svg(figure)) for name, figure in _hyperparameters(store, measured, metric)
        ],
        failures=[(_run(row), row["error"]) for row in failed.to_dict("records")],
        commands=[(name, rerun(study, store, found)) for name, found in pooled.items()],
        settings=_settings(study),
    )


def write(store: Store, path: Path) -> None:
    """Writes the page; the file is whole or absent.

    Raises:
        EnvariantError: nothing is done yet, or it cannot be written there.
    """
    html.write(render(store), path)


def to_dict(selected: Sequence[Selected]) -> dict[str, Any]:
    """What one selection chose, for `--json`."""
    chosen = [each.choice for each in selected if isinstance(each.choice, Chosen)]
    return {
        "test": _mean([choice.test for choice in chosen]),
        "worst": min((choice.test_worst for choice in chosen), default=math.nan),
        "choices": [
            {
                "data": e.data,
                "test_environments": json.loads(e.test_environments),
                "replica": e.replica,
                **vars(e.choice),
            }
            for e in selected
        ],
    }


def summary(pooled: dict[str, tuple[Selected, ...]], ways: Sequence[Selection]) -> TextTable:
    """A line a selection: what it reaches when it may choose among all algorithms."""
    lines: list[tuple[str, ...]] = []
    for way in ways:
        chosen = [each.choice for each in pooled[way.name] if isinstance(each.choice, Chosen)]
        if not chosen:
            reason = next(str(getattr(each.choice, "reason", "")) for each in pooled[way.name])
            lines.append((_named(way), NONE, NONE, NONE, NONE, reason))
            continue
        names = pd.Series([each.algorithm for each in chosen]).value_counts()
        lines.append(
            (
                _named(way),
                f"{_mean([c.validation for c in chosen]):.3f}",
                f"{_mean([c.test for c in chosen]):.3f}",
                f"{min(c.test_worst for c in chosen):.3f} … {max(c.test_worst for c in chosen):.3f}",
                f"{len(chosen)} of {len(pooled[way.name])}",
                ", ".join(f"{name} ({count})" for name, count in names.items()),
            )
        )
    return TextTable(
        (
            "selection",
            "held-out rows",
            "held-out environments",
            "lowest and highest",
            "chosen",
            "algorithms",
        ),
        tuple(lines),
        (
            "Means over places and replicas; a selection chooses one model at each, out of all algorithms "
            "and draws. The oracle looks at the held-out environments: no choice that could be made.",
        ),
    )


def algorithms(comparison: Comparison) -> TextTable:
    """A line an algorithm: its models under one selection, beside ERM's."""
    ranks = comparison.ranking.ranks if comparison.ranking else ()
    lines = [
        (
            row.algorithm,
            _interval(row.test),
            _number(row.worst),
            _number(row.interquartile_mean),
            NONE if row.gain is None else _interval(row.gain, signed=True),
            NONE if row.improvement is None else f"{row.improvement:.0%}",
            NONE if row.p_value is None else f"{row.p_value:.2g}",
            f"{ranks[i]:.2f}" if ranks else NONE,
            str(row.test.count),
        )
        for i, row in enumerate(comparison.rows)
    ]
    notes = [
        "Held-out environments. Square brackets: 95 % interval of the mean, bootstrap over places and "
        "replicas; gain over ERM pair by pair (same rows, weights, batches); p: Wilcoxon's signed-rank test, "
        "corrected by Holm."
    ]
    if comparison.ranking is not None:
        found = comparison.ranking
        notes.append(
            f"Mean ranks over {found.n_datasets} environments; they differ beyond noise where they lie "
            f"{found.critical_difference:.2f} apart (Nemenyi; Friedman p = {found.p_value:.2g})."
        )
    notes += [
        f"{row.algorithm}: {row.missing[0]} missing: {row.missing[1]}"
        for row in comparison.rows
        if row.missing[0]
    ]
    header = (
        "algorithm",
        "mean",
        "worst place",
        "interquartile mean",
        "gain over ERM",
        "better in",
        "p",
        "rank",
        "models",
    )
    return TextTable(header, tuple(lines), tuple(notes))


def _ranks(comparison: Comparison) -> str:
    """The diagram of mean ranks as SVG; empty where there are too few places for one."""
    found = comparison.ranking
    if found is None:
        return ""
    names = [row.algorithm for row in comparison.rows]
    return figures.svg(critical_difference(names, found.ranks, found.critical_difference))


def places(selected: Sequence[Selected]) -> TextTable:
    """A line an algorithm, a column for what is held out; a cell without a number says why."""
    columns = list(dict.fromkeys((each.data, each.test_environments) for each in selected))
    names = list(dict.fromkeys(each.algorithm for each in selected))
    several = len({data for data, _ in columns}) > 1
    notes: dict[str, None] = {}
    lines: list[tuple[str, ...]] = []
    for name in names:
        cells = [name]
        for place in columns:
            here = [
                e.choice for e in selected if e.algorithm == name and (e.data, e.test_environments) == place
            ]
            values = [choice.test for choice in here if isinstance(choice, Chosen)]
            for choice in here:
                if not isinstance(choice, Chosen):
                    notes[f"{name}, {_place(place, several)}: {choice.reason}"] = None
            spread = f" ± {pd.Series(values).std():.3f}" if len(values) > 1 else ""
            cells.append(f"{_mean(values):.3f}{spread} ({len(values)})" if values else "none, see below")
        lines.append(tuple(cells))
    header = ("held out", *(_place(place, several) for place in columns))
    return TextTable(
        header,
        tuple(lines),
        ("Mean ± standard deviation (divisor n − 1) over replicas, how many of them in brackets.", *notes),
    )


def choices(selected: Sequence[Selected]) -> TextTable:
    """A line a place and replica: the model that was chosen among all, and why so."""
    lines: list[tuple[str, ...]] = []
    for each in selected:
        where = f"{_place((each.data, each.test_environments), False)}, replica {each.replica}"
        if isinstance(each.choice, Chosen):
            c = each.choice
            p = NONE if c.p_value is None else f"{c.p_value:.2g}"
            what = (f"{c.algorithm}, trial {c.trial}", str(c.step), f"{c.validation:.3f}", f"{c.test:.3f}")
            lines.append((where, *what, p, c.remark))
        else:
            lines.append((where, NONE, NONE, NONE, NONE, NONE, each.choice.reason))
    return TextTable(
        ("held out", "chosen", "step", "held-out rows", "held-out environments", "invariance p", "remark"),
        tuple(lines),
    )


def candidates(measured: pd.DataFrame, metric: str) -> Figure:
    """Every run at its last step: held-out rows across, held-out environments up; hollow where rejected."""
    last = last_steps(measured)
    figure = Figure(figsize=(7.4, 4.0), layout="constrained")
    axes = figure.subplots()
    colors = dict(zip(last["algorithm"].unique(), (TEST, *TRAIN) * len(last), strict=False))
    for name, own in last.groupby("algorithm", sort=False):
        rejected, color = (own["p_value"] < 0.05).to_numpy(dtype=bool), colors[name]
        axes.plot([], [], "o", color=color, label=plain_text(str(name)))
        for part, filling in ((own[~rejected], color), (own[rejected], "white")):
            axes.plot(part["validation"], part["test"], "o", ms=6, color=color, mfc=filling)
    axes.set_xlabel(f"{metric} on held-out rows of the training environments", fontsize=9, color=INK)
    axes.set_ylabel(f"{metric} in held-out environments", fontsize=9, color=INK)
    figure.legend(loc="outside upper left", ncols=5, frameon=False, fontsize=9, labelcolor=INK)
    quiet(axes)
    return figure


def rerun(study: Study, store: Store, selected: Sequence[Selected]) -> str:
    """The command that trains the draw which was chosen most often again."""
    chosen = [each.choice for each in selected if isinstance(each.choice, Chosen)]
    if not chosen:
        return ""
    listed = store.listing().set_index("id")
    runs = [listed.loc[choice.run] for choice in chosen]
    kinds = [
        tuple(str(run[key]) for key in ("data", "test_environments", "algorithm", "trial")) for run in runs
    ]
    best = runs[kinds.index(Counter(kinds).most_common(1)[0][0])]
    words = ["envariant", "train", "--data", str(best["data"]), "--algorithm", str(best["algorithm"])]
    for key, value in json.loads(str(best["hyperparameters"])).items():
        words += ["--set", f"{key}={value}"]
    words += ["--lr", repr(float(str(best["learning_rate"]))), "--hold-out", f"{study.holdout_fraction:g}"]
    for name in json.loads(str(best["test_environments"])):
        words += ["--test-environments", name]
    words += ["--replicas", str(study.replicas), "--seed", str(study.seed)]
    for key, value in study.settings.items():
        words += [f"--{key.replace('_', '-')}", str(value)] if value is not True else [f"--{key}"]
    return shlex.join(words)


def _hyperparameters(store: Store, measured: pd.DataFrame, metric: str) -> list[tuple[str, Figure]]:
    """For every algorithm and number that was drawn: the scores of its runs at the last step against it."""
    last = last_steps(measured)
    listed = store.listing().set_index("id")
    found: list[tuple[str, Figure]] = []
    for name, own in last.groupby("algorithm", sort=False):
        drawn = pd.DataFrame(
            [
                {"learning rate": float(str(listed.loc[run, "learning_rate"])), **_values(listed.loc[run])}
                for run in own["run"]
            ],
            index=own.index,
        )
        shown = [column for column in drawn if drawn[column].nunique() > 1]
        if not shown:
            continue
        figure = Figure(
            figsize=(3.7 * min(3, len(shown)) + 0.2, 2.9 * -(-len(shown) // 3)), layout="constrained"
        )
        grid = list(figure.subplots(-(-len(shown) // 3), min(3, len(shown)), squeeze=False).flat)
        for axes, column in zip(grid, shown, strict=False):
            x = drawn[column]
            axes.plot(x, own["validation"], ".", color=TRAIN[0], ms=6, alpha=0.7)
            axes.plot(x, own["test"], ".", color=TEST, ms=6, alpha=0.7)
            if (x.dropna() > 0).all() and x.max() > 20 * x.min():
                axes.set_xscale("log")
            axes.set_xlabel(plain_text(str(column)), fontsize=9, color=INK)
            quiet(axes)
        for axes in grid[len(shown) :]:
            axes.set_axis_off()
        grid[0].set_ylabel(metric, color=INK)
        grid[0].plot([], [], ".", color=TRAIN[0], label="held-out rows")
        grid[0].plot([], [], ".", color=TEST, label="held-out environments")
        figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9, labelcolor=MUTED)
        found.append((str(name), figure))
    return found


def _values(row: Any) -> dict[str, float]:
    """Numbers that were drawn; of a schedule its last."""
    found: dict[str, float] = {}
    for key, value in json.loads(str(row["hyperparameters"])).items():
        if isinstance(value, bool):
            continue
        if isinstance(value, int | float):
            found[key] = float(value)
        else:
            try:
                found[key] = schedules.schedule(value).resolve(2**31)(2**31)
            except EnvariantError:
                continue
    return found


def _nothing(selected: Sequence[Selected]) -> list[str]:
    """Why a selection chose nothing at all; empty where it chose something."""
    reasons = [each.choice.reason for each in selected if isinstance(each.choice, Missing)]
    return list(dict.fromkeys(reasons)) if len(reasons) == len(selected) else []


def _measured(table: pd.DataFrame) -> pd.DataFrame:
    found = table[(table["state"] == "done") & table["step"].notna()]
    if found.empty:
        errors = table["error"].dropna()
        why = f"; the first error: {errors.iloc[0]}" if len(errors) else ""
        raise EnvariantError(f"report: no run of the study is done{why}")
    if found["metric"].nunique() > 1:
        raise EnvariantError("report: the data sets of this study have different metrics; report them apart")
    return found


def _lead(store: Store, metric: str) -> str:
    counts = store.counts()
    states = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    study = store.study
    return (
        f"{', '.join(study.algorithms)} on {', '.join(study.data)}: {study.n_trials} trials, "
        f"each on the same {study.replicas} replicas; {study.holdout_fraction:.0%} of the training rows were held "
        f"out to choose by. Runs: {states}. All numbers are {metric}."
    )


def _settings(study: Study) -> TextTable:
    lines = [
        (key, value if isinstance(value, str) else json.dumps(value))
        for key, value in study.to_dict().items()
    ]
    return TextTable(("setting", "value"), tuple(lines))


def _bars(pooled: dict[str, tuple[Selected, ...]], ways: Sequence[Selection]) -> list[Bar]:
    found = [
        Bar(_named(way), [e.choice.test for e in pooled[way.name] if isinstance(e.choice, Chosen)], {})
        for way in ways
    ]
    return [bar for bar in found if bar.values]


def _run(row: dict[Any, Any]) -> str:
    test_environments = ", ".join(json.loads(row["test_environments"]))
    return (
        f"run {row['run']}: {row['algorithm']}, trial {row['trial']}, replica {row['replica']}, "
        f"held out {test_environments}"
    )


def _named(way: Selection) -> str:
    return f"{way.name} (oracle: sees the test)" if way.sees_test else way.name


def _place(place: tuple[str, str], several: bool) -> str:
    names = ", ".join(json.loads(place[1])) or "nothing"
    return f"{place[0]}: {names}" if several else names


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else NONE


def _interval(found: Interval, *, signed: bool = False) -> str:
    shape = "+.3f" if signed else ".3f"
    if not found.count:
        return NONE
    if found.count < 2:
        return f"{found.mean:{shape}}"
    return f"{found.mean:{shape}} [{found.low:{shape}}, {found.high:{shape}}]"
