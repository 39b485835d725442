"""Order environments in time by their names: numbers, dates, quarters, weeks or numbered periods."""

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

_FORMATS = (
    "%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%Y%m%d", "%d.%m.%Y", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S",
    "%Y-%m", "%Y/%m", "%m/%Y", "%b %Y", "%B %Y", "%b-%Y",
)  # fmt: skip
# Year and quarter or calendar week, in either order.
_PERIODS = (
    re.compile(r"(?P<year>\d{4})[-/ ]?(?P<unit>[QWH])(?P<part>\d{1,2})", re.IGNORECASE),
    re.compile(r"(?P<unit>[QWH])(?P<part>\d{1,2})[-/ ](?P<year>\d{4})", re.IGNORECASE),
)
_NUMBERED = re.compile(r"(?P<prefix>\D*?)(?P<number>\d+)")
_TIME_WORDS = re.compile(
    r"(^|[^a-z])(year|yr|month|week|day|date|time|period|quarter|season|semester|term|wave|round|epoch|decade|"
    r"batch|session)s?([^a-z]|$)",
    re.IGNORECASE,
)
_YEARS = range(1800, 2201)

Key = tuple[float, ...]


def time_order(names: Sequence[str]) -> tuple[str, ...] | None:
    """Return the names sorted by time; None if this is not possible.

    The names must all be numbers, dates in the same format, quarters or weeks of years ("2021-Q1"), or
    numbers with the same prefix ("wave 3").

    Example:
        >>> time_order(("2021-Q2", "2020-Q4"))
        ('2020-Q4', '2021-Q2')
        >>> time_order(("north", "south")) is None
        True
    """
    for parse in (_numbers, _dates, _periods, _numbered):
        keys = parse(names)
        if keys is not None and len(set(keys)) == len(names):
            return tuple(name for _, name in sorted(zip(keys, names, strict=True)))
    return None


def seems_ordered(column: str, names: Sequence[str]) -> bool:
    """Return whether environments are probably ordered in time.

    This is the case for years, dates, quarters and weeks. For other numbers, the name of the column must
    contain a word such as "wave" or "month".

    Args:
        column: Name of the environment column.
        names: Names of the environments.
    """
    if len(names) < 2 or time_order(names) is None:
        return False
    keys = _numbers(names)
    if keys is not None and not all(key[0] in _YEARS for key in keys):
        return bool(_TIME_WORDS.search(column))
    return keys is not None or bool(_dates(names) or _periods(names) or _TIME_WORDS.search(column))


def _numbers(names: Iterable[str]) -> list[Key] | None:
    return _parsed(names, lambda name: (float(name),))


def _dates(names: Sequence[str]) -> list[Key] | None:
    for form in _FORMATS:
        # Without a time zone, there is no switch to daylight-saving time.
        if keys := _parsed(names, lambda name, form=form: datetime.strptime(name, form).timetuple()[:6]):
            return keys
    return None


def _periods(names: Sequence[str]) -> list[Key] | None:
    for pattern in _PERIODS:
        found = [pattern.fullmatch(name) for name in names]
        if all(found) and len({match["unit"].upper() for match in found if match}) == 1:
            return [(float(match["year"]), float(match["part"])) for match in found if match]
    return None


def _numbered(names: Sequence[str]) -> list[Key] | None:
    found = [_NUMBERED.fullmatch(name) for name in names]
    if not all(found) or len({match["prefix"].lower() for match in found if match}) > 1:
        return None
    return [(float(match["number"]),) for match in found if match]


def _parsed(names: Iterable[str], parse: Callable[[str], Key]) -> list[Key] | None:
    try:
        return [parse(name) for name in names]
    except ValueError:
        return None
