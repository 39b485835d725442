"""`score_table`: collect the scores of several runs in one table, as in papers."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, cast

from envariant.core.errors import EnvariantError
from envariant.core.score_table import ScoreTable
from envariant.reporting.labels import labels
from envariant.training.result import TrainingResult


def score_table(
    results: Sequence[TrainingResult] | Mapping[str, TrainingResult | Sequence[TrainingResult]],
) -> ScoreTable:
    """Return the final scores of several runs: one row per method, one column per environment.

    If the runs have different data or environments, or different test environments (leave-one-domain-out),
    there is one column per set of test environments. All runs of a method then share one row. Otherwise,
    there is one column for every environment. If several columns are test environments, an additional last
    column, "average", contains the average over them.

    Args:
        results: Results of the runs: a list, or a mapping whose keys are names of methods and whose values
            are one result or a list of results.

    Raises:
        EnvariantError: If there is no run, the runs have different metrics, or a method has two runs with the
            same test environments.

    Example:
        >>> import envariant
        >>> erm = envariant.train("colored-digits", "erm", steps=20)
        >>> groupdro = envariant.train("colored-digits", "groupdro", steps=20)
        >>> list(envariant.score_table([erm, groupdro]).to_frame().index)
        ['erm', 'groupdro']
    """
    named = _named(results)
    if not named:
        raise EnvariantError("score_table: needs at least one run")
    records = [result.record for _, result in named]
    if len({record.metric for record in records}) > 1:
        raise EnvariantError("score_table: the runs have different metrics; make one table for each metric")
    several = len({record.spec.data for record in records}) > 1
    are_alike = (
        not several and len({(record.test_environments, tuple(record.roles)) for record in records}) == 1
    )
    values: dict[str, dict[str, dict[int, float]]] = {}
    for name, result in named:
        row = values.setdefault(name, {})
        for column, scores in _columns(result, with_data=several, single=are_alike).items():
            if column in row:
                raise EnvariantError(
                    f"score_table: two runs of {name} have the same environments ({column}); give each a "
                    f"name, in a mapping"
                )
            row[column] = scores
    columns = tuple(dict.fromkeys(column for row in values.values() for column in row))
    tests = tuple(f"{name} (test)" for name in records[0].test_environments)
    return ScoreTable(
        records[0].metric,
        records[0].higher_is_better,
        values,
        columns,
        "Scores by environment" if are_alike else "Scores in the test environments",
        tests if are_alike else None,
    )


def _named(
    results: Sequence[TrainingResult] | Mapping[str, TrainingResult | Sequence[TrainingResult]],
) -> list[tuple[str, TrainingResult]]:
    """Return all runs in a list, each with the name of its row in the table."""
    if isinstance(results, Mapping):
        given = cast("Mapping[str, Any]", results)
        several = {name: [each] if isinstance(each, TrainingResult) else each for name, each in given.items()}
        return [(name, result) for name, group in several.items() for result in group]
    names = [result.record.spec.algorithm for result in results]
    keys = [(n, r.record.spec.data, r.record.test_environments) for n, r in zip(names, results, strict=True)]
    if len(set(keys)) < len(keys):
        names = labels(results)
    return list(zip(names, results, strict=True))


def _columns(result: TrainingResult, *, with_data: bool, single: bool) -> dict[str, dict[int, float]]:
    """Return the columns of a run: for each column name, the score of every replica by index."""
    record = result.record

    def scores(name: str) -> dict[int, float]:
        return dict(zip(result.finished, result.final(name, record.metric).values, strict=True))

    if single:
        return {f"{name} ({role})": scores(name) for name, role in record.roles.items()}
    test = ", ".join(record.test_environments) or "none"
    parts = [scores(name) for name in record.test_environments]
    label = f"{record.spec.data}: {test}" if with_data else test
    return {label: {k: fmean(part[k] for part in parts) for k in result.finished} if parts else {}}
