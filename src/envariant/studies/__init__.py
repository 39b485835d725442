"""Studies: sets of runs that are declared and trained together, and compared in one table."""

from envariant.studies.executors.local import sweep
from envariant.studies.study import Study, begin
from envariant.studies.study_results import StudyResults
from envariant.training.store import Store

__all__ = ["Store", "Study", "StudyResults", "begin", "sweep"]
