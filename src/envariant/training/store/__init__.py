"""Storage of runs: one SQLite file per folder, updated during training by one or several processes."""

from envariant.training.store.reader import StoreReader
from envariant.training.store.rows import STATES, PlannedRun, Predictions, RunOutcome, StoredRun, Trial
from envariant.training.store.writer import Store

__all__ = ["STATES", "PlannedRun", "Predictions", "RunOutcome", "Store", "StoreReader", "StoredRun", "Trial"]
