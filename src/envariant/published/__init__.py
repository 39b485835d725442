"""Published figures and protocols, read from `results.toml` so that no number is ever typed twice.

Each table says where it comes from, what its spread is and over how many runs; a report that puts our
figures beside the field's shows that too.
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
    """Where figures come from."""

    model_config = ConfigDict(frozen=True)
    title: str
    authors: str
    url: str
    checked: str
    year: int | None = None


@final
class Row(BaseModel):
    """One line of a table: an entry a column, NaN where the source gives none."""

    model_config = ConfigDict(frozen=True)
    mean: tuple[float, ...]
    spread: tuple[float, ...] | None = None
    theory: bool = False


@final
class Table(BaseModel):
    """A published table; `unit` is "percent" or "fraction", as printed."""

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
        """Mean and spread of one entry as fractions of 1."""
        scale = 100 if self.unit == "percent" else 1
        place = self.columns.index(column)
        entry = self.rows[row]
        return entry.mean[place] / scale, entry.spread[place] / scale if entry.spread else None


@cache
def _everything() -> dict[str, Any]:
    text = resources.files(__name__).joinpath("results.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def table(name: str) -> Table:
    """The published table of that name."""
    return Table.model_validate(_entry("tables", name))


def source(name: str) -> Source:
    """The source of that name."""
    return Source.model_validate(_entry("sources", name))


def protocol(name: str) -> Mapping[str, Any]:
    """A protocol's settings; numbers as published, the rest in prose."""
    return _entry("protocols", name)


def course_report(section: str) -> Mapping[str, Any]:
    """What the course report states in one of its sections; its curves are not in the text."""
    return _entry("course_report", section)


def _entry(kind: str, name: str) -> Any:
    entries = _everything()[kind]
    if name not in entries:
        raise unknown_name(f"entry of {kind}", name, entries)
    return entries[name]
