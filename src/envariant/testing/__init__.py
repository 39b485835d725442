"""Checks of user-defined algorithms, data sources and predictors, for use in the tests of other packages.

Call the checks in your tests:

    from envariant.testing import check_algorithm, check_predictor, check_source

    def test_my_penalty():
        check_algorithm(MyPenalty(coefficient=3.0))

    def test_my_data():
        check_source(MySource("rows.parquet"))

    def test_my_predictor():
        check_predictor(MyPredictor(), tasks=("binary",))

If a check fails, it raises an `AssertionError` that names the violated property in one sentence.
"""

from envariant.testing.algorithms import ALGORITHM_CHECKS, check_algorithm, check_training, update
from envariant.testing.predictors import check_predictor
from envariant.testing.problem import TASKS, Problem
from envariant.testing.sources import check_source

__all__ = [
    "ALGORITHM_CHECKS",
    "TASKS",
    "Problem",
    "check_algorithm",
    "check_predictor",
    "check_source",
    "check_training",
    "update",
]
