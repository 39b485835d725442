"""Oracle selection: the best score in the test environments; an upper bound, not a valid selection rule."""

from dataclasses import dataclass
from typing import ClassVar, final

import pandas as pd

from envariant.studies.selection.base import NoSelection, SelectedRun, Selection, best, last_steps, signed


@final
@dataclass(frozen=True)
class Oracle(Selection):
    """Rule that selects the run with the best test score at its last step. Gulrajani & Lopez-Paz 2021.

    The test score of a run is the mean over its test environments. As in DomainBed, only the last step of
    each run is considered, without early stopping.
    """

    name: ClassVar[str] = "oracle"
    uses_test: ClassVar[bool] = True
    about: ClassVar[str] = "best score in the test environments at the last step; uses the test labels"

    def choose(self, candidates: pd.DataFrame, others: pd.DataFrame) -> SelectedRun | NoSelection:
        del others
        last = last_steps(candidates)
        last = last.assign(test_score=signed(last, last["test"]))
        last = last[last["test_score"].notna()]
        if last.empty:
            return NoSelection("there is no test environment")
        return SelectedRun.from_row(best(last, "test_score"), "oracle: selected by test score")
