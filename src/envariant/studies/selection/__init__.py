"""Model selection: rules that select one run, and a step within it, from the table of a study.

To add a rule, write a subclass of `Selection` and register it in `SELECTIONS`.
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
