"""Diagnoses of a run from its measurements: problem, evidence, likely cause and remedy.

Each diagnosis is a pure function of the measured values of one replica. Diagnoses from test environments must
not be used for model selection, which would be oracle selection; their text mentions this.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from envariant.algorithms.gradient_aggregators.and_mask import KEPT
from envariant.core.schedules import CAP
from envariant.training.history import FULL, GRADIENT_RMS, LOSS, OUTPUT_SD, HistoryRow
from envariant.training.record import Record

# A model has collapsed if its loss differs from that of a constant prediction by at most this fraction, and
# the standard deviation of its outputs over rows is at most this large.
_SAME_LOSS, _FLAT_OUTPUT = 0.01, 0.25
# Smallest difference between score and optimum that is reported.
_MARGIN = 0.02
# A test score has decayed if it fell by _DECAY from a peak that exceeds chance by _PEAK. Curves are averaged
# over _WINDOW measurements first, because the peak of a noisy curve is always above its end.
_DECAY, _WINDOW, _PEAK = 0.02, 3, 0.1
# Adam divides by √v + ε, so with gradients below a few ε its steps are shorter than the learning rate.
_SMALL_GRADIENT = 1e-7
_FEW_KEPT = 0.01

Curve = Sequence[tuple[int, float]]
Curves = Mapping[tuple[str, str], Curve]
"""Curves of one replica: (environment, metric) → (step, value), sorted by step; "*" is the training batch."""


@final
@dataclass(frozen=True)
class Diagnosis:
    """Possible problem of a run, detected in its measurements.

    Attributes:
        name: Name of the diagnosis.
        replicas: Numbers of the affected replicas.
        evidence: Measured values of the first affected replica.
        cause: Likely cause.
        remedy: Suggested remedy.
    """

    name: str
    replicas: tuple[int, ...]
    evidence: str
    cause: str
    remedy: str

    def __str__(self) -> str:
        numbers = f"replica{'s' if len(self.replicas) > 1 else ''} {', '.join(map(str, self.replicas))}"
        return f"{self.name} ({numbers}): {self.evidence}. Likely cause: {self.cause}. Remedy: {self.remedy}."


@final
@dataclass(frozen=True)
class _Kind:
    name: str
    cause: str
    remedy: str
    evidence: Callable[[Record, Curves], str | None]


def diagnose(record: Record, rows: Sequence[HistoryRow]) -> tuple[Diagnosis, ...]:
    """Return possible problems of a run.

    Args:
        record: Record of the run.
        rows: Measurements of the run. Validation rows and changed inputs are ignored.
    """
    curves: dict[int, dict[tuple[str, str], list[tuple[int, float]]]] = {}
    for row in rows:
        if row.role != "validation" and row.kind == FULL:
            own = curves.setdefault(row.replica, {})
            own.setdefault((row.environment, row.metric), []).append((row.step, row.value))
    return tuple(_diagnoses(record, curves))


def _diagnoses(record: Record, curves: Mapping[int, Curves]) -> Iterator[Diagnosis]:
    for kind in _KINDS:
        by_replica = {replica: kind.evidence(record, own) for replica, own in sorted(curves.items())}
        evidence = {replica: text for replica, text in by_replica.items() if text is not None}
        if evidence:
            yield Diagnosis(
                kind.name, tuple(evidence), next(iter(evidence.values())), kind.cause, kind.remedy
            )


def _training(record: Record) -> list[str]:
    return [name for name, role in record.roles.items() if role == "train"]


def _last(curves: Curves, environment: str, metric: str) -> float | None:
    curve = curves.get((environment, metric))
    # Before the first update there is nothing to diagnose.
    return curve[-1][1] if curve and curve[-1][0] > 0 else None


def _collapsed(record: Record, curves: Curves) -> str | None:
    evidence: str | None = None
    for name in _training(record):
        loss, spread = _last(curves, name, LOSS), _last(curves, name, OUTPUT_SD)
        constant = record.constant_loss[name]
        if loss is None or spread is None:
            return None
        if abs(loss - constant) > _SAME_LOSS * constant or spread > _FLAT_OUTPUT:
            return None
        evidence = (
            f"loss {loss:.4f} in '{name}', where a constant prediction has {constant:.4f}; "
            f"the standard deviation of the outputs over rows is {spread:.2g}"
        )
    return evidence


def _above_optimum(record: Record, curves: Curves) -> str | None:
    if record.optimum is None or not record.higher_is_better:
        return None
    scores = [_last(curves, name, record.metric) for name in _training(record)]
    known = [score for score in scores if score is not None]
    if not known or (mean := statistics.fmean(known)) <= record.optimum + _MARGIN:
        return None
    return (
        f"{record.metric} {mean:.3f} in training environments, where the best invariant predictor has "
        f"{record.optimum:.3f}"
    )


def _decayed(record: Record, curves: Curves) -> str | None:
    for name, role in record.roles.items():
        curve = curves.get((name, record.metric), ())
        if role != "test" or len(curve) < 3 * _WINDOW or not record.higher_is_better:
            continue
        smooth = [
            (curve[i + _WINDOW // 2][0], statistics.fmean(v for _, v in curve[i : i + _WINDOW]))
            for i in range(len(curve) - _WINDOW + 1)
        ]
        step, peak = max(smooth, key=lambda point: point[1])
        end = smooth[-1][1]
        # A score that falls from chance level, as with ERM, is not a decay after a peak.
        if peak - end > _DECAY and (record.chance is None or peak > record.chance + _PEAK):
            return (
                f"{record.metric} in test environment '{name}' fell from {peak:.3f} near step {step} to "
                f"{end:.3f}"
            )
    return None


def _overflow(record: Record, curves: Curves) -> str | None:
    for (_, metric), curve in curves.items():
        # As float32, the cap itself may be slightly smaller.
        reached = [step for step, value in curve if abs(value) >= CAP * (1 - 1e-6)]
        if metric.endswith(" coefficient") and reached:
            return f"the {metric} reached the cap of {CAP:g} by step {reached[0]}"
    return None


def _vanished(record: Record, curves: Curves) -> str | None:
    size = _last(curves, "*", GRADIENT_RMS)
    if size is None or size >= _SMALL_GRADIENT:
        return None
    first = curves["*", GRADIENT_RMS][0]
    return f"the gradient's root mean square is {size:.1e}; it was {first[1]:.1e} at step {first[0]}"


def _masked(record: Record, curves: Curves) -> str | None:
    kept = _last(curves, "*", KEPT)
    return None if kept is None or kept >= _FEW_KEPT else f"the mask keeps {kept:.2%} of all gradient entries"


_KINDS = (
    _Kind(
        "collapsed to chance",
        "a penalty so large that the constant prediction, whose penalty is zero, is optimal, or "
        "gradients too small to leave it",
        "keep the coefficient at 1 until some features are learned, as in step(1, 1e4, at=190); lower it; or "
        "divide the loss by it (normalize_loss)",
        _collapsed,
    ),
    _Kind(
        "above the optimum",
        "the model uses spurious features, or memorizes training rows",
        "a larger coefficient, more weight decay or l2, fewer steps, or a smaller model",
        _above_optimum,
    ),
    _Kind(
        "decay after a peak",
        "training continues after the invariant features are learned, and the model memorizes rows or "
        "returns to spurious features",
        "a coefficient that keeps growing, more l2, or fewer steps; selecting the step by this curve would "
        "be oracle selection",
        _decayed,
    ),
    _Kind(
        "coefficient overflow",
        "a schedule that grows without bound",
        "a slower schedule, such as poly(k=1, p=2, after=190) in place of exp",
        _overflow,
    ),
    _Kind(
        "gradient vanished",
        "a loss divided by a large coefficient, so that gradients fall to the size of Adam's epsilon and far "
        "below the earlier ones that Adam averages, which shortens its steps; or nothing is left to learn",
        "reset Adam where the coefficient jumps, as in adam(reset=190); do not divide the loss "
        "(normalize_loss=false); or use a smaller epsilon",
        _vanished,
    ),
    _Kind(
        "mask keeps nearly nothing",
        "gradients of the environments disagree almost everywhere, by chance if environments are many",
        "a lower threshold, larger batches, or SAND-mask",
        _masked,
    ),
)
