"""Train replicas from their options.

Steps: resolve the options, load the data, pretrain the models, choose the execution, train the replicas.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast, final

import torch

from envariant.core.environments import EnvironmentSet, EnvironmentSource
from envariant.core.errors import EnvariantError
from envariant.predictors import Predictor
from envariant.training import engine, predictor_run, provenance
from envariant.training.checkpoint import Checkpoint, ReplicaState
from envariant.training.engine import Evaluated, Stepped
from envariant.training.execution import SEQUENTIAL, Execution, choose, execution_request
from envariant.training.memory_budget import parse as memory_in_bytes
from envariant.training.memory_budget import require
from envariant.training.network import Network
from envariant.training.pretraining import prepared
from envariant.training.record import Record, environments_of
from envariant.training.replicas import Seeds
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
        states: Mapping from resumed replica to its state.
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
    def execution(self) -> Execution | None:
        """Execution mode and stack size of the stored run; None if nothing is stored yet."""
        ...

    def begin(self, record: Record) -> Sequence[Checkpoint]:
        """Store the record of the run, and return the checkpoints to resume from.

        Raises:
            EnvariantError: If a different run is stored.
        """
        ...


def members_of(spec: RunSpec) -> tuple[Member, ...]:
    """Return one `Member` for each replica of a run, with the replica's number, options and seeds."""
    return tuple(Member(k, spec, Seeds.of(spec.seed, k)) for k in range(spec.replicas))


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
        record = _record(members, first, sample, SEQUENTIAL, None)
        resume = () if resumption is None else resumption.begin(record)
        yield Started(record, first.source, sample, None, _states(resume))
        predictors = [cast("Predictor", each.algorithm.trained) for each in resolved]
        fits = zip(members, predictors, strict=True)
        yield from predictor_run.run(
            first.source, [(m.index, m.seeds, p) for m, p in fits], first.config, resume
        )
        return
    replicas = [r.replica(m.index, m.seeds) for r, m in zip(resolved, members, strict=True)]
    net, context = network(sample, replicas[0], first.config)
    _check_memory(net, sum(context.environment_sizes), context.environments, first.config)
    config = replace(first.config, precision=net.precision)
    replicas = [
        prepared(replica, first.source, config, first.pretraining, on_pretraining) for replica in replicas
    ]
    execution = None if resumption is None else resumption.execution
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
            raise EnvariantError(f"run: replicas trained together must agree in {', '.join(differing)}")
    return [by_id[id(member.spec)] for member in members]


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
    fingerprints = {"data": sample.fingerprint()}
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
        remarks=(*resolved.remarks(), *([net.remark] if net is not None and net.remark else [])),
    )
    unseen = tuple(
        f"test environment '{name}': {share:.0%} of its rows have classes that no training environment has, "
        f"so it gets no verdict"
        for name, share in record.unpredictable.items()
    )
    return replace(record, remarks=(*record.remarks, *unseen))
