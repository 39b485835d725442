"""Check a table before training; every finding includes a suggested action."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, final

import numpy as np
from numpy.typing import NDArray

from envariant.analysis.data_quality import (
    identifiers,
    local_categories,
    missing_codes,
    missingness_differences,
    naming_columns,
)
from envariant.analysis.leakage import leaky_columns, leaky_group
from envariant.core.console import SafeConsole
from envariant.data.tables.kinds.base import MOST_CLASSES, MOST_LEVELS
from envariant.data.tables.table import Table
from envariant.data.tables.time_order import seems_ordered
from envariant.features.columns import own_columns

Kind = Literal[
    "target leak", "joint target leak", "near leak", "names the environment", "missing by environment",
    "code for missing", "whole-number target", "identifier", "date", "local category", "small environment",
    "one class", "ordered environments",
]  # fmt: skip

NEAR = 0.97
"""Smallest score at which a column is reported as a near leak, if all other columns score far lower."""

# A near leak has at most this share of the error of the best other column.
_AHEAD = 1 / 3
_SMALL = 20
# Targets with fewer distinct integers are treated as class indices, without a finding.
_FEWEST_LEVELS = 5
_MOST_NAMES = 3


@final
@dataclass(frozen=True)
class Finding:
    """Finding of the data check.

    Attributes:
        kind: Kind of the finding, such as "target leak" or "identifier".
        columns: Names of the affected columns; environments are named only in `sentence`.
        sentence: Description of the finding.
        action: Suggested action.
    """

    kind: Kind
    columns: tuple[str, ...]
    sentence: str
    action: str

    def __str__(self) -> str:
        return f"{self.sentence} {self.action}"


def check_data(table: Table) -> tuple[Finding, ...]:
    """Check a table before training; the most consequential findings come first.

    Checks: target leakage by one or several columns, columns that identify the environment, missing values
    that differ between environments, numbers that probably represent missing values, whole-number targets,
    identifiers, dates, categories that occur in one environment only, and environments that are small or
    have only one class.

    Example:
        >>> import numpy as np, pandas as pd
        >>> from envariant.data.tables.table import read
        >>> rng = np.random.default_rng(0)
        >>> casual, registered = rng.poisson(50, size=(2, 400))
        >>> frame = pd.DataFrame({"casual": casual, "registered": registered, "count": casual + registered})
        >>> frame["season"] = np.repeat(["winter", "summer"], 200)
        >>> for finding in check_data(read(frame, "count", "season")):
        ...     print(finding.sentence)
        'casual' and 'registered' together determine count (R² 1.00).
    """
    # A text or an image may determine the target, and its individual features have no meaning.
    table = replace(table, columns=own_columns(table))
    columns = {column.name: column.values for column in table.columns}
    categorical = [column.name for column in table.columns if column.type.categorical]
    environments = np.array(table.environments, dtype=object)[table.environment.values]
    leaks = _leaks(table, columns, categorical)
    naming = _naming(table, columns, environments, categorical)
    named = {name for finding in naming for name in finding.columns}
    findings = [
        *leaks,
        *naming,
        *_missing(table, columns, environments, categorical),
        *_codes(columns, environments, categorical),
        *_target(table),
        *_identifiers(table, columns, categorical, named),
        *_dates(table, named),
        *_local(table, columns, environments, categorical, named),
        *_environments(table),
    ]
    return tuple(findings)


def print_findings(findings: Sequence[Finding]) -> None:
    """Print findings to standard error, one per line."""
    console = SafeConsole(stderr=True, soft_wrap=True)
    for finding in findings:
        console.print(f"{finding.kind}: {finding}")


def _leaks(table: Table, columns: Mapping[str, NDArray[Any]], categorical: Sequence[str]) -> list[Finding]:
    target, task = table.target.name, table.task
    scores = leaky_columns(columns, table.targets(), task=task, categorical=categorical, threshold=0.5)
    leaks = leaky_columns(columns, table.targets(), task=task, categorical=categorical)
    names = tuple(leak.column for leak in leaks)
    findings: list[Finding] = []
    if names:
        verb, it = ("determine", "them") if len(names) > 1 else ("determines", "it")
        findings.append(
            Finding(
                "target leak", names, f"{quoted(names)} alone almost {verb} {target}.",
                f"Exclude {it} if derived from the target or known only afterwards.",
            )
        )  # fmt: skip
    ranked = {
        s.column: s for s in scores if s.measure in ("AUROC", "rank correlation") and s.column not in names
    }
    behind = max((s.score for s in ranked.values() if s.score < NEAR), default=0.5)
    near = tuple(c for c, s in ranked.items() if s.score >= NEAR and 1 - s.score <= _AHEAD * (1 - behind))
    if near:
        best = max((ranked[c] for c in near), key=lambda s: s.score)
        verb, it = ("predict", "they are") if len(near) > 1 else ("predicts", "it is")
        findings.append(
            Finding(
                "near leak", near,
                f"{quoted(near)} alone {verb} {target} far better than other columns ({best.measure} "
                f"{best.score:.3f}).",
                f"Exclude if {it} derived from the target or known only afterwards.",
            )
        )  # fmt: skip
    if task != "multiclass":
        rest = {n: v for n, v in columns.items() if n not in (*names, *near, *categorical)}
        group = leaky_group(rest, table.targets(), task=cast("Any", task))
        if group is not None:
            findings.append(
                Finding(
                    "joint target leak", group.columns,
                    f"{quoted(group.columns)} together determine {target} "
                    f"({group.measure} {group.score:.2f}).",
                    "Exclude them if they are known only with the target.",
                )
            )  # fmt: skip
    return findings


def _naming(
    table: Table, columns: Mapping[str, NDArray[Any]], environments: NDArray[Any], categorical: Sequence[str]
) -> list[Finding]:
    found = tuple(n.column for n in naming_columns(columns, environments, categorical=categorical))
    if not found:
        return []
    verb = "identify" if len(found) > 1 else "identifies"
    return [
        Finding(
            "names the environment", found,
            f"{quoted(found)} {verb} the {table.environment.name}; in a new {table.environment.name}, the "
            f"values are unknown to the model.",
            f"Exclude {quoted(found)}.",
        )
    ]  # fmt: skip


def _missing(
    table: Table, columns: Mapping[str, NDArray[Any]], environments: NDArray[Any], categorical: Sequence[str]
) -> list[Finding]:
    found = missingness_differences(columns, environments, categorical=categorical)
    if not found:
        return []
    worst = max(found, key=lambda each: max(each.shares.values()) - min(each.shares.values()))
    most, least = (f(worst.shares, key=worst.shares.__getitem__) for f in (max, min))
    others = f" ({len(found) - 1} more columns differ)" if len(found) > 1 else ""
    return [
        Finding(
            "missing by environment", tuple(each.column for each in found),
            f"'{worst.column}' is missing in {worst.shares[most]:.0%} of rows at {most}, but "
            f"{worst.shares[least]:.0%} at {least}{others}.",
            f"Exclude columns that a new {table.environment.name} may lack.",
        )
    ]  # fmt: skip


def _codes(
    columns: Mapping[str, NDArray[Any]], environments: NDArray[Any], categorical: Sequence[str]
) -> list[Finding]:
    numeric = {name: values for name, values in columns.items() if name not in categorical}
    findings: list[Finding] = []
    for each in missing_codes(numeric, environments):
        where = max(each.rows, key=each.rows.__getitem__)
        findings.append(
            Finding(
                "code for missing", (each.column,),
                f"'{each.column}' is {each.code:g} in {sum(each.rows.values()):,} rows (most of them at "
                f"{where}); all other values are far from it.",
                f"If {each.code:g} represents a missing value, leave these cells empty.",
            )
        )  # fmt: skip
    return findings


def _target(table: Table) -> list[Finding]:
    name = table.target.name
    if table.task == "regression":
        levels = len(np.unique(table.targets()))
        if levels <= max(MOST_CLASSES, 30) and (table.targets() % 1 == 0).all():
            return [
                Finding(
                    "whole-number target", (name,),
                    f"{name} has {levels} distinct whole numbers and is predicted by regression.",
                    "Request a multiclass task if they are classes without order.",
                )
            ]  # fmt: skip
        return []
    if not _FEWEST_LEVELS <= len(table.classes) <= MOST_LEVELS or not all(c.isdigit() for c in table.classes):
        return []
    return [
        Finding(
            "whole-number target", (name,),
            f"{name} has {len(table.classes)} distinct whole numbers, which are treated as classes.",
            "Request regression if they are counts or grades.",
        )
    ]  # fmt: skip


def _identifiers(
    table: Table, columns: Mapping[str, NDArray[Any]], categorical: Sequence[str], named: set[str]
) -> list[Finding]:
    findings: list[Finding] = []
    removed = tuple(
        entry.column
        for entry in table.preprocessing_log
        if entry.what.startswith("left out: ")
        and ("numbers the rows" in entry.what or "a name, not" in entry.what)
    )
    if removed:
        verb = "hold" if len(removed) > 1 else "holds"
        findings.append(
            Finding(
                "identifier",
                removed,
                f"{quoted(removed)} {verb} names or row numbers.",
                "Nothing; already left out.",
            )
        )
    found = tuple(i.column for i in identifiers(columns, categorical=categorical) if i.column not in named)
    if found:
        verb = "have" if len(found) > 1 else "has"
        findings.append(
            Finding(
                "identifier", found, f"{quoted(found)} {verb} a different value in nearly every row.",
                "Exclude identifiers: a model can only memorize them.",
            )
        )  # fmt: skip
    return findings


def _dates(table: Table, named: set[str]) -> list[Finding]:
    dates = tuple(c.name for c in table.columns if c.kind == "date" and c.name not in named)
    if not dates:
        return []
    verb = "are dates and are" if len(dates) > 1 else "is a date and is"
    return [
        Finding(
            "date", dates, f"{quoted(dates)} {verb} encoded as days and season.",
            "Exclude dates that are recorded after the outcome.",
        )
    ]  # fmt: skip


def _local(
    table: Table, columns: Mapping[str, NDArray[Any]], environments: NDArray[Any],
    categorical: Sequence[str], named: set[str],
) -> list[Finding]:  # fmt: skip
    checked = {name: columns[name] for name in categorical if name not in named}
    labels = {column.name: column.categories for column in table.columns}
    found = local_categories(checked, environments, categorical=categorical)
    if not found:
        return []
    first = found[0]
    names = tuple(labels[first.column][int(code)] for code in first.categories)
    others = f" ({len(found) - 1} more cases)" if len(found) > 1 else ""
    return [
        Finding(
            "local category", tuple(dict.fromkeys(each.column for each in found)),
            f"Only {first.environment} has {quoted(names)} in '{first.column}'{others}.",
            "Merge categories that mean the same.",
        )
    ]  # fmt: skip


def _environments(table: Table) -> list[Finding]:
    sizes = np.bincount(table.environment.values, minlength=len(table.environments))
    findings: list[Finding] = []
    if not table.ordered and seems_ordered(table.environment.name, table.environments):
        findings.append(
            Finding(
                "ordered environments", (table.environment.name,),
                f"{table.environment.name} seems to be a time period, but models are also trained on rows "
                f"from later periods than the test rows.",
                "Request ordered environments to train on past periods and test on the next one.",
            )
        )  # fmt: skip
    small = tuple(n for n, size in zip(table.environments, sizes.tolist(), strict=True) if size < _SMALL)
    if small:
        findings.append(
            Finding(
                "small environment", (table.environment.name,),
                f"{quoted(small)} {'have' if len(small) > 1 else 'has'} fewer than {_SMALL} rows.",
                "Pool small environments; their scores are uncertain.",
            )
        )  # fmt: skip
    if table.task != "regression":
        counts = np.zeros((len(table.environments), len(table.classes)), dtype=np.int64)
        np.add.at(counts, (table.environment.values, table.targets().astype(np.int64)), 1)
        single = tuple(np.array(table.environments, dtype=object)[(counts > 0).sum(axis=1) < 2].tolist())
        if single:
            findings.append(
                Finding(
                    "one class", (table.target.name,),
                    f"{quoted(single)} {'have' if len(single) > 1 else 'has'} one class only.",
                    "AUROC is undefined there; check how rows were selected.",
                )
            )  # fmt: skip
    return findings


def quoted(names: Sequence[str]) -> str:
    """Return a string with up to three quoted names and the number of remaining names."""
    texts = [f"'{name}'" for name in names[:_MOST_NAMES]]
    if len(names) > _MOST_NAMES:
        texts.append(f"{len(names) - _MOST_NAMES} more")
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
