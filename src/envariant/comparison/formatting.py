"""Format names and numbers for verdicts and the HTML report."""

import math

from envariant.analysis.statistics import Interval
from envariant.comparison.results import ComparisonResults

_METHOD_NAMES = {
    "erm": "ERM",
    "irm": "IRM",
    "vrex": "V-REx",
    "groupdro": "GroupDRO",
    "coral": "CORAL",
    "and-mask": "AND-mask",
    "linear": "linear model",
    "stable-columns": "linear model of the stable columns",
    "boosted-trees": "gradient boosting",
    "majority-class": "majority class",
}


IN_UNIT = ("squared error", "RMSE")
"""Metrics in the unit of the target, or in its square."""


def method_name(method: str) -> str:
    """Return the name of a method in its usual spelling, such as V-REx."""
    return _METHOD_NAMES.get(method, method)


def capitalized(name: str) -> str:
    """Return a name with a capital first letter, to begin a sentence."""
    return name[:1].upper() + name[1:]


def the(method: str) -> str:
    """Return the name of a method for use in a sentence, with "the" if required."""
    name = method_name(method)
    return f"the {name}" if name.startswith(("linear", "majority")) else name


def environment_name(results: ComparisonResults, environment: str) -> str:
    """Return an environment's name for use in a sentence, such as "hospital 3" for the name 3."""
    is_number = environment.replace(".", "", 1).lstrip("-").isdigit()
    column = results.data.environment_column
    return f"{column} {environment}" if is_number and column else environment


def score(results: ComparisonResults, value: float, *, signed: bool = False) -> str:
    """Format a score: three significant digits for metrics in the target's unit, else three decimals."""
    in_unit = results.metric.name in IN_UNIT
    size = results.worst(results.baseline_method)[1].ood_score.mean if in_unit else 0.0
    return score_text(value, size, signed=signed)


def score_text(value: float, size: float = 0.0, *, signed: bool = False) -> str:
    """Format a score with three decimals or, given a typical size, with three significant digits of it.

    Args:
        value: Score, or difference of scores.
        size: Typical score, for metrics in the unit of the target (`IN_UNIT`). 0: three decimals.
        signed: Whether to print the sign of positive values.
    """
    places = max(0, 2 - math.floor(math.log10(abs(size)))) if size else 3
    # Round first, so that −0.0001 becomes 0.000.
    return f"{round(value, places) + 0.0:{'+' if signed else ''},.{places}f}"


def ci(results: ComparisonResults, interval: Interval, *, difference: bool = False) -> str:
    """Format the confidence interval of a score or score difference; clip it to possible values first."""
    own = results.possible(interval, difference=difference)
    return (
        f"[{score(results, own.low)}, {score(results, own.high)}]"
        if math.isfinite(own.high - own.low)
        else "[unknown]"
    )


def p_text(p_value: float | None) -> str:
    """Format a p-value, for example as `p = 0.012`."""
    if p_value is None:
        return "p unknown"
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def listed(names: list[str], most: int = 3, separator: str = ", ") -> str:
    """Join the first `most` names; append "…" if there are more names."""
    return separator.join([*names[:most], *(["…"] if len(names) > most else [])])
