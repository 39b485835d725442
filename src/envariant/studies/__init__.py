"""Studies: sets of runs that are declared together, trained, and compared in one table."""

from envariant.studies.executors.local import sweep
from envariant.studies.study import Study, begin
from envariant.training.store import Store

__all__ = ["Store", "Study", "begin", "sweep"]
