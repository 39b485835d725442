"""Names and numbers as they appear in verdicts and on the page."""

import math

from envariant.analysis.statistics import Interval
from envariant.comparison.results import ComparisonResults
from envariant.studies.significance import BASELINE

_METHOD_NAMES = {
    "erm": "ERM",
    "irm": "IRM",
    "vrex": "V-REx",
    "groupdro": "GroupDRO",
    "coral": "CORAL",
    "and-mask": "AND-mask",
    "boosted-trees": "boosted trees",
    "majority-class": "majority class",
}


def method_name(method: str) -> str:
    """Return the customary spelling of a method."""
    return _METHOD_NAMES.get(method, method)


def environment_name(results: ComparisonResults, environment: str) -> str:
    """Return an environment as named in a sentence; a number is preceded by the column's name."""
    is_number = environment.replace(".", "", 1).lstrip("-").isdigit()
    column = results.data.environment_column
    return f"{column} {environment}" if is_number and column else environment


def score(results: ComparisonResults, value: float, *, signed: bool = False) -> str:
    """Return a value of the metric with three decimals; errors in the target's unit with three digits."""
    places = 3
    if results.metric.name in ("squared error", "RMSE"):
        size = abs(results.worst(BASELINE)[1].ood_score.mean)
        places = max(0, 2 - math.floor(math.log10(size))) if size > 0 else 3
    # Rounded first, so that −0.0001 becomes 0.000.
    return f"{round(value, places) + 0.0:{'+' if signed else ''},.{places}f}"


def ci(results: ComparisonResults, interval: Interval) -> str:
    """Return the ends of a score's interval, limited to the metric's range."""
    lowest, highest = results.bounds
    low, high = max(lowest, interval.low), min(highest, interval.high)
    return f"[{score(results, low)}, {score(results, high)}]" if math.isfinite(high - low) else "[unknown]"


def p_text(p_value: float | None) -> str:
    """Return a p-value as text."""
    if p_value is None:
        return "p unknown"
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def listed(names: list[str], most: int = 3, separator: str = ", ") -> str:
    """Join the first few names; "…" stands for the rest."""
    return separator.join([*names[:most], *(["…"] if len(names) > most else [])])
