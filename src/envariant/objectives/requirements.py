"""Check that an algorithm can be used in a training loop of your own, and that it receives what it needs."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from envariant.algorithms import Algorithm, Composition, Part, TrainContext
from envariant.algorithms.base import GradientPenalty, State
from envariant.algorithms.gradient_aggregators.mean import MeanGradient
from envariant.algorithms.hyperparameters import resolve_schedules
from envariant.algorithms.penalties.loss_variance import LossVariance
from envariant.algorithms.penalties.rdm import RDM
from envariant.algorithms.penalties.vrex import VREx
from envariant.algorithms.risk_aggregators.mean import PooledMean
from envariant.core.errors import EnvariantError, listed, shown
from envariant.core.tasks import Task
from envariant.objectives.state_buffers import flattened

# Penalties that are computed from losses and risks only.
_FROM_LOSSES = (GradientPenalty, LossVariance, RDM, VREx)


def composition_of(algorithm: Algorithm, steps: int | None) -> Composition:
    """Check that an algorithm can be computed from one forward pass, and resolve its schedules.

    Args:
        algorithm: Algorithm.
        steps: Length of the run in updates; None if it is unknown.

    Raises:
        EnvariantError: If the algorithm needs the trainer, or a schedule depends on the length of the run.
    """
    if not isinstance(algorithm, Composition):
        raise EnvariantError(
            f"{algorithm.name}: an objective needs a composition of parts, such as 'vrex + coral'; train "
            f"this algorithm with envariant.train(data, algorithm)"
        )
    if (training_step := algorithm.training_step) is not None:
        raise EnvariantError(
            f"{training_step.name}: is a training step, which computes its own forward passes; train it "
            f"with envariant.train(data, algorithm), or use a penalty such as 'vrex'"
        )
    if (inference := algorithm.environment_inference) is not None:
        raise EnvariantError(
            f"{inference.name}: infers environments before training; train it with envariant.train(data, "
            f"algorithm), or use 'irm' with environments of your own"
        )
    for part in algorithm.parts:
        if type(part).wrap_model is not Part.wrap_model or type(part).eval_params is not Part.eval_params:
            raise EnvariantError(
                f"{part.name}: changes the model or the weights for prediction, which an objective cannot "
                f"do; train it with envariant.train(data, algorithm)"
            )
    if steps is not None:
        return resolve_schedules(algorithm, steps)
    for name, schedule in algorithm.schedules().items():
        if schedule.is_relative:
            raise EnvariantError(
                f"{name}: {schedule} depends on the length of the run; pass steps=… to envariant.objective"
            )
    return algorithm


def names_and_sizes(
    algorithm: Composition, environments: int | Sequence[str] | None, sizes: Sequence[int] | None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the names and sizes of the environments; both are empty if they are unknown.

    Args:
        algorithm: Algorithm.
        environments: Number or names of the environments; None if they are unknown.
        sizes: Number of training rows of each environment; None if they are unknown.

    Raises:
        EnvariantError: If there are fewer environments than the algorithm needs, or sizes are missing.
    """
    counts = () if sizes is None else tuple(map(int, sizes))
    if environments is None:
        names = tuple(str(number) for number in range(len(counts)))
    elif isinstance(environments, str | bool) or not isinstance(environments, int | Sequence):
        raise EnvariantError(
            f"objective: environments must be their number or a list of names; got {shown(environments)}"
        )
    elif isinstance(environments, int):
        names = tuple(str(number) for number in range(environments))
    else:
        names = tuple(map(str, environments))
    if counts and len(counts) != len(names):
        raise EnvariantError(f"objective: got {len(counts)} sizes for {len(names)} environments")
    if isinstance(algorithm.risk_aggregator, PooledMean) and not counts:
        raise EnvariantError(
            "pooled: weights environments by their number of training rows; pass sizes=(…) to "
            "envariant.objective"
        )
    minimum = algorithm.minimum_environments
    if (environments is not None or counts) and len(names) < minimum:
        raise EnvariantError(
            f"{algorithm.name}: needs at least {minimum} training environments, got {len(names)}"
        )
    return names, counts


def auxiliary_networks(
    algorithm: Composition, features: int | None, task: Task | None
) -> Mapping[str, nn.Module]:
    """Return the networks of an algorithm, which are trained with the model.

    Args:
        algorithm: Algorithm.
        features: Width of the features; None if it is unknown.
        task: Prediction task; None if it is unknown.

    Raises:
        EnvariantError: If the algorithm has networks, but width or task are unknown.
    """
    owners = [p for p in algorithm.parts if type(p).auxiliary_networks is not Part.auxiliary_networks]
    if not owners:
        return {}
    if features is None or task is None:
        raise EnvariantError(
            f"{owners[0].name}: trains a network of its own; pass features=WIDTH and loss=Binary(), "
            f"Multiclass(K) or Regression() to envariant.objective, and objective.parameters() to the "
            f"optimizer"
        )
    return algorithm.auxiliary_networks(TrainContext((), (), task, features=features, linear_head=True))


def has_loss(algorithm: Composition) -> bool:
    """Return whether the gradient of the algorithm is the gradient of a loss."""
    return isinstance(algorithm.gradient_aggregator, MeanGradient)


def check_needs_only_losses(algorithm: Composition) -> None:
    """Check that an algorithm is computed from losses only.

    Raises:
        EnvariantError: If a penalty needs logits or features.
    """
    for penalty in algorithm.penalties:
        if not isinstance(penalty, _FROM_LOSSES):
            raise EnvariantError(
                f"{penalty.name}: needs logits or features, not only losses; call objective.backward(model, "
                f"logits, targets, environments)"
            )


def check_losses(losses: object) -> None:
    """Check that losses are a mapping from numbers of environments to tensors.

    Raises:
        EnvariantError: If they are not.
    """
    if not isinstance(losses, Mapping) or not losses:
        raise EnvariantError(
            f"objective: losses must be a mapping from environment numbers to losses; got {shown(losses)}"
        )
    for number, value in cast("Mapping[object, object]", losses).items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise EnvariantError(f"objective: environments must be whole numbers; got {shown(number)}")
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise EnvariantError(
                f"objective: the losses of environment {number} must be a tensor of real numbers; got "
                f"{_described(value)}"
            )


def trained(model: object) -> dict[str, nn.Parameter]:
    """Return the trained parameters of a model by name.

    Raises:
        EnvariantError: If it is not a module, or has no parameters to train.
    """
    if not isinstance(model, nn.Module):
        raise EnvariantError(f"objective: model must be a torch.nn.Module; got {shown(model)}")
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if not parameters:
        raise EnvariantError("objective: the model has no parameters to train; one must require a gradient")
    return parameters


def parameters(algorithm: Composition, model: nn.Module | None) -> dict[str, nn.Parameter]:
    """Return the trained parameters that a loss contains, by name; empty if it contains none.

    Args:
        algorithm: Algorithm.
        model: Model; None if the training loop did not pass it.

    Raises:
        EnvariantError: If the loss contains parameters, but the model is missing.
    """
    penalties = [part.name for part in algorithm.penalties if isinstance(part, GradientPenalty)]
    if not penalties and not algorithm.l2:
        return {}
    if model is None:
        reason = "penalizes gradients of the parameters" if penalties else "has l2, a norm of the parameters"
        raise EnvariantError(
            f"{(penalties or [algorithm.name])[0]}: {reason}; pass model=model with every batch"
        )
    return trained(model)


def check_rows(
    algorithm: Composition, logits: object, targets: object, environments: object, features: object
) -> None:
    """Check types and lengths of the tensors of a batch.

    Args:
        algorithm: Algorithm.
        logits: Outputs of the model, `[rows, …]`.
        targets: Targets, `[rows, …]`; None if `logits` are losses.
        environments: Number of the environment of each row, `[rows]`.
        features: Inputs of the model's last layer, `[rows, width]`, or None.

    Raises:
        EnvariantError: If a tensor is missing or not valid.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or not logits.dim():
        raise EnvariantError(
            f"objective: logits must be a tensor of real numbers, [rows] or [rows, outputs]; got "
            f"{_described(logits)}"
        )
    ids = torch.as_tensor(environments)
    if ids.dim() != 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise EnvariantError(
            f"objective: environments must be whole numbers, one per row; got {_described(ids)}"
        )
    lengths = {"logits": len(logits), "environments": len(ids)}
    if targets is not None:
        lengths["targets"] = len(torch.as_tensor(targets))
    if algorithm.needs_features:
        if not isinstance(features, Tensor):
            raise EnvariantError(
                f"{_needing(algorithm)}: needs the inputs of the model's last layer; pass features=…, "
                f"[rows, width]"
            )
        lengths["features"] = len(features)
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{length} {what}" for what, length in lengths.items())
        raise EnvariantError(f"objective: lengths must be equal; got {counts}")


def check_step(step: object) -> None:
    """Check the number of a step.

    Raises:
        EnvariantError: If it is not a whole number of at least 0.
    """
    if step is not None and (isinstance(step, bool) or not isinstance(step, int) or step < 0):
        raise EnvariantError(f"objective: step must be a whole number of at least 0; got {shown(step)}")


def check_state(algorithm: Composition, before: State, after: State) -> None:
    """Check that a step keeps the keys and shapes of the algorithm's state.

    Raises:
        EnvariantError: If a shape changed, as with parts that do not support batches without some
            environments.
    """
    shapes = [{k: tuple(v.shape) for k, v in flattened(tree).items()} for tree in (before, after)]
    changed = [key for key in shapes[0].keys() | shapes[1].keys() if shapes[0].get(key) != shapes[1].get(key)]
    if changed:
        names = [algorithm.parts[int(key.split("/")[0])].name for key in sorted(changed)]
        raise EnvariantError(
            f"{listed(names)}: the shape of the state changed; a part with one value per environment must "
            f"use batch.of_present and batch.with_present, or every batch must have rows of all environments"
        )


def _needing(algorithm: Composition) -> str:
    return next(part.name for part in algorithm.parts if part.needs_features)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return shown(value)
