"""`evaluate`: score predictions that were made elsewhere, in every environment and group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from envariant.core.conversion import check_lengths, column_of
from envariant.core.display import Displayed, Summary
from envariant.core.errors import EnvariantError
from envariant.core.files import as_path
from envariant.core.score_table import ScoreTable
from envariant.evaluation import page
from envariant.evaluation.containers import Ids, Values, check_order, group_names, ids_of, values_of
from envariant.evaluation.decoding import decode
from envariant.evaluation.narrative import bullets, headline
from envariant.evaluation.results import EvaluationResults
from envariant.evaluation.scoring import EvaluatedRows, choose_metric, score
from envariant.reporting.tables import TextTable

MODEL = "model"
"""Name of the model if only one set of predictions is given."""


@final
@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Displayed):
    """Result of `evaluate`.

    Attributes:
        results: Scores with intervals, tests and calibration of all models.
    """

    results: EvaluationResults

    @property
    def headline(self) -> str:
        """Main result in one sentence."""
        return headline(self.results)

    @property
    def bullets(self) -> tuple[str, ...]:
        """At most four facts: worst environment, worst group, next environment and invariance test."""
        return bullets(self.results)

    def table(self) -> ScoreTable:
        """Return the scores by environment, formatted as in publications, with one row per model."""
        return self.results.table()

    def environments_table(self) -> TextTable:
        """Return the scores with their intervals as text, with one row per environment."""
        return page.environments_table(self.results)

    def groups_table(self) -> TextTable:
        """Return the scores of the groups with their intervals as text, with one row per group and model."""
        return page.groups_table(self.results)

    def to_frame(self) -> pd.DataFrame:
        """Return scores and intervals, with one row per model and environment.

        The columns are "rows", "score", "low", "high", "gain" (over the first model) and "p_value".
        """
        results = self.results
        rows = [
            {
                "model": model, "environment": name, "rows": results.n_rows[name],
                "score": cell.ood_score.mean, **_ends(results.possible(cell.ood_score)),
                "gain": np.nan if cell.gain is None else cell.gain.mean,
                "p_value": np.nan if cell.p_value is None else cell.p_value,
            }
            for model, own in results.cells.items()
            for name, cell in own.items()
        ]  # fmt: skip
        return pd.DataFrame(rows).set_index(["model", "environment"])

    def to_markdown(self, **options: Any) -> str:
        """Return the scores as a Markdown table.

        Args:
            options: Options of `ScoreTable.to_markdown`: `digits`, `percent`.
        """
        return self.table().to_markdown(**options)

    def to_latex(self, **options: Any) -> str:
        """Return the scores as a LaTeX table.

        Args:
            options: Options of `ScoreTable.to_latex`: `digits`, `percent`, `caption`, `label`.
        """
        return self.table().to_latex(**options)

    def to_dict(self) -> dict[str, Any]:
        """Return headline and numbers as a JSON-serializable dictionary."""
        return page.to_dict(self.results)

    def plot(self) -> Any:
        """Draw the scores with their intervals as an Altair chart, one row per environment."""
        return page.chart(self.results)

    def report(self, path: Path | str) -> Path:
        """Write an HTML report to a single file that needs no internet access; return its path.

        Args:
            path: File to write, ending in .html.

        Raises:
            EnvariantError: If the name has another ending, or the file cannot be written.
        """
        file = as_path(path, "path")
        if file.suffix not in (".html", ".htm"):
            raise EnvariantError(f"{file}: the file name of a report must end in .html")
        page.write(self.results, {}, file)
        return file

    def save(self, folder: Path | str) -> Path:
        """Write the report (report.html) and all numbers (evaluation.json) to a folder; return its path.

        Args:
            folder: Folder to write to, created if missing.

        Raises:
            EnvariantError: If a file cannot be written, or would replace a file of another kind.
        """
        out = as_path(folder, "out")
        page.write(self.results, self.to_dict(), out / "report.html", out / "evaluation.json")
        return out

    def summary(self) -> Summary:
        """Return the `Summary` of the evaluation, which notebooks display."""
        table = self.environments_table()
        return Summary(
            self.headline, lines=self.bullets, header=table.header, rows=table.rows, notes=table.notes
        )

    def _display(self) -> Summary:
        return self.summary()


def evaluate(
    predictions: Any,
    targets: Any,
    environments: Any,
    *,
    groups: Any = None,
    clusters: Any = None,
    sample_weight: Any = None,
    metric: str | None = None,
    task: str | None = None,
    kind: str | None = None,
    classes: Sequence[Any] | None = None,
) -> Evaluation:
    """Score predictions that were made by any program, in every environment and group.

    Scores, intervals and tests are those of `compare`. Rows must not have been used for training; rows of
    environments that were not trained on give out-of-domain scores. All inputs are lists, arrays, tensors,
    series or data frames of pandas, polars or Arrow. Rows are matched by position.

    Args:
        predictions: Predictions, one per row. For classes, these are labels, probabilities of the second
            class `[rows]`, or one probability per class `[rows, classes]`; for regression, values. Several
            models: a mapping from name to predictions. Replicas of a model: a mapping from replica number to
            predictions as the value of its name, such as `{"erm": {0: first, 1: second}}`; the intervals then
            also cover the differences between replicas.
        targets: Targets, numbers or labels, `[rows]`.
        environments: Environment of each row, any identifiers, `[rows]`.
        groups: Attributes that define groups, such as sex: values `[rows]`, or a mapping or data frame with
            one column per attribute. The groups of several attributes are the combinations of their values.
        clusters: Identifier of the cluster of each row, such as the patient, `[rows]`; whole clusters are
            resampled for intervals, as with the option `group` of `compare`. Default: rows are independent.
        sample_weight: Case weights `[rows]`: a row of weight 2 counts as two rows.
        metric: "accuracy", "balanced accuracy", "AUROC", "log loss", "calibration error", "RMSE", "R²" or
            "squared error". Default: as in `compare`; for labels, balanced accuracy replaces AUROC.
        task: "binary", "multiclass" or "regression". Default: inferred.
        kind: "labels", "probabilities", "logits" or "values". Default: inferred; logits are never inferred.
        classes: Labels of the classes, in the order of the columns of `predictions`. Default: the names of
            the columns of a data frame, otherwise the sorted labels, as in scikit-learn.

    Raises:
        EnvariantError: If lengths differ, values are missing or invalid, or the metric does not apply.

    Example:
        >>> import envariant
        >>> evaluation = envariant.evaluate(
        ...     predictions=[0.9, 0.2, 0.8, 0.6, 0.3, 0.1],
        ...     targets=["sick", "healthy", "sick", "healthy", "sick", "healthy"],
        ...     environments=["north"] * 3 + ["south"] * 3,
        ...     classes=["healthy", "sick"],
        ...     metric="accuracy",
        ... )
        >>> print(evaluation.table())
        accuracy  north  south  average
        model     1.000  0.333    0.667
        Scores of the given predictions: accuracy, 1 replica.
    """
    models = _by_model(predictions)
    named = {
        f"predictions of {m}" + (f", replica {k}" if len(own) > 1 else ""): v
        for m, own in models.items()
        for k, v in own.items()
    }
    by_row = {"targets": targets, "environments": environments}
    by_row |= {"clusters": clusters, "sample_weight": sample_weight}
    attributes = groups if isinstance(groups, Mapping) else {"": groups}
    check_order({**named, **by_row, **{f"groups {name}".rstrip(): v for name, v in attributes.items()}})
    return evaluate_values(
        {
            model: {k: values_of(values, f"evaluate: predictions of {model}") for k, values in own.items()}
            for model, own in models.items()
        },
        values_of(targets, "evaluate: targets"),
        ids_of(environments, "evaluate: environments"),
        {} if groups is None else group_names(groups, "evaluate: groups"),
        None if clusters is None else ids_of(clusters, "evaluate: clusters").codes,
        None if sample_weight is None else _weights(sample_weight),
        metric=metric,
        task=task,
        kind=kind,
        classes=classes,
    )


def evaluate_values(
    predictions: Mapping[str, Mapping[int, Values]],
    targets: Values,
    environments: Ids,
    groups: Mapping[str, NDArray[Any]],
    clusters: NDArray[np.int64] | None,
    weights: NDArray[np.float64] | None,
    *,
    metric: str | None = None,
    task: str | None = None,
    kind: str | None = None,
    classes: Sequence[Any] | None = None,
) -> Evaluation:
    """Score predictions whose containers have been read; see `evaluate`.

    Args:
        predictions: Predictions by model and replica.
        targets: Targets, `[rows]`.
        environments: Environment of each row.
        groups: Name of each row's group by attribute, `[rows]`; "" for rows without a value.
        clusters: Index of the cluster of each row; None if rows are independent.
        weights: Case weight of each row; None for equal weights.
        metric: Name of the metric. Default: as in `compare`.
        task: Name of the task. Default: inferred.
        kind: Kind of the predictions. Default: inferred.
        classes: Labels of the classes. Default: inferred.

    Raises:
        EnvariantError: If lengths differ, or the arguments do not fit each other.
    """
    lengths: dict[str, Any] = {"targets": targets, "environments": environments, **groups}
    lengths |= {} if clusters is None else {"clusters": clusters}
    lengths |= {} if weights is None else {"weights": weights}
    decoded = decode(predictions, targets, task=task, kind=kind, classes=classes)
    check_lengths({name: len(values) for name, values in lengths.items()}, "evaluate")
    rows = EvaluatedRows(decoded, environments, groups, clusters, weights)
    return Evaluation(score(rows, choose_metric(metric, rows)))


def _by_model(predictions: Any) -> dict[str, dict[int, Any]]:
    """Return the predictions by model and replica."""
    if not isinstance(predictions, Mapping):
        return {MODEL: {0: predictions}}
    models = {
        str(name): {k: own[k] for k in own} if isinstance(own, Mapping) else {0: own}
        for name, own in predictions.items()
    }
    if not models or not all(models.values()):
        raise EnvariantError("evaluate: predictions hold no model; give one array per model")
    if any(not isinstance(k, int) for own in models.values() for k in own):
        raise EnvariantError("evaluate: replicas of a model must have whole numbers as keys, such as 0 and 1")
    return models


def _weights(values: Any) -> NDArray[np.float64]:
    column = column_of(values, "evaluate: sample_weight")
    if (
        column.dtype.kind not in "biuf"
        or not np.isfinite(column).all()
        or column.min() < 0
        or not column.any()
    ):
        raise EnvariantError("evaluate: sample_weight must be finite numbers of at least 0, and not all 0")
    return column.astype(np.float64)


def _ends(interval: Any) -> dict[str, float]:
    return {"low": interval.low, "high": interval.high}
