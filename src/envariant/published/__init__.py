"""Published figures and protocols, read from `results.toml`, so that no number is typed twice.

Each table has its source, the kind of its spread and the number of runs; pages that show its figures show
these as well.
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
    """Publication or repository from which figures were taken.

    Attributes:
        checked: How the figures were read and checked.
    """

    model_config = ConfigDict(frozen=True)
    title: str
    authors: str
    url: str
    checked: str
    year: int | None = None


@final
class Row(BaseModel):
    """Row of a table, with one entry per column and NaN where the source has none.

    Attributes:
        mean: Published value in each column.
        spread: Published spread in each column; None if the source has none.
        theory: Whether the values are derived instead of measured.
    """

    model_config = ConfigDict(frozen=True)
    mean: tuple[float, ...]
    spread: tuple[float, ...] | None = None
    theory: bool = False


@final
class Table(BaseModel):
    """Published table.

    Attributes:
        source: Name of the source; likewise protocol and metric.
        unit: "percent" or "fraction", as printed; "" for other metrics.
        spread_kind: Kind of the spread, such as a standard deviation over restarts.
        n_runs: Number of runs; None if not stated.
        higher_is_better: Direction of the metric; None if it has none.
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
        """Return mean and spread of one entry as fractions of 1."""
        scale = 100 if self.unit == "percent" else 1
        i = self.columns.index(column)
        entry = self.rows[row]
        return entry.mean[i] / scale, entry.spread[i] / scale if entry.spread else None


@cache
def _everything() -> dict[str, Any]:
    text = resources.files(__name__).joinpath("results.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def table(name: str) -> Table:
    """Return the published table of that name."""
    return Table.model_validate(_entry("tables", name))


def source(name: str) -> Source:
    """Return the source of that name."""
    return Source.model_validate(_entry("sources", name))


def protocol(name: str) -> Mapping[str, Any]:
    """Return the settings of a protocol: numbers as published, the rest as prose."""
    return _entry("protocols", name)


def course_report(section: str) -> Mapping[str, Any]:
    """Return the numbers that the course report states in the text of one of its sections."""
    return _entry("course_report", section)


def _entry(kind: str, name: str) -> Any:
    entries = _everything()[kind]
    if name not in entries:
        raise unknown_name(f"entry of {kind}", name, entries)
    return entries[name]
