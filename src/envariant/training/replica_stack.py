"""Stack of replicas that are trained and evaluated together, as one program.

The replicas share the model architecture and the algorithm's structure; seeds and hyperparameters differ. If
a replica diverges, its weights are no longer changed and the step is reported; the other replicas are
unaffected.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from envariant.algorithms.hyperparameters import numbers, structure
from envariant.core.counter_rng import private_random_numbers
from envariant.core.environments import EnvironmentSet, EnvironmentSource
from envariant.core.errors import EnvariantError
from envariant.models import FeaturizerAndHead
from envariant.training import precision
from envariant.training.allocator import keep_freed_memory
from envariant.training.batch_sampler import BatchSampler, Rows, StackingError
from envariant.training.checkpoint import Checkpoint, Failure
from envariant.training.evaluator import Evaluator
from envariant.training.history import BATCH, GRADIENT_RMS, LOSS, OUTPUT_SD, HistoryRow
from envariant.training.initial_weights import initial_weights, restored, stacked
from envariant.training.network import constants
from envariant.training.optimizers import SGD, StackedOptimizer
from envariant.training.replicas import Replica
from envariant.training.run_config import RunConfig, network
from envariant.training.schedule_table import ScheduleTable
from envariant.training.step_program import StepInputs, StepOutputs, StepProgram

Change = Callable[[Tensor], Tensor]
"""Function from inputs `[…, rows, *shape]` to changed inputs of the same shape."""


@final
class ReplicaStack:
    """Stack of replicas that train as one program.

    Args:
        source: Data source of all replicas.
        replicas: Replicas of the stack; their algorithms may differ only in numeric hyperparameters.
        config: Settings shared by all replicas.
        checkpoint: State to resume from. Default: start from initial weights.
        programs: Step programs of earlier stacks, for reuse. A new program is added to this dictionary.

    Attributes:
        step: Number of completed updates.
        measured: Step of the last measurement; -1 before the first.
        network: Network of the stack.

    Raises:
        EnvariantError: If data, model and algorithm are incompatible.
        StackingError: If the replicas cannot form one program.
    """

    def __init__(
        self,
        source: EnvironmentSource,
        replicas: Sequence[Replica],
        config: RunConfig,
        checkpoint: Checkpoint | None = None,
        programs: dict[Any, StepProgram] | None = None,
    ) -> None:
        self._replicas, self._config = tuple(replicas), config
        first, device = replicas[0], config.device
        self._algorithm = first.algorithm
        sets = [source.sample(replica.seeds.data) for replica in replicas]
        self._roles, self._names = sets[0].roles(config.test), sets[0].names
        self._origins = {each.name: each.origin or each.name for each in sets[0].environments}
        self.network, context = network(sets[0], first, config)
        if len(replicas) > 1 and self.network.stochastic:
            raise StackingError("the model draws random numbers of its own, as dropout does")
        self._rows = Rows(sets, self._roles, device)
        if self._rows.reader is None:
            # Rows from disk are many blocks of several threads; the gaps between them would add up.
            keep_freed_memory()
        self._trained = trained = self._training_rows(sets)
        self._batches = self._sampler(trained)
        context = replace(
            context,
            environment_names=trained.training,
            environment_sizes=tuple(trained.sizes[name] for name in trained.training),
        )
        self._params, self._views, self._buffers = initial_weights(
            self.network, sets, replicas, config, context
        )
        self._state = stacked(
            [
                replica.algorithm.init({name: view[k] for name, view in self._views.items()}, context)
                for k, replica in enumerate(replicas)
            ]
        )
        self._rates = ScheduleTable([[replica.learning_rate] for replica in replicas], device)
        self._hyperparameters = ScheduleTable([numbers(replica.algorithm) for replica in replicas], device)
        self._optimizer = self._new_optimizer()
        self._program = self._find_program({} if programs is None else programs)
        self._alive = torch.ones(len(replicas), dtype=torch.bool, device=device)
        self._failed_at = torch.full((len(replicas),), -1, device=device)
        self._no_keys = torch.zeros(len(replicas), dtype=torch.int64, device=device)
        self._failures: dict[int, Failure] = {}
        self._metrics: Tensor | None = None
        self._gradient_rms: Tensor | None = None
        self._metric_names: tuple[str, ...] = ()
        self.step, self.measured = 0, -1
        # `_ended` is the time of the last step or measurement, so that two checkpoints of one state agree.
        self._started = self._ended = time.perf_counter()
        self._spent = self._waited = 0.0
        if checkpoint is not None:
            self._load(checkpoint)

    @property
    def replicas(self) -> tuple[int, ...]:
        """Indices of the replicas."""
        return tuple(replica.index for replica in self._replicas)

    @property
    def device(self) -> torch.device:
        """Device used for training."""
        return self._config.device

    @property
    def failed(self) -> bool:
        """Whether all replicas had diverged at the last measurement."""
        return len(self._failures) == len(self._replicas)

    @property
    def waited(self) -> float:
        """Seconds for which training and evaluation waited for rows on disk."""
        readers = {id(rows.reader): rows.reader for rows in (self._rows, self._trained)}
        return self._waited + sum(reader.waited for reader in readers.values() if reader is not None)

    def advance(self) -> None:
        """Run one training step on every replica that has not diverged."""
        step = self.step
        # A stochastic module is never stacked, so the seed of the first replica is enough.
        seed = self._replicas[0].seeds.at(step)
        drawing = private_random_numbers(seed, self.device) if self.network.stochastic else nullcontext()
        with drawing, precision.multiplying(self.network.precision, self.device):
            outputs = self._program(self._step_inputs(step))
        with torch.no_grad():
            # A replica that diverges keeps the metrics of the failing step.
            previous = self._metrics
            self._metrics = (
                outputs.metrics
                if previous is None
                else torch.where(self._alive[:, None], outputs.metrics, previous)
            )
            self._metric_names = self._program.metrics
            if self._config.measures_at(step + 1):
                self._gradient_rms = outputs.gradients.square().mean(dim=1).sqrt()
            self._take(outputs)
        self.step, self._ended = step + 1, time.perf_counter()

    def rehearse(self) -> None:
        """Predict two rows, run one training step, and undo the step.

        This detects errors in the model or algorithm, and lack of memory, before training begins.
        """
        before = self.checkpoint().clone()
        if self._config.adapt is None:
            self.answers(self._names[0], torch.zeros(2, dtype=torch.long))
        self.advance()
        self._load(before)

    def measure(self) -> tuple[HistoryRow, ...]:
        """Return loss, score and other metrics in all environments, for each replica that has not diverged.

        A replica that diverged since the last measurement is measured once more, with its weights before the
        step that diverged.
        """
        failed_at = self._failed_at.tolist()
        # By environment, then by replica.
        scores = {name: self._measured(name).tolist() for name in self._names}
        metrics = [] if self._metrics is None else self._metrics.tolist()
        gradient_rms = [] if self._gradient_rms is None else self._gradient_rms.tolist()
        rows: list[HistoryRow] = []
        for k, replica in enumerate(self._replicas):
            if replica.index in self._failures:
                continue
            step = self.step if failed_at[k] < 0 else failed_at[k]
            own = [
                HistoryRow(
                    replica=replica.index,
                    step=step,
                    environment=self._origins[name],
                    role=self._roles[name],
                    metric=metric,
                    value=value,
                )
                for name in self._names
                for metric, value in zip(
                    (LOSS, self.network.task.metric, OUTPUT_SD), scores[name][k], strict=True
                )
            ]
            reported = dict(zip(self._metric_names, metrics[k], strict=True)) if metrics else {}
            self._note_failure(k, failed_at[k], own, reported)
            if step > self.measured:
                rows += own
                if failed_at[k] < 0:
                    # Metrics of a failing step are part of the reason; they do not belong to this state.
                    reported |= {GRADIENT_RMS: gradient_rms[k]} if gradient_rms else {}
                    rows += [
                        HistoryRow(
                            replica=replica.index,
                            step=step,
                            environment="*",
                            role=BATCH,
                            metric=name,
                            value=value,
                        )
                        for name, value in reported.items()
                    ]
        self.measured, self._ended = self.step, time.perf_counter()
        return tuple(rows)

    def measured_at_once(self, replicas: int) -> float:
        """Return the rows in an evaluation block of all replicas as a multiple of the largest environment.

        Args:
            replicas: Number of replicas.
        """
        return replicas / len(self.network.blocks(max(self._rows.sizes.values()), replicas))

    def outputs(self, inputs: Tensor) -> Float[Tensor, "replicas rows *c"]:
        """Return the logits of each replica for the same rows.

        The shape is `[replicas, rows]` or `[replicas, rows, outputs]`.

        Args:
            inputs: Rows in the storage format of the environments, `[rows, *shape]`.
        """
        return self._evaluator().logits(inputs.to(self.device), decode=self._rows.decode)

    def answers(
        self, name: str, rows: Tensor | None = None, change: Change | None = None, /
    ) -> tuple[Tensor, Tensor]:
        """Return the logits of each replica and the targets in one environment, `[replicas, rows, …]`.

        Args:
            name: Name of the environment.
            rows: Indices of the rows to predict. Default: all rows.
            change: Function applied to the float32 inputs before prediction. Default: no change.
        """
        inputs, targets = self._rows.of([name])
        axis = self._rows.axis
        if rows is not None:
            along, index = (0 if axis is None else 1), rows.to(targets.device)
            inputs, targets = inputs.index_select(along, index), targets.index_select(along, index)
        decode = self._rows.decode
        if change is not None:
            inputs = inputs if isinstance(inputs, Tensor) else inputs.whole()
            inputs, decode = change(decode(inputs)), None
        own = targets.expand(len(self._replicas), *targets.shape) if axis is None else targets
        return self._evaluator().logits(inputs, axis, decode), own

    def checkpoint(self) -> Checkpoint:
        """Return the current training state of the stack.

        The next step changes the tensors of this checkpoint; to keep them, use `Checkpoint.clone`.
        """
        watch = {"metrics": self._metrics, "gradient_rms": self._gradient_rms, "failed_at": self._failed_at}
        eval_params = self._eval_params()
        return Checkpoint(
            replicas=self.replicas,
            step=self.step,
            measured=self.measured,
            params=self._views,
            buffers=self._buffers,
            optimizer=self._optimizer.state(),
            algorithm=self._state,
            watch={name: value for name, value in watch.items() if value is not None},
            metrics=self._metric_names,
            failures=dict(self._failures),
            seconds=self._spent + self._ended - self._started,
            waited=self.waited,
            eval_params={} if eval_params is self._views else eval_params,
        )

    def _training_rows(self, sets: Sequence[EnvironmentSet]) -> Rows:
        """Return the training rows, divided into the inferred environments if there are any."""
        if not any(replica.start.environments for replica in self._replicas):
            return self._rows
        inferred = [
            replica.start.environments or sample for replica, sample in zip(self._replicas, sets, strict=True)
        ]
        return Rows(inferred, inferred[0].roles(()), self._config.device)

    def _sampler(self, rows: Rows) -> BatchSampler:
        config, replicas = self._config, self._replicas
        full_batch = config.batch_size is None and config.augmentation is None
        # The library's models begin with a matrix product, which rounds inputs to bfloat16 at every step.
        rounds = self.network.precision == "bfloat16" and isinstance(self.network.module, FeaturizerAndHead)
        return BatchSampler(
            rows,
            [replica.seeds.order for replica in replicas],
            config.batch_size,
            config.augmentation,
            torch.bfloat16 if full_batch and rounds else torch.float32,
        )

    def _new_optimizer(self) -> StackedOptimizer:
        ones, zeros = [1.0] * len(self._replicas), [0.0] * len(self._replicas)
        if self._algorithm.returns_updates:
            return StackedOptimizer(SGD(), self._params, ones, zeros)
        return StackedOptimizer(
            self._config.optimizer,
            self._params,
            [replica.learning_rate for replica in self._replicas],
            [replica.weight_decay for replica in self._replicas],
            [value.shape[1:] for value in self._views.values()],
        )

    def _find_program(self, programs: dict[Any, StepProgram]) -> StepProgram:
        sizes, axes, count = self._batches.sizes, self._batches.axes, len(self._replicas)
        key = (count, structure(self._algorithm), sizes, axes, constants(self.network.module))
        if key not in programs:
            programs[key] = StepProgram(
                self.network,
                self._algorithm,
                sizes,
                axes,
                count,
                self._config.steps,
                compiled=self._config.compiled,
            )
        return programs[key]

    def _evaluator(self) -> Evaluator:
        params, count = self._eval_params(), len(self._replicas)
        return Evaluator.of_stack(self.network, params, self._buffers, count, self._config.adapt)

    def _eval_params(self) -> Mapping[str, Tensor]:
        """Return the parameters used for prediction; for most algorithms, the trained parameters."""
        return self._algorithm.eval_params(self._views, self._state)

    def _measured(self, name: str) -> Float[Tensor, "replicas 3"]:
        inputs, targets = self._rows.of([name])
        return self._evaluator().measure(inputs, targets, self._rows.axis, self._rows.decode)

    def _step_inputs(self, step: int) -> StepInputs:
        inputs, targets = self._batches.at(step)
        return StepInputs(
            params=self._views,
            buffers=self._buffers,
            state=self._state,
            inputs=inputs,
            targets=targets,
            numbers=self._hyperparameters.at(step),
            keys=self._batches.keys(step) if self._algorithm.stochastic else self._no_keys,
            rates=self._rates.at(step)[:, 0],
            alive=self._alive,
            failed_at=self._failed_at,
            step=torch.full((), step, device=self.device),
        )

    def _take(self, outputs: StepOutputs) -> None:
        self._optimizer.apply(outputs.gradients, outputs.alive, self.step)
        self._buffers = {**self._buffers, **outputs.buffers}
        self._state, self._alive, self._failed_at = outputs.state, outputs.alive, outputs.failed_at

    def _note_failure(
        self, k: int, failed_at: int, rows: Sequence[HistoryRow], metrics: Mapping[str, float]
    ) -> None:
        """Freeze a replica whose gradient, training loss or training score is infinite or NaN."""
        index = self._replicas[k].index
        diverged = [row for row in rows if row.role == "train" and not math.isfinite(row.value)]
        if failed_at >= 0:
            values = ", ".join(f"{name} {value:.3g}" for name, value in metrics.items())
            where = f" ({values})" if values else ""
            self._failures[index] = Failure(
                failed_at,
                f"the gradient became infinite or NaN at step {failed_at}{where}; {_causes(failed_at)}",
            )
        elif diverged:
            row = diverged[0]
            reason = f"{row.metric} of '{row.environment}' became {row.value} by step {row.step}"
            if not row.step:
                outputs = any(each.metric == OUTPUT_SD for each in diverged)
                what = (
                    "outputs of the network are infinite or NaN"
                    if outputs
                    else f"{row.metric} is {row.value}"
                )
                reason = f"{what} in '{row.environment}' before the first update"
            self._failures[index] = Failure(row.step, f"{reason}; {_causes(row.step)}")
            self._alive[k] = False

    def _load(self, saved: Checkpoint) -> None:
        shapes = {name: value.shape for name, value in self._views.items()}
        if {name: value.shape for name, value in saved.params.items()} != shapes:
            raise EnvariantError(
                f"replica {saved.replicas[0]}: the checkpoint holds another model; choose a new folder"
            )
        for name, view in self._views.items():
            view.copy_(saved.params[name])
        device = self.device
        watch = {name: value.to(device) for name, value in saved.watch.items()}
        try:
            self._buffers = {name: saved.buffers[name].to(device) for name in self._buffers}
            self._state = restored(self._state, saved.algorithm, device)
            self._optimizer.load({name: value.to(device) for name, value in saved.optimizer.items()})
            self._failures, self._failed_at = dict(saved.failures), watch["failed_at"]
        except (KeyError, AttributeError) as error:
            raise EnvariantError(
                f"replica {saved.replicas[0]}: the checkpoint lacks {error}; choose a new folder"
            ) from None
        self._metrics, self._gradient_rms = watch.get("metrics"), watch.get("gradient_rms")
        self._metric_names = saved.metrics
        self._alive = self._failed_at < 0
        for k, index in enumerate(self.replicas):
            if index in self._failures:
                self._alive[k] = False
        self.step, self.measured = saved.step, saved.measured
        self._spent, self._started = saved.seconds, time.perf_counter()
        # Of earlier processes: what this one has waited for is counted by its readers.
        self._waited += saved.waited - self.waited
        self._ended = self._started


def _causes(step: int) -> str:
    """Return the usual causes of a divergence; before the first update, the learning rate is none."""
    if step:
        return "usual causes: the learning rate or a coefficient is too large"
    return (
        "usual causes: operations such as log, sqrt or a division in the network or loss, initial weights or "
        "a coefficient that are too large, or inputs that are not scaled"
    )
