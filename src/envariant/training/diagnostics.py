"""Detect problems of a run from its measured values, and suggest causes and remedies.

Each diagnosis is computed from the measured values of one replica. Some diagnoses use scores in test
environments. The messages of these diagnoses state that selecting models by these scores would be oracle
selection.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from envariant.algorithms.gradient_aggregators.and_mask import KEPT
from envariant.core.schedules import CAP
from envariant.training.history import FULL, GRADIENT_RMS, LOSS, OUTPUT_SD, HistoryRow
from envariant.training.module_outputs import NO_LOGITS
from envariant.training.record import Record
from envariant.training.schedule_notes import IDLE

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
# A training score is near chance if it exceeds the scores of a random guess and of a constant prediction by
# at most these differences. Shorter runs may not have learned anything yet.
_NEAR_CHANCE, _NEAR_CONSTANT, _ENOUGH_STEPS = 0.05, 0.02, 50

Curve = Sequence[tuple[int, float]]
Curves = Mapping[tuple[str, str], Curve]
"""Curves of one replica, by environment and metric. A curve is a list of (step, value), sorted by step. For
metrics of the training batch, the environment is "*"."""


@final
@dataclass(frozen=True)
class Diagnosis:
    """Possible problem of a run, detected from measured values.

    Attributes:
        name: Name of the diagnosis.
        replicas: Indices of the affected replicas.
        evidence: Measured values that indicate the problem, from the first affected replica.
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
class _Finding:
    evidence: str
    cause: str
    remedy: str


def diagnose(record: Record, rows: Sequence[HistoryRow]) -> tuple[Diagnosis, ...]:
    """Return the possible problems of a run.

    Args:
        record: Record of the run.
        rows: Measured values of the run. Values from validation rows, from subsamples and from changed inputs
            are ignored.
    """
    curves: dict[int, dict[tuple[str, str], list[tuple[int, float]]]] = {}
    for row in rows:
        if row.role != "validation" and row.kind == FULL:
            own = curves.setdefault(row.replica, {})
            own.setdefault((row.environment, row.metric), []).append((row.step, row.value))
    return tuple(_diagnoses(record, curves))


def _diagnoses(record: Record, curves: Mapping[int, Curves]) -> Iterator[Diagnosis]:
    for name, find in _KINDS.items():
        by_replica = {replica: find(record, own) for replica, own in sorted(curves.items())}
        found = {replica: finding for replica, finding in by_replica.items() if finding is not None}
        if found:
            first = next(iter(found.values()))
            yield Diagnosis(name, tuple(found), first.evidence, first.cause, first.remedy)


def _training(record: Record) -> list[str]:
    return [name for name, role in record.roles.items() if role == "train"]


def _last(curves: Curves, environment: str, metric: str) -> float | None:
    curve = curves.get((environment, metric))
    # Before the first update there is nothing to diagnose.
    return curve[-1][1] if curve and curve[-1][0] > 0 else None


def _has_penalty(record: Record, curves: Curves) -> bool:
    """Return whether a run has a penalty whose coefficient took effect."""
    return any(metric.endswith(" coefficient") for _, metric in curves) and not _idle(record)


def _idle(record: Record) -> str:
    """Return the remark on a schedule of the algorithm that never took effect; "" if there is none."""
    others = ("learning_rate", "optimizer")
    return next((r for r in record.remarks if IDLE in r and not r.startswith(others)), "")


def _no_logits(record: Record) -> str:
    """Return the remark on a model whose outputs cannot be logits; "" if there is none."""
    return next((remark for remark in record.remarks if NO_LOGITS in remark), "")


def _constant(record: Record, curves: Curves) -> str | None:
    """Return the evidence that a model predicts a constant in all training environments, or None."""
    evidence: str | None = None
    for name in _training(record):
        loss, spread = _last(curves, name, LOSS), _last(curves, name, OUTPUT_SD)
        constant = record.constant_loss[name]
        if loss is None or spread is None or not math.isfinite(constant):
            return None
        if abs(loss - constant) > _SAME_LOSS * constant or spread > _FLAT_OUTPUT:
            return None
        evidence = (
            f"loss {loss:.4f} in '{name}', where a constant prediction has {constant:.4f}; "
            f"the standard deviation of the outputs over rows is {spread:.2g}"
        )
    return evidence


def _collapsed(record: Record, curves: Curves) -> _Finding | None:
    evidence = _constant(record, curves)
    if evidence is None:
        return None
    if _has_penalty(record, curves) and not _no_logits(record):
        return _Finding(
            evidence,
            "a penalty so large that the constant prediction, whose penalty is zero, is optimal, or "
            "gradients that are too small to leave the constant prediction",
            "keep the coefficient at 1 until the network has learned features, as in step(1, 1e4, at=190); "
            "use a smaller coefficient; or divide the loss by the coefficient (normalize_loss)",
        )
    return _Finding(evidence, *_nothing_learned(record))


def _near_chance(record: Record, curves: Curves) -> _Finding | None:
    """Diagnose a training score that is no better than a guess, although the predictions vary."""
    if (record.spec.steps or 0) < _ENOUGH_STEPS or _constant(record, curves) is not None:
        return None
    evidence: str | None = None
    for each in record.environments:
        if each.role != "train":
            continue
        score, loss = _last(curves, each.label, record.metric), _last(curves, each.label, LOSS)
        if score is None or loss is None:
            return None
        no_gain = loss >= (1 - _SAME_LOSS) * each.constant_loss
        found, best = f"loss {loss:.4f}", each.constant_loss
        if record.higher_is_better and record.chance is not None:
            best = max(record.chance, each.majority or 0.0)
            suspicious = no_gain or score <= record.chance + _NEAR_CHANCE or bool(_no_logits(record))
            if score > best + _NEAR_CONSTANT or not suspicious:
                return None
            found = f"{record.metric} {score:.3f}"
        elif not no_gain:
            return None
        evidence = evidence or f"{found} in '{each.name}', where a constant prediction has {best:.3f}"
    return None if evidence is None else _Finding(evidence, *_nothing_learned(record))


def _nothing_learned(record: Record) -> tuple[str, str]:
    """Return the likely cause and the remedy of a training score that is no better than a guess."""
    if remark := _no_logits(record):
        cause, _, remedy = remark.partition("; ")
        return cause, remedy
    return (
        "a learning rate that is too small or too large, inputs that are not scaled, too few steps, a strong "
        "penalty or l2, or outputs that are not logits, as after a sigmoid or softmax",
        "check that the network returns logits; scale the inputs; try other learning rates and erm with l2=0",
    )


def _above_optimum(record: Record, curves: Curves) -> _Finding | None:
    if record.optimum is None or not record.higher_is_better:
        return None
    scores = [_last(curves, name, record.metric) for name in _training(record)]
    known = [score for score in scores if score is not None]
    if not known or (mean := statistics.fmean(known)) <= record.optimum + _MARGIN:
        return None
    evidence = (
        f"{record.metric} {mean:.3f} in training environments, where the best invariant predictor has "
        f"{record.optimum:.3f}"
    )
    if idle := _idle(record):
        what, _, remedy = idle.partition("; ")
        return _Finding(evidence, f"the algorithm did not take effect ({what})", remedy)
    has_penalty = _has_penalty(record, curves)
    first = "a larger coefficient" if has_penalty else "an algorithm with a penalty, such as vrex"
    return _Finding(
        evidence,
        "the model uses spurious features, or memorizes training rows",
        f"{first}, more weight decay or l2, fewer steps, or a smaller model",
    )


def _decayed(record: Record, curves: Curves) -> _Finding | None:
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
            growing = "a coefficient that keeps growing, " if _has_penalty(record, curves) else ""
            return _Finding(
                f"{record.metric} in test environment '{name}' fell from {peak:.3f} near step {step} to "
                f"{end:.3f}",
                "training continues after the invariant features are learned, and the model memorizes rows "
                "or returns to spurious features",
                f"{growing}more l2, or fewer steps; selecting the step by this curve would be oracle "
                f"selection",
            )
    return None


def _overflow(record: Record, curves: Curves) -> _Finding | None:
    for (_, metric), curve in curves.items():
        # As float32, the cap itself may be slightly smaller.
        reached = [step for step, value in curve if abs(value) >= CAP * (1 - 1e-6)]
        if metric.endswith(" coefficient") and reached:
            return _Finding(
                f"the {metric} reached the cap of {CAP:g} by step {reached[0]}",
                "a schedule that grows without bound",
                "a slower schedule, such as poly(k=1, p=2, after=190) in place of exp",
            )
    return None


def _vanished(record: Record, curves: Curves) -> _Finding | None:
    size = _last(curves, "*", GRADIENT_RMS)
    if size is None or size >= _SMALL_GRADIENT:
        return None
    first = curves["*", GRADIENT_RMS][0]
    evidence = f"the gradient's root mean square is {size:.1e}; it was {first[1]:.1e} at step {first[0]}"
    return _Finding(
        evidence,
        "the loss is divided by a large coefficient, so that gradients become as small as Adam's epsilon and "
        "much smaller than the earlier gradients in Adam's averages, and Adam's steps become too small; or "
        "nothing is left to learn",
        "reset Adam where the coefficient jumps, as in adam(reset=190); do not divide the loss "
        "(normalize_loss=false); or use a smaller epsilon",
    )


def _masked(record: Record, curves: Curves) -> _Finding | None:
    kept = _last(curves, "*", KEPT)
    if kept is None or kept >= _FEW_KEPT:
        return None
    return _Finding(
        f"the mask keeps {kept:.2%} of all gradient entries",
        "the gradients of the environments disagree in almost all entries, which happens by chance if there "
        "are many environments",
        "a lower threshold, larger batches, or SAND-mask",
    )


_KINDS: Mapping[str, Callable[[Record, Curves], _Finding | None]] = {
    "collapsed to chance": _collapsed,
    "training score near chance": _near_chance,
    "above the optimum": _above_optimum,
    "decay after a peak": _decayed,
    "coefficient overflow": _overflow,
    "gradient vanished": _vanished,
    "mask keeps nearly nothing": _masked,
}
