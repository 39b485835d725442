"""Weight averaging: rules that average the weights over the steps of a run; they work with any algorithm."""

from envariant.core import specs
from envariant.core.errors import EnvariantError, shown
from envariant.training.averaging.base import Averaging
from envariant.training.averaging.ema import EMA
from envariant.training.averaging.ma import MovingAverage
from envariant.training.averaging.swa import SWA
from envariant.training.averaging.swad import SWAD
from envariant.training.averaging.wise_ft import WiSEFT

AVERAGES: dict[str, type[Averaging]] = {each.name: each for each in (EMA, MovingAverage, SWA, SWAD, WiSEFT)}
"""Averaging rules by name."""
NO_AVERAGE = "none"
"""Value of the option `average` that turns off averaging, including an algorithm's default average."""


def averaging(requested: object) -> Averaging | None:
    """Convert a string such as `ema(0.99)` to an averaging rule, and `none` to None.

    Raises:
        EnvariantError: If the rule or one of its settings is unknown or not allowed.
    """
    if requested is None or isinstance(requested, Averaging):
        return requested
    if requested == NO_AVERAGE:
        return None
    if isinstance(requested, str):
        return specs.build("average", requested, AVERAGES)
    raise EnvariantError(
        f"average must be a string such as ema(0.99), or an Averaging; got {shown(requested)}"
    )


__all__ = [
    "AVERAGES",
    "EMA",
    "NO_AVERAGE",
    "SWA",
    "SWAD",
    "Averaging",
    "MovingAverage",
    "WiSEFT",
    "averaging",
]
