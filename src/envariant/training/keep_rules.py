"""Rules that select the steps whose weights are saved: the last, the best on validation rows, every n-th."""

import re
from abc import ABC
from dataclasses import dataclass
from typing import ClassVar, final

from pydantic import PositiveInt

from envariant.core import specs
from envariant.core.errors import EnvariantError, shown

_BEST = re.compile(r"\s*best\s*\((.*)\)\s*")


class KeepRule(ABC):
    """Base class of the rules of the option `keep`: frozen dataclasses with a `name`."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        specs.validate(self, self.name)

    def __str__(self) -> str:
        return self.name

    def keeps(self, step: int) -> bool:
        """Return whether the weights at a step are saved in addition to those of the result. Default: never.

        Args:
            step: Number of completed updates.
        """
        del step
        return False


@final
@dataclass(frozen=True)
class KeepLast(KeepRule):
    """Rule that keeps the weights of the last step."""

    name: ClassVar[str] = "last"


@final
@dataclass(frozen=True)
class KeepBest(KeepRule):
    """Rule that keeps the weights of the evaluation with the best validation score; ties go to the earliest.

    The score is computed on the validation rows set aside by `holdout_fraction`, and averaged over training
    environments.

    Attributes:
        metric: Metric of the task, or "loss". Default: the metric of the task.
    """

    name: ClassVar[str] = "best"
    metric: str = ""

    def __str__(self) -> str:
        return f"best(validation {self.metric})" if self.metric else self.name


@final
@dataclass(frozen=True)
class KeepEvery(KeepRule):
    """Rule that keeps the weights of every n-th step and of the last step; these steps are also evaluated.

    Attributes:
        steps: Number of updates n.
    """

    name: ClassVar[str] = "every"
    steps: PositiveInt

    def __str__(self) -> str:
        return f"every({self.steps})"

    def keeps(self, step: int) -> bool:
        return step % self.steps == 0


def keep_rule(requested: object) -> KeepRule:
    """Convert `last`, `best(validation accuracy)` or `every(100)` to a rule; return rules unchanged.

    Raises:
        EnvariantError: If the rule or one of its settings is unknown or not allowed.
    """
    if isinstance(requested, KeepRule):
        return requested
    if not isinstance(requested, str):
        raise EnvariantError(f"keep must be last, best(…) or every(…); got {shown(requested)}")
    # The name of a metric may consist of two words, which the parser of specs does not accept.
    if (best := _BEST.fullmatch(requested)) is not None:
        metric = best[1].strip().removeprefix("metric=").strip(" '\"").removeprefix("validation").strip()
        if metric.partition(" ")[0] not in ("test", "train", "training"):
            return KeepBest(metric)
        raise EnvariantError(
            f"keep: the best step is chosen on validation rows, as in best(validation accuracy); got "
            f"{requested}"
        )
    return specs.build("keep", requested, {each.name: each for each in (KeepLast, KeepBest, KeepEvery)})
