"""Infer the prediction task of a training loop from logits, targets and loss."""

from typing import Any

import torch
from torch import Tensor

from envariant.core.errors import EnvariantError
from envariant.core.losses import DEFAULTS, LOSSES, Loss
from envariant.core.multi_target import MultiLabel, MultiOutputRegression
from envariant.core.specs import parse
from envariant.core.tasks import Binary, Multiclass, Regression, Task, check_losses
from envariant.data.with_loss import check_loss, with_loss

_INFERRED: tuple[type[Task], ...] = (Binary, Multiclass, Regression, MultiLabel, MultiOutputRegression)


def task_of(logits: Tensor, targets: Tensor, loss: Any = None) -> Task:
    """Infer the prediction task.

    One logit per row is a binary task if all targets are 0 or 1, and else a regression. K logits per row are
    a multiclass task if there is one target per row. If there are K targets per row, they are a multi-label
    task if all targets are 0 or 1, and else a regression with several outputs.

    Args:
        logits: Outputs of the model, `[rows]`, `[rows, 1]` or `[rows, K]`.
        targets: Targets, `[rows]`, `[rows, 1]` or `[rows, K]`.
        loss: Name of a loss, function of logits and targets, or the task; None for the default loss. The name
            of a loss for numbers, such as "mse", makes the task a regression.

    Raises:
        EnvariantError: If the shapes do not fit any task, or the loss does not apply to the task.
    """
    if isinstance(loss, Task):
        task = loss
    else:
        plain = _task(logits, targets, _is_for_classes(loss))
        task = plain if loss is None else with_loss(plain, loss)
    if not task.has_default_loss:
        check_losses(task, targets_for(task, targets, logits))
    return task


def task_code(task: Task | None) -> tuple[int, int]:
    """Return the kind of an inferred task and its number of outputs as numbers, for `state_dict`.

    The kind is the position in the list of inferred tasks, from 1; it is 0 for any other task and for None.
    """
    if task is None or type(task) not in _INFERRED:
        return 0, 0
    return _INFERRED.index(type(task)) + 1, task.outputs


def task_of_code(code: int, outputs: int, loss: Any) -> Task | None:
    """Rebuild an inferred task from its code; see `task_code`.

    Args:
        code: Kind of the task.
        outputs: Number of outputs.
        loss: Name of a loss or function, as given to `task_of`; None for the default loss.
    """
    if not code:
        return None
    cls: Any = _INFERRED[code - 1]
    plain = cls() if cls in (Binary, Regression) else cls(outputs)
    return plain if loss is None else with_loss(plain, loss)


def targets_for(task: Task, targets: Tensor, logits: Tensor) -> Tensor:
    """Return targets in the shape and data type that a task requires.

    Args:
        task: Prediction task.
        targets: Targets, `[rows]`, `[rows, 1]` or `[rows, K]`.
        logits: Outputs of the model, which determine the data type of real-valued targets.

    Raises:
        EnvariantError: If shape or values do not fit the task.
    """
    shaped = targets.flatten() if not task.target_shape and targets.dim() == 2 else targets
    expected = (len(targets), *task.target_shape)
    if tuple(shaped.shape) != expected or tuple(logits.shape[1:]) not in _raw_shapes(task):
        raise EnvariantError(
            f"objective: the task {task.name} needs {task.outputs} logits per row and targets of shape "
            f"{expected}; got logits {tuple(logits.shape)} and targets {tuple(targets.shape)}"
        )
    cast = task.cast(shaped, "objective")
    # Numbers keep the precision of the logits, which may be float64.
    return shaped.to(logits.dtype) if cast.is_floating_point() else cast


def _raw_shapes(task: Task) -> tuple[tuple[int, ...], ...]:
    return ((), (1,)) if task.outputs == 1 else ((task.outputs,),)


def _is_for_classes(loss: Any) -> bool | None:
    """Return whether a loss is for classes; None if this is unknown."""
    if isinstance(loss, Loss):
        return loss.for_classes
    if not isinstance(loss, str):
        return None
    check_loss(loss)
    return {**DEFAULTS, **{name: each.for_classes for name, each in LOSSES.items()}}[parse(loss).name]


def _task(logits: Tensor, targets: Tensor, for_classes: bool | None) -> Task:
    outputs = logits.shape[1] if logits.dim() == 2 else 1
    several = targets.dim() == 2 and targets.shape[1] > 1
    if logits.dim() not in (1, 2) or targets.dim() not in (1, 2) or (several and targets.shape[1] != outputs):
        raise EnvariantError(
            f"objective: logits must be [rows] or [rows, outputs], and targets [rows] or [rows, outputs]; "
            f"got {tuple(logits.shape)} and {tuple(targets.shape)} (flatten positions into rows)"
        )
    if outputs > 1 and not several:
        if for_classes is False:
            raise EnvariantError(
                f"objective: {outputs} logits and one target per row are a classification, but the loss is "
                f"for numbers; use one logit per row"
            )
        return Multiclass(outputs)
    binary = bool(((targets == 0) | (targets == 1)).all()) if for_classes is None else for_classes
    if several:
        return MultiLabel(outputs) if binary else MultiOutputRegression(outputs)
    return Binary() if binary else Regression()


def single_or_double(values: Tensor) -> Tensor:
    """Convert half-precision values, as computed under autocast, to float32; keep float64."""
    return values if values.dtype == torch.float64 else values.float()
