"""Data source with a user-selected loss: the name of a loss, a function, or a `Task`."""

from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, cast, final

from envariant.core.environments import EnvironmentSet
from envariant.core.errors import EnvariantError, shown
from envariant.core.losses import LOSSES, check_applies, loss_named
from envariant.core.multi_target import MultiLabel, MultiOutputRegression
from envariant.core.tasks import Binary, Multiclass, Regression, Task
from envariant.data.derived_source import DerivedSource


@final
@dataclass(frozen=True)
class WithLoss(DerivedSource):
    """Data source that wraps another source and replaces the loss of its task.

    Attributes:
        source: Data source whose loss is replaced.
        loss: Name of a loss, function `loss(logits, targets)`, or `Task`.
    """

    loss: Any
    # Replicas that share their environments share the copy. The original is kept, because its id is the key.
    _copies: dict[int, tuple[EnvironmentSet, EnvironmentSet]] = field(
        default_factory=dict[int, tuple[EnvironmentSet, EnvironmentSet]], compare=False, repr=False
    )

    def identity(self) -> str:
        # The loss is an option of the run, with an identity of its own.
        return self.source.identity()

    def sample(self, seed: int) -> EnvironmentSet:
        environments = self.source.sample(seed)
        if id(environments) not in self._copies:
            self._copies.clear()
            own = replace(environments, task=with_loss(environments.task, self.loss))
            self._copies[id(environments)] = environments, own
        return self._copies[id(environments)][1]


def with_loss(task: Task, loss: Any) -> Task:
    """Return a copy of a task in which the loss is replaced.

    Args:
        task: Task of the data.
        loss: Name of a loss, function `loss(logits, targets)`, or the `Task` to use instead.

    Raises:
        EnvariantError: If the loss is unknown or does not apply to the targets of the task.
    """
    if isinstance(loss, Task):
        if isinstance(loss, Regression) and isinstance(task, Regression):
            # Targets of tables are standardized; predictions are converted back.
            return replace(loss, scale=task.scale, center=task.center)
        return loss
    check_loss(loss)
    check_applies(loss, to_classes=task.chance is not None, task=task.name)
    if type(task) not in (Binary, Multiclass, Regression, MultiLabel, MultiOutputRegression):
        own = type(task).__name__
        raise EnvariantError(
            f"loss: the task {own} of the data has its own loss; leave loss out or pass a Task"
        )
    function = loss_named(loss) if isinstance(loss, str) else loss
    return replace(cast("Any", task), loss=function)


def loss_fingerprint(task: Task) -> str:
    """Return a digest of a task's loss."""
    return blake2b(task.identity().encode(), digest_size=16).hexdigest()


def named_loss(task: Task, loss: object, fingerprint: str | None) -> str:
    """Return the name of a run's loss if it was given by name; return "" if it was a function or a task.

    The string of a function or task may be equal to the name of a loss. Therefore, the name is returned only
    if a task with the loss of this name has the digest in the record.

    Args:
        task: Task of the data, with its default loss.
        loss: String of the loss in the record of the run.
        fingerprint: Digest of the run's loss in the record, as returned by `loss_fingerprint`.
    """
    text = loss if isinstance(loss, str) and loss.partition("(")[0].strip() in LOSSES else ""
    return text if text and loss_fingerprint(with_loss(task, text)) == fingerprint else ""


def check_loss(loss: Any) -> None:
    """Check that a loss is a name, a function or a `Task`.

    Raises:
        EnvariantError: If the loss is unknown, or is not a name, a function or a `Task`.
    """
    if isinstance(loss, str):
        loss_named(loss)
    elif isinstance(loss, type) or not (callable(loss) or isinstance(loss, Task)):
        remedy = f", as in {loss.__name__}(…)" if isinstance(loss, type) else ""
        raise EnvariantError(
            f"loss must be a name such as focal(gamma=2), a function of logits and targets, or a Task{remedy}"
            f"; got {shown(loss)}"
        )
