"""Sections on scores: drop of the baseline by environment, and comparison of methods."""

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from envariant.analysis.statistics import Interval
from envariant.comparison.baselines import baseline_name
from envariant.comparison.formatting import capitalized, ci, method_name, score, the
from envariant.comparison.page.base import Block, PageSection, shortened
from envariant.comparison.results import Cell, ComparisonResults
from envariant.reporting.tables import NONE, TextTable, network_notes
from envariant.reporting.theme import MUTED, OLD_TRAIN, TEST, legend, name_axes, name_rows, new_axes, quiet

# Largest number of environments in a figure, and in the columns of a table.
_MOST_ROWS = 30
_MOST_COLUMNS = 8


@final
@dataclass(frozen=True, eq=False)
class Drops(PageSection):
    """Section on the in-domain and out-of-domain scores of the baseline by environment."""

    anchor: ClassVar[str] = "drop"
    title: ClassVar[str] = "Does the score drop in new environments?"

    def render(self) -> tuple[Block, ...]:
        """Return the figure and the table of the baseline's scores."""
        hidden = len(self.results.baseline) - _MOST_ROWS
        more = f" {hidden} environments with better scores are not drawn." if hidden > 0 else ""
        caption = (
            "Arrows: from the in-domain score (model trained on other rows of the environment) to the "
            "out-of-domain score (model not trained on the environment). Bars: 95 % CI over replicas and "
            f"rows.{more}"
        )
        return (
            Block.figure(self.figure(), caption),
            Block.table(self.table(), "Scores with and without the environment in training"),
        )

    def figure(self) -> Figure:
        """Return a figure of in-domain and out-of-domain scores, one row per environment."""
        results = self.results
        other = self.recommended if self.recommended != results.baseline_method else results.runner_up()
        baseline = method_name(results.baseline_method)
        names = results.hardest_first()[:_MOST_ROWS]
        height = (0.5 if len(names) <= 12 else 0.36) * len(names) + 1.5
        figure, axes = new_axes(7.4, height)
        for row, name in enumerate(names):
            _draw_baseline(axes, results, results.baseline[name], row)
            if (cell := results.cells.get(other, {}).get(name)) is not None:
                _draw_interval(axes, results.possible(cell.ood_score), row + 0.24, OLD_TRAIN[0])
                axes.plot([cell.ood_score.mean], [row + 0.24], "D", color=OLD_TRAIN[0], ms=6)
            if name in results.data.baseline_scores:
                constant = [results.data.baseline_scores[name]] * 2
                axes.plot(constant, [row - 0.3, row + 0.36], color=MUTED, lw=1.2, ls=(0, (2, 2)), zorder=1)
        axes.plot([], [], "o", color=TEST, ms=7, mfc="white", label=f"{baseline}, in-domain")
        axes.plot([], [], "o", color=TEST, ms=7, label=f"{baseline}, out-of-domain")
        if other:
            axes.plot([], [], "D", color=OLD_TRAIN[0], ms=6, label=f"{method_name(other)}, out-of-domain")
        if any(name in results.data.baseline_scores for name in names):
            label = baseline_name(results.metric)
            axes.plot([], [], color=MUTED, lw=1.2, ls=(0, (2, 2)), label=label)
        style_rows(axes, names)
        name_axes(axes, results.metric.name)
        legend(figure)
        return figure

    def table(self) -> TextTable:
        """Return a table of scores and drops, one row per environment."""
        results = self.results
        rows = results.data.n_rows
        constant = results.data.baseline_scores
        baseline = capitalized(method_name(results.baseline_method))
        lines: list[tuple[str, ...]] = []
        for name, cell in results.baseline.items():
            others = {
                m: c[name] for m, c in results.cells.items() if m != results.baseline_method and name in c
            }
            best = max(others, key=lambda m: results.metric.sign * others[m].ood_score.mean, default="")
            drop = results.drop(cell)
            low, high = (score(results, end, signed=True) for end in (drop.interval.low, drop.interval.high))
            drop_text = f"{score(results, drop.mean, signed=True)} [{low}, {high}]"
            lines.append(
                (
                    name,
                    f"{rows[name]:,}" if name in rows else NONE,
                    score(results, constant[name]) if name in constant else NONE,
                    score(results, cell.id_score.mean) if cell.id_score.count else NONE,
                    f"{score(results, cell.ood_score.mean)} {ci(results, cell.ood_score)}",
                    drop_text if math.isfinite(drop.mean) else NONE,
                    f"{method_name(best)}: {_gain(results, others[best])}" if best else NONE,
                )
            )
        better = "higher" if results.metric.higher_is_better else "lower"
        header = (
            results.data.environment_column or "environment", "rows", baseline_name(results.metric),
            f"{baseline} in-domain", f"{baseline} out-of-domain", "drop (in-domain − out-of-domain)",
            f"best other method, gain over {the(results.baseline_method)}",
        )  # fmt: skip
        note = (
            f"Scores are {results.metric.name}; {better} is better. In-domain: held-out rows of the "
            f"environment, its other rows in training. Brackets: 95 % CI over "
            f"{results.n_replicas} replicas and the sampled rows, limited to the metric's range. "
            f"n.s.: not significant."
        )
        return TextTable(header, tuple(lines), (note,))

    def to_dict(self) -> dict[str, Any]:
        data = self.results.data
        return {
            "n_rows": dict(data.n_rows),
            "baseline": baseline_name(self.results.metric),
            "baseline_scores": dict(data.baseline_scores),
            "unseen_classes": {name: list(classes) for name, classes in data.unseen_classes.items()},
        }


@final
@dataclass(frozen=True, eq=False)
class Methods(PageSection):
    """Section on the out-of-domain scores of all methods."""

    anchor: ClassVar[str] = "methods"
    title: ClassVar[str] = "Does any method help?"

    def render(self) -> tuple[Block, ...]:
        """Return the table of methods, and notes on absent results."""
        absent = (*self.results.not_applicable, *self.results.missing)
        table = Block.table(methods_table(self.results), "Out-of-domain score of every method")
        return (table, *(Block("warning", line) for line in absent))

    def to_dict(self) -> dict[str, Any]:
        possible = self.results.possible
        methods = {
            method: {
                name: {
                    "ood_score": asdict(possible(cell.ood_score)),
                    "id_score": asdict(possible(cell.id_score)),
                    "drop": self.results.drop(cell).mean,
                    "gain_over_baseline": cell.gain and asdict(possible(cell.gain, difference=True)),
                    "p_value": cell.p_value,
                    "significant": cell.significant,
                }
                for name, cell in cells.items()
            }
            for method, cells in self.results.cells.items()
        }
        return {"methods": methods, "missing": [*self.results.not_applicable, *self.results.missing]}


def methods_table(results: ComparisonResults) -> TextTable:
    """Return a table of scores, one row per method and one column per environment.

    With many environments, only those with the worst scores of the baseline have a column.
    """
    hardest = results.hardest_first()[:_MOST_COLUMNS]
    total = len(results.environments)
    names = [name for name in results.environments if name in hardest or total <= _MOST_COLUMNS]
    second = results.second
    lines: list[tuple[str, ...]] = []
    for method, cells in results.cells.items():
        scores = [
            f"{score(results, cells[name].ood_score.mean)}{_mark(cells[name])}" if name in cells else NONE
            for name in names
        ]
        summary = (NONE, NONE)
        if results.is_complete(method):
            name, worst = results.worst(method)
            mean = score(results, results.mean(method))
            summary = (f"{score(results, worst.ood_score.mean)} ({name})", mean)
        if second is not None:
            there = second.is_complete(method)
            summary = (*summary, second.metric.format(second.mean(method)) if there else NONE)
        lines.append((method_name(method), *scores, *summary))
    baseline = the(results.baseline_method)
    selection = (
        f"Of {total} environments, the {len(names)} where {baseline} is worst. " if len(names) < total else ""
    )
    better = "higher" if results.metric.higher_is_better else "lower"
    note = (
        f"{selection}Means over {results.n_replicas} replicas; {better} is better. ↑ significantly better, ↓ "
        f"significantly worse than {baseline}, the best ordinary model in-domain (t test over replicas and "
        f"rows, p < 0.05, Holm-corrected over methods and environments). Hyperparameters: invariance "
        f"selection on validation rows of the training environments. A recommended method was chosen by "
        f"these scores; its own are slightly optimistic."
    )
    notes = (note, *network_notes(results.networks))
    more = () if second is None else (f"mean {second.metric.name}",)
    return TextTable((results.metric.name, *names, "worst", "mean", *more), tuple(lines), notes)


def style_rows(axes: Axes, names: list[str]) -> None:
    """Label the rows of a figure from top to bottom and add a light grid."""
    quiet(axes)
    name_rows(axes, [shortened(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", color="#f1f3f5", lw=0.8)
    axes.set_axisbelow(True)


def _draw_baseline(axes: Axes, results: ComparisonResults, cell: Cell, row: int) -> None:
    _draw_interval(axes, results.possible(cell.ood_score), row, TEST)
    if cell.id_score.count:
        axes.annotate(
            "", (cell.ood_score.mean, row), (cell.id_score.mean, row),
            arrowprops={"arrowstyle": "-|>", "color": TEST, "lw": 1.2, "shrinkA": 5, "shrinkB": 5},
        )  # fmt: skip
        axes.plot([cell.id_score.mean], [row], "o", color=TEST, ms=7, mfc="white")
    axes.plot([cell.ood_score.mean], [row], "o", color=TEST, ms=7)


def _draw_interval(axes: Axes, interval: Interval, row: float, color: str) -> None:
    axes.plot([interval.low, interval.high], [row, row], color=color, lw=2, alpha=0.35, solid_capstyle="butt")


def _gain(results: ComparisonResults, cell: Cell) -> str:
    if cell.gain is None:
        return NONE
    return f"{score(results, cell.gain.mean, signed=True)}{_mark(cell) or ' (n.s.)'}"


def _mark(cell: Cell) -> str:
    if not cell.significant or cell.gain is None:
        return ""
    return " ↑" if cell.gain.mean > 0 else " ↓"
