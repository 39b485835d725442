"""EIIL: on given environments it is IRM."""

from algorithms.enrolment import USUAL, WEIGHTED, Enrolled
from algorithms.references.irm import reference
from envariant.algorithms import Composition

ENROLLED = {
    "eiil": Enrolled(
        # Few steps, so that the first model is not right everywhere.
        {**WEIGHTED, "reference_steps": 5},
        reference,
        USUAL,
        at_zero=Composition(),
    ),
}
