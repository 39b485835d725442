"""Model selection: rules that choose one run and step of a study, each a pure function of its table.

A new rule is a file with a `Selection` and an entry in `SELECTIONS`.
"""

from envariant.studies.selection.base import NoSelection, SelectedRun, Selection, SelectionResult, select
from envariant.studies.selection.invariance import Invariance
from envariant.studies.selection.leave_one_out import LeaveOneOut
from envariant.studies.selection.oracle import Oracle
from envariant.studies.selection.training_validation import TrainingValidation

SELECTIONS: dict[str, type[Selection]] = {
    cls.name: cls for cls in (TrainingValidation, LeaveOneOut, Invariance, Oracle)
}

__all__ = [
    "SELECTIONS",
    "Invariance",
    "LeaveOneOut",
    "NoSelection",
    "Oracle",
    "SelectedRun",
    "Selection",
    "SelectionResult",
    "TrainingValidation",
    "select",
]
