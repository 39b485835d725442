"""Studies: many runs that are declared at once, stored when they finish, and read as one table."""

from envariant.studies.executors.local import sweep
from envariant.studies.study import Study, begin
from envariant.training.store import Store

__all__ = ["Store", "Study", "begin", "sweep"]
