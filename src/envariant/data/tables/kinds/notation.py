"""Parse numbers with decimal commas, thousands separators, percent signs, currencies or units."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

# The same characters in other scripts and fonts: full width, typographic minus, apostrophes and spaces.
_SIGNS = {
    **{code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)},
    **dict.fromkeys((0x2010, 0x2011, 0x2012, 0x2013, 0x2212, 0xFE63), "-"),
    **dict.fromkeys((0x2018, 0x2019, 0x02BC, 0x2032, 0x0060), "'"),
    **dict.fromkeys((0x00A0, 0x2007, 0x2009, 0x202F, 0x3000), " "),
    0x066A: "%", 0x066B: ".", 0x066C: ",",
}  # fmt: skip
_CODES = (
    "USD|EUR|GBP|CHF|JPY|CNY|RMB|INR|KRW|SEK|NOK|DKK|PLN|CZK|HUF|RUB|TRY|BRL|MXN|CAD|AUD|NZD|ZAR|SGD|HKD|kr"
)
_CURRENCY = rf"(?:(?:[A-Z]{{1,3}})?[$¢£¤¥₠-⃀]|\b(?:{_CODES})\b\.?|Rs\.?|R\$)"
_TEXT = re.compile(
    rf"(?P<open>\()?\s*(?P<sign>[-+])?\s*(?P<before>%|{_CURRENCY})?\s*(?P<later>[-+(])?\s*"
    r"(?P<digits>[.,]?\d(?:[\d.,' ]*\d)?[.,]?(?:[eE][-+]?\d+)?)\s*"
    r"(?P<after>[^\W\d_]{1,8}|[%‰°][A-Za-z]?|[^\w\s()+-])?\s*(?P<minus>-)?\s*(?P<close>\))?"
)
# Digits in groups of three (in India: two, then three), with a point or a comma as decimal separator.
_NUMBER = {
    decimal: re.compile(
        rf"(?:[1-9]\d{{0,2}}(?:(?P<sign>[{group}' ])\d{{3}})(?:(?P=sign)\d{{3}})*(?:{re.escape(decimal)}\d*)?"
        rf"|[1-9]\d?(?:{re.escape(group)}\d{{2}})+{re.escape(group)}\d{{3}}(?:{re.escape(decimal)}\d*)?"
        rf"|(?:\d+(?:{re.escape(decimal)}\d*)?|{re.escape(decimal)}\d+)(?:[eE][-+]?\d+)?)"
    )
    for decimal, group in ((".", ","), (",", "."))
}
_GROUPED = re.compile(r"[-+]?(?:[1-9]\d{0,2}(?:\.\d{3})+|\d{1,3})")
# With at most this number of different strings, numbers with a unit of letters are categories.
_FEW = 20
# Smallest number of different strings that show how thousands are written.
_MANY = 30


@final
@dataclass(frozen=True)
class Notation:
    """Notation of the numbers in a text column.

    Attributes:
        decimal: Decimal separator, a point or a comma.
        affix: Text before or after each number, such as "%", a currency or a unit; "" if there is none.
    """

    decimal: str = "."
    affix: str = ""

    def parse(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Convert strings to numbers; percentages become fractions.

        Strings in another notation become NaN.
        """
        return np.array([self._number(text) for text in texts], dtype=np.float64)

    def _number(self, text: str) -> float:
        parts = _split(text)
        if parts is None:
            return np.nan
        digits, negative, affix = parts
        wrong_affix = affix != self.affix and (affix or not _is_currency(self.affix))
        if wrong_affix and not (self.affix and not affix and set(digits) <= set("0.,")):
            return np.nan
        number = _value(digits, self.decimal)
        return (-number if negative else number) / (100 if affix == "%" else 1)

    def is_certain(self, texts: Sequence[str]) -> bool:
        """Return whether the decimal separator is unambiguous for these strings.

        This is the case if some strings would be invalid with the other separator, or if both separators give
        the same numbers.
        """
        other = Notation("," if self.decimal == "." else ".", self.affix).parse(texts)
        return not np.isfinite(other).all() or np.array_equal(self.parse(texts), other)

    def agrees_with(self, other: "Notation | None") -> bool:
        """Return whether both notations have the same unit, such as "%" or "kg".

        Currencies are ignored, so notations of "$5", "€5" and "5" agree.

        Args:
            other: Other notation. None: numbers without a unit.
        """
        affixes = {"" if _is_currency(each.affix) else each.affix for each in (self, other or Notation())}
        return len(affixes) == 1


def plain(texts: Sequence[str]) -> NDArray[np.float64]:
    """Convert strings in programming-language notation, such as "-1.5e3", to numbers; others become NaN."""
    numbers = pd.to_numeric(pd.Series(list(texts), dtype=object), errors="coerce").to_numpy(dtype=np.float64)
    # Unlike pandas, Python rounds to the nearest number.
    return np.array([float(t) if n == n else n for t, n in zip(texts, numbers.tolist(), strict=True)])


def infer_notation(
    texts: Sequence[str], counts: NDArray[np.int64], decimal_comma: bool | None
) -> Notation | None:
    """Return the notation in which the largest number of rows in a column can be read as numbers.

    The result is None if there is no such row. It is also None if numbers have a unit, such as "5 kg", and
    the column has at most 20 distinct strings, which are then probably categories.

    Args:
        texts: Distinct strings of the column.
        counts: Number of rows with each string.
        decimal_comma: Whether numbers in the table have a decimal comma; None if unknown. It is used only if
            the strings are ambiguous. If None, a comma before three digits is a thousands separator.
    """
    parts = [_split(text) for text in texts]
    affixes: Counter[str] = Counter()
    for part, count in zip(parts, counts.tolist(), strict=True):
        if part is not None:
            affixes[part[2]] += count
    affix = max((a for a in affixes if a), key=affixes.__getitem__, default="")
    if not _is_currency(affix) and affixes[affix] < affixes[""]:
        affix = ""
    if affix and affix != "%" and not _is_currency(affix) and len(texts) <= _FEW:
        return None
    notations = [Notation(decimal, affix) for decimal in ".,"]
    rows = [int(counts[np.isfinite(each.parse(texts))].sum()) for each in notations]
    if not any(rows):
        return None
    if rows[0] != rows[1]:
        return notations[int(rows[1] > rows[0])]
    digits = [part[0] for part in parts if part is not None]
    if sign := thousands_sign(digits):
        return notations[int(sign == ".")]
    return notations[int(bool(decimal_comma))]


def thousands_sign(digits: Sequence[str]) -> str:
    """Return the thousands separator of a column: a point, a comma, or "" if it cannot be determined.

    A character is the thousands separator if at least 30 numbers contain it, always before three digits,
    and all other numbers are integers with one to three digits.
    """
    for sign in ".,":
        grouped = re.compile(rf"[-+]?[1-9]\d{{0,2}}(?:{re.escape(sign)}\d{{3}})+")
        short = [text for text in digits if sign not in text]
        if (
            len(digits) - len(short) >= _MANY
            and short
            and all(
                re.fullmatch(r"[-+]?\d{1,3}", text) if sign not in text else grouped.fullmatch(text)
                for text in digits
            )
        ):
            return sign
    return ""


def decimal_sign(texts: Sequence[str]) -> str:
    """Return the decimal separator of the numbers in a column, or "" if it is ambiguous."""
    found = [{d for d in ".," if np.isfinite(_value(part[0], d))} for text in texts if (part := _split(text))]
    signs = [next(iter(each)) for each in found if len(each) == 1]
    return signs[0] if signs and len(set(signs)) == 1 and len(found) == len(texts) else ""


def may_have_grouping_points(texts: Sequence[str]) -> bool:
    """Return whether all points in a column may be thousands separators, as in 1.234 and 999."""
    return any("." in text for text in texts) and all(_GROUPED.fullmatch(text) for text in texts)


def may_be_thousands(values: NDArray[np.float64]) -> bool:
    """Return whether all numbers could be integers whose thousands separators were read as decimal points.

    For example, 1.234 could stand for an intended 1234.
    """
    is_small = (np.abs(values) < 1000) & ((np.abs(values) >= 1) | (values == 0))
    return bool((is_small & (np.round(values, 3) == values)).all())


def _split(text: str) -> tuple[str, bool, str] | None:
    """Return the digits of a number (with separators), whether it is negative, and its affix."""
    if not text.isascii():
        text = text.translate(_SIGNS)
        text = "".join(str(unicodedata.decimal(c)) if unicodedata.category(c) == "Nd" else c for c in text)
    match = _TEXT.fullmatch(text.strip())
    if match is None:
        return None
    signs = [sign for sign in (match["sign"], match["later"], match["minus"], match["open"]) if sign]
    if ("(" in signs) != bool(match["close"]):
        return None
    before, after = match["before"] or "", match["after"] or ""
    if len(signs) > 1 or (before and after):
        return None
    return match["digits"], signs not in ([], ["+"]), before or after


def _value(digits: str, decimal: str) -> float:
    if not _NUMBER[decimal].fullmatch(digits):
        return np.nan
    groups = ".' " if decimal == "," else ",' "
    for sign in groups:
        digits = digits.replace(sign, "")
    try:
        return float(digits.replace(decimal, "."))
    except (ValueError, OverflowError):
        return np.nan


def _is_currency(affix: str) -> bool:
    return bool(re.fullmatch(_CURRENCY, affix))
