"""One table, one question: does a model hold at a new place, does any method help, and what is to be done."""

from envariant.comparison.compare import ROWS, Answer, compare
from envariant.comparison.protocol import ALGORITHMS

__all__ = ["ALGORITHMS", "ROWS", "Answer", "compare"]
