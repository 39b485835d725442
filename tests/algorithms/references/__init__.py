"""An independent second implementation of every algorithm, one file each.

To enrol a new algorithm, add a file with a mapping `ENROLLED` from recipe names to `Enrolled`: its settings for the
tests, its update in the plainest way there is, and the properties that it claims.
"""

import pkgutil
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest

from algorithms.enrolment import Enrolled
from algorithms.problems import PROBLEMS
from envariant.algorithms import RECIPES

_MODULES = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
_UNORDERED: dict[str, Enrolled] = {name: row for module in _MODULES for name, row in module.ENROLLED.items()}
ENROLLED = dict(sorted(_UNORDERED.items(), key=lambda item: [*RECIPES, item[0]].index(item[0])))
"""Every enrolled algorithm, in the order of the recipes."""


def every_case(which: Callable[[str, Enrolled], bool] = lambda name, row: True) -> Any:
    """Parametrize a test by the name and problem of every enrolled algorithm that a condition selects."""
    cases = [
        pytest.param(name, PROBLEMS[problem], id=f"{name}-{problem}")
        for name, row in ENROLLED.items()
        if which(name, row)
        for problem in row.problems
    ]
    return pytest.mark.parametrize(("name", "problem"), cases)


def every_case_with(claim: str) -> Any:
    """Parametrize a test by the enrolled algorithms that claim a property."""
    return every_case(lambda _, row: claim in row.claims)
