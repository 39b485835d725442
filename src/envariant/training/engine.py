"""The engine: replicas in, a stream of events out.

It trains, measures and nothing else. Writing to disk, drawing progress and choosing defaults are the
caller's business, who reads the events as they come; a caller that stops reading stops the training.
Today replicas run one after another; the interface already speaks of all of them at once.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from envariant.algorithms.contract import Metrics
from envariant.environments import (
    Environment,
    EnvironmentBatch,
    EnvironmentSet,
    EnvironmentSource,
    collate,
)
from envariant.errors import EnvariantError
from envariant.models import FeaturizerAndHead
from envariant.tasks import Task
from envariant.training import precision
from envariant.training.allocator import keep_freed_memory
from envariant.training.augmentation import RandomAffine
from envariant.training.checkpoint import Checkpoint
from envariant.training.history import BATCH, HistoryRow
from envariant.training.network import ModelBuilder, Network, private_random_numbers
from envariant.training.optimizers import OptimizerFamily
from envariant.training.replicas import Replica


@final
@dataclass(frozen=True)
class Plan:
    """What all replicas of a run share.

    Attributes:
        model: builds the network.
        optimizer: the update rule.
        steps: updates of each replica.
        batch_size: rows of each training environment a step, drawn with replacement; None is all rows.
        evaluate_every: steps between measurements; the first and the last step are measured anyway.
        precision: "auto", "float32" or "bfloat16".
        augmentation: of training inputs.
        test: names of held-out environments; None is the data's own choice.
        device: where to train.
    """

    model: ModelBuilder
    optimizer: OptimizerFamily
    steps: int
    batch_size: int | None
    evaluate_every: int
    precision: str
    augmentation: RandomAffine | None
    test: tuple[str, ...] | None
    device: torch.device


@final
@dataclass(frozen=True)
class Stepped:
    """One update was made."""

    replica: int
    step: int


@final
@dataclass(frozen=True)
class Evaluated:
    """Every environment was measured; the checkpoint is valid until the next event is asked for."""

    replica: int
    step: int
    rows: tuple[HistoryRow, ...]
    checkpoint: Checkpoint
    finished: bool


def run(
    source: EnvironmentSource,
    replicas: Sequence[Replica],
    plan: Plan,
    resume: Mapping[int, Checkpoint],
) -> Iterator[Stepped | Evaluated]:
    """Trains every replica from its checkpoint, if it has one, or from the start.

    Args:
        source: where each replica draws its data.
        replicas: what differs between them.
        plan: what they share.
        resume: checkpoints by replica number.

    Raises:
        EnvariantError: the data, the model and the algorithm do not fit one another.
    """
    keep_freed_memory()
    for replica in replicas:
        checkpoint = resume.get(replica.index)
        if checkpoint is None or (checkpoint.step < plan.steps and checkpoint.failure is None):
            yield from _run_one(source.draw(replica.seeds.data), replica, plan, checkpoint)


def network(environments: EnvironmentSet, replica: Replica, plan: Plan) -> Network:
    """The replica's network with its initial weights."""
    with private_random_numbers(replica.seeds.initialisation, plan.device):
        module: object = plan.model(environments.input_shape, environments.task.outputs)
    if not isinstance(module, nn.Module):
        raise EnvariantError(f"model: must be or make a torch.nn.Module; got {type(module).__name__}")
    return Network(
        module,
        environments.task,
        precision.resolve(plan.precision, plan.device, module, environments.task),
        plan.device,
        needs_features=replica.algorithm.needs_features,
        input_shape=environments.input_shape,
    )


def _run_one(
    environments: EnvironmentSet, replica: Replica, plan: Plan, checkpoint: Checkpoint | None
) -> Iterator[Stepped | Evaluated]:
    roles = environments.roles(plan.test)
    training = [e for e in environments.environments if roles[e.name] == "train"]
    net = network(environments, replica, plan)
    whole = _full_batch(training, net, plan) if plan.batch_size is None else None

    params, buffers = dict(net.params), dict(net.buffers)
    state = replica.algorithm.init(params, len(training))
    first = 0
    if checkpoint is not None:
        _check_resumable(checkpoint, params)
        params = {name: checkpoint.params[name].to(plan.device) for name in params}
        buffers = {name: checkpoint.buffers[name].to(plan.device) for name in buffers}
        state = _merged(state, checkpoint.algorithm, plan.device)
        first = checkpoint.step
    optimizer = plan.optimizer.build(list(params.values()), replica.learning_rate, replica.weight_decay)
    if checkpoint is not None:
        _load_optimizer(optimizer, list(params), checkpoint.optimizer)

    def forward(params: Mapping[str, Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
        # Differentiation must not see running statistics change, so it gets copies to spoil.
        spoiled = {k: v.clone() if k in net.changing else v for k, v in buffers.items()}
        return net.forward(params, spoiled, inputs, training=True)

    def measured(step: int, metrics: Metrics) -> Evaluated:
        rows = [
            row
            for e in environments.environments
            for row in _evaluate(net, params, buffers, e, roles[e.name], replica.index, step)
        ]
        rows += [
            HistoryRow(replica.index, step, "*", BATCH, name, float(value)) for name, value in metrics.items()
        ]
        failure = _failure(rows, step, plan)
        return Evaluated(
            replica.index,
            step,
            tuple(rows),
            Checkpoint(
                replica.index,
                step,
                params,
                buffers,
                _optimizer_state(optimizer, list(params)),
                state,
                failure,
                spent + time.perf_counter() - started,
            ),
            finished=failure is not None or step == plan.steps,
        )

    spent = 0.0 if checkpoint is None else checkpoint.seconds
    started = time.perf_counter()
    if first == 0:
        event = measured(0, {})
        yield event
        if event.finished:
            return
    for step in range(first, plan.steps):
        with private_random_numbers(replica.seeds.at(step), plan.device):
            batch = whole or _minibatch(training, net.task, plan, torch.default_generator)
            if plan.augmentation is not None:
                augmented = plan.augmentation(batch.inputs, torch.default_generator)
                batch = replace(batch, inputs=augmented)
            gradients, state, metrics = replica.algorithm.gradients(forward, params, batch, state, step)
            if net.changing:
                with torch.no_grad():
                    net.forward(params, buffers, batch.inputs, training=True)
        for name, parameter in params.items():
            parameter.grad = gradients[name].contiguous()
        optimizer.step()
        done = step + 1
        yield Stepped(replica.index, done)
        if done % plan.evaluate_every == 0 or done == plan.steps:
            event = measured(done, metrics)
            yield event
            if event.finished:
                return


def _full_batch(training: Sequence[Environment], net: Network, plan: Plan) -> EnvironmentBatch:
    batch = collate([e.rows() for e in training], net.task)
    inputs = batch.inputs
    families = isinstance(net.module, FeaturizerAndHead)
    if net.precision == "bfloat16" and plan.augmentation is None and families:
        # All families begin with a product, which would round them at every step to the same bits.
        inputs = inputs.bfloat16()
    return replace(batch, inputs=inputs).to(plan.device)


def _minibatch(
    training: Sequence[Environment], task: Task, plan: Plan, generator: torch.Generator
) -> EnvironmentBatch:
    size = plan.batch_size or 0
    rows = [e.rows(torch.randint(len(e), (size,), generator=generator)) for e in training]
    return collate(rows, task).to(plan.device)


def _evaluate(
    net: Network,
    params: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    environment: Environment,
    role: str,
    replica: int,
    step: int,
) -> Iterator[HistoryRow]:
    inputs, targets = environment.rows()
    with torch.inference_mode():
        targets = targets.to(net.device)
        _, logits = net.forward(params, buffers, inputs.to(net.device), training=False)
        loss = net.task.losses(logits, targets).double().mean()
        score = net.task.scores(logits, targets).double().mean()
    yield HistoryRow(replica, step, environment.name, role, "loss", float(loss))
    yield HistoryRow(replica, step, environment.name, role, net.task.metric, float(score))


def _failure(rows: Sequence[HistoryRow], step: int, plan: Plan) -> str | None:
    lost = [row for row in rows if row.split == "train" and not math.isfinite(row.value)]
    if not lost:
        return None
    since = max(0, step - plan.evaluate_every)
    return (
        f"{lost[0].metric} of '{lost[0].environment}' became {lost[0].value} between steps {since} and "
        f"{step}; usual causes: the learning rate or a coefficient is too large"
    )


def _optimizer_state(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    states: Mapping[int, Mapping[str, Any]] = optimizer.state_dict()["state"]
    return {
        names[i]: {key: value for key, value in state.items() if isinstance(value, Tensor)}
        for i, state in states.items()
    }


def _load_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
    states: Mapping[str, Mapping[str, Tensor]],
) -> None:
    whole = optimizer.state_dict()
    whole["state"] = {i: dict(states[name]) for i, name in enumerate(names) if name in states}
    optimizer.load_state_dict(whole)


def _check_resumable(checkpoint: Checkpoint, params: Mapping[str, Tensor]) -> None:
    shapes = {name: value.shape for name, value in params.items()}
    if {name: value.shape for name, value in checkpoint.params.items()} != shapes:
        raise EnvariantError(
            f"replica {checkpoint.replica}: its checkpoint holds another model; train into a new folder"
        )


def _merged(fresh: Mapping[str, Any], stored: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        key: _merged(value, stored.get(key, {}), device)
        if isinstance(value, Mapping)
        else stored[key].to(device)
        for key, value in fresh.items()
    }
