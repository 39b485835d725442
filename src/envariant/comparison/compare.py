"""`compare`: a table in, an answer out. Every place is held out in its turn, and nothing peeks at it.

What is trained is a study like any other, in a folder: killed and called again it goes on, and its runs can
be looked at one by one. The answer is a page, a model and a paragraph.
"""

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import pandas as pd

from envariant.analysis.column_stability import ColumnStability, stability
from envariant.analysis.distribution_shift import Shift, between
from envariant.analysis.statistics import interval
from envariant.comparison import baselines, page, protocol
from envariant.comparison.narrative import Verdict, drop, verdict
from envariant.comparison.protocol import ALGORITHMS
from envariant.comparison.results import Evidence, gather
from envariant.core import specs
from envariant.core.errors import EnvariantError
from envariant.data.tables import source as table_source
from envariant.data.tables import table as tables
from envariant.data.tables.source import TableSource
from envariant.data.tables.table import LogEntry
from envariant.saved_model import SavedModel
from envariant.studies.executors import local, ray
from envariant.studies.significance import BASELINE
from envariant.studies.study import Study
from envariant.training.execution import Execution
from envariant.training.store import Store

ROWS = 5_000
"""Of each environment, that are compared on; the model that is kept learns from all."""

# Of the time there is, for training; the rest is for what comes after.
_SHARE = 0.75
_TRIALS = 2


@final
@dataclass(frozen=True, eq=False)
class Answer:
    """What a comparison found.

    Attributes:
        folder: where the study, the page and the model are.
        target, environment: names of the two columns.
        evidence: numbers.
        words: the verdict.
        columns: how stable each column's relation with the target is, the least stable first.
        shifts: of each place against all others.
        account: what was done to each column.
        study: what was run.
        seconds: it took, in all.
    """

    folder: Path
    target: str
    environment: str
    evidence: Evidence
    words: Verdict
    columns: tuple[ColumnStability, ...]
    shifts: Mapping[str, Shift]
    preprocessing_log: tuple[LogEntry, ...]
    study: Study
    seconds: float

    @property
    def verdict(self) -> str:
        """One plain paragraph."""
        return self.words.paragraph

    @property
    def recommended(self) -> str:
        """The algorithm to use: `erm` where no other helps beyond noise."""
        return self.words.recommended

    @cached_property
    def best_model(self) -> SavedModel:
        """The recommended algorithm's model, trained on all environments."""
        return SavedModel.load(self.folder / "model")

    @property
    def page(self) -> Path:
        """The report."""
        return self.folder / "report.html"

    @property
    def table(self) -> pd.DataFrame:
        """A line a method, a column a place that its models never saw, and the worst and the mean of them."""
        found = self.evidence
        lines = {
            method: {
                **{place: cells[place].score.mean if place in cells else np.nan for place in found.places},
                # Of a method that was not tried everywhere they would compare with nothing.
                "worst": found.worst(method)[1].score.mean if found.whole(method) else np.nan,
                "mean": found.mean(method) if found.whole(method) else np.nan,
            }
            for method, cells in self.evidence.cells.items()
        }
        frame = pd.DataFrame.from_dict(lines, orient="index")
        frame.index.name = self.evidence.metric.name
        return frame

    def to_dict(self) -> dict[str, Any]:
        """One object for `--json`."""
        found = self.evidence
        return {
            "verdict": self.verdict,
            "recommended": self.recommended,
            "next": list(self.words.next),
            "metric": found.metric.name,
            "rows": dict(found.rows),
            "always saying the usual": dict(found.guess),
            "methods": {
                method: {
                    place: {
                        "score": asdict(cell.score),
                        "inside": asdict(cell.inside),
                        "drop": drop(found, cell)[0],
                        "gain over erm": None if cell.gain is None else asdict(cell.gain),
                        "p": cell.p_value,
                    }
                    for place, cell in cells.items()
                }
                for method, cells in found.cells.items()
            },
            "giving away": list(found.giving_away),
            "columns": [
                {
                    "column": c.column,
                    "kind": c.kind,
                    "slopes": dict(c.slopes),
                    "p": c.p_value,
                    "reliance": {
                        method: asdict(own[c.column])
                        for method, own in found.reliance.items()
                        if c.column in own
                    },
                }
                for c in self.columns
            ],
            "shifts": {
                place: {
                    "kind": s.kind,
                    **{
                        key: getattr(s, key).mean
                        for key in ("diversity", "correlation", "label", "covariate")
                    },
                }
                for place, s in self.shifts.items()
            },
            "preprocessing_log": [asdict(line) for line in self.preprocessing_log],
            "missing": list(found.missing),
            "folder": str(self.folder),
            "page": str(self.page),
            "seconds": round(self.seconds, 1),
        }

    def _repr_html_(self) -> str:
        return page.fragment(self)


def compare(
    data: Any,
    *,
    target: str,
    environment: str,
    task: str | None = None,
    algorithms: Sequence[str] = ALGORITHMS,
    metric: str | None = None,
    n_trials: int = 4,
    replicas: int = 5,
    exclude: Sequence[str] = (),
    weights: str | None = None,
    least: int = 50,
    rows: int | None = ROWS,
    budget: str | float | None = None,
    seed: int = 0,
    encoding: str = "utf-8",
    executor: Literal["local", "ray"] = "local",
    address: str | None = None,
    out: Path | str | None = None,
) -> Answer:
    """Whether performance drops at a place that was not trained on, and whether any method helps.

    Each environment is held out in its turn (several at a time where there are more than 12), replicas of
    every method are trained on the others, and each method's hyperparameters are chosen by invariance
    selection on held-out rows of those others; nothing that chooses sees the place that is held out.

    Args:
        data: a path (.csv, .parquet) or a data frame of pandas, polars or Arrow.
        target: the column to predict.
        environment: the column that says where a row came from.
        task: binary, multiclass or regression; None infers it.
        algorithms: to compare; ERM is always among them.
        metric: accuracy, balanced accuracy, AUROC, log loss, calibration error, RMSE or R²; None takes
            accuracy for classes, AUROC where one of two is rarer than a fifth, RMSE for numbers.
        n_trials: of hyperparameters of each algorithm.
        replicas: of each draw.
        exclude: columns that no model may look at.
        weights: the column that says how often a row is drawn in training; measured are all rows alike.
        least: rows that an environment needs; smaller ones are pooled.
        rows: of each environment to compare on, drawn at random; None takes all.
        budget: time there is, such as `10m`; more draws are tried as long as it lasts. A cluster is only
            asked to stop between two rounds of draws.
        seed: from which everything that is drawn follows.
        encoding: of a text file.
        executor: local, or ray for a cluster.
        address: of the cluster.
        out: a folder; the same call again goes on there. None is a temporary one.

    Returns:
        The answer: `.verdict`, `.table`, `.best_model`, `.page`.

    Raises:
        EnvariantError: the table cannot be used; the message says why and what to do.
    """
    started = time.monotonic()
    until = None if budget is None else started + _SHARE * protocol.seconds_of(budget)
    names = tuple(dict.fromkeys((BASELINE, *algorithms)))
    least = max(least, protocol.FEWEST)
    whole = tables.read(
        data, target, environment, task=task, exclude=exclude, sample_weight=weights, min_rows=least, encoding=encoding
    )
    folder = Path(tempfile.mkdtemp(prefix="envariant-")) if out is None else Path(out)
    part = protocol.thinned(whole, rows, seed)
    stored = (folder / "table").resolve()
    source = TableSource(part, "table")
    wanted = protocol.usual_metric(metric, part, source)
    test_environments = protocol.places_at_a_time(part)
    fit, left_out = protocol.fitting(names, test_environments, len(part.environments))
    study = Study(
        data=(str(specs.Spec(table_source.NAME, (str(stored),))),),
        algorithms=fit,
        name=folder.name,
        n_trials=n_trials,
        replicas=replicas,
        test_environments=test_environments,
        seed=seed,
        settings={"evaluate_every": table_source.STEPS},
        metric=wanted.name,
        store_predictions=True,
    )
    guess = baselines.guesses(part, source.task, wanted, test_environments)
    tasks = {place: task for place, task in protocol.tasks(part, test_environments).items() if place in guess}
    if not tasks:
        raise EnvariantError(
            f"compare: {wanted.name} is not defined at any {environment}: each has one class only; take "
            f"another metric"
        )
    protocol.keep(part, stored)
    execution = protocol.execution(study, part, source)
    complete = protocol.staged(folder, study, until, _runner(folder, execution, executor, address))
    with Store(folder) as store:
        found = gather(store, study, tasks, wanted, complete)
    study = replace(study, n_trials=complete)
    left_out += tuple(
        f"{place}: {wanted.name} is not defined there, where there is one class only"
        for place in part.environments
        if place not in tasks
    )
    found = replace(
        found,
        missing=(*left_out, *found.missing),
        rows=baselines.rows(part),
        # Shares of classes are as well calibrated as can be, and say nothing of a row.
        guess={} if wanted.name == "calibration error" else guess,
        only=baselines.only(part, source.task, test_environments),
        giving_away=baselines.giving_away(part),
        environment=environment,
    )
    columns = stability(source.sample(0), source.columns)
    shifts = _shifts(source, seed)
    words = verdict(found, columns, shifts, target)
    spent = time.monotonic() - started
    answer = Answer(
        folder, target, environment, found, words, columns, shifts, part.preprocessing_log, study, spent
    )
    page.write(answer)
    trial = study.trials_of(words.recommended, source)[found.n_trials[words.recommended]]
    kept = protocol.model(whole, words.recommended, dict(trial.hyperparameters), trial.learning_rate, seed)
    kept.save(folder / "model")
    return answer


def _runner(folder: Path, execution: Execution | None, executor: str, address: str | None) -> protocol.Run:
    def run(left: int, until: float | None) -> None:
        with watching(folder.name, left, folder) as on_progress:
            if executor == "ray":
                ray.sweep(folder, address=address, on_progress=on_progress)
            else:
                local.sweep(folder, execution=execution or "auto", on_progress=on_progress, until=until)

    return run


def _shifts(source: TableSource, seed: int) -> dict[str, Shift]:
    """Of each environment against all others together; none where there are too few rows to say."""
    drawn = source.sample(0)
    found: dict[str, Shift] = {}
    for environment in drawn.environments:
        others = [each for each in drawn.environments if each is not environment]
        with suppress(EnvariantError):
            trials = [between(others, [environment], drawn.task, seed + k) for k in range(_TRIALS)]
            parts = map(interval, zip(*trials, strict=True))
            found[environment.name] = Shift("the others", environment.name, *parts)
    return found
