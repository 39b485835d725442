"""Statistical analyses of environments: pure functions from arrays to frozen dataclasses.

Public names are imported on first use; each module can also be imported alone and loads no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envariant.analysis.column_stability import ColumnStability, measure_stability
    from envariant.analysis.distribution_shift import Shift, measure_shift
    from envariant.analysis.drift import ColumnDrift, Drift, measure_drift
    from envariant.analysis.invariance_test import InvarianceTest, assess_invariance
    from envariant.analysis.leakage import LeakyColumn, leaky_columns
    from envariant.analysis.statistics import (
        Interval,
        Ranking,
        bootstrap,
        difference,
        friedman,
        holm,
        interquartile_mean,
        interval,
        probability_of_improvement,
        signed_rank,
        slope,
    )

_MODULES = {
    "column_stability": ("ColumnStability", "measure_stability"),
    "distribution_shift": ("Shift", "measure_shift"),
    "drift": ("ColumnDrift", "Drift", "measure_drift"),
    "invariance_test": ("InvarianceTest", "assess_invariance"),
    "leakage": ("LeakyColumn", "leaky_columns"),
    "statistics": (
        "Interval", "Ranking", "bootstrap", "difference", "friedman", "holm", "interquartile_mean",
        "interval", "probability_of_improvement", "signed_rank", "slope",
    ),
}  # fmt: skip

__all__ = [
    "ColumnDrift",
    "ColumnStability",
    "Drift",
    "Interval",
    "InvarianceTest",
    "LeakyColumn",
    "Ranking",
    "Shift",
    "assess_invariance",
    "bootstrap",
    "difference",
    "friedman",
    "holm",
    "interquartile_mean",
    "interval",
    "leaky_columns",
    "measure_drift",
    "measure_shift",
    "measure_stability",
    "probability_of_improvement",
    "signed_rank",
    "slope",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"envariant.analysis.{name}")
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"envariant.analysis.{module}"), name)
    raise AttributeError(f"module 'envariant.analysis' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])
