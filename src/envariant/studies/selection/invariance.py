"""Invariance selection: choose the best validation score among models that pass the invariance test."""

from dataclasses import dataclass
from typing import ClassVar, final

import pandas as pd

from envariant.core.errors import EnvariantError
from envariant.studies.selection.base import NoSelection, SelectedRun, Selection, best, last_steps


@final
@dataclass(frozen=True)
class Invariance(Selection):
    """Rule that selects the run with the best validation score among runs that pass an invariance test.

    Each run is represented by its last step, and passes if the p-value of the test is at least `alpha`.
    Null hypothesis: given the model's prediction, the target does not depend on the training environment
    (`analysis/invariance_test.py`). If all p-values are below `alpha`, the run with the largest p-value is
    selected, with a remark.

    Attributes:
        alpha: Significance level of the test, in (0, 1).
    """

    name: ClassVar[str] = "invariance"
    about: ClassVar[str] = (
        "best validation score among the models for which P(target | prediction) does not differ "
        "significantly between training environments"
    )
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise EnvariantError(f"Invariance: alpha must be in (0, 1), got {self.alpha:g}")

    def choose(self, candidates: pd.DataFrame, others: pd.DataFrame) -> SelectedRun | NoSelection:
        del others
        last = last_steps(candidates)
        tested = last[last["p_value"].notna() & last["score"].notna()]
        if tested.empty:
            return NoSelection("no run has an invariance test on validation rows")
        passed = tested[tested["p_value"] >= self.alpha]
        if passed.empty:
            remark = (
                f"all {len(tested)} candidates are rejected at {self.alpha:g}; this one has the largest "
                f"p-value"
            )
            return SelectedRun.from_row(best(tested, "p_value"), remark)
        remark = f"{len(passed)} of {len(tested)} candidates are not rejected"
        return SelectedRun.from_row(best(passed, "score"), remark)
