"""The one road from options to training: resolve, load, pretrain, choose the execution, train."""

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
from envariant.training.network import Network
from envariant.training.pretraining import prepared
from envariant.training.record import Record, environments_of
from envariant.training.replicas import Seeds
from envariant.training.resolution import ResolvedRun, check_environments, resolve, source_of
from envariant.training.run_config import network
from envariant.training.run_spec import RunSpec, difference


@final
@dataclass(frozen=True)
class Member:
    """One replica to train.

    Attributes:
        index: Number by which events and results name it.
        spec: Its options.
        seeds: Its data, initialization and batch-order seeds.
    """

    index: int
    spec: RunSpec
    seeds: Seeds


@final
@dataclass(frozen=True)
class Started:
    """Everything is loaded and checked, and training begins.

    Attributes:
        record: What is trained.
        source: Where replicas draw their data.
        sample: Environments of the first replica.
        build_model: Builds the first replica's network, untrained; None for predictors.
        states: States of the replicas that are resumed, by number.
    """

    record: Record
    source: EnvironmentSource
    sample: EnvironmentSet
    build_model: Callable[[], torch.nn.Module] | None
    states: Mapping[int, ReplicaState]


Event = Started | Stepped | Evaluated


class Progress(Protocol):
    """Listener to steps made before the first step of a replica: those of pretraining."""

    def __call__(self, replica: int, done: int, of: int) -> None: ...


class Resumption(Protocol):
    """Where an earlier attempt at the same replicas is stored."""

    @property
    def execution(self) -> Execution | None:
        """Execution with which the replicas were begun; None if they were not."""
        ...

    def begin(self, record: Record) -> Sequence[Checkpoint]:
        """Store the record of what is trained, and return the checkpoints to resume from.

        Raises:
            EnvariantError: If something else is stored there.
        """
        ...


def members_of(spec: RunSpec) -> tuple[Member, ...]:
    """Return the replicas of a run, each with its own seeds."""
    return tuple(Member(k, spec, Seeds.of(spec.seed, k)) for k in range(spec.replicas))


def _unheard(replica: int, done: int, of: int) -> None:
    del replica, done, of


def run(
    members: Sequence[Member], resumption: Resumption | None = None, on_pretraining: Progress = _unheard
) -> Iterator[Event]:
    """Train replicas from their options, from their checkpoints if there are any.

    Args:
        members: Replicas to train; their options differ in hyperparameters, learning rate and seeds at most.
        resumption: Where an earlier attempt is stored, if anywhere.
        on_pretraining: Called after each step of pretraining.

    Yields:
        `Started` once, then what the engine reports.

    Raises:
        EnvariantError: If a name is unknown, or data, model and algorithm do not fit one another.
    """
    how = members[0].spec.execution
    request = how if isinstance(how, Execution) else execution_request(how)
    budget = memory_in_bytes(members[0].spec.memory)
    source = source_of(members[0].spec.data)
    resolved = _resolve_all(members, source)
    first = resolved[0]
    sample = first.source.sample(members[0].seeds.data)
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
    net, _ = network(sample, replicas[0], first.config)
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
    """Resolve each distinct set of options once.

    Raises:
        EnvariantError: If they differ in more than hyperparameters and learning rate.
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
    return Record(
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
        remarks=resolved.remarks(),
    )
