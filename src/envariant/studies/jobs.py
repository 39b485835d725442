"""Jobs: groups of runs of a study that are trained together, as the replicas of one training run.

A job and its results can be sent to other processes and machines.
"""

import warnings
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import numpy as np
from torch import Tensor

from envariant.analysis.invariance_test import assess_invariance
from envariant.core import metrics
from envariant.core.errors import EnvariantWarning
from envariant.core.tasks import Regression
from envariant.studies.permutation_importance import Predict, StudyMeasurements
from envariant.studies.study import Study
from envariant.training.callbacks import RunLabel, run_label
from envariant.training.engine import Evaluated, Stepped
from envariant.training.history import HistoryRow
from envariant.training.record import Record
from envariant.training.replica_stack import Change
from envariant.training.replicas import Seeds
from envariant.training.resolution import resolve
from envariant.training.run import Member, Resumption, Started, run
from envariant.training.store import RunOutcome, Store, StoredRun

# Logits and targets of environments with at most this many rows are cached.
_MOST_ROWS = 200


@final
@dataclass(frozen=True)
class Job:
    """Runs of a study that are trained together.

    Attributes:
        study: Study to which the runs belong.
        runs: Runs of one algorithm on the same data, with the same test environments.
        execution: Execution mode of the runs: the option `execution` of `envariant.train`, or an `Execution`.
        memory: Memory limit of each replica stack, such as "8GB". Default: half of the free memory.
    """

    study: Study
    runs: tuple[StoredRun, ...]
    execution: object = "auto"
    memory: str | float | None = None

    def members(self) -> tuple[Member, ...]:
        """Return the runs as replicas of one training run, each with its options and seeds."""
        shared = {"execution": self.execution, "memory": self.memory}
        specs = {
            stored.run.trial.number: self.study.spec_of(stored.run).but(**shared) for stored in self.runs
        }
        chosen = ((stored, specs[stored.run.trial.number]) for stored in self.runs)
        return tuple(
            Member(s.id, spec, Seeds.of(self.study.seed, s.run.replica, shared_init=spec.shared_init))
            for s, spec in chosen
        )

    def labels(self) -> dict[int, RunLabel]:
        """Return the name and settings of each run, for callbacks."""
        return {stored.id: RunLabel(run_label(stored.id), _settings(stored)) for stored in self.runs}

    def steps(self) -> int:
        """Return the number of updates per run.

        Raises:
            EnvariantError: If options of the study are incompatible.
        """
        return resolve(self.members()[0].spec).config.steps


@final
@dataclass(frozen=True)
class Update:
    """Progress of a job: new metrics, finished runs or completed steps.

    Attributes:
        record: Record of the training run that consists of the job's runs; given only in the first update,
            None in later updates.
        rows: New metrics; `HistoryRow.replica` is the ID of the run.
        outcomes: Results of the runs that have ended.
        step: Number of training updates that each run in `runs` has completed.
        runs: IDs of the runs that made progress.
        event: Training event, to be stored by a `Recorder`; None in the first update.
    """

    record: Record | None = None
    rows: tuple[HistoryRow, ...] = ()
    outcomes: tuple[RunOutcome, ...] = ()
    step: int = 0
    runs: tuple[int, ...] = ()
    event: Stepped | Evaluated | None = field(default=None, compare=False)


def _settings(stored: StoredRun) -> dict[str, str]:
    run, trial = stored.run, stored.run.trial
    plain = {"data": run.data, "algorithm": run.algorithm, "trial": trial.number, "replica": run.replica}
    plain |= {"learning_rate": trial.learning_rate, "test_environments": ", ".join(run.test_environments)}
    return {key: str(value) for key, value in (plain | dict(trial.hyperparameters)).items()}


def perform(job: Job, resumption: Resumption | None = None) -> Generator[Update]:
    """Train the runs of a job, or resume them from checkpoints, and yield their progress.

    Args:
        job: Job with the runs to train.
        resumption: Stored state of the job, including checkpoints. Default: train from the start.

    Raises:
        EnvariantError: If the runs cannot be trained.
    """
    measurements: StudyMeasurements | None = None
    for event in run(job.members(), resumption):
        if isinstance(event, Started):
            task = event.sample.task
            metric = metrics.metric(job.study.metric or task.metric, task)
            roles = event.sample.roles(event.record.spec.test_environments)
            measured = job.study.importance_columns
            columns = {c: own for c, own in event.source.columns.items() if c in measured or not measured}
            details = job.study.store_predictions
            measurements = StudyMeasurements(event.sample, roles, metric, columns, details)
            yield Update(event.record)
        elif isinstance(event, Evaluated) and measurements is not None:
            rows, outcomes = _measured(event, measurements)
            yield Update(None, (*event.rows, *rows), outcomes, event.step, event.replicas, event)
        else:
            yield Update(step=event.step, runs=event.replicas, event=event)


def unfinished(store: Store, study: Study) -> list[int]:
    """Return the IDs of the unfinished jobs whose data set and algorithm are part of the study."""
    first = ((job, store.members(job)[:1]) for job in store.unfinished())
    return [job for job, runs in first if all(study.declares(r.run.data, r.run.algorithm) for r in runs)]


def warn_of_remarks(study: Study) -> None:
    """Issue an `EnvariantWarning` for each remark on a study, such as a schedule that never takes effect.

    A warning is attributed to the code that called the training function, such as `sweep`.

    Args:
        study: Study to be trained.
    """
    for remark in study.remarks():
        warnings.warn(remark, EnvariantWarning, stacklevel=3)


def compared_in(study: Study, record: Record) -> tuple[str, bool]:
    """Return the metric used to compare the runs of a study, and whether higher values are better.

    Args:
        study: Study of the runs.
        record: Record of a job, with the default metric of the task.
    """
    metric = metrics.METRICS[study.metric or record.metric]
    return metric.name, metric.higher_is_better


def _measured(
    event: Evaluated, measurements: StudyMeasurements
) -> tuple[list[HistoryRow], tuple[RunOutcome, ...]]:
    """Return the additional metrics of a study, and the outcomes of finished runs."""
    states = event.checkpoint().states()
    sound = {number for number in event.replicas if states[number].failure is None}
    predict = _cached(event.answers, measurements)
    scores = measurements.scores(predict, event.replicas, event.step)
    # A run that stopped early was measured when it stopped.
    rows = [row for row in scores if states[row.replica].trained == row.step]
    if not event.finished:
        return _of(rows, sound), ()
    # All other values are measured once, with the weights selected by the option `keep`.
    predict = _cached(event.kept_answers or event.answers, measurements)
    importance = measurements.importance(predict, event.replicas, event.step)
    rows += [replace(row, step=states[row.replica].step) for row in importance]
    p_values = _p_values(predict, event.replicas, measurements)
    predictions = measurements.predictions(predict, event.replicas)
    outcomes = [
        RunOutcome(
            number,
            states[number].failure,
            states[number].seconds,
            p_values[k] if number in sound else None,
            predictions[number] if number in sound else (),
        )
        for k, number in enumerate(event.replicas)
    ]
    return _of(rows, sound), tuple(outcomes)


def _cached(predict: Predict, measurements: StudyMeasurements) -> Predict:
    """Return a copy of a prediction function that caches the outputs for all rows of small environments."""
    answers: dict[str, tuple[Tensor, Tensor]] = {}

    def cached(
        name: str, rows: Tensor | None = None, change: Change | None = None, /
    ) -> tuple[Tensor, Tensor]:
        size = len(measurements.sample[name])
        if change is not None or size > _MOST_ROWS or (rows is not None and len(rows) < size):
            return predict(name, rows, change)
        if name not in answers:
            answers[name] = predict(name)
        return answers[name]

    return cached


def _of(rows: Iterable[HistoryRow], runs: set[int]) -> list[HistoryRow]:
    return [row for row in rows if row.replica in runs]


def _p_values(predict: Predict, runs: Sequence[int], measurements: StudyMeasurements) -> list[float | None]:
    """Return each run's p-value of the invariance test on validation rows; None if there are no such rows."""
    names = [name for name, role in measurements.roles.items() if role == "validation"]
    answers = [tuple(part.cpu().numpy() for part in predict(name)) for name in names]
    if not names or measurements.sample.task.target_shape:
        return [None] * len(runs)
    environments = np.repeat(np.arange(len(names)), [y.shape[1] for _, y in answers])
    regression = isinstance(measurements.sample.task, Regression)
    p_values: list[float | None] = []
    for k in range(len(runs)):
        # One run at a time, because the logits of many classes need much memory.
        own = ([part[k] for part in parts] for parts in zip(*answers, strict=True))
        logits, targets = (np.concatenate(parts).astype(np.float64) for parts in own)
        p_values.append(assess_invariance(logits, targets, environments, regression=regression).p_value)
    return p_values
