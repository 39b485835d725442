"""`train`: names and objects in, a result out; what is not given is what data and algorithm suggest."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from envariant.algorithms.base import Algorithm
from envariant.core.environments import EnvironmentSet, EnvironmentSource
from envariant.core.errors import EnvariantError
from envariant.training import engine, provenance, run_folder
from envariant.training.engine import Evaluated
from envariant.training.execution import choose, execution_request
from envariant.training.history import HistoryRow
from envariant.training.memory_budget import parse as memory_in_bytes
from envariant.training.pretraining import prepared
from envariant.training.progress import Watcher, watching
from envariant.training.record import Record, Settings
from envariant.training.replicas import Replica, Seeds
from envariant.training.result import TrainingResult
from envariant.training.run_config import RunConfig, network
from envariant.training.run_folder import RunFolder
from envariant.training.run_spec import Chosen, ModelLike, assembled, at_least, check_environments


def train(
    data: EnvironmentSource | str,
    algorithm: Algorithm | str = "erm",
    *,
    hyperparameters: Mapping[str, Any] | None = None,
    model: ModelLike | None = None,
    steps: int | None = None,
    replicas: int = 1,
    seed: int = 0,
    batch_size: int | Literal["full"] | None = None,
    learning_rate: float | None = None,
    weight_decay: float = 0.0,
    optimizer: str | None = None,
    precision: str = "auto",
    test_environments: Sequence[str] | None = None,
    holdout_fraction: float = 0.0,
    evaluate_every: int | None = None,
    augmentation: str | None = None,
    init: str | None = None,
    freeze: str | None = None,
    device: str = "auto",
    execution: str = "auto",
    memory: str | float | None = None,
    compile: bool = False,  # noqa: A002
    out: Path | str | None = None,
    progress: bool | None = None,
) -> TrainingResult:
    """Trains replicas of one algorithm on environments and measures each environment as it goes.

    Args:
        data: a source, a set, or a name such as `colored-mnist:domainbed`.
        algorithm: a recipe such as `irm` or `irm(l2=0.001)`, or an algorithm of your own.
        hyperparameters: changes to a recipe's settings; they win over those in `algorithm`.
        model: a name such as `mlp(hidden=390)`; a function without arguments that returns a new module,
            drawn anew for each replica; or a module, from whose weights every replica starts.
        steps: optimizer updates of each replica.
        replicas: how many runs, each with its own data draw, initial weights and batches.
        seed: from which all of them follow.
        batch_size: rows of each training environment a step, drawn with replacement; "full" is all rows.
        learning_rate: of the optimizer.
        weight_decay: of the optimizer; it acts after any mask on gradients.
        optimizer: `adam`, `adamw` or `sgd(momentum=0.9)`.
        precision: of matrix products: "float32", "bfloat16", "tf32" (on CUDA), or "auto", which takes
            bfloat16 where the processor multiplies it natively and the model is large enough.
        test_environments: names to hold out; None holds out what the data suggest.
        holdout_fraction: share of every training environment's rows that is measured and not trained on.
        evaluate_every: steps between measurements; None gives about 25 of them.
        augmentation: `affine(rotation=15, shear=10, scale=0.2)` for random affine maps of images.
        init: what trains first, for the algorithm to start from: `erm(steps=100)`, or `rfc` for rich features
            (Zhang, Lopez-Paz, Bottou 2022); None starts from freshly drawn weights.
        freeze: "features" to train the head alone, on the features of `init`.
        device: "cpu", "cuda" or "auto".
        execution: how many replicas train as one program: `sequential` (one after another), `stacked`,
            `stacked(group=50)`, or `auto`, which tries both for a few steps and stores its choice. A
            replica's steps do not depend on it beyond rounding, which grows over long runs; to repeat a run
            to the last bit, ask for what `record.execution` says.
        memory: the most that a stack may need, as in `8GB`; None is half of what is free. A run that goes
            on keeps the groups it began with.
        compile: whether to compile each program (`torch.compile`, some 20 seconds the first time): for
            long runs of small models.
        out: a folder to store the run in as it goes; the same call again continues it.
        progress: whether to draw progress; None does so on a terminal.

    Returns:
        The result; replicas whose loss became infinite or NaN are in `failures`.

    Raises:
        EnvariantError: something does not fit; the message says what and how to mend it.

    Example:
        >>> import envariant
        >>> result = envariant.train("colored-digits", "erm", steps=20, replicas=2)
        >>> result.summary().loc["worst", "replicas"]
        2
    """
    parts = assembled(
        data,
        algorithm,
        hyperparameters=hyperparameters,
        model=model,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        optimizer=optimizer,
        precision=precision,
        test_environments=test_environments,
        holdout_fraction=holdout_fraction,
        evaluate_every=evaluate_every,
        augmentation=augmentation,
        init=init,
        freeze=freeze,
        device=device,
        compile=compile,
    )
    source, chosen, plan = parts.source, parts.chosen, parts.plan
    wanted, budget = execution_request(execution), memory_in_bytes(memory)
    replicas = at_least("replicas", 1, replicas)
    seed = at_least("seed", 0, seed)
    if seed >= 2**32:
        raise EnvariantError(f"seed must lie below 2³²; got {seed}")
    runs = [parts.replica(k, Seeds.of(seed, k)) for k in range(replicas)]

    first = source.sample(runs[0].seeds.data)
    roles = first.roles(plan.test)
    check_environments(chosen, first, roles)
    net, _ = network(first, runs[0], plan)
    plan = replace(plan, precision=net.precision)
    settings = Settings(
        data=parts.data,
        algorithm=chosen.name,
        hyperparameters=chosen.hyperparameters,
        model=parts.model,
        optimizer=parts.optimizer,
        steps=plan.steps,
        batch_size=plan.batch_size,
        learning_rate=parts.learning_rate,
        weight_decay=parts.weight_decay,
        evaluate_every=plan.evaluate_every,
        augmentation=augmentation,
        init=init,
        freeze=freeze,
        test_environments=tuple(name for name, role in roles.items() if role == "test"),
        holdout_fraction=parts.holdout_fraction,
        replicas=replicas,
        seed=seed,
        precision=plan.precision,
        execution=execution,
        compiled=compile,
        device=str(plan.device),
        threads=torch.get_num_threads(),
        source=chosen.suggestion.source,
        changed=(),
    )
    settings = replace(settings, changed=_changed(settings, chosen, first))
    # A run that goes on keeps to the execution it began with, so that its bits do not change.
    begun = None if out is None else run_folder.prepare(Path(out))
    label = f"{settings.algorithm} on {settings.data}"
    with watching(label, len(runs), plan.steps, first.task.metric, progress) as watch:
        runs = [prepared(run, source, plan, parts.initializer, watch.preparing) for run in runs]
        record = Record(
            settings=settings,
            execution=begun or choose(wanted, source, runs, plan, budget),
            task=first.task.name,
            metric=first.task.metric,
            higher_is_better=first.task.higher_is_better,
            chance=first.known.chance if first.known.chance is not None else first.task.chance,
            optimum=first.known.optimum,
            input_shape=tuple(first.input_shape),
            outputs=first.task.outputs,
            roles=roles,
            sizes={e.name: len(e) for e in first.environments},
            constant_loss={e.name: first.task.constant_loss(e.targets) for e in first.environments},
            fingerprints={
                "data": first.fingerprint(),
                "model": net.fingerprint(),
            },
            seeds=tuple(run.seeds for run in runs),
            versions=provenance.versions(),
            hardware=provenance.hardware(plan.device),
            command=provenance.command(),
        )
        return _collect(source, runs, plan, record, out, watch)


def _collect(
    source: EnvironmentSource,
    runs: Sequence[Replica],
    plan: RunConfig,
    record: Record,
    out: Path | str | None,
    watch: Watcher,
) -> TrainingResult:
    """Reads the engine's events: stores, shows and gathers them."""
    folder = None if out is None else RunFolder(Path(out), record)
    record = record if folder is None else folder.record
    rows: list[HistoryRow] = [] if folder is None else list(folder.rows)
    saved = [] if folder is None else folder.resume
    states = {number: state for group in saved for number, state in group.states().items()}
    try:
        for event in engine.run(source, runs, plan, record.execution, saved):
            watch(event)
            if isinstance(event, Evaluated):
                rows += event.rows
                if event.finished:
                    states |= event.checkpoint().states()
            if folder is not None:
                folder.store(event)
    finally:
        if folder is not None:
            folder.close()
    return TrainingResult(record, rows, states)


def _changed(settings: Settings, chosen: Chosen, environments: EnvironmentSet) -> tuple[str, ...]:
    """Which settings are not those that the data suggest for this algorithm."""
    suggested = {
        "hyperparameters": chosen.suggested,
        "model": chosen.suggestion.model,
        "optimizer": chosen.suggestion.optimizer,
        "steps": chosen.suggestion.steps,
        "batch_size": chosen.suggestion.batch_size,
        "learning_rate": chosen.suggestion.learning_rate,
        "weight_decay": 0.0,
        "augmentation": None,
        "test_environments": environments.test,
    }
    return tuple(key for key, value in suggested.items() if getattr(settings, key) != value)
