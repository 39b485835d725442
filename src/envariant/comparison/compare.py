"""`compare`: hold out each environment of a table in turn and recommend a method.

The runs are stored as a study in a folder, which can be resumed and inspected.
"""

import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import pandas as pd
from pydantic import PositiveInt

from envariant.comparison import page, protocol
from envariant.comparison.causes import find_causes
from envariant.comparison.data_check import check_data, print_findings
from envariant.comparison.data_summary import column_stability, summarize
from envariant.comparison.gathering import gather
from envariant.comparison.narrative import Recommendation, recommend
from envariant.comparison.plots import drop_chart
from envariant.comparison.protocol import ALGORITHMS
from envariant.comparison.remedies import find_remedies
from envariant.comparison.results import ORDINARY, ComparisonResults
from envariant.core import metrics, specs
from envariant.core.display import Displayed, Summary
from envariant.core.errors import EnvariantError, EnvariantWarning, shown
from envariant.core.files import as_path
from envariant.data.tables import table as tables
from envariant.data.tables.source import TableSource
from envariant.predictors import predictor
from envariant.saved_model import SavedModel
from envariant.saved_model.folder import check as check_model
from envariant.studies.permutation_importance import MOST_COLUMNS
from envariant.studies.running import train_runs
from envariant.studies.study import Study
from envariant.training.replicas import Seeds
from envariant.training.resolution import check_objects
from envariant.training.run_spec import EXECUTION_ONLY, text_of
from envariant.training.store import Store

MAX_ROWS = 5_000
"""Default largest number of rows per environment in a comparison; the saved model is trained on all rows."""

# Share of the time budget for the study; analysis and the final model use the rest.
_TRAINING_SHARE = 0.75


@final
@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Displayed):
    """Result of `compare`.

    Attributes:
        folder: Folder of the study, the page and the saved model.
        results: Scores, drops and gains of all methods, and measurements on the data.
        recommendation: Headline, facts and next steps.
        study: Settings of all runs.
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
        """Headline and at most four facts, one per line."""
        return self.recommendation.text

    @property
    def recommended(self) -> str:
        """Recommended method; the baseline if no other method is significantly better."""
        return self.recommendation.algorithm

    @property
    def page(self) -> Path:
        """Path of the HTML report."""
        return self.folder / "report.html"

    @property
    def table(self) -> pd.DataFrame:
        """Out-of-domain scores: one row per method, one column per environment, and the worst and mean.

        Absent scores are NaN; so are worst and mean if any score of the method is absent.
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
        """Return verdict, numbers and paths as a JSON-compatible dictionary."""
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
        """Return an Altair chart of in-domain and out-of-domain scores, one row per environment.

        It shows the baseline and the recommended method, or the baseline and the best other method.
        """
        return drop_chart(self.results, self.recommended)

    def to_frame(self) -> pd.DataFrame:
        """Return mean, standard deviation and number of replicas of the out-of-domain scores.

        One row per method; the columns have two levels, as in `ScoreTable.to_frame`. `table` has means only.
        """
        return self.results.scores().to_frame()

    def to_markdown(self, **options: Any) -> str:
        """Return the out-of-domain scores as a Markdown table, as papers print them.

        Args:
            options: Options of `ScoreTable.to_markdown`: `digits`, `percent`.
        """
        return self.results.scores().to_markdown(**options)

    def to_latex(self, **options: Any) -> str:
        """Return the out-of-domain scores as a LaTeX table, as papers print them.

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
    target: Any,
    environment: Any,
    task: str | None = None,
    algorithms: Sequence[Any] = ALGORITHMS,
    candidates: Mapping[str, Any] | None = None,
    metric: str | None = None,
    n_trials: int = 2,
    replicas: int = 5,
    exclude: Sequence[Any] = (),
    sample_weight: Any = None,
    min_rows: int = 50,
    max_rows: int | None = MAX_ROWS,
    budget: str | float | None = None,
    seed: int = 0,
    encoding: str = "utf-8",
    missing_values: Sequence[str] | None = None,
    executor: Literal["local", "ray"] = "local",
    address: str | None = None,
    out: Path | str | None = None,
    **options: Any,
) -> Comparison:
    """Measure how far scores drop in new environments, and whether any method helps.

    Every environment is held out in turn (several together if there are more than 12). Replicas of every
    method are trained on the other environments. Hyperparameters are chosen by invariance selection on
    validation rows of the training environments, never on test environments. The baseline is the best
    ordinary model by in-domain scores.

    Args:
        data: Path (.csv, .parquet, .xlsx, .json, …) or data frame of pandas, polars or Arrow.
        target: Name of the column to predict.
        environment: Name of the column with the environment of each row.
        task: "binary", "multiclass" or "regression". Default: inferred from the target.
        algorithms: Methods to compare: names, algorithms, predictors or scikit-learn estimators. Ordinary
            methods are always included: a linear model, boosted trees and a regularized network (ERM).
        candidates: Additional scikit-learn estimators, pipelines or predictors, by a name of your choice.
        metric: "accuracy", "balanced accuracy", "AUROC", "log loss", "calibration error", "RMSE" or "R²".
            Default: RMSE for regression, AUROC if the rarer of two classes is below 20 %, else accuracy.
        n_trials: Number of trials (sampled hyperparameter configurations) per method.
        replicas: Number of replicas (independent runs with their own seeds) per trial.
        exclude: Names of columns not used as inputs.
        sample_weight: Name of the column with sampling weights for training; scores are unweighted.
        min_rows: Smallest number of rows per environment; smaller environments are pooled.
        max_rows: Largest number of rows per environment in the comparison, sampled at random; None: all rows.
        budget: Time limit such as "10m", or seconds; trials are added while time remains. Runs on a cluster
            stop only between two stages. Default: no limit.
        seed: Base random seed.
        encoding: Encoding of a text file.
        missing_values: Strings that represent a missing value in every column. Default: words such as NA if
            they are rare or occur among numbers, except in the target and environment column.
        executor: "local", or "ray" for a Ray cluster.
        address: Address of the Ray cluster.
        out: Folder for the study, the page and the model; an existing study is resumed. Default: a temporary
            folder.
        options: Training options of `RunSpec` for all runs: `model`, `steps`, `batch_size`, `optimizer`,
            `weight_decay`, `device`, `precision`, `execution`, `memory`, and so on.

    Returns:
        The comparison, with `.verdict`, `.table`, `.best_model` and `.page`.

    Raises:
        EnvariantError: If the table or an option cannot be used.
    """
    start = time.monotonic()
    deadline = None if budget is None else start + _TRAINING_SHARE * protocol.parse_duration(budget)
    shared = {key: value for key, value in options.items() if key not in EXECUTION_ONLY}
    folder = _check_out(out)
    _check_arguments(
        options, min_rows=min_rows, max_rows=max_rows, encoding=encoding, executor=executor, address=address
    )
    runs = {"n_trials": n_trials, "replicas": replicas, "seed": seed, "settings": shared}
    methods = _methods(algorithms, candidates or {}, metric, runs)
    full = tables.read(
        data, target, environment, task=task, exclude=exclude, sample_weight=sample_weight,
        min_rows=max(min_rows, protocol.FEWEST_ROWS), encoding=encoding, missing_values=missing_values,
    )  # fmt: skip
    folder = folder or Path(tempfile.mkdtemp(prefix="envariant-"))
    source = TableSource(protocol.subsample(full, max_rows, seed), "table")
    columns = column_stability(source)
    measured = tuple(c.column for c in columns[:MOST_COLUMNS]) if len(columns) > MOST_COLUMNS else ()
    plan = protocol.plan(
        source, folder.name, list(methods.values()), metric, n_trials, replicas, seed, shared, measured
    )
    print_findings(findings := check_data(full))
    _warn(plan.undefined)
    run = _runner(folder, plan.study, _execution(plan.study, source, options), executor, address)
    results, study = _train(folder, plan, deadline, run)
    hardest = results.hardest_first()
    data = summarize(source, study.test_environments, plan.baseline_scores, columns, hardest, seed, findings)
    results = _explained(source, replace(results, data=data), study)
    model = _best_model(results, methods, full, study, source, shared)
    recommendation = recommend(results)
    comparison = Comparison(folder, results, recommendation, study, model, time.monotonic() - start)
    page.write(comparison.to_dict(), results, recommendation, folder)
    _save(model, folder)
    return comparison


def _warn(lines: Sequence[str]) -> None:
    for line in lines:
        warnings.warn(f"compare: {line}", EnvariantWarning, stacklevel=3)


def _check_out(out: Path | str | None) -> Path | None:
    """Return the output folder after checking that only files written by Envariant would be replaced."""
    if out is None:
        return None
    folder = as_path(out, "out")
    page.check(folder)
    check_model(folder / "model")
    return folder


def _execution(study: Study, source: TableSource, options: Mapping[str, Any]) -> dict[str, Any]:
    chosen = {"execution": protocol.choose_execution(study, source) or "auto"}
    return chosen | {key: value for key, value in options.items() if key in EXECUTION_ONLY}


def _train(
    folder: Path, plan: protocol.Plan, deadline: float | None, run: protocol.Run
) -> tuple[ComparisonResults, Study]:
    """Train what the budget allows; return the results and the study with the completed trials."""
    study = protocol.run_within_budget(folder, plan.study, deadline, run)
    with Store(folder) as store:
        results = gather(store, study, plan.tasks, plan.metric)
    results = replace(
        results,
        missing=(*plan.undefined, *results.missing),
        not_applicable=plan.not_applicable,
        not_tried=tuple(text_of(each) for each in plan.study.algorithms[len(study.algorithms) :]),
        settings=study.to_dict(),
    )
    return results, study


def _explained(source: TableSource, results: ComparisonResults, study: Study) -> ComparisonResults:
    """Add the reasons for the baseline's drops, and measured remedies, unless the table is too large."""
    if protocol.is_large(source):
        line = "causes and remedies: not measured, because the table has too many classes or inputs"
        return replace(results, missing=(*results.missing, line))
    seeds = [Seeds.of(study.seed, replica).data for replica in range(study.replicas)]
    folds, share = study.test_environments, study.holdout_fraction
    causes = find_causes(source, results, folds, share, seeds, seed=study.seed)
    results = replace(results, causes=causes)
    remedies = find_remedies(source, results, causes, folds, share, seeds, seed=study.seed)
    return replace(results, remedies=remedies)


def _best_model(
    results: ComparisonResults,
    methods: Mapping[str, Any],
    full: tables.Table,
    study: Study,
    source: TableSource,
    options: Mapping[str, Any],
) -> SavedModel:
    """Train the recommended method on all rows of the table."""
    best = results.recommended
    trial = study.trials_of(best, source)[results.selected_trials[best]]
    return protocol.train_final_model(full, methods[best], trial, study.seed, options)


def _save(model: SavedModel, folder: Path) -> None:
    """Save the model; if it cannot be saved, issue a warning, so that the comparison is not lost."""
    try:
        model.save(folder / "model")
    except EnvariantError as error:
        warnings.warn(f"compare: the model is not saved: {error}", EnvariantWarning, stacklevel=3)


_ARGUMENTS: Mapping[str, Any] = {
    "min_rows": PositiveInt,
    "max_rows": int | None,
    "encoding": str,
    "executor": Literal["local", "ray"],
    "address": str | None,
}


def _check_arguments(options: Mapping[str, Any], **arguments: object) -> None:
    """Check arguments that are not settings of the study, before the table is read."""
    for name, value in arguments.items():
        specs.check_value(value, _ARGUMENTS[name], f"compare: {name}")
    if arguments["address"] is not None and arguments["executor"] != "ray":
        raise EnvariantError("compare: address needs executor='ray'; leave it out, or set both")
    check_objects({key: value for key, value in options.items() if key in EXECUTION_ONLY})


def _methods(
    algorithms: Any, candidates: Mapping[str, Any], metric: str | None, runs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the ordinary and the requested methods by name, after a check of metric and settings."""
    given = tuple(algorithms) if isinstance(algorithms, list | tuple) else (algorithms,)
    ordinary = tuple(name for name in ORDINARY if name not in map(text_of, given))
    Study(("table",), (*ordinary, *given), **runs)
    methods = {text_of(each): each for each in (*ORDINARY, *given)}
    for name, estimator in candidates.items():
        if name in methods:
            raise EnvariantError(f"compare: candidates: '{name}' is the name of another method; choose one")
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


def _runner(
    folder: Path,
    study: Study,
    execution: Mapping[str, Any],
    executor: Literal["local", "ray"],
    address: str | None,
) -> protocol.Run:
    def run(runs_left: int, deadline: float | None) -> None:
        train_runs(study, folder, executor=executor, address=address, until=deadline, **execution)

    return run
