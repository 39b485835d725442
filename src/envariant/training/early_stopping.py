"""Early stopping: end training when a validation metric no longer improves."""

from dataclasses import dataclass
from typing import ClassVar, final

from pydantic import PositiveInt

from envariant.core import specs
from envariant.core.errors import EnvariantError, shown


@final
@dataclass(frozen=True)
class Patience:
    """Rule that stops a replica after a number of evaluations without a better validation metric.

    The metric is computed on the validation rows set aside by `holdout_fraction`, and averaged over training
    environments.

    Attributes:
        evaluations: Number of consecutive evaluations without a new best value.
        metric: Metric of the task, or "loss".
    """

    name: ClassVar[str] = "patience"
    evaluations: PositiveInt
    metric: str = "loss"

    def __post_init__(self) -> None:
        specs.validate(self, self.name)

    def __str__(self) -> str:
        return specs.describe(self.name, self, positional=("evaluations",))


def stop_rule(requested: object) -> Patience | None:
    """Convert a string such as `patience(10)` to a rule; return rules and None unchanged.

    Raises:
        EnvariantError: If the rule or one of its settings is unknown or not allowed.
    """
    if requested is None or isinstance(requested, Patience):
        return requested
    if isinstance(requested, str):
        return specs.build("stop_early", requested, {Patience.name: Patience})
    raise EnvariantError(f"stop_early must be a string such as patience(10); got {shown(requested)}")
