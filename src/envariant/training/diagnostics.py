"""What went wrong in a run, as far as its numbers tell: a name, the evidence, the likely cause, the remedy.

Each diagnosis is a pure function of what was measured. They fire on a replica by itself and say on how
many of them they fired. Those that look at a held-out environment say so: to choose a model by them would
be to choose by the test data.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from envariant.algorithms.gradient_aggregators.and_mask import KEPT
from envariant.core.schedules import CAP
from envariant.training.history import GRADIENT_RMS, LOSS, OUTPUT_SD, HistoryRow
from envariant.training.record import Record

# Share of the constant predictor's loss within which a loss counts as the same, and how much the output of
# such a model may differ from row to row.
_SAME_LOSS, _FLAT_OUTPUT = 0.01, 0.25
# Above the optimum by so much, a score is no accident of the draw.
_BEYOND = 0.02
# By how much a held-out score must have fallen from its peak, which is one if it exceeds chance by _PEAK.
# Curves are averaged over _NEIGHBOURS measurements first: a noisy curve's peak is always above its end.
_DECAY, _NEIGHBOURS, _PEAK = 0.02, 3, 0.1
# Adam divides by √v + ε, so gradients below a few ε no longer make steps of the learning rate's length.
_SMALL_GRADIENT = 1e-7
_LITTLE_KEPT = 0.01

Curve = Sequence[tuple[int, float]]
Curves = Mapping[tuple[str, str], Curve]
"""Of one replica: (environment, metric) → (step, value) in order of steps; "*" is the whole batch."""


@final
@dataclass(frozen=True)
class Diagnosis:
    """Something that looks wrong in a run.

    Attributes:
        name: what it is called.
        replicas: numbers of those in which it was seen.
        evidence: the numbers it rests on, in the first of them.
        cause: why it usually happens.
        remedy: what usually helps.
    """

    name: str
    replicas: tuple[int, ...]
    evidence: str
    cause: str
    remedy: str

    def __str__(self) -> str:
        which = f"replica{'s' if len(self.replicas) > 1 else ''} {', '.join(map(str, self.replicas))}"
        return f"{self.name} ({which}): {self.evidence}. Likely cause: {self.cause}. Remedy: {self.remedy}."


@final
@dataclass(frozen=True)
class _Kind:
    name: str
    cause: str
    remedy: str
    seen: Callable[[Record, Curves], str | None]


def diagnose(record: Record, rows: Sequence[HistoryRow]) -> tuple[Diagnosis, ...]:
    """Everything that looks wrong in a run.

    Args:
        record: what the run was.
        rows: what was measured.
    """
    curves: dict[int, dict[tuple[str, str], list[tuple[int, float]]]] = {}
    for row in rows:
        own = curves.setdefault(row.replica, {})
        own.setdefault((row.environment, row.metric), []).append((row.step, row.value))
    return tuple(_found(record, curves))


def _found(record: Record, curves: Mapping[int, Curves]) -> Iterator[Diagnosis]:
    for kind in _KINDS:
        seen = {replica: kind.seen(record, own) for replica, own in sorted(curves.items())}
        said = {replica: evidence for replica, evidence in seen.items() if evidence is not None}
        if said:
            yield Diagnosis(kind.name, tuple(said), next(iter(said.values())), kind.cause, kind.remedy)


def _training(record: Record) -> list[str]:
    return [name for name, role in record.roles.items() if role == "train"]


def _last(curves: Curves, environment: str, metric: str) -> float | None:
    curve = curves.get((environment, metric))
    # Nothing has gone wrong before the first update.
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
            f"loss {loss:.4f} in '{name}', where a constant has {constant:.4f}; "
            f"outputs differ by {spread:.2g} from row to row"
        )
    return evidence


def _beyond(record: Record, curves: Curves) -> str | None:
    if record.optimum is None or not record.higher_is_better:
        return None
    scores = [_last(curves, name, record.metric) for name in _training(record)]
    known = [score for score in scores if score is not None]
    if not known or (mean := statistics.fmean(known)) <= record.optimum + _BEYOND:
        return None
    return f"{record.metric} {mean:.3f} in training, where what holds everywhere gives {record.optimum:.3f}"


def _decayed(record: Record, curves: Curves) -> str | None:
    for name, role in record.roles.items():
        curve = curves.get((name, record.metric), ())
        if role != "test" or len(curve) < 3 * _NEIGHBOURS or not record.higher_is_better:
            continue
        smooth = [
            (curve[i + _NEIGHBOURS // 2][0], statistics.fmean(v for _, v in curve[i : i + _NEIGHBOURS]))
            for i in range(len(curve) - _NEIGHBOURS + 1)
        ]
        step, peak = max(smooth, key=lambda point: point[1])
        end = smooth[-1][1]
        # A fall before anything held, as ERM's from chance, is no decay: there was no peak to speak of.
        if peak - end > _DECAY and (record.chance is None or peak > record.chance + _PEAK):
            return (
                f"{record.metric} in '{name}' (held out) fell from {peak:.3f} near step {step} to {end:.3f}"
            )
    return None


def _overflow(record: Record, curves: Curves) -> str | None:
    for (_, metric), curve in curves.items():
        # Stored as float32, the cap itself may be a little less.
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
    return None if kept is None or kept >= _LITTLE_KEPT else f"the mask keeps {kept:.2%} of all entries"


_KINDS = (
    _Kind(
        "collapsed to chance",
        "a penalty so heavy that the constant predictor, whose penalty is zero, is the best there is, or "
        "gradients too small to leave it",
        "let the coefficient be 1 until something has been learned, as in step(1, 1e4, at=190); lower it; "
        "or divide the loss by it (normalize_loss)",
        _collapsed,
    ),
    _Kind(
        "above the optimum",
        "the model uses what does not hold everywhere, or remembers its rows",
        "a larger coefficient, more weight decay or l2, fewer steps, a smaller model",
        _beyond,
    ),
    _Kind(
        "decay after a peak",
        "training goes on after what holds everywhere has been learned, and rows are remembered or the "
        "spurious feature comes back",
        "a coefficient that keeps growing, more l2, fewer steps; choosing the step by this curve would be "
        "choosing by the test data",
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
        "a loss divided by a large coefficient: gradients fall to the size of Adam's epsilon, and far below "
        "what Adam remembers of those before, which keeps steps short; or nothing is left to learn",
        "reset Adam where the coefficient jumps, as in adam(reset=190); do not divide the loss "
        "(normalize_loss=false); or a smaller epsilon",
        _vanished,
    ),
    _Kind(
        "mask keeps nearly nothing",
        "environments whose gradients disagree almost everywhere, as they do by chance with many of them",
        "a lower threshold, larger batches, or SAND-mask",
        _masked,
    ),
)
