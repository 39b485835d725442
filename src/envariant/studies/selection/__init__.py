"""How a model is chosen out of a study: each way a pure function of the study's table."""

from envariant.studies.selection.base import Chosen, Missing, Selection, select
from envariant.studies.selection.invariance import Invariance
from envariant.studies.selection.leave_one_out import LeaveOneOut
from envariant.studies.selection.oracle import Oracle
from envariant.studies.selection.training_validation import TrainingValidation

SELECTIONS: dict[str, type[Selection]] = {
    cls.name: cls for cls in (TrainingValidation, LeaveOneOut, Invariance, Oracle)
}

__all__ = [
    "SELECTIONS",
    "Chosen",
    "Invariance",
    "LeaveOneOut",
    "Missing",
    "Oracle",
    "Selection",
    "TrainingValidation",
    "select",
]
