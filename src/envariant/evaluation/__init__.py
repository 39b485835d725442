"""Evaluate predictions made by any program: scores by environment and group, with intervals and tests."""

from envariant.evaluation.evaluate import Evaluation, evaluate
from envariant.evaluation.from_table import evaluate_table
from envariant.evaluation.results import EvaluationResults

__all__ = ["Evaluation", "EvaluationResults", "evaluate", "evaluate_table"]
