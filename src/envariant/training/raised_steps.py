"""Check that a finished run can be trained for more steps: no setting may depend on the number of steps."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from envariant.algorithms import Algorithm, Composition, identity
from envariant.core.environments import EnvironmentSource
from envariant.core.errors import EnvariantError
from envariant.training.option_text import text_of
from envariant.training.resolution import ResolvedRun, resolve
from envariant.training.run_config import RunConfig
from envariant.training.run_spec import RunSpec

# Functions, which may be different objects after each resolution, and the numbers of steps themselves.
_NOT_COMPARED = ("model", "adapt", "steps", "evaluate_every")


def check_raised_steps(requested: RunSpec, source: EnvironmentSource, before: int, now: int) -> None:
    """Check that the first `before` steps of a run stay the same if its total number of steps becomes `now`.

    Args:
        requested: Options of the run.
        source: Data source of the run.
        before: Number of steps of the stored run.
        now: Requested number of steps.

    Raises:
        EnvariantError: If a schedule depends on the number of steps.
    """
    runs = [resolve(requested.but(steps=steps, evaluate_every=None), source) for steps in (before, now)]
    if differing := differences(*runs):
        name, first, second = differing[0]
        raise EnvariantError(
            f"steps: a run of {before} steps cannot be continued to {now}, because {name} depends on the "
            f"number of steps ({first} becomes {second}); give it in step numbers, or choose another folder "
            f"to start over"
        )


def differences(first: ResolvedRun, second: ResolvedRun) -> Sequence[tuple[str, str, str]]:
    """Return the name and both values of each setting that differs between two runs.

    The numbers of steps themselves are not compared.

    Args:
        first: Resolved run.
        second: The same run with another number of steps.
    """
    pairs: list[tuple[str, Any, Any]] = [("learning_rate", first.learning_rate, second.learning_rate)]
    pairs.append(("learning_rate", first.groups.rates, second.groups.rates))
    pairs += [
        (f.name, getattr(first.config, f.name), getattr(second.config, f.name))
        for f in fields(RunConfig)
        if f.name not in _NOT_COMPARED
    ]
    ours, theirs = first.algorithm.trained, second.algorithm.trained
    if isinstance(ours, Composition) and isinstance(theirs, Composition):
        numbers = [{**each.schedules(), **each.switch_steps()} for each in (ours, theirs)]
        pairs += [(name, numbers[0].get(name), value) for name, value in numbers[1].items()]
    if isinstance(ours, Algorithm) and isinstance(theirs, Algorithm):
        # The text of an algorithm is long, so it comes last.
        pairs.append((first.algorithm.name, identity(ours), identity(theirs)))
    return [(name, _text(a), _text(b)) for name, a, b in pairs if a != b]


def _text(value: object) -> str:
    return str(value[0]) if isinstance(value, tuple) else text_of(value) if value is not None else "none"
