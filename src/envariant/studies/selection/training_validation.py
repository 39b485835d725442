"""Training-domain validation: the best on held-out rows of the training environments."""

from dataclasses import dataclass
from typing import ClassVar, final

import pandas as pd

from envariant.studies.selection.base import Chosen, Missing, Selection, best, chosen


@final
@dataclass(frozen=True)
class TrainingValidation(Selection):
    """The run and the step with the best mean over training environments. Gulrajani & Lopez-Paz 2021."""

    name: ClassVar[str] = "training-domain"
    about: ClassVar[str] = "best on held-out rows of the training environments, at any measured step"

    def choose(self, candidates: pd.DataFrame, others: pd.DataFrame) -> Chosen | Missing:
        del others
        known = candidates[candidates["score"].notna()]
        if known.empty:
            return Missing("nothing was measured on held-out rows")
        return chosen(best(known, "score"))
