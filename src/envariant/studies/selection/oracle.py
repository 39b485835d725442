"""The oracle: the best in the test environment itself. No choice that anybody could make in earnest."""

from dataclasses import dataclass
from typing import ClassVar, final

import pandas as pd

from envariant.studies.selection.base import Chosen, Missing, Selection, best, chosen, last_steps


@final
@dataclass(frozen=True)
class Oracle(Selection):
    """The run whose last step is best in the held-out environments: no early stopping, as in DomainBed."""

    name: ClassVar[str] = "oracle"
    sees_test: ClassVar[bool] = True
    about: ClassVar[str] = "best in the held-out environments at the last step: it looks at the answer"

    def choose(self, candidates: pd.DataFrame, others: pd.DataFrame) -> Chosen | Missing:
        del others
        last = last_steps(candidates)
        last = last.assign(seen=last["test"].where(last["higher_is_better"].fillna(1) == 1, -last["test"]))
        last = last[last["seen"].notna()]
        if last.empty:
            return Missing("no environment is held out")
        return chosen(best(last, "seen"), "oracle: chosen in the test environment")
