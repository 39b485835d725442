"""Analyze a comparison after training: data summary, expected scores, causes of score drops, and remedies."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain

from envariant.analysis.column_stability import ColumnStability
from envariant.comparison import protocol
from envariant.comparison.causes import find_causes
from envariant.comparison.data_check import Finding
from envariant.comparison.data_summary import summarize
from envariant.comparison.expected_scores import ExpectedScores, expected_scores
from envariant.comparison.remedies import Remedy, ranked, remedies_by_environment
from envariant.comparison.results import ComparisonResults
from envariant.comparison.subgroups import find_subgroups
from envariant.core.tasks import Task
from envariant.data.tables.source import TableSource
from envariant.studies.study import Study
from envariant.training.replicas import Seeds


def summarized(
    source: TableSource,
    results: ComparisonResults,
    study: Study,
    plan: protocol.Plan,
    columns: Sequence[ColumnStability],
    findings: Sequence[Finding],
    until: float,
) -> ComparisonResults:
    """Add a summary of the table, such as shift and column stability, to the results."""
    data = summarize(
        source,
        study.test_environments,
        plan.baseline_scores,
        columns,
        results.hardest_first(),
        study.seed,
        findings,
        until,
    )
    return replace(results, data=data)


def explained(
    source: TableSource,
    results: ComparisonResults,
    study: Study,
    tasks: Mapping[str, Task],
    until: float,
) -> ComparisonResults:
    """Add subgroup scores, expected scores, reasons for drops and remedies to the results.

    If the table has too many classes or inputs, only subgroup scores are added.
    """
    shared = bool(study.settings.get("shared_init"))
    seeds = [Seeds.of(study.seed, k, shared_init=shared).data for k in range(study.replicas)]
    folds, share = study.test_environments, study.holdout_fraction
    results = replace(results, subgroups=find_subgroups(source, results, folds, share, seeds))
    if protocol.is_large(source):
        line = (
            "expected scores, causes and remedies: not measured, because there are too many classes or inputs"
        )
        return replace(results, missing=(*results.missing, line))
    causes = find_causes(source, results, folds, share, seeds, seed=study.seed, until=until)
    results = replace(results, causes=causes)
    if source.table.group is None:
        results = replace(results, expected=_expected(results, tasks, share))
    else:
        line = "expected scores: not computed, because rows of a group are not independent"
        results = replace(results, missing=(*results.missing, line))
    remedies: list[list[Remedy]] = []
    for each in remedies_by_environment(source, results, causes, folds, share, seeds, seed=study.seed):
        remedies.append(each)
        if time.monotonic() > until:
            break
    missing = results.missing
    if time.monotonic() > until:
        missing += (
            f"the time budget was sufficient for causes of the drop in {len(causes)}, remedies in "
            f"{len(remedies)} and shifts in {len(results.data.shifts)} of {len(results.baseline)} "
            f"environments",
        )
    return replace(results, remedies=ranked(chain.from_iterable(remedies)), missing=missing)


def _expected(results: ComparisonResults, tasks: Mapping[str, Task], share: float) -> ExpectedScores:
    """Compute the expected scores of the baseline in all environments."""
    rows = {e: results.rows[m, e] for m, e in results.rows if m == results.baseline_method}
    out_of_domain = {name: own.out_of_domain for name, own in rows.items() if own.out_of_domain}
    validation = {name: rows[name].others for name in out_of_domain}
    return expected_scores(results.metric, tasks, out_of_domain, validation, holdout_fraction=share)
