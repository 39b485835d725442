"""Closed-form estimators for tables with rows from several environments.

The estimators follow scikit-learn: `fit(X, y, environments=…)` and `predict(X)`. They are linear, need no
steps and no random numbers. Public names are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envariant.closed_forms.anchor_classification import AnchorClassifier
    from envariant.closed_forms.anchor_regression import AnchorRegressor, gamma_of_quantile
    from envariant.closed_forms.causal_dantzig import CausalDantzig
    from envariant.closed_forms.causal_subsets import CausalSubsets, find_causal_subsets
    from envariant.closed_forms.drig import DRIGRegressor
    from envariant.closed_forms.invariant_causal_prediction import (
        InvariantCausalClassifier,
        InvariantCausalPrediction,
    )
    from envariant.closed_forms.k_class import KClassRegressor
    from envariant.closed_forms.leace import LEACE

_MODULES = {
    "LEACE": "leace",
    "AnchorClassifier": "anchor_classification",
    "AnchorRegressor": "anchor_regression",
    "CausalDantzig": "causal_dantzig",
    "CausalSubsets": "causal_subsets",
    "DRIGRegressor": "drig",
    "InvariantCausalClassifier": "invariant_causal_prediction",
    "InvariantCausalPrediction": "invariant_causal_prediction",
    "KClassRegressor": "k_class",
    "find_causal_subsets": "causal_subsets",
    "gamma_of_quantile": "anchor_regression",
}

__all__ = [
    "LEACE",
    "AnchorClassifier",
    "AnchorRegressor",
    "CausalDantzig",
    "CausalSubsets",
    "DRIGRegressor",
    "InvariantCausalClassifier",
    "InvariantCausalPrediction",
    "KClassRegressor",
    "find_causal_subsets",
    "gamma_of_quantile",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
