"""Compare methods on one table (drops in new environments, gains over a baseline), and recommend one."""

from envariant.comparison.compare import MAX_ROWS, Comparison, compare
from envariant.comparison.protocol import ALGORITHMS

__all__ = ["ALGORITHMS", "MAX_ROWS", "Comparison", "compare"]
