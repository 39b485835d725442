"""`soup`: average the weights of the replicas of a run, or of the runs of a study."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from envariant.core.environments import EnvironmentSet
from envariant.core.errors import EnvariantError, listed
from envariant.studies.study_results import StudyResults, evaluated
from envariant.training import checkpoint as checkpoints
from envariant.training.record import Record
from envariant.training.resolution import source_of
from envariant.training.result import TrainingResult
from envariant.training.soup import Soup, sample_of, soup_of
from envariant.training.store import Store
from envariant.training.store.records import record_of_run

_COLUMNS = {"algorithm": "algorithms", "data": "data sets", "test_environments": "sets of test environments"}


def soup(
    result: TrainingResult | StudyResults,
    rule: Literal["uniform", "greedy"] = "uniform",
    *,
    algorithm: str = "",
    test_environments: Sequence[str] | None = None,
    data: Any = None,
) -> Soup:
    """Average the weights of networks that were trained with `shared_init=True`.

    Args:
        result: Result of a run or a study. For a run, its replicas are averaged; for a study, all trials and
            replicas of one algorithm.
        rule: "uniform" averages all networks. "greedy" considers networks in order of decreasing mean
            validation score, and adds each network that does not worsen the soup's score on all validation
            rows.
        algorithm: Algorithm whose networks are averaged; required if the study has several algorithms.
        test_environments: Test environments of the runs to average; required if the study has several sets of
            test environments.
        data: Data on which the networks were trained. Default: the data in memory, or else the data with the
            stored name. Required if neither is available.

    Raises:
        EnvariantError: If the networks cannot be averaged, or the arguments do not determine the runs or
            their data.

    Example:
        >>> import envariant
        >>> options = {"steps": 20, "batch_size": 8, "replicas": 2, "shared_init": True}
        >>> result = envariant.train("colored-digits", "erm", **options)
        >>> envariant.soup(result).selected
        ('0', '1')
    """
    if isinstance(result, TrainingResult):
        labels = None
    elif isinstance(result, StudyResults):
        result, labels = _of_study(result, algorithm, test_environments)
    else:
        raise EnvariantError(f"soup: needs a TrainingResult or StudyResults; got {type(result).__name__}")
    sample = result.sample if data is None else None
    return soup_of(result, rule, sample or _sample(result.record, data), labels)


def _sample(record: Record, data: Any) -> EnvironmentSet:
    try:
        source = source_of(record.spec.data if data is None else data)
    except EnvariantError:
        if data is not None:
            raise
        raise EnvariantError(f"soup: cannot load the data '{record.spec.data}' by name; pass data") from None
    return sample_of(record, source)


def _of_study(
    results: StudyResults, algorithm: str, test_environments: Sequence[str] | None
) -> tuple[TrainingResult, dict[int, str]]:
    """Return the finished runs of one algorithm as the replicas of one result, and their labels."""
    runs = evaluated(results.runs).drop_duplicates("run")
    runs = runs[runs["algorithm"] == algorithm] if algorithm else runs
    if test_environments is not None:
        runs = runs[runs["test_environments"] == tuple(test_environments)]
    if runs.empty:
        raise EnvariantError("soup: the study has no finished run of this algorithm and these environments")
    for column, what in _COLUMNS.items():
        if len(values := list(runs[column].unique())) > 1:
            raise EnvariantError(f"soup: the study has several {what}; choose one of {listed(values)}")
    chosen = [int(run) for run in runs["run"]]
    with Store(results.folder) as store:
        jobs = store.jobs_of(chosen)
        record = record_of_run(store, chosen[0])
        saved = [
            each for job in sorted(set(jobs.values())) for each in checkpoints.load(store.checkpoints(job))
        ]
    assert record is not None
    states = {run: state for each in saved for run, state in each.states().items() if run in jobs}
    names = zip(runs["trial"], runs["replica"], strict=True)
    labels = {run: f"trial {trial} replica {k}" for run, (trial, k) in zip(chosen, names, strict=True)}
    record = replace(record, spec=record.spec.but(replicas=len(states)))
    return TrainingResult(record, (), states), labels
