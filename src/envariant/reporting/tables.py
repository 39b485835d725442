"""The tables, made once for the terminal and the page: every environment, the worst, spread, replicas."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, final

from envariant.data import Facts
from envariant.reporting import labels
from envariant.reporting.comparison import published_for
from envariant.training.result import Spread, TrainingResult

NONE = "–"


@final
@dataclass(frozen=True)
class TextTable:
    """A table of text: the first column names the line, the others hold numbers.

    Attributes:
        header: a name a column.
        lines: as many entries each as the header has.
        notes: what the numbers are.
    """

    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def scores(results: Sequence[TrainingResult], names: Sequence[str] | None = None) -> TextTable:
    """A line a run: its score in every environment, the worst, and the published figures if there are any.

    Args:
        results: the runs.
        names: of the lines; None names what the runs differ in.
    """
    environments = dict.fromkeys(
        (name, role) for result in results for name, role in result.record.roles.items()
    )
    beside = [published_for(result) for result in results]
    some = any(beside)
    metric = results[0].record.metric
    header = [metric, *(f"{name} ({role})" for name, role in environments), "worst", "replicas"]
    header += ["published train", "published test"] if some else []
    lines: list[tuple[str, ...]] = []
    for label, result, row in zip(names or labels.labels(results), results, beside, strict=True):
        roles = result.record.roles
        cells = [
            spread(result.final(name, metric)) if roles.get(name) == role else NONE
            for name, role in environments
        ]
        worst, _ = result.worst()
        line = [label, *cells, spread(worst), _replicas(result)]
        if some:
            line += [NONE, NONE] if row is None else [_pair(row.train), _pair(row.test)]
        lines.append(tuple(line))
    notes = [
        "± is the standard deviation over replicas (divisor n − 1); each replica has its own data draw, "
        "initial weights and batches. A single replica has no ±.",
        "worst: in each replica the environment with the worst score, then the mean over replicas.",
    ]
    notes += dict.fromkeys(
        f"published: {row.source.title}; ± is {row.spread}. Shown beside runs in the paper's own settings."
        for row in beside
        if row is not None
    )
    return TextTable(tuple(header), tuple(lines), tuple(notes))


def settings(results: Sequence[TrainingResult]) -> TextTable:
    """A column a run: everything that decided its numbers."""
    columns = [labels.settings(result) for result in results]
    names = dict.fromkeys(key for column in columns for key in column)
    lines = tuple((name, *(column.get(name, NONE) for column in columns)) for name in names)
    return TextTable(("setting", *labels.labels(results)), lines)


def facts(found: Sequence[Facts]) -> TextTable:
    """A line an environment: what it holds, and what the simplest and the best rules reach in it."""
    header = (
        "environment", "role", "rows", "label 1", "color = label", "shape = label",
        "color only", "shape only", "Bayes (both)",
    )  # fmt: skip
    lines = tuple(
        (
            fact.environment,
            fact.role,
            f"{fact.rows:,}",
            f"{fact.label_one:.3f}",
            f"{fact.color_agreement:.3f}",
            f"{fact.shape_agreement:.3f}",
            f"{fact.theory.color_only:.3f}",
            f"{fact.theory.shape_only:.3f}",
            f"{fact.theory.bayes:.3f}",
        )
        for fact in found
    )
    notes = (
        "label 1, color = label, shape = label: shares of this draw's rows.",
        "color only (guess the color), shape only, Bayes (the environment's own best rule with both): "
        "accuracies in theory. Only shape only is the same everywhere.",
    )
    return TextTable(header, lines, notes)


def spread(values: Spread, digits: int = 3) -> str:
    """`0.669 ± 0.025`, without the ± for a single replica, a dash for none."""
    if not values.values:
        return NONE
    return _pair((values.mean, values.sd), digits)


def _pair(pair: tuple[float, float | None], digits: int = 3) -> str:
    mean, deviation = pair
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def _replicas(result: TrainingResult) -> str:
    finished, wanted = len(result.finished), result.record.spec.replicas
    return str(wanted) if finished == wanted else f"{finished} of {wanted}"


def finite(value: Any) -> Any:
    """The same for JSON, which knows no infinity and no NaN: those become null."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in cast("dict[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in cast("list[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
