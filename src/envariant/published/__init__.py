"""Published results and protocols, stored in `results.toml`.

For every table, the file states the source, the kind of spread (such as the standard deviation), and the
number of runs. Reports show these facts.
"""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, final

from pydantic import BaseModel, ConfigDict

from envariant.core.errors import unknown_name


@final
class Source(BaseModel):
    """Publication that contains results.

    Attributes:
        title: Title of the publication.
        authors: Names of the authors.
        url: Web address of the publication.
        checked: Description of how the results were read from the publication and checked.
        year: Year of publication, if known.
    """

    model_config = ConfigDict(frozen=True)
    title: str
    authors: str
    url: str
    checked: str
    year: int | None = None


@final
class Row(BaseModel):
    """Row of a published table.

    Attributes:
        mean: Mean score in each column; NaN if the publication gives no value.
        spread: Spread of the scores in each column; None if the publication gives no spreads.
        theory: Whether the values are theoretical instead of measured.
    """

    model_config = ConfigDict(frozen=True)
    mean: tuple[float, ...]
    spread: tuple[float, ...] | None = None
    theory: bool = False


@final
class Table(BaseModel):
    """Published table of results.

    Attributes:
        source: Name of the publication; the function `source` returns its details.
        protocol: Name of the protocol under which the runs were trained.
        metric: Name of the metric.
        unit: Unit of the values, "percent" or "fraction", as in the publication.
        columns: Names of the columns.
        spread_kind: What the spreads measure, such as standard deviation.
        n_runs: Number of runs over which each mean was computed; None if not stated.
        higher_is_better: Whether higher values are better.
        rows: Rows by name.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    source: str
    protocol: str
    metric: str
    unit: str = ""
    columns: tuple[str, ...]
    spread_kind: str
    n_runs: int | None = None
    higher_is_better: bool | None = None
    rows: Mapping[str, Row]

    def fraction(self, row: str, column: str) -> tuple[float, float | None]:
        """Return the mean and spread in one cell of the table as fractions; percentages are divided by 100.

        Args:
            row: Name of the row.
            column: Name of the column.
        """
        scale = 100 if self.unit == "percent" else 1
        position = self.columns.index(column)
        entry = self.rows[row]
        spread = entry.spread[position] / scale if entry.spread else None
        return entry.mean[position] / scale, spread


@cache
def _everything() -> dict[str, Any]:
    text = resources.files(__name__).joinpath("results.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def table(name: str) -> Table:
    """Return the published table with a given name."""
    return Table.model_validate(_entry("tables", name))


def source(name: str) -> Source:
    """Return the publication with a given name."""
    return Source.model_validate(_entry("sources", name))


def protocol(name: str) -> Mapping[str, Any]:
    """Return the settings of the published protocol `name`; values are numbers or text."""
    return _entry("protocols", name)


def claims(name: str) -> Mapping[str, Any]:
    """Return the settings and statements of the publication `name`, except those in tables."""
    return _entry("claims", name)


def course_report(section: str) -> Mapping[str, Any]:
    """Return the numbers and statements in one section of the course report that `sjtu-2023` reproduces.

    The curves of the report are not included.
    """
    return _entry("course_report", section)


def _entry(kind: str, name: str) -> Any:
    entries = _everything()[kind]
    if name not in entries:
        raise unknown_name(f"entry of {kind}", name, entries)
    return entries[name]
