"""`train`: names and objects in, a result out; what is not given is what data and algorithm suggest."""

import copy
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, SupportsIndex, cast, final

import torch
from torch import nn

from envariant import data as sources
from envariant.algorithms import recipes, settings_of
from envariant.algorithms.contract import Algorithm
from envariant.environments import EnvironmentSet, EnvironmentSource, Suggestion
from envariant.errors import EnvariantError, unknown_name
from envariant.models import ModelFamily, model_family
from envariant.training import engine, provenance, run_folder
from envariant.training.augmentation import augmentation as augmentation_named
from envariant.training.engine import Evaluated
from envariant.training.execution import choose, wish
from envariant.training.group import Plan, network
from envariant.training.history import HistoryRow
from envariant.training.initialisers import initialiser_named
from envariant.training.memory import parse as memory_in_bytes
from envariant.training.network import ModelBuilder
from envariant.training.optimizers import optimizer_family
from envariant.training.preparation import prepared
from envariant.training.progress import Watcher, watching
from envariant.training.record import Record, Settings
from envariant.training.replicas import Replica, Seeds
from envariant.training.result import TrainingResult
from envariant.training.run_folder import RunFolder

ModelLike = str | ModelFamily | nn.Module | Callable[[], nn.Module]


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
        precision: of matrix products: "float32", "bfloat16", or "auto", which takes bfloat16 where the
            processor multiplies it natively and the model is large enough.
        test_environments: names to hold out; None holds out what the data suggest.
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
    source = sources.source(data) if isinstance(data, str) else data
    if not isinstance(source, EnvironmentSource):
        raise EnvariantError(
            f"data must be a name, a source or an EnvironmentSet; got {type(source).__name__}"
        )
    chosen = _Chosen.of(algorithm, hyperparameters or {}, source)
    suggestion = chosen.suggestion
    rate = suggestion.learning_rate if learning_rate is None else float(learning_rate)
    weight_decay = float(weight_decay)
    plan = Plan(
        model=_builder(model or suggestion.model),
        optimizer=optimizer_family(optimizer or suggestion.optimizer),
        steps=_at_least("steps", 1, suggestion.steps if steps is None else steps),
        batch_size=_rows(suggestion.batch_size if batch_size is None else batch_size),
        evaluate_every=1,
        precision=precision,
        augmentation=augmentation_named(augmentation),
        test=None if test_environments is None else tuple(test_environments),
        device=_device(device),
        compiled=compile,
        freeze=_frozen(freeze, init),
    )
    initialiser = initialiser_named(init)
    wanted, budget = wish(execution), memory_in_bytes(memory)
    every = max(1, round(plan.steps / 25)) if evaluate_every is None else evaluate_every
    every = _at_least("evaluate-every", 1, every)
    replicas = _at_least("replicas", 1, replicas)
    seed = _at_least("seed", 0, seed)
    if seed >= 2**32:
        raise EnvariantError(f"seed must lie below 2³²; got {seed}")
    if not 0 < rate < math.inf or not 0 <= weight_decay < math.inf:
        raise EnvariantError(
            f"learning rate must exceed 0 and weight decay be at least 0; got {rate:g}, {weight_decay:g}"
        )
    runs = [Replica(k, Seeds.of(seed, k), chosen.algorithm, rate, weight_decay) for k in range(replicas)]

    if chosen.algorithm.moves_itself and (weight_decay or optimizer is not None):
        raise EnvariantError(
            f"{chosen.name}: makes its own steps at the run's learning rate; leave optimizer and weight "
            f"decay out"
        )

    first = source.draw(runs[0].seeds.data)
    roles = first.roles(plan.test)
    _check_environments(chosen, first, roles)
    net, _ = network(first, runs[0], plan)
    plan = replace(plan, evaluate_every=every, precision=net.precision)
    settings = Settings(
        data=source.name,
        algorithm=chosen.name,
        hyperparameters=chosen.hyperparameters,
        model=_model_name(model or suggestion.model),
        optimizer=optimizer or suggestion.optimizer,
        steps=plan.steps,
        batch_size=plan.batch_size,
        learning_rate=rate,
        weight_decay=weight_decay,
        evaluate_every=every,
        augmentation=augmentation,
        init=init,
        freeze=freeze,
        test_environments=tuple(name for name, role in roles.items() if role == "test"),
        replicas=replicas,
        seed=seed,
        precision=plan.precision,
        execution=execution,
        compiled=compile,
        device=str(plan.device),
        threads=torch.get_num_threads(),
        source=suggestion.source,
        changed=(),
    )
    settings = replace(settings, changed=_changed(settings, chosen, first))
    # A run that goes on keeps to the execution it began with, so that its bits do not change.
    begun = None if out is None else run_folder.prepare(Path(out))
    label = f"{settings.algorithm} on {settings.data}"
    with watching(label, len(runs), plan.steps, first.task.metric, progress) as watch:
        runs = [prepared(run, source, plan, initialiser, watch.preparing) for run in runs]
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
    plan: Plan,
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


@final
@dataclass(frozen=True)
class _Chosen:
    """An algorithm with its name, all its settings, and what the data suggest for it."""

    name: str
    algorithm: Algorithm
    hyperparameters: Mapping[str, Any]
    suggestion: Suggestion
    suggested: Mapping[str, Any]

    @classmethod
    def of(cls, wanted: Algorithm | str, changes: Mapping[str, Any], source: EnvironmentSource) -> "_Chosen":
        if isinstance(wanted, Algorithm):
            if changes:
                raise EnvariantError("hyperparameters: belong to named recipes; set yours in the object")
            return cls(wanted.name, wanted, {"as built": repr(wanted)}, source.suggestion(wanted.name), {})
        if not isinstance(wanted, str):
            raise EnvariantError(
                "algorithm must be a name or an Algorithm, as in Composition(penalties=(IRM(),)); "
                f"got {wanted!r}"
            )
        terms = recipes.terms(wanted)
        suggestion = source.suggestion(terms[0][0].name)
        # In a sum, what is suggested for the loss as a whole is what suits the first term.
        usual = [suggestion.hyperparameters]
        usual += [known.own(source.suggestion(known.name).hyperparameters) for known, _ in terms[1:]]
        plain, given = (
            recipes.added(
                wanted,
                [known.build({**s, **g}) for (known, g), s in zip(each, usual, strict=True)],
            )
            for each in ([(known, {}) for known, _ in terms], terms)
        )
        built = given.build(changes)
        settings, suggested = (settings_of(given.name, each) for each in (built, plain.default))
        return cls(given.name, built, settings, suggestion, suggested)


def _check_environments(chosen: _Chosen, environments: EnvironmentSet, roles: Mapping[str, str]) -> None:
    training = [name for name, role in roles.items() if role == "train"]
    needed = chosen.algorithm.minimum_environments
    if len(training) < needed:
        raise EnvariantError(
            f"{chosen.name}: needs at least {needed} training environments, to see what holds in all of "
            f"them; '{environments.name}' leaves {len(training)} ({', '.join(training)}). "
            f"Hold out fewer, or use erm"
        )


def _builder(model: ModelLike) -> ModelBuilder:
    if isinstance(model, str):
        model = model_family(model)
    if isinstance(model, ModelFamily):
        return model.build
    if isinstance(model, nn.Module):
        module = model
        return lambda _shape, _outputs: copy.deepcopy(module)
    function = model
    return lambda _shape, _outputs: function()


def _model_name(model: ModelLike) -> str:
    if isinstance(model, str):
        return model
    if isinstance(model, nn.Module | ModelFamily):
        return type(model).__name__ if isinstance(model, nn.Module) else str(model)
    return getattr(model, "__qualname__", repr(model))


def _rows(size: int | str | None) -> int | None:
    if size is None or size == "full":
        return None
    return _at_least("batch size", 1, size)


def _at_least(what: str, least: int, value: object) -> int:
    try:
        whole = operator.index(cast("SupportsIndex", value))
    except TypeError:
        raise EnvariantError(f"{what} must be a whole number; got {value!r}") from None
    if whole < least:
        raise EnvariantError(f"{what} must be at least {least}; got {whole}")
    return whole


def _frozen(what: str | None, init: str | None) -> str | None:
    if what not in (None, "features"):
        raise unknown_name("freeze", what, ("features",))
    if what is not None and init is None:
        raise EnvariantError(
            "freeze: features as they are drawn are of no use; give init as well, such as rfc"
        )
    return what


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise EnvariantError(f"device must be auto, cpu or cuda; got '{name}'")
    if name == "cuda" and not torch.cuda.is_available():
        raise EnvariantError("device: this PyTorch sees no CUDA device; use cpu")
    if name == "cuda":
        # Generators, which are needed first, exist only once CUDA has been started.
        torch.cuda.init()
    return torch.device(name)


def _changed(settings: Settings, chosen: _Chosen, environments: EnvironmentSet) -> tuple[str, ...]:
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
