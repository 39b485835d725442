"""Column kinds, such as numbers and dates. `KINDS` contains all kinds by name."""

from typing import Annotated

from pydantic import AfterValidator

from envariant.data.tables.kinds.base import ColumnChunk, ColumnEncoding, ColumnKind, TaskName
from envariant.data.tables.kinds.boolean import Boolean
from envariant.data.tables.kinds.category import MOST_CATEGORIES, Category
from envariant.data.tables.kinds.date import Date
from envariant.data.tables.kinds.missing import MissingRule
from envariant.data.tables.kinds.notation import Notation
from envariant.data.tables.kinds.number import Number

KINDS: dict[str, ColumnKind] = {kind.name: kind for kind in (Boolean(), Number(), Date(), Category())}
"""Column kinds by name, in the order of inference; `Category` is last because it accepts any text."""


def _known(name: str) -> str:
    if name not in KINDS:
        raise ValueError(f"unknown column kind '{name}'")
    return name


Kind = Annotated[str, AfterValidator(_known)]
"""Name of a column kind."""

__all__ = [
    "KINDS",
    "MOST_CATEGORIES",
    "Category",
    "ColumnChunk",
    "ColumnEncoding",
    "ColumnKind",
    "Kind",
    "MissingRule",
    "Notation",
    "TaskName",
]
