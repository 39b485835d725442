"""Training rules: parts (weightings, penalties, gradient combinations), compositions, named recipes."""

from envariant.algorithms.composition import Composition
from envariant.algorithms.contract import (
    Algorithm,
    Combination,
    Forward,
    GradientPenalty,
    Part,
    Penalty,
    Weighting,
)
from envariant.algorithms.gradients.and_mask import AndMask
from envariant.algorithms.gradients.mean import MeanGradient
from envariant.algorithms.penalties.iga import IGA
from envariant.algorithms.penalties.irm import IRM
from envariant.algorithms.penalties.vrex import VREx
from envariant.algorithms.recipes import RECIPES, Hyperparameter, Recipe, recipe, settings_of
from envariant.algorithms.weightings.mean import Mean
from envariant.algorithms.weightings.mm_rex import MMREx
from envariant.algorithms.weightings.sum import Sum

__all__ = [
    "IGA",
    "IRM",
    "RECIPES",
    "Algorithm",
    "AndMask",
    "Combination",
    "Composition",
    "Forward",
    "GradientPenalty",
    "Hyperparameter",
    "MMREx",
    "Mean",
    "MeanGradient",
    "Part",
    "Penalty",
    "Recipe",
    "Sum",
    "VREx",
    "Weighting",
    "recipe",
    "settings_of",
]
