"""Remarks on schedules that are scaled to the length of a run, or that have no effect within the run."""

from envariant.algorithms import Algorithm, Composition
from envariant.core.rate_schedules import CosineRestarts
from envariant.core.schedules import Schedule
from envariant.predictors import Predictor
from envariant.training import option_values
from envariant.training.optimizers import OptimizerConfig
from envariant.training.parameter_groups import ByGroup

IDLE = "only after this run of"
"""Phrase that occurs in every remark on a schedule without effect within the run."""

SCALED = "is suggested for"
"""Phrase that occurs in every remark on a suggested schedule that was scaled to the run."""


def scaling_notes(before: Algorithm, after: Algorithm, length: int, steps: int | None) -> tuple[str, ...]:
    """Return a sentence for each schedule or step number that was scaled to the length of a run.

    Args:
        before: Algorithm with the suggested values.
        after: Algorithm with the scaled values.
        length: Number of steps for which the values are suggested.
        steps: Number of steps of the run. If it is None (unknown), nothing was scaled, and the result is
            empty.
    """
    if steps is None or not (isinstance(before, Composition) and isinstance(after, Composition)):
        return ()
    old, new = (
        {**each.schedules(), **{key: value for key, (value, _) in each.switch_steps().items()}}
        for each in (before, after)
    )
    return tuple(
        f"{name}: {old[name]} {SCALED} {length} steps; scaled to {value} for {steps} steps"
        for name, value in new.items()
        if value != old[name]
    )


def idle_schedules(
    algorithm: Algorithm | Predictor,
    learning_rate: object,
    steps: int,
    optimizer: OptimizerConfig | None = None,
) -> tuple[str, ...]:
    """Return a sentence for each schedule or step number that never takes effect within a run.

    Args:
        algorithm: Algorithm with its hyperparameters.
        learning_rate: Learning rate: a number, a schedule, values by parameter group, or a string.
        steps: Number of steps of the run.
        optimizer: Optimizer of the run.
    """
    rate = option_values.learning_rate(learning_rate) if isinstance(learning_rate, str) else learning_rate
    named = {"learning_rate": rate}
    if isinstance(rate, ByGroup):
        named = {
            f"learning_rate of {group}": value for group, value in (*rate.values, ("others", rate.others))
        }
    courses = {name: each.resolve(steps) for name, each in named.items() if isinstance(each, Schedule)}
    numbers: dict[str, tuple[int, int]] = {}
    if isinstance(algorithm, Composition):
        courses |= algorithm.schedules()
        numbers |= algorithm.switch_steps()
    if reset := getattr(optimizer, "reset", 0):
        numbers["optimizer reset"] = (reset, reset)
    late = {name: course for name, course in courses.items() if not course.takes_effect_within(steps)}
    constant = tuple(
        f"{name}: {course} restarts at every step of this run of {steps} steps, so its value never decays; "
        f"train longer, or give a longer period"
        for name, course in courses.items()
        if isinstance(course, CosineRestarts) and course.period == course.factor == 1
    )
    early = "train longer, or give the switch point as a share of the run, such as at=40%"
    return (
        constant
        + tuple(
            f"{name}: {course} changes {IDLE} {steps} steps has ended; {early}"
            for name, course in late.items()
        )
        + tuple(
            f"{name}: {value} takes effect {IDLE} {steps} steps has ended; train longer, or lower it"
            for name, (value, first) in numbers.items()
            if first >= steps
        )
    )
