"""`train`: train one algorithm and return a `TrainingResult`."""

import warnings
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any

from envariant.core import specs
from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.core.files import as_path
from envariant.predictors import predictor
from envariant.training.callbacks import CallbackRunner, check_callbacks, labels_of
from envariant.training.checkpoint import ReplicaState
from envariant.training.engine import Evaluated
from envariant.training.history import HistoryRow, ordered
from envariant.training.progress import show_run
from envariant.training.result import TrainingResult
from envariant.training.run import Started, members_of, run
from envariant.training.run_spec import RunSpec
from envariant.training.store.single_run import SingleRun


def train(
    data: Any,
    algorithm: Any = "erm",
    *,
    out: Path | str | None = None,
    progress: bool | None = None,
    callbacks: Any = None,
    **options: Any,
) -> TrainingResult:
    """Train replicas of one algorithm, and evaluate every environment at regular intervals.

    Args:
        data: Environments to train on: a name such as `colored-mnist:domainbed`, an `EnvironmentSource` or an
            `EnvironmentSet`.
        algorithm: A name such as `irm` or `vrex + and-mask(threshold=0.8)`, or an algorithm, recipe, part,
            predictor or scikit-learn estimator.
        out: Folder to store the run in. Repeat the call to resume an interrupted run. Default: not stored.
        progress: Whether to show progress. Default: a bar on a terminal or in a notebook, else a line every
            30 seconds.
        callbacks: One object or several objects whose methods are called during training, such as trackers;
            see `training.callbacks.Callback`.
        options: Any option of `RunSpec`, such as `steps`, `model`, `learning_rate`, `replicas` or `seed`.

    Returns:
        Result of the run. Its `failures` contain the replicas that diverged.

    Raises:
        EnvariantError: If an option is unknown, options contradict one another, or a callback fails.

    Warns:
        EnvariantWarning: If a suggested schedule is scaled to `steps`, if a schedule has no effect within the
            run, or if the outputs of the model cannot be logits.

    Example:
        >>> import envariant
        >>> result = envariant.train("colored-digits", "erm", steps=20, replicas=2)
        >>> int(result.summary().loc["worst", "replicas"])
        2
    """
    spec = RunSpec(data=data, algorithm=algorithm, **options)
    _check_used(spec)
    check_callbacks(callbacks)
    specs.check_value(progress, bool | None, "progress")
    folder = None if out is None else SingleRun(as_path(out, "out"))
    rows: list[HistoryRow] = []
    states: dict[int, ReplicaState] = {}
    kept: dict[int, dict[int, ReplicaState]] = {}
    started: Started | None = None
    called: CallbackRunner | None = None
    try:
        with show_run(progress) as shown:
            for event in run(members_of(spec), folder, shown.pretraining):
                shown(event)
                if isinstance(event, Started):
                    started = event
                    for remark in event.record.remarks:
                        warnings.warn(remark, EnvariantWarning, stacklevel=2)
                    if folder is not None:
                        rows += folder.rows
                        kept |= folder.kept
                    states |= event.states
                    called = CallbackRunner(callbacks, event.record, labels_of(event.record))
                    continue
                if isinstance(event, Evaluated):
                    rows += event.rows
                    for note in event.notes:
                        warnings.warn(note, EnvariantWarning, stacklevel=2)
                    if event.keep:
                        kept.setdefault(event.step, {}).update(event.kept_states())
                    if event.finished:
                        states |= event.checkpoint().states()
                if folder is not None:
                    folder.add(event)
                if called is not None:
                    called(event)
    finally:
        if folder is not None:
            folder.close()
    assert started is not None
    record = started.record if folder is None or folder.record is None else folder.record
    places = [(each.name, each.role) for each in record.environments]
    return TrainingResult(
        record, ordered(rows, places), states, started.build_model, dict(sorted(kept.items())), started.sample
    )


def _check_used(spec: RunSpec) -> None:
    """Check that no option of gradient training is given for a predictor."""
    fitted = predictor(spec.algorithm)
    if fitted is None:
        return
    default = RunSpec(data="")
    unused = [name for name in _GRADIENT_OPTIONS if getattr(spec, name) != getattr(default, name)]
    if unused:
        raise EnvariantError(
            f"{fitted.name}: is fitted without gradient steps, so these options do not apply; "
            f"remove them: {', '.join(unused)}"
        )


_GRADIENT_OPTIONS = (
    "batch_size",
    "learning_rate",
    "weight_decay",
    "decay_weights_only",
    "optimizer",
    "clip",
    "accumulate",
    "loss",
    "augmentation",
    "init",
    "freeze",
    "average",
    "keep",
    "stop_early",
    "shared_init",
)


def _signature() -> Signature:
    """Return the signature of `train` with every option of `RunSpec` in place of `**options`."""
    own = [
        Parameter("data", Parameter.POSITIONAL_OR_KEYWORD, annotation=Any),
        Parameter("algorithm", Parameter.POSITIONAL_OR_KEYWORD, default="erm", annotation=Any),
    ]
    options = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=field.default, annotation=field.annotation)
        for name, field in RunSpec.model_fields.items()
        if name not in ("data", "algorithm")
    ]
    last = [
        Parameter("out", Parameter.KEYWORD_ONLY, default=None, annotation=Path | str | None),
        Parameter("progress", Parameter.KEYWORD_ONLY, default=None, annotation=bool | None),
        Parameter("callbacks", Parameter.KEYWORD_ONLY, default=None, annotation=Any),
    ]
    return Signature([*own, *options, *last], return_annotation=TrainingResult)


# Shows the options in help(), notebooks and editors without listing them a second time.
setattr(train, "__signature__", _signature())  # noqa: B010
