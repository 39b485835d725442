"""Studies: many runs declared once, stored as they come, and read as one table."""

from envariant.studies.executors.local import sweep
from envariant.studies.store import Store
from envariant.studies.study import Study

__all__ = ["Store", "Study", "sweep"]
