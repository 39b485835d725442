"""Envariant: out-of-distribution generalization for data from several environments.

Public names are imported on first use. `import envariant` and the command-line help therefore load neither
PyTorch nor other large packages.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envariant import algorithms, analysis, closed_forms, data, models, published, reporting, studies
    from envariant.closed_forms import (
        LEACE,
        AnchorClassifier,
        AnchorRegressor,
        CausalDantzig,
        DRIGRegressor,
        InvariantCausalClassifier,
        InvariantCausalPrediction,
        KClassRegressor,
    )
    from envariant.comparison import compare
    from envariant.core import schedules, tasks
    from envariant.core.environments import Environment, EnvironmentSet, EnvironmentSource
    from envariant.core.errors import EnvariantError
    from envariant.core.multi_target import MultiLabel, MultiOutputRegression
    from envariant.core.tasks import Binary, Multiclass, Regression
    from envariant.estimators import InvariantClassifier, InvariantRegressor
    from envariant.evaluation import evaluate
    from envariant.objectives import EnvironmentSampler, Objective, objective
    from envariant.reporting.score_tables import score_table
    from envariant.saved_model import load_model
    from envariant.studies import Study
    from envariant.studies.soups import soup
    from envariant.training import callbacks, trackers
    from envariant.training.result import TrainingResult
    from envariant.training.train import train

_MODULES = {
    "algorithms": "algorithms",
    "analysis": "analysis",
    "callbacks": "training.callbacks",
    "closed_forms": "closed_forms",
    "data": "data",
    "models": "models",
    "published": "published",
    "reporting": "reporting",
    "schedules": "core.schedules",
    "studies": "studies",
    "tasks": "core.tasks",
    "trackers": "training.trackers",
}
_NAMES = {
    "LEACE": "closed_forms",
    "AnchorClassifier": "closed_forms",
    "AnchorRegressor": "closed_forms",
    "Binary": "core.tasks",
    "CausalDantzig": "closed_forms",
    "DRIGRegressor": "closed_forms",
    "Environment": "core.environments",
    "EnvironmentSampler": "objectives",
    "EnvironmentSet": "core.environments",
    "EnvironmentSource": "core.environments",
    "EnvariantError": "core.errors",
    "InvariantCausalClassifier": "closed_forms",
    "InvariantCausalPrediction": "closed_forms",
    "InvariantClassifier": "estimators",
    "InvariantRegressor": "estimators",
    "KClassRegressor": "closed_forms",
    "MultiLabel": "core.multi_target",
    "MultiOutputRegression": "core.multi_target",
    "Multiclass": "core.tasks",
    "Objective": "objectives",
    "Regression": "core.tasks",
    "Study": "studies",
    "TrainingResult": "training.result",
    "compare": "comparison",
    "evaluate": "evaluation",
    "load_model": "saved_model",
    "objective": "objectives",
    "score_table": "reporting.score_tables",
    "soup": "studies.soups",
    "train": "training.train",
}

__all__ = [
    "LEACE",
    "AnchorClassifier",
    "AnchorRegressor",
    "Binary",
    "CausalDantzig",
    "DRIGRegressor",
    "EnvariantError",
    "Environment",
    "EnvironmentSampler",
    "EnvironmentSet",
    "EnvironmentSource",
    "InvariantCausalClassifier",
    "InvariantCausalPrediction",
    "InvariantClassifier",
    "InvariantRegressor",
    "KClassRegressor",
    "MultiLabel",
    "MultiOutputRegression",
    "Multiclass",
    "Objective",
    "Regression",
    "Study",
    "TrainingResult",
    "algorithms",
    "analysis",
    "callbacks",
    "closed_forms",
    "compare",
    "data",
    "evaluate",
    "load_model",
    "models",
    "objective",
    "published",
    "reporting",
    "schedules",
    "score_table",
    "soup",
    "studies",
    "tasks",
    "trackers",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES or name in _NAMES:
        # The first use may load PyTorch, which reads the limits once.
        import_module("envariant.core.machine").limit_threads()
    if name in _MODULES:
        return import_module(f"envariant.{_MODULES[name]}")
    if name in _NAMES:
        return getattr(import_module(f"envariant.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'envariant' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
