"""Train replicas from their options.

Steps: resolve the options, load the data, pretrain the models, choose the execution, train the replicas.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol, cast, final

import torch

from envariant.algorithms import Algorithm
from envariant.core.environments import EnvironmentSet, EnvironmentSource
from envariant.core.errors import EnvariantError
from envariant.data.with_loss import WithLoss, loss_fingerprint
from envariant.predictors import Predictor
from envariant.training import engine, predictor_run, provenance
from envariant.training.checkpoint import Checkpoint, ReplicaState
from envariant.training.engine import Evaluated, Stepped
from envariant.training.execution import SEQUENTIAL, Execution, choose, execution_request
from envariant.training.history import LOSS
from envariant.training.keep_rules import KeepBest
from envariant.training.memory_budget import parse as memory_in_bytes
from envariant.training.memory_budget import require
from envariant.training.network import Network
from envariant.training.pretraining import prepared
from envariant.training.raised_steps import check_raised_steps
from envariant.training.record import Record, environments_of
from envariant.training.replicas import Replica, Seeds, Start
from envariant.training.resolution import ResolvedRun, check_environments, resolve, source_of
from envariant.training.run_config import RunConfig, network
from envariant.training.run_spec import RunSpec, difference


@final
@dataclass(frozen=True)
class Member:
    """One replica to train.

    Attributes:
        index: Index of the replica in events and results.
        spec: Options of the replica.
        seeds: Seeds of data, initialization and batch order.
    """

    index: int
    spec: RunSpec
    seeds: Seeds


@final
@dataclass(frozen=True)
class Started:
    """Event after data and models have been loaded and checked, before training begins.

    Attributes:
        record: Record of the run.
        source: Data source of all replicas.
        sample: Environments of the first replica.
        build_model: Function that builds the first replica's network with initial weights. None if the run
            has a predictor instead of a network.
        states: State of each resumed replica, by index.
    """

    record: Record
    source: EnvironmentSource
    sample: EnvironmentSet
    build_model: Callable[[], torch.nn.Module] | None
    states: Mapping[int, ReplicaState]


Event = Started | Stepped | Evaluated


class Progress(Protocol):
    """Callback called after each pretraining step: `callback(replica, completed_steps, total_steps)`."""

    def __call__(self, replica: int, done: int, of: int) -> None: ...


class Resumption(Protocol):
    """Stored state of an interrupted or finished run, from which the run can be resumed."""

    @property
    def record(self) -> Record | None:
        """Record of the stored run; None if nothing is stored yet."""
        ...

    def begin(self, record: Record) -> Sequence[Checkpoint]:
        """Store the record of the run, and return the checkpoints to resume from.

        Raises:
            EnvariantError: If a different run is stored.
        """
        ...


def members_of(spec: RunSpec) -> tuple[Member, ...]:
    """Return one `Member` for each replica of a run, with the replica's number, options and seeds."""
    return tuple(
        Member(k, spec, Seeds.of(spec.seed, k, shared_init=spec.shared_init)) for k in range(spec.replicas)
    )


def _unheard(replica: int, done: int, of: int) -> None:
    del replica, done, of


def run(
    members: Sequence[Member], resumption: Resumption | None = None, on_pretraining: Progress = _unheard
) -> Iterator[Event]:
    """Train replicas from their options, or resume them from their checkpoints.

    Args:
        members: Replicas to train; they may differ only in hyperparameters, learning rate and seeds.
        resumption: Stored state from which to resume. Default: start from the beginning.
        on_pretraining: Function called after each pretraining step; see `Progress`.

    Yields:
        `Started` once, then the events of the engine.

    Raises:
        EnvariantError: If a name is unknown, or data, model and algorithm are incompatible.
    """
    how = members[0].spec.execution
    request = how if isinstance(how, Execution) else execution_request(how)
    budget = memory_in_bytes(members[0].spec.memory)
    source = source_of(members[0].spec.data)
    stored = None if resumption is None else resumption.record
    resolved = _resolve_all(members, source)
    if stored is not None and (stored.spec.steps or 0) < resolved[0].config.steps:
        members = _continued(members, stored, source, resolved[0].config.steps)
        resolved = _resolve_all(members, source)
    first = resolved[0]
    sample: object = first.source.sample(members[0].seeds.data)
    if not isinstance(sample, EnvironmentSet):
        raise EnvariantError(
            f"data: {type(source).__name__}.sample must return an EnvironmentSet; got {type(sample).__name__}"
        )
    roles = sample.roles(first.config.test)
    check_environments(first.algorithm, sample, roles)
    if isinstance(first.algorithm.trained, Predictor):
        if sample.task.target_shape:
            raise EnvariantError(
                f"{first.algorithm.name}: predicts one target per row, but the task is {sample.task.name}; "
                f"use an algorithm that trains a network, such as erm"
            )
        record = _record(members, first, sample, SEQUENTIAL, None)
        resume = () if resumption is None else resumption.begin(record)
        yield Started(record, first.source, sample, None, _states(resume))
        predictors = [cast("Predictor", each.algorithm.trained) for each in resolved]
        fits = zip(members, predictors, strict=True)
        yield from predictor_run.run(
            first.source, [(m.index, m.seeds, p) for m, p in fits], first.config, resume
        )
        return
    _check_validation(first.config, sample.task.metric, roles)
    replicas = [r.replica(m.index, m.seeds) for r, m in zip(resolved, members, strict=True)]
    net, context = network(sample, replicas[0], first.config)
    _check_memory(net, sum(context.environment_sizes), context.environments, first.config)
    config = replace(first.config, precision=net.precision)
    replicas = _prepared(replicas, first, config, on_pretraining)
    execution = None if stored is None else stored.execution
    if execution is None:
        is_known = isinstance(request, Execution)
        execution = request if is_known else choose(request, first.source, replicas, config, budget)
    record = _record(members, first, sample, execution, net)
    resume = () if resumption is None else resumption.begin(record)

    def build() -> torch.nn.Module:
        return network(sample, replicas[0], config)[0].module

    yield Started(record, first.source, sample, build, _states(resume))
    yield from engine.run(first.source, replicas, config, execution, resume)


def _resolve_all(members: Sequence[Member], source: EnvironmentSource) -> list[ResolvedRun]:
    """Resolve the options of all members; each distinct set of options is resolved once.

    Raises:
        EnvariantError: If the options differ in more than hyperparameters, learning rate and seeds.
    """
    by_id: dict[int, ResolvedRun] = {}
    for member in members:
        if id(member.spec) not in by_id:
            by_id[id(member.spec)] = resolve(member.spec, source)
    resolved = list(by_id.values())
    for other in resolved[1:]:
        differing = set(difference(other.spec, resolved[0].spec)) - {"hyperparameters", "learning_rate"}
        if differing:
            raise EnvariantError(f"run: replicas trained together must have the same {', '.join(differing)}")
    return [by_id[id(member.spec)] for member in members]


def _prepared(
    replicas: Sequence[Replica], first: ResolvedRun, config: RunConfig, on_pretraining: Progress
) -> list[Replica]:
    """Return the replicas with their pretraining.

    With `shared_init`, replicas with the same learning rate and environment inference share one pretraining.
    """
    if not first.spec.shared_init:
        return [
            prepared(replica, first.source, config, first.pretraining, on_pretraining) for replica in replicas
        ]
    starts: dict[Any, Callable[[], Start] | None] = {}
    seeds = Seeds.of(first.spec.seed, 0)
    for replica in replicas:
        key = (replica.learning_rate, replica.algorithm.environment_inference)
        if key not in starts:
            shared = replace(replica, seeds=seeds)
            start = prepared(shared, first.source, config, first.pretraining, on_pretraining).prepared
            starts[key] = None if start is None else cache(start)
    return [replace(r, prepared=starts[r.learning_rate, r.algorithm.environment_inference]) for r in replicas]


def _continued(
    members: Sequence[Member], stored: Record, source: EnvironmentSource, steps: int
) -> Sequence[Member]:
    """Check that a stored run can be continued to more steps, and return its members.

    Unless `evaluate_every` is given, the evaluation interval of the stored run is used.

    Args:
        members: Requested replicas.
        stored: Record of the stored run.
        source: Data source of the run.
        steps: Requested number of steps.

    Raises:
        EnvariantError: If a schedule depends on the number of steps.
    """
    requested = members[0].spec
    check_raised_steps(requested, source, stored.spec.steps or 0, steps)
    if requested.evaluate_every is not None:
        return members
    spec = requested.but(evaluate_every=stored.spec.evaluate_every)
    return [replace(member, spec=spec) for member in members]


def _check_validation(config: RunConfig, metric: str, roles: Mapping[str, str]) -> None:
    """Check that validation rows and the required metrics exist, if a rule uses validation metrics.

    Raises:
        EnvariantError: If there are no validation rows, or the metric is not measured during training.
    """
    rules: dict[str, tuple[object, str]] = {}
    if config.average is not None and config.average.needs_validation:
        rules["average"] = config.average, LOSS
    if isinstance(config.keep, KeepBest):
        rules["keep"] = config.keep, config.keep.metric or metric
    if config.stop_early is not None:
        rules["stop_early"] = config.stop_early, config.stop_early.metric
    for option, (rule, used) in rules.items():
        if "validation" not in roles.values():
            raise EnvariantError(
                f"{option}: {rule} needs validation rows of the training environments; set holdout_fraction, "
                f"for example to 0.2"
            )
        if used not in (LOSS, metric):
            raise EnvariantError(f"{option}: the metric must be {metric} or {LOSS}; got '{used}'")


def _check_memory(net: Network, rows: int, environments: int, config: RunConfig) -> None:
    """Check that there is enough memory for one step, using a lower bound of the required memory.

    Args:
        net: Network of a replica.
        rows: Number of training rows.
        environments: Number of training environments.
        config: Settings of the run.

    Raises:
        EnvariantError: If less memory is available.
    """
    rows = rows if config.batch_size is None else config.batch_size * environments
    weights = sum(value.numel() for value in net.params.values())
    # At least weights and gradients, and the activations before every second layer.
    needed = 8 * weights + (1 if net.precision == "bfloat16" else 2) * rows * net.width
    require(needed, config.device, f"a step on {rows:,} rows", "use a smaller batch_size or model")


def _states(resume: Sequence[Checkpoint]) -> dict[int, ReplicaState]:
    return {number: state for saved in resume for number, state in saved.states().items()}


def _record(
    members: Sequence[Member],
    resolved: ResolvedRun,
    sample: EnvironmentSet,
    execution: Execution,
    net: Network | None,
) -> Record:
    config, task, algorithm = resolved.config, sample.task, resolved.algorithm
    roles = sample.roles(config.test)
    spec = resolved.spec.but(
        precision="float32" if net is None else net.precision,
        device=str(config.device),
        replicas=len(members),
        test_environments=tuple(name for name, role in roles.items() if role == "test"),
    )
    # In the order of the data, as in the spec.
    suggested = tuple(name for name in sample.names if name in sample.test)
    # Without the loss of the run, so that a saved model can be checked against its table.
    source = resolved.source
    own = source.source.sample(members[0].seeds.data) if isinstance(source, WithLoss) else sample
    fingerprints = {"data": own.fingerprint()}
    if isinstance(source, WithLoss):
        fingerprints["loss"] = loss_fingerprint(task)
    record = Record(
        spec=spec,
        identity=resolved.identity,
        changed=difference(spec, resolved.reference.but(test_environments=suggested)),
        defaults=algorithm.defaults.source,
        execution=execution,
        task=task.name,
        metric=task.metric,
        higher_is_better=task.higher_is_better,
        chance=sample.known.chance if sample.known.chance is not None else task.chance,
        optimum=sample.known.optimum,
        input_shape=tuple(sample.input_shape),
        outputs=task.outputs,
        environments=environments_of(sample, roles),
        fingerprints=fingerprints if net is None else {**fingerprints, "model": net.fingerprint()},
        seeds=tuple(member.seeds for member in members),
        hardware=provenance.hardware(config.device),
        remarks=(
            *resolved.remarks(),
            *([net.remark] if net is not None and net.remark else []),
            *(() if net is None else _averaging_remarks(resolved, net, len(members))),
        ),
    )
    unseen = tuple(
        f"test environment '{name}': {share:.0%} of its rows have classes that no training environment has, "
        f"so it gets no verdict"
        for name, share in record.unpredictable.items()
    )
    note = getattr(task.loss, "note", "")
    return replace(record, remarks=(*record.remarks, *unseen, *([note] if note else [])))


def _averaging_remarks(resolved: ResolvedRun, net: Network, replicas: int) -> list[str]:
    """Return remarks on unexpected effects of averaging, early stopping and shared initial weights."""
    algorithm, config = cast("Algorithm", resolved.algorithm.trained), resolved.config
    remarks: list[str] = []
    if config.average is not None and algorithm.predicts_with_own_weights:
        remarks.append(
            f"{resolved.algorithm.name}: predicts with the average {resolved.spec.average} of the trained "
            f"weights, instead of its own average"
        )
    start = getattr(config.average, "start", 0)
    if start > config.steps:
        remarks.append(
            f"average: {config.average} begins only after this run of {config.steps} steps has ended, so "
            f"the model predicts with the current weights; lower 'start', or set it to a share of the run, "
            f"such as start=50%"
        )
    evaluations = math.ceil(config.steps / config.evaluate_every)
    if config.stop_early is not None and config.stop_early.evaluations >= evaluations:
        remarks.append(
            f"stop_early: {config.stop_early} cannot shorten this run, which is evaluated only "
            f"{evaluations} times after step 0; evaluate it more often (evaluate_every), or reduce the "
            f"patience"
        )
    has_order = config.batch_size is not None or config.augmentation is not None
    if (
        resolved.spec.shared_init
        and replicas > 1
        and not (has_order or algorithm.stochastic or net.stochastic or net.has_masks)
    ):
        remarks.append(
            "shared_init: replicas with full batches have equal results; set batch_size, so that they differ "
            "by the order of their batches"
        )
    return remarks
