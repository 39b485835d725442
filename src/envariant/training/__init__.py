"""Training: the engine, what it measures, and where results are kept."""

from envariant.training.history import HistoryRow
from envariant.training.replicas import Replica, Seeds
from envariant.training.result import Spread, TrainingResult
from envariant.training.train import train

__all__ = ["HistoryRow", "Replica", "Seeds", "Spread", "TrainingResult", "train"]
