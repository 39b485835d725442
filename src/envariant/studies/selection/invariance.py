"""Invariance selection: of the models that pass a test of invariance, the best on held-out rows."""

from dataclasses import dataclass
from typing import ClassVar, final

import pandas as pd

from envariant.core.errors import EnvariantError
from envariant.studies.selection.base import Chosen, Missing, Selection, best, chosen, last_steps


@final
@dataclass(frozen=True)
class Invariance(Selection):
    """Of the runs whose p-value is at least α at the last step, the best on held-out rows.

    The test asks whether the target, given what the model says, still depends on which training environment
    a row is from (`studies/invariance.py`). If it rejects every candidate, the one with the largest p-value
    is taken and the remark says so.

    Attributes:
        alpha: level of the test.
    """

    name: ClassVar[str] = "invariance"
    about: ClassVar[str] = (
        "best on held-out rows among those whose answers mean the same in every environment"
    )
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise EnvariantError(f"invariance: alpha must lie above 0 and below 1; got {self.alpha:g}")

    def choose(self, candidates: pd.DataFrame, others: pd.DataFrame) -> Chosen | Missing:
        del others
        last = last_steps(candidates)
        tested = last[last["p_value"].notna() & last["score"].notna()]
        if tested.empty:
            return Missing("no run was tested on held-out rows")
        kept = tested[tested["p_value"] >= self.alpha]
        if kept.empty:
            return chosen(
                best(tested, "p_value"),
                f"all {len(tested)} candidates are rejected at {self.alpha:g}; "
                f"this one has the largest p-value",
            )
        return chosen(best(kept, "score"), f"{len(kept)} of {len(tested)} candidates are not rejected")
