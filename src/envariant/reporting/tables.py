"""Text tables of runs and data, for terminals and HTML pages."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from envariant.data import Facts
from envariant.reporting import labels
from envariant.reporting.published_figures import comparable
from envariant.training.result import Spread, TrainingResult

NONE = "–"


@final
@dataclass(frozen=True)
class TextTable:
    """Table with text in all cells; the first column contains the names of the rows.

    Attributes:
        header: Names of the columns.
        rows: Cells of each row, one per column.
        notes: Sentences shown below the table.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def scores(results: Sequence[TrainingResult], names: Sequence[str] | None = None) -> TextTable:
    """Return a table of final scores with one row per run; columns show published scores if available.

    Published scores are shown only for runs in the settings of the publication.

    Args:
        results: Results of the runs.
        names: Names of the rows. Default: the name of the algorithm, followed by the settings that differ
            between the runs.
    """
    environments = dict.fromkeys(
        (each.name, each.role, each.label) for result in results for each in result.record.environments
    )
    published = [comparable(result.record) for result in results]
    metric = results[0].record.metric
    header = [metric, *(f"{name} ({role})" for name, role, _ in environments), "worst", "replicas"]
    header += ["published train", "published test"] if any(published) else []
    names, networks = names or labels.labels(results), [model_of(result) for result in results]
    differ = len(set(networks)) > 1
    header += ["model"] if differ else []
    rows: list[tuple[str, ...]] = []
    for name, result, paper in zip(names, results, published, strict=True):
        roles = result.record.roles
        cells = [
            spread(result.final(label, metric)) if roles.get(label) == role else NONE
            for _, role, label in environments
        ]
        row = [name, *cells, spread(result.worst()[0]), _replicas(result)]
        if any(published):
            row += [NONE, NONE] if paper is None else [mean_sd(*paper.train), mean_sd(*paper.test)]
        row += [networks[len(rows)]] if differ else []
        rows.append(tuple(row))
    notes = [
        "± is the standard deviation over replicas (divisor n − 1); each replica has its own data sample, "
        "initial weights and batches. A single replica has no ±.",
        "worst: score in the worst environment of each replica, averaged over replicas.",
    ]
    notes += network_notes({name: (n,) for name, n in zip(names, networks, strict=True) if n != NONE})
    notes += dict.fromkeys(
        f"published: {paper.source.title}; ± is {paper.spread}. Shown only for runs in the paper's settings."
        for paper in published
        if paper is not None
    )
    return TextTable(tuple(header), tuple(rows), tuple(notes))


def model_of(result: TrainingResult) -> str:
    """Return the model of a run as text; a dash for a predictor, which has no network."""
    return str(result.record.spec.model) if "model" in result.record.fingerprints else NONE


def network_notes(networks: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a list with one note that names the networks if they differ; otherwise an empty list.

    Args:
        networks: Names of the models with which each algorithm was trained, by name of the algorithm.
    """
    users: dict[str, list[str]] = {}
    for algorithm, models in networks.items():
        for model in models:
            users.setdefault(model, []).append(algorithm)
    if len(users) < 2:
        return []
    each = "; ".join(f"{', '.join(names)}: {model}" for model, names in users.items())
    return [
        f"Networks differ ({each}); by default, each algorithm uses the network suggested for it. To compare "
        f"only the algorithms, set one model for all."
    ]


def settings(results: Sequence[TrainingResult]) -> TextTable:
    """Return a table of settings: one row per setting, one column per run."""
    columns = [labels.settings(result) for result in results]
    names = dict.fromkeys(key for column in columns for key in column)
    rows = tuple((name, *(column.get(name, NONE) for column in columns)) for name in names)
    return TextTable(("setting", *labels.labels(results)), rows)


def facts(environments: Sequence[Facts]) -> TextTable:
    """Return a table about environments of colored digits: row counts, shares, theoretical accuracies."""
    header = (
        "environment", "role", "rows", "label 1", "color = label", "shape = label",
        "color only", "shape only", "Bayes (both)",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for each in environments:
        theory = each.theory
        shares = (each.label_one, each.color_agreement, each.shape_agreement)
        accuracies = (theory.color_only, theory.shape_only, theory.bayes)
        numbers = (NONE if math.isnan(n) else f"{n:.3f}" for n in (*shares, *accuracies))
        rows.append((each.environment, each.role, f"{each.rows:,}", *numbers))
    notes = (
        "label 1, color = label, shape = label: shares of the sampled rows.",
        "color only, shape only, Bayes: theoretical accuracies of predicting from the color, from the shape, "
        "and by the environment's best rule from both. Only “shape only” is the same in every environment.",
    )
    return TextTable(header, tuple(rows), notes)


def spread(values: Spread, digits: int = 3) -> str:
    """Format the scores of replicas as `0.669 ± 0.025`; one replica has no ±, and no replica gives a dash."""
    return mean_sd(values.mean, values.sd, digits) if values.values else NONE


def mean_sd(mean: float, deviation: float | None, digits: int = 3) -> str:
    """Format a mean and its standard deviation as `0.669 ± 0.025`; only the mean if `deviation` is None."""
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def _replicas(result: TrainingResult) -> str:
    finished, planned = len(result.finished), result.record.spec.replicas
    return str(planned) if finished == planned else f"{finished} of {planned}"
