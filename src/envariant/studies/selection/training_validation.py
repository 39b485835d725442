"""Training-domain validation: the best score on validation rows of the training environments."""

from dataclasses import dataclass
from typing import ClassVar, final

import pandas as pd

from envariant.studies.selection.base import NoSelection, SelectedRun, Selection, best


@final
@dataclass(frozen=True)
class TrainingValidation(Selection):
    """Rule that selects the run and step with the best validation score. Gulrajani & Lopez-Paz 2021.

    The validation score is the score on validation rows, averaged over training environments.
    """

    name: ClassVar[str] = "training-domain validation"
    about: ClassVar[str] = "best score on validation rows of the training environments, at any step"

    def choose(self, candidates: pd.DataFrame, others: pd.DataFrame) -> SelectedRun | NoSelection:
        del others
        scored = candidates[candidates["score"].notna()]
        if scored.empty:
            return NoSelection("no run has a score on validation rows")
        return SelectedRun.from_row(best(scored, "score"))
