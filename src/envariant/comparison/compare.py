"""`compare`: hold out each environment of a table in turn and recommend a method.

The runs form a study, which is stored in a folder and can be resumed and inspected.
"""

import math
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, final

import numpy as np
import pandas as pd
from pydantic import Field, PositiveInt

from envariant.comparison import page, protocol
from envariant.comparison.data_check import check_data, print_findings
from envariant.comparison.data_summary import column_stability
from envariant.comparison.explanation import explained, summarized
from envariant.comparison.gathering import gather
from envariant.comparison.inputs import read
from envariant.comparison.narrative import Recommendation, recommend
from envariant.comparison.page.scores import MOST_ROWS, drop_rows
from envariant.comparison.protocol import ALGORITHMS
from envariant.comparison.results import ORDINARY, ComparisonResults
from envariant.comparison.serving import with_serving
from envariant.core import metrics, specs
from envariant.core.display import Displayed, Summary
from envariant.core.errors import EnvariantError, EnvariantWarning, shown
from envariant.core.files import as_path
from envariant.data.tables import table as tables
from envariant.data.tables.source import TableSource
from envariant.predictors import predictor
from envariant.reporting.charts.comparisons import drops
from envariant.saved_model import SavedModel
from envariant.saved_model.folder import check as check_model
from envariant.studies.executors.local import default_workers
from envariant.studies.permutation_importance import MOST_COLUMNS
from envariant.studies.running import train_runs
from envariant.studies.study import Study
from envariant.training.option_text import text_of
from envariant.training.replicas import Seeds
from envariant.training.resolution import check_objects
from envariant.training.run_spec import EXECUTION_ONLY
from envariant.training.store import Store
from envariant.training.validation_watch import uses_validation

MAX_ROWS = 5_000
"""Default largest number of rows per environment in a comparison; the saved model is trained on all rows."""

# Shares of the time budget after which no run begins, no shift is measured and no drop explained. The rest is
# for the final model and the page.
_TRAINING_SHARE, _SHIFTS_SHARE, _EXPLAINING_SHARE = 0.7, 0.77, 0.87


@final
@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Displayed):
    """Result of `compare`.

    Attributes:
        folder: Folder of the study, the HTML report and the saved model.
        results: Scores, drops and gains of all methods, and properties of the table.
        recommendation: Headline, facts and next steps.
        study: Study with the settings of all runs.
        best_model: Model of the recommended method, trained on all environments and rows.
        seconds: Duration of `compare` in seconds.
    """

    folder: Path
    results: ComparisonResults
    recommendation: Recommendation
    study: Study
    best_model: SavedModel
    seconds: float

    @property
    def verdict(self) -> str:
        """Headline of the recommendation and at most four facts, one per line."""
        return self.recommendation.text

    @property
    def recommended(self) -> str:
        """Name of the recommended method; the baseline if no other method is significantly better."""
        return self.recommendation.algorithm

    @property
    def page(self) -> Path:
        """Path of the HTML report."""
        return self.folder / "report.html"

    @property
    def table(self) -> pd.DataFrame:
        """Out-of-domain scores, with one row per method.

        There is one column per environment, and one each for the worst and the mean score. Missing scores are
        NaN. If any score of a method is missing, its worst and mean scores are NaN too.
        """
        results, rows = self.results, dict[str, dict[str, float]]()
        for method, cells in results.cells.items():
            scores = {e: cells[e].ood_score.mean if e in cells else np.nan for e in results.environments}
            complete = results.is_complete(method)
            scores["worst"] = results.worst(method)[1].ood_score.mean if complete else np.nan
            scores["mean"] = results.mean(method) if complete else np.nan
            rows[method] = scores
        frame = pd.DataFrame.from_dict(rows, orient="index")
        frame.index.name = results.metric.name
        return frame

    def to_dict(self) -> dict[str, Any]:
        """Return verdict, numbers and paths as a JSON-serializable dictionary."""
        return {
            "verdict": self.verdict,
            "headline": self.recommendation.headline,
            "bullets": list(self.recommendation.bullets),
            "further_findings": list(self.recommendation.further_findings),
            "next_steps": list(self.recommendation.next_steps),
            "recommended": self.recommended,
            "metric": self.results.metric.name,
            **page.to_dict(self.results, self.recommended),
            "folder": str(self.folder),
            "page": str(self.page),
            "seconds": round(self.seconds, 1),
        }

    def plot(self) -> Any:
        """Draw in-domain and out-of-domain scores as an Altair chart, one row per environment.

        The chart shows the baseline and one other method: the recommended one or, if the baseline is
        recommended, the best other method.
        """
        shown = self.results.hardest_first()[:MOST_ROWS]
        rows, labels = drop_rows(self.results, self.recommended, shown)
        return drops(rows, self.results.metric.name, labels)

    def to_frame(self) -> pd.DataFrame:
        """Return mean, standard deviation and number of replicas of the out-of-domain scores.

        There is one row per method. Columns have two levels, as in `ScoreTable.to_frame`. For the means
        alone, use `table`.
        """
        return self.results.scores().to_frame()

    def to_markdown(self, **options: Any) -> str:
        """Return the out-of-domain scores as a Markdown table, formatted as in publications.

        Args:
            options: Options of `ScoreTable.to_markdown`: `digits`, `percent`.
        """
        return self.results.scores().to_markdown(**options)

    def to_latex(self, **options: Any) -> str:
        """Return the out-of-domain scores as a LaTeX table, formatted as in publications.

        Args:
            options: Options of `ScoreTable.to_latex`: `digits`, `percent`, `caption`, `label`.
        """
        return self.results.scores().to_latex(**options)

    def _display(self) -> Summary:
        table = page.methods_table(self.results)
        return Summary(
            self.recommendation.headline,
            {"page": str(self.page), "model": str(self.folder / "model")},
            lines=self.recommendation.bullets,
            header=table.header,
            rows=table.rows,
            notes=table.notes,
        )


def compare(
    data: Any,
    *,
    target: Any = None,
    environment: Any = None,
    features: Any = None,
    text: Sequence[Any] = (),
    task: str | None = None,
    algorithms: Sequence[Any] = ALGORITHMS,
    candidates: Mapping[str, Any] | None = None,
    metric: str | None = None,
    n_trials: int = 2,
    replicas: int = 5,
    exclude: Sequence[Any] = (),
    sample_weight: Any = None,
    ordered: bool = False,
    group: Any = None,
    subgroups: Sequence[Any] = (),
    min_rows: int = 50,
    max_rows: int | None = MAX_ROWS,
    budget: str | float | None = None,
    seed: int = 0,
    encoding: str = "utf-8",
    missing_values: Sequence[str] | None = None,
    workers: int | None = 1,
    executor: Literal["local", "ray"] = "local",
    address: str | None = None,
    out: Path | str | None = None,
    **options: Any,
) -> Comparison:
    """Measure how far scores drop in new environments, and whether any method helps.

    Every environment is held out in turn; with more than 12 environments, groups of environments are held out
    in turn. Replicas of every method are trained on the other environments or, if environments are ordered,
    on the earlier ones.
    Hyperparameters are chosen by invariance selection on validation rows of the training environments, never
    on test environments. The baseline is one of the ordinary methods (linear model, boosted trees, network):
    the simplest one whose in-domain score is within one standard error of the best.

    Args:
        data: Path (.csv, .parquet, .xlsx, .json, …), or a pandas, polars or Arrow data frame. With
            `features`, it can also be a folder of images (domain/class/image), a data source, or the name of
            a data source.
        target: Name of the column to predict; None for images.
        environment: Name of the column with the environment of each row; None for images.
        features: Frozen backbone that computes features of images, such as `timm(resnet18, pretrained=true)`,
            or a text encoder. Default: `minilm` for the columns in `text`.
        text: Names of text columns, which are replaced by the features that the text encoder computes.
        task: "binary", "multiclass" or "regression". Default: inferred from the target.
        algorithms: Methods to compare: names, algorithms, predictors or scikit-learn estimators. Three
            ordinary methods are always included: a linear model, boosted trees and a network (ERM).
        candidates: Additional scikit-learn estimators, pipelines or predictors, by names of your choice.
        metric: "accuracy", "balanced accuracy", "AUROC", "log loss", "calibration error", "RMSE" or "R²".
            Default: RMSE for regression; AUROC if the rarer of two classes has less than 20 % of the rows or
            class shares differ between environments; otherwise accuracy.
        n_trials: Number of trials (sampled hyperparameter configurations) per method.
        replicas: Number of replicas (independent runs with their own seeds) per trial.
        exclude: Names of columns not used as inputs.
        sample_weight: Name of the column with case weights, for training and scores: a row of weight 2 counts
            as two rows. Networks sample rows in proportion to their weights.
        ordered: Whether environments are ordered in time, such as years. Models are then trained on earlier
            environments only, and tested on the next one.
        group: Name of the column with the group of each row, such as the patient. Groups are never split
            between training and validation, and confidence intervals come from resampling whole groups. The
            column is not an input.
        subgroups: Names of columns such as sex; scores are also reported for the rows with each of their
            values. Unless excluded, these columns remain inputs. Numbers are divided at their quartiles.
        min_rows: Smallest number of rows of an environment; smaller environments are pooled.
        max_rows: Largest number of rows per environment in the comparison, sampled at random; None: all rows.
        budget: Time limit such as "10m", or a number of seconds. Methods, replicas and trials are added while
            time remains. On a cluster, the limit is checked only between stages. Default: no limit.
        seed: Base random seed.
        encoding: Encoding of a text file.
        missing_values: Strings that represent a missing value in every column. Default: words such as NA, if
            they are rare or occur among numbers; the target and environment columns are exempt.
        workers: Number of processes that train on this machine; the CPU threads are divided among them. None:
            one per thread, but at most 4; one if there is a budget. A script that uses several must be
            protected by `if __name__ == "__main__":`.
        executor: "local", or "ray" for a Ray cluster.
        address: Address of the Ray cluster.
        out: Folder for the study, the report and the model; an existing study is resumed. Default: a
            temporary folder.
        options: Training options of `RunSpec` for all runs: `model`, `steps`, `batch_size`, `optimizer`,
            `weight_decay`, `device`, `precision`, `execution`, `memory`, and so on.

    Returns:
        Comparison with attributes such as `verdict`, `table`, `best_model` and `page`.

    Raises:
        EnvariantError: If the table or an option cannot be used.
    """
    start = time.monotonic()
    limit = math.inf if budget is None else protocol.parse_duration(budget)
    shared = {key: value for key, value in options.items() if key not in EXECUTION_ONLY}
    folder = _check_out(out)
    _check_arguments(
        options, min_rows=min_rows, max_rows=max_rows, encoding=encoding, executor=executor, address=address,
        ordered=ordered, workers=workers,
    )  # fmt: skip
    runs = {"n_trials": n_trials, "replicas": replicas, "seed": seed, "settings": shared}
    methods = _methods(algorithms, candidates or {}, metric, runs)
    full = read(
        data, target, environment, features, text, task=task, exclude=exclude, sample_weight=sample_weight,
        min_rows=max(min_rows, protocol.FEWEST_ROWS), encoding=encoding, missing_values=missing_values,
        ordered=ordered, group=group, subgroups=subgroups,
    )  # fmt: skip
    folder = folder or Path(tempfile.mkdtemp(prefix="envariant-"))
    columns = column_stability(source := TableSource(protocol.subsample(full, max_rows, seed), "table"))
    measured = tuple(c.column for c in columns[:MOST_COLUMNS]) if len(columns) > MOST_COLUMNS else ()
    plan = protocol.plan(
        source, folder.name, list(methods.values()), metric, n_trials, replicas, seed, shared, measured
    )
    print_findings(findings := check_data(full))
    _warn(plan.undefined)
    how = _execution(plan.study, source, options, workers, limit) | {"executor": executor, "address": address}
    results, study = _train(folder, plan, start + _TRAINING_SHARE * limit, how, source.table)
    results = summarized(source, results, study, plan, columns, findings, start + _SHIFTS_SHARE * limit)
    results = explained(source, results, study, plan.tasks, start + _EXPLAINING_SHARE * limit)
    model, lacking = _best_model(results, methods, full, study, source, shared)
    results = _with_missing(results, lacking, _exceeded(time.monotonic() - start, limit))
    return _written(Comparison(folder, results, recommend(results), study, model, time.monotonic() - start))


def _with_missing(results: ComparisonResults, *lines: str | None) -> ComparisonResults:
    """Return the results with sentences on what is missing; empty ones are left out."""
    return replace(results, missing=(*results.missing, *filter(None, lines)))


def _warn(lines: Sequence[str]) -> None:
    for line in lines:
        warnings.warn(f"compare: {line}", EnvariantWarning, stacklevel=3)


def _check_out(out: Path | str | None) -> Path | None:
    """Return the output folder; raise an error if files not written by Envariant would be replaced."""
    if out is None:
        return None
    folder = as_path(out, "out")
    page.check(folder)
    check_model(folder / "model")
    return folder


def _execution(
    study: Study, source: TableSource, options: Mapping[str, Any], workers: int | None, limit: float
) -> dict[str, Any]:
    # With a time limit, each of its stages would start processes.
    jobs = len(study.algorithms) * len(study.test_environments) if math.isinf(limit) else 1
    chosen: dict[str, Any] = {"execution": protocol.choose_execution(study, source) or "auto"}
    chosen["workers"] = workers or default_workers(jobs)
    return chosen | {key: value for key, value in options.items() if key in EXECUTION_ONLY}


def _train(
    folder: Path, plan: protocol.Plan, deadline: float, how: Mapping[str, Any], table: tables.Table
) -> tuple[ComparisonResults, Study]:
    """Train as much as the budget allows; return the results and the completed part of the study."""
    limit = deadline if math.isfinite(deadline) else None

    def run(runs_left: int, until: float | None) -> None:
        train_runs(plan.study, folder, until=until, **how)

    study = protocol.run_within_budget(folder, plan.study, limit, run)
    with Store(folder) as store:
        results = gather(store, study, plan.tasks, plan.metric, table)
    results = replace(
        results,
        missing=(*plan.undefined, *results.missing),
        not_applicable=plan.not_applicable,
        not_tried=tuple(text_of(each) for each in plan.study.algorithms[len(study.algorithms) :]),
        settings=study.to_dict(),
    )
    return results, study


def _exceeded(seconds: float, limit: float) -> str:
    """Warn if the time budget was exceeded, and return the warning; "" if not."""
    if seconds <= limit:
        return ""
    line = (
        f"time budget of {limit:.3g} s exceeded: a comparison of this table takes at least about "
        f"{seconds:.2g} s"
    )
    warnings.warn(f"compare: {line}", EnvariantWarning, stacklevel=3)
    return line


def _data_seeds(study: Study) -> list[int]:
    shared = bool(study.settings.get("shared_init"))
    return [Seeds.of(study.seed, replica, shared_init=shared).data for replica in range(study.replicas)]


def _best_model(
    results: ComparisonResults,
    methods: Mapping[str, Any],
    full: tables.Table,
    study: Study,
    source: TableSource,
    options: Mapping[str, Any],
) -> tuple[SavedModel, str]:
    """Train the recommended method on all rows; return the model and a text on its limitations."""
    best = results.recommended
    trial = study.trials_of(best, source)[results.selected_trials[best]]
    model = protocol.train_final_model(full, methods[best], trial, study.seed, options)
    folds, share = study.test_environments, study.holdout_fraction
    model, lacking = with_serving(model, source, results, folds, share, _data_seeds(study))
    if predictor(methods[best]) is None and uses_validation(options):
        rows = (
            f"the saved model is trained on {1 - share:.0%} of the rows; the others are used for validation"
        )
        lacking = "; ".join(filter(None, (lacking, rows)))
    return model, lacking


def _written(comparison: Comparison) -> Comparison:
    """Write the page and the model; only warn if the model cannot be stored."""
    page.write(comparison.to_dict(), comparison.results, comparison.recommendation, comparison.folder)
    try:
        comparison.best_model.save(comparison.folder / "model")
    except EnvariantError as error:
        warnings.warn(f"compare: the model is not saved: {error}", EnvariantWarning, stacklevel=3)
    return comparison


_ARGUMENTS: Mapping[str, Any] = {
    "min_rows": PositiveInt,
    "max_rows": int | None,
    "encoding": str,
    "executor": Literal["local", "ray"],
    "address": str | None,
    "ordered": bool,
    "workers": Annotated[int | None, Field(ge=1)],
}


def _check_arguments(options: Mapping[str, Any], **arguments: object) -> None:
    """Check all arguments that are not settings of the study, before the table is read."""
    for name, value in arguments.items():
        specs.check_value(value, _ARGUMENTS[name], f"compare: {name}")
    if arguments["address"] is not None and arguments["executor"] != "ray":
        raise EnvariantError(
            "compare: the option 'address' requires executor='ray'; set executor, or remove address"
        )
    check_objects({key: value for key, value in options.items() if key in EXECUTION_ONLY})


def _methods(
    algorithms: Any, candidates: Mapping[str, Any], metric: str | None, runs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return ordinary and requested methods by name; check the metric and the settings first."""
    given = tuple(algorithms) if isinstance(algorithms, list | tuple) else (algorithms,)
    ordinary = tuple(name for name in ORDINARY if name not in map(text_of, given))
    Study(("table",), (*ordinary, *given), **runs)
    methods = {text_of(each): each for each in (*ORDINARY, *given)}
    for name, estimator in candidates.items():
        if name in methods:
            raise EnvariantError(f"compare: candidates: the name '{name}' is taken; choose another name")
        known = predictor(estimator)
        if known is None:
            raise EnvariantError(
                f"compare: candidates: {name} must be a predictor or a scikit-learn estimator; got "
                f"{shown(estimator)}"
            )
        methods[name] = replace(known, name=name) if is_dataclass(known) else known
    metric_name = "" if metric is None else metrics.metric_named(metric).name
    Study(("table",), tuple(methods.values()), metric=metric_name, **runs)
    return methods
