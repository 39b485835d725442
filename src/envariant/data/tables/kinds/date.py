"""Column kind for dates, with or without time of day."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from envariant.data.tables.kinds.base import Categories, ColumnEncoding, NumericKind, TaskName, Values

_YEAR = 365.2425
_TIME = r"(?P<time>[ T]\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?: ?[AaPp][Mm])?)"
_DATE = re.compile(
    r"(?:(?P<year>\d{4})(?P<sign>[-/.])(?P<month>\d{1,2})(?P=sign)(?P<day>\d{1,2})"
    # 1.10.12 is a version number, 01.10.12 a date.
    r"|(?!(?:\d\.\d+|\d+\.\d)\.\d\d(?!\d))(?P<first>\d{1,2})(?P<dot>[-/.])(?P<second>\d{1,2})(?P=dot)(?P<last>\d{4}|\d{2}))"
    # Local time; the time zone is ignored.
    rf"(?:{_TIME}(?: ?(?:Z|UTC|[+-]\d{{2}}(?::?\d{{2}})?))?)?"
)


@final
@dataclass(frozen=True)
class Date(NumericKind):
    """Dates, stored as days since 1970 in local time, and encoded as the number of days and the season."""

    name: ClassVar[str] = "date"
    ordered: ClassVar[bool] = True
    exclusive: ClassVar[bool] = True
    correction: ClassVar[str] = "Write it as 2020-12-31"

    def from_pandas(self, name: str, rows: "pd.Series[Any]", first_row: int) -> Values | None:
        return _days(rows) if pd.api.types.is_datetime64_any_dtype(rows) else None

    def parse(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Convert dates to days since 1970; other strings become NaN.

        Dates with the year last also become NaN if it is unclear whether the day or the month comes first.
        """
        matches = [_DATE.fullmatch(text) for text in texts]
        year_last = [match for match in matches if match and match["first"]]
        # Dates with dots are written day first; with other separators, a number above 12 decides.
        day_first = any(match["dot"] == "." or int(match["first"]) > 12 for match in year_last)
        unambiguous = day_first != any(int(match["second"]) > 12 for match in year_last)

        def iso(match: re.Match[str] | None) -> str | None:
            if match is None or (match["first"] and not unambiguous):
                return None
            year, month, day = match["year"], match["month"], match["day"]
            if match["first"]:
                day, month = match["first"], match["second"]
                if not day_first:
                    day, month = month, day
                # Two digits as in POSIX: 69 is 1969, 68 is 2068.
                year = match["last"] if len(match["last"]) == 4 else 1969 + (int(match["last"]) - 69) % 100
            return f"{year}-{month:0>2}-{day:0>2}{(match['time'] or '').replace('T', ' ')}"

        series = pd.Series([iso(match) for match in matches], dtype=object)
        return _days(pd.to_datetime(series, errors="coerce", format="mixed"))

    def format(self, values: Values, categories: Categories) -> list[str | None]:
        return [
            None if v != v else str(np.datetime64(0, "D") + np.timedelta64(math.floor(v), "D"))
            for v in values.tolist()
        ]

    def input_names(self, encoding: ColumnEncoding) -> tuple[str, ...]:
        return (encoding.name, *(f"{encoding.name}: season {k}" for k in (1, 2)))

    def encode(self, encoding: ColumnEncoding, values: Values, categories: Categories, out: Values) -> None:
        super().encode(encoding, values, categories, out)
        angle = (self.filled(encoding, values) % _YEAR) * (2 * np.pi / _YEAR)
        out[:, 1], out[:, 2] = np.sin(angle), np.cos(angle)

    def describe(self, categories: Categories) -> str:
        return "date, as days and as the season"

    def class_names(self, values: Values) -> list[str]:
        stamps = np.round(values * 86_400).astype("datetime64[s]")
        dated = (values == np.floor(values)).all()
        return [str(stamp) for stamp in (stamps.astype("datetime64[D]") if dated else stamps)]

    def infer_task(self, values: Values) -> TaskName:
        return "binary" if len(np.unique(values)) == 2 else "regression"


def _days(rows: "pd.Series[Any]") -> NDArray[np.float64]:
    stamps = rows.dt.tz_localize(None) if getattr(rows.dt, "tz", None) is not None else rows
    microseconds = stamps.to_numpy(dtype="datetime64[us]")
    return np.where(np.isnat(microseconds), np.nan, microseconds.astype(np.int64) / 86_400e6)
