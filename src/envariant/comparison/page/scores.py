"""Report sections on scores: drops of the baseline by environment, and a comparison of all methods."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

from envariant.comparison.baselines import baseline_name
from envariant.comparison.formatting import capitalized, ci, method_name, score, the
from envariant.comparison.page.base import Block, PageSection
from envariant.comparison.results import Cell, ComparisonResults
from envariant.core.printable import number_of
from envariant.reporting import charts
from envariant.reporting.tables import NONE, TextTable, network_notes

# Largest number of environments in a figure, and in the columns of a table.
MOST_ROWS = 30
_MOST_COLUMNS = 8


@final
@dataclass(frozen=True, eq=False)
class Drops(PageSection):
    """Section on the in-domain and out-of-domain scores of the baseline by environment."""

    anchor: ClassVar[str] = "drop"
    title: ClassVar[str] = "Does the score drop in new environments?"

    @property
    def hint(self) -> str:
        drop = self.results.pooled_drop
        return "" if drop is None else f"mean drop {score(self.results, drop.mean, signed=True)}"

    def render(self) -> tuple[Block, ...]:
        """Return the table of the baseline's scores; the chart is shown at the top of the report."""
        return (Block.table(self.table(), "Scores with and without the environment in training"),)

    def chart(self) -> Block:
        """Draw in-domain and out-of-domain scores, one row per environment."""
        results = self.results
        names = results.hardest_first()
        rows, labels = drop_rows(results, self.recommended, names[:MOST_ROWS])
        hidden = len(names) - MOST_ROWS
        more = f" Not drawn: {number_of(hidden, 'environment')} with better scores." if hidden > 0 else ""
        more += " All other training rows are from earlier environments." if results.data.ordered else ""
        caption = (
            "A line joins the in-domain score (model trained on other rows of the environment) and the "
            "out-of-domain score (model not trained on the environment). Pale bars: 95 % CI over replicas "
            f"and rows.{more}"
        )
        return Block.chart(charts.drops(rows, results.metric.name, labels), caption)

    def table(self) -> TextTable:
        """Return a table of scores and drops, one row per environment."""
        results = self.results
        rows, expected = results.data.n_rows, results.expected.by_environment
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
                    score(results, expected[name].expected) if name in expected else NONE,
                    drop_text if math.isfinite(drop.mean) else NONE,
                    f"{method_name(best)}: {_gain(results, others[best])}" if best else NONE,
                )
            )
        better = "higher" if results.metric.higher_is_better else "lower"
        header = (
            results.data.environment_column or "environment", "rows", baseline_name(results.metric),
            f"{baseline} in-domain", f"{baseline} out-of-domain", "expected",
            "drop (in-domain − out-of-domain)",
            f"best other method, gain over {the(results.baseline_method)}",
        )  # fmt: skip
        note = (
            f"Scores are {results.metric.name}; {better} is better. In-domain: score on validation rows of "
            f"the environment, by models that were trained on its other rows. Brackets: 95 % CI over "
            f"{results.n_replicas} replicas and the sampled rows, limited to the metric's range. n.s.: not "
            f"significant. Expected: score if the target depended on the predictions as it does on "
            f"validation rows of the training environments."
        )
        return TextTable(header, tuple(lines), (note,))

    def to_dict(self) -> dict[str, Any]:
        data, expected = self.results.data, self.results.expected
        return {
            "n_rows": dict(data.n_rows),
            "baseline": baseline_name(self.results.metric),
            "baseline_scores": dict(data.baseline_scores),
            "unseen_classes": {name: list(classes) for name, classes in data.unseen_classes.items()},
            "expected_scores": {name: asdict(each) for name, each in expected.by_environment.items()},
            "expected_scores_p_value": expected.p_value,
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

    If there are more than 8 environments, only the 8 with the baseline's worst scores have a column. Further
    columns contain the method's worst score, its mean score, and its mean in the second metric, if any.
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
        f"Shown are the {len(names)} of {total} environments where {baseline} is worst. "
        if len(names) < total
        else ""
    )
    better = "higher" if results.metric.higher_is_better else "lower"
    note = (
        f"{selection}Means over {results.n_replicas} replicas; {better} is better. ↑ significantly better, ↓ "
        f"significantly worse than {baseline}, the best ordinary model in-domain (t test over replicas and "
        f"rows, p < 0.05, Holm-corrected over methods and environments). Hyperparameters: invariance "
        f"selection on validation rows of the training environments. A recommended method was chosen by "
        f"these scores, so its own scores are slightly optimistic."
    )
    notes = (note, *network_notes(results.networks))
    more = () if second is None else (f"mean {second.metric.name}",)
    return TextTable((results.metric.name, *names, "worst", "mean", *more), tuple(lines), notes)


def drop_rows(
    results: ComparisonResults, recommended: str, names: Sequence[str]
) -> tuple[list[charts.DropRow], tuple[str, str, str, str]]:
    """Return the rows of the chart of drops, and the labels of the four scores in each row.

    The four scores are the baseline's in-domain and out-of-domain scores, the out-of-domain score of a second
    method, and the score of a constant prediction. The second method is the recommended method, or the
    `runner_up` if the baseline is recommended.

    Args:
        results: Results of the comparison.
        recommended: Name of the recommended method.
        names: Names of the environments, one per row.
    """
    other = recommended if recommended != results.baseline_method else runner_up(results)
    others, constants = results.cells.get(other, {}), results.data.baseline_scores
    rows = [
        charts.DropRow(
            name,
            cell.id_score.mean if cell.id_score.count else math.nan,
            results.possible(cell.ood_score),
            results.possible(others[name].ood_score) if name in others else None,
            constants.get(name, math.nan),
        )
        for name, cell in ((name, results.baseline[name]) for name in names)
    ]
    baseline, second = method_name(results.baseline_method), method_name(other)
    return rows, (
        f"{baseline}, in-domain", f"{baseline}, out-of-domain", f"{second}, out-of-domain",
        baseline_name(results.metric),
    )  # fmt: skip


def runner_up(results: ComparisonResults) -> str:
    """Return the non-baseline method with the best worst-environment score; "" if there is none."""
    others = [m for m in results.cells if m != results.baseline_method and results.is_complete(m)]
    return max(others, key=lambda m: results.metric.sign * results.worst(m)[1].ood_score.mean, default="")


def _gain(results: ComparisonResults, cell: Cell) -> str:
    if cell.gain is None:
        return NONE
    return f"{score(results, cell.gain.mean, signed=True)}{_mark(cell) or ' (n.s.)'}"


def _mark(cell: Cell) -> str:
    if not cell.significant or cell.gain is None:
        return ""
    return " ↑" if cell.gain.mean > 0 else " ↓"
