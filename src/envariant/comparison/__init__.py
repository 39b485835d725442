"""Compare methods on one table: score drops in new environments, gains over a baseline, a recommendation."""

from envariant.comparison.compare import MAX_ROWS, Comparison, compare
from envariant.comparison.protocol import ALGORITHMS

__all__ = ["ALGORITHMS", "MAX_ROWS", "Comparison", "compare"]
