"""Objectives for your own training loops, and a sampler of batches from several environments."""

from envariant.objectives.objective import Objective, objective
from envariant.objectives.sampler import EnvironmentSampler

__all__ = ["EnvironmentSampler", "Objective", "objective"]
