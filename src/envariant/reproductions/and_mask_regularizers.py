"""AND-mask paper: dropout, batch norm, L1 and L2 on spirals, without the mask and with it."""

from collections.abc import Iterator, Mapping
from typing import Any

from envariant.reproductions.and_mask_spirals import (
    CHANCE,
    EPOCH,
    MODEL,
    NEARLY,
    README,
    SHORT,
    STEPS,
    accuracies,
    spirals_run,
)
from envariant.reproductions.base import Finding, section
from envariant.reproductions.l1_adam import L1Adam
from envariant.reproductions.runner import Run, Runner
from envariant.reproductions.summaries import gain, id_score, ood_score, signed
from envariant.reproductions.verdicts import all_hold, beyond, statement
from envariant.training.result import TrainingResult

# The paper's search ranges.
_L2, _L1, _DROPOUT = (1e-5, 1e-4, 1e-3), (1e-6, 1e-5, 1e-4), 0.5
NONE = "no regularizer"
_README = {"weight_decay": README["weight_decay"]}


@section("spirals-regularizers", "Spirals: dropout, batch norm, L1 and L2")
def regularizers(runner: Runner) -> Iterator[Finding]:
    """Compare common regularizers on spirals, without AND-mask and with it.

    The paper makes two statements about regularizers. Without the mask, dropout, batch norm, an L1 penalty
    and an L2 penalty do not prevent the network from learning the signatures, so test accuracy stays at
    chance. With the mask, L1 or L2 gives the most robust results. Both penalties are applied after the mask,
    so masked weights shrink instead of keeping their initial values.

    Data and other settings are those of the released program's README. Every setting has at most one
    regularizer.
    """
    plain = runner.sweep(_runs(runner, mask=False))
    masked = runner.sweep(_runs(runner, mask=True))
    caption = f"Mean over runs, by update ({EPOCH} per epoch)."
    yield from accuracies(plain, f"Adam without a mask (τ = 0). {caption}", "plain-")
    yield from _plain_claims(plain)
    yield from accuracies(masked, f"AND-mask (τ = 1). {caption}", "masked-")
    yield from _masked_claims(masked, plain)
    yield (
        "Where a penalty has several strengths, claims about AND-mask use the strength with the highest test "
        "accuracy (oracle selection), so the intervals of these claims are optimistic. Here, "
        "robustness means the mean test accuracy over runs. L1 adds coefficient · sign(θ) to the gradient of "
        "every weight and bias θ, and Adam receives the sum. "
        f"Batch norm comes before the activations, and dropout (probability {_DROPOUT}) after them. The "
        "paper searches over combinations of regularizers, learning rates and network sizes; this page does "
        "not. Cost: 10 minutes of one core in the quick profile, 2.5 hours in the full profile (estimates)."
    )


def _runs(runner: Runner, *, mask: bool) -> dict[str, Run]:
    """Return the runs with and without each regularizer, by label.

    Args:
        runner: Runner that determines the profile.
        mask: Whether gradients are masked. Dropout and batch norm are used only without the mask.
    """
    settings: dict[str, dict[str, Any]] = {NONE: {"weight_decay": 0.0}}
    for coefficient in runner.pick(quick=_L2[-1:], full=_L2):
        settings[f"L2 {_short(coefficient)}"] = {"weight_decay": coefficient}
    for coefficient in runner.pick(quick=_L1[-1:], full=_L1):
        settings[f"L1 {_short(coefficient)}"] = {"weight_decay": 0.0, "optimizer": L1Adam(coefficient)}
    if not mask:
        for label, option in (
            (f"dropout {_DROPOUT}", f"dropout={_DROPOUT}"),
            ("batch norm", "batch_norm=true"),
        ):
            settings[label] = {"weight_decay": 0.0, "model": f"{MODEL[:-1]}, {option})"}
    count, shared = runner.pick(quick=(2, 2), full=(10, 50) if mask else (5, 10))
    steps = STEPS if mask else runner.pick(quick=SHORT, full=STEPS)
    algorithm = "and-mask(threshold=1)" if mask else "erm"
    return {
        # The run with the README's weight decay is shared with the section on the README's settings.
        label: spirals_run(algorithm, shared if own == _README else count, steps=steps, **own)
        for label, own in settings.items()
    }


def _short(coefficient: float) -> str:
    return f"{coefficient:.0e}".replace("e-0", "e-")


def _plain_claims(plain: Mapping[str, TrainingResult]) -> Iterator[Finding]:
    """Yield a claim for each kind of regularizer without the mask: training succeeds, test is at chance."""
    for kind in (NONE, f"dropout {_DROPOUT}", "batch norm", "L1", "L2"):
        group = {label: result for label, result in plain.items() if label.startswith(kind)}
        tests, trains = ([score(result) for result in group.values()] for score in (ood_score, id_score))
        each = f" or more at each of {len(group)} strengths" if len(group) > 1 else ""
        yield statement(
            f"Adam with {kind} learns the training environments (accuracy above {NEARLY}) and stays at "
            f"chance in the test environment (below {CHANCE}).",
            all_hold([*(beyond(t, below=CHANCE) for t in tests), *(beyond(t, above=NEARLY) for t in trains)]),
            f"highest test accuracy {max(tests, key=lambda t: t.mean)}, lowest training accuracy "
            f"{min(t.mean for t in trains):.3f}; {min(t.count for t in tests)} runs{each}",
        )


def _masked_claims(
    masked: Mapping[str, TrainingResult], plain: Mapping[str, TrainingResult]
) -> Iterator[Finding]:
    """Yield the claims about AND-mask with L1 and L2."""

    def best(results: Mapping[str, TrainingResult]) -> str:
        return max(results, key=lambda label: ood_score(results[label]).mean)

    penalized = {label: result for label, result in masked.items() if label != NONE}
    for kind in ("L1", "L2"):
        label = best({label: result for label, result in penalized.items() if label.startswith(kind)})
        advantage = gain(masked[label], masked[NONE])
        yield statement(
            f"AND-mask has a higher test accuracy with {kind} than without a regularizer.",
            beyond(advantage, above=0.0),
            f"{label}: {ood_score(masked[label])}, without: {ood_score(masked[NONE])}, difference "
            f"{signed(advantage)}, {advantage.count} pairs",
        )
    leader = best(penalized)
    others = {f"AND-mask, {NONE}": masked[NONE], **{f"Adam, {label}": plain[label] for label in plain}}
    second = best(others)
    lead = gain(masked[leader], others[second])
    yield statement(
        "AND-mask with L1 or L2 has a higher test accuracy than every other setting in this section.",
        beyond(lead, above=0.0),
        f"AND-mask, {leader}: {ood_score(masked[leader])}; best of {len(others)} other settings ({second}): "
        f"{ood_score(others[second])}; difference {signed(lead)}, {lead.count} pairs",
    )
    lowest = min(penalized, key=lambda label: ood_score(penalized[label]).mean)
    yield statement(
        f"AND-mask generalizes at every strength of L1 and L2 (test accuracy above {CHANCE}).",
        all_hold(beyond(ood_score(result), above=CHANCE) for result in penalized.values()),
        f"lowest of {len(penalized)} settings ({lowest}): {ood_score(penalized[lowest])}",
    )
