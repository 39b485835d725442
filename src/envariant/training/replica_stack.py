"""Stack of replicas that are trained and evaluated together, as one program.

The replicas share the model architecture and the algorithm's structure; seeds and hyperparameters differ. If
a replica diverges, its weights are no longer changed and the step is reported; the other replicas are
unaffected.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from envariant.algorithms.hyperparameters import numbers, structure
from envariant.core.counter_rng import private_random_numbers
from envariant.core.environments import EnvironmentSource
from envariant.core.errors import EnvariantError
from envariant.training import fixed_features, linear_risks, precision
from envariant.training.accumulation import accumulated
from envariant.training.allocator import keep_freed_memory
from envariant.training.averaging.averaged_weights import AveragedWeights
from envariant.training.batch_sampler import Rows, StackingError
from envariant.training.checkpoint import Checkpoint, Failure, Stop
from envariant.training.divergence import divergence
from envariant.training.evaluator import Evaluator, Weights
from envariant.training.history import (
    CLIP_SHARE,
    CURRENT_LOSS,
    GRADIENT_RMS,
    HistoryRow,
)
from envariant.training.initial_weights import initial_weights, restored, stacked
from envariant.training.measured_rows import batch_rows, environment_rows
from envariant.training.network import constants
from envariant.training.replicas import Replica
from envariant.training.run_config import RunConfig, network
from envariant.training.schedule_table import ScheduleTable
from envariant.training.stack_parts import new_optimizer, sampler, training_rows
from envariant.training.step_program import StepInputs, StepOutputs, StepProgram
from envariant.training.validation_watch import ValidationWatch

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
        self._places = [(each.origin or each.name, self._roles[each.name]) for each in sets[0].environments]
        self.network, context = network(sets[0], first, config)
        if len(replicas) > 1 and self.network.stochastic:
            raise StackingError("the model draws random numbers of its own, as dropout does")
        self._draws = self._algorithm.stochastic or self.network.has_masks
        self._rows = Rows(sets, self._roles, device)
        if self._rows.reader is None:
            # Not for rows from disk: several threads allocate many blocks, and the gaps between these blocks
            # would accumulate.
            keep_freed_memory()
        self._trained = trained = training_rows(self._rows, sets, replicas, device)
        self._batches = sampler(trained, self.network, replicas, config)
        context = replace(
            context,
            environment_names=trained.training,
            environment_sizes=tuple(trained.sizes[name] for name in trained.training),
        )
        self._params, self._views, self._buffers = initial_weights(
            self.network, sets, replicas, config, context
        )
        self._on_features = fixed_features.replace(self._batches, self.network, self._buffers, first, config)
        self._risks = linear_risks.replace(self._batches, self.network, self._algorithm, config)
        self._state = stacked(
            [
                replica.algorithm.init({name: view[k] for name, view in self._views.items()}, context)
                for k, replica in enumerate(replicas)
            ]
        )
        self._rates = ScheduleTable([[replica.learning_rate] for replica in replicas], device)
        self._hyperparameters = ScheduleTable([numbers(replica.algorithm) for replica in replicas], device)
        self._optimizer = new_optimizer(self.network, self._params, self._views, replicas, config)
        self._program = self._find_program({} if programs is None else programs)
        self._alive = torch.ones(len(replicas), dtype=torch.bool, device=device)
        self._failed_at = torch.full((len(replicas),), -1, device=device)
        self._no_keys = torch.zeros(len(replicas), dtype=torch.int64, device=device)
        self._failures: dict[int, Failure] = {}
        self._stops: dict[int, Stop] = {}
        average = config.average
        self._average = None if average is None else AveragedWeights(average, self._params, self._views)
        self._watch = ValidationWatch(config.keep, config.stop_early, self.network.task, len(replicas))
        self._metrics: Tensor | None = None
        self._gradient_rms: Tensor | None = None
        self._metric_names: tuple[str, ...] = ()
        # Number of clipped gradients since the last measurement.
        self._clipped = torch.zeros(len(replicas), dtype=torch.int64, device=device)
        self.step, self.measured, self._spent, self._waited = 0, -1, 0.0, 0.0
        # `_ended` is the time of the last step or measurement, so that two checkpoints of one state agree.
        self._started = self._ended = time.perf_counter()
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
        """Whether, as of the last measurement, every replica has diverged."""
        return len(self._failures) == len(self._replicas)

    @property
    def ended(self) -> bool:
        """Whether, as of the last measurement, every replica has diverged or stopped."""
        return len(self._failures) + len(self._stops) == len(self._replicas)

    @property
    def waited(self) -> float:
        """Seconds that training and evaluation have spent waiting for rows on disk."""
        readers = {id(rows.reader): rows.reader for rows in (self._rows, self._trained)}
        return self._waited + sum(reader.waited for reader in readers.values() if reader is not None)

    def advance(self) -> None:
        """Run one training step on every replica that has neither diverged nor stopped."""
        step, count = self.step, self._config.accumulate
        batches = range(step * count, (step + 1) * count)
        outputs = accumulated(self._run, lambda batch: self._step_inputs(step, batch), batches)
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
            if self._average is not None:
                self._average.update(self._params, self._alive, step + 1)
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
        """Return loss, score and other metrics in all environments, for each replica that still trains.

        If this measurement finds that a replica has diverged or must stop, the replica is included for the
        last time. A replica that has diverged is measured with its weights from before the step at which it
        diverged, unless these weights have been measured already.
        """
        failed_at = self._failed_at.tolist()
        losses = self._evaluate_average()
        # Nested by environment, then by replica.
        scores = {name: self._measured(name).tolist() for name in self._names}
        metrics = [] if self._metrics is None else self._metrics.tolist()
        gradient_rms = [] if self._gradient_rms is None else self._gradient_rms.tolist()
        clipped: list[int] = self._clipped.tolist()
        rows: list[HistoryRow] = []
        for k, replica in enumerate(self._replicas):
            if replica.index in self._failures or replica.index in self._stops:
                continue
            step = self.step if failed_at[k] < 0 else failed_at[k]
            measured = [scores[name][k] for name in self._names]
            own = environment_rows(replica.index, step, self.network.task.metric, self._places, measured)
            reported = dict(zip(self._metric_names, metrics[k], strict=True)) if metrics else {}
            if (failure := divergence(failed_at[k], own, reported)) is not None:
                self._failures[replica.index] = failure
                self._alive[k] = False
            if step > self.measured:
                rows += own
                if failed_at[k] < 0:
                    # Metrics of a step that diverged are part of the failure's reason. They are not measured
                    # values of this state.
                    reported |= {GRADIENT_RMS: gradient_rms[k]} if gradient_rms else {}
                    if self._config.clip is not None and step > 0:
                        reported[CLIP_SHARE] = clipped[k] / (step - max(0, self.measured))
                    reported |= {CURRENT_LOSS: losses[k]} if losses else {}
                    rows += batch_rows(replica.index, step, reported)
            if failure is None:
                self._note_stop(k, own)
        self.measured, self._ended = self.step, time.perf_counter()
        self._clipped = torch.zeros_like(self._clipped)
        return tuple(rows)

    def _evaluate_average(self) -> list[float]:
        """Pass the validation losses of the current weights to the averaging rule, and return them.

        If there is no averaging rule, or it does not need the losses, return an empty list.
        """
        if self._average is None or not self._average.rule.needs_validation:
            return []
        count, names = len(self._replicas), [n for n, role in self._roles.items() if role == "validation"]
        current = Evaluator.of_stack(self.network, self._views, self._buffers, count, self._config.adapt)
        parts = [
            current.measure(*self._rows.of([name]), self._rows.axis, self._rows.decode)[:, 0]
            for name in names
        ]
        losses = torch.stack(parts).mean(dim=0)
        losses = torch.where(self._alive & (self._failed_at < 0), losses, torch.nan)
        self._average.evaluate(self._params, losses)
        return losses.tolist()

    def _note_stop(self, k: int, rows: Sequence[HistoryRow]) -> None:
        """Keep a replica's weights if they are the best so far, and end its training if a rule says so."""
        reason = self._watch.observe(k, self.step, rows, self._eval_weights)
        if self._average is not None:
            reason = self._average.rule.ended(self._average.state, k) or reason
        if reason is not None:
            self._stops[self._replicas[k].index] = Stop(self.step, reason)
            self._alive[k] = False

    def measured_at_once(self, replicas: int) -> float:
        """Return the number of rows evaluated at once, as a multiple of the rows of the largest environment.

        A row that is evaluated for several replicas counts once for each of them, so the result can exceed 1.

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
        self, name: str, rows: Tensor | None = None, change: Change | None = None, /, *, kept: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return logits and targets in one environment, both of shape `[replicas, rows, …]`.

        Args:
            name: Name of the environment.
            rows: Indices of the rows to predict. Default: all rows.
            change: Function applied to the float32 inputs before prediction. Default: no change.
            kept: Whether to predict with the weights selected by the option `keep`.
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
        return self._evaluator(kept=kept).logits(inputs, axis, decode), own

    def checkpoint(self) -> Checkpoint:
        """Return the current training state of the stack."""
        watch = {"metrics": self._metrics, "gradient_rms": self._gradient_rms, "failed_at": self._failed_at}
        watch |= {} if self._config.clip is None else {"clipped": self._clipped}
        eval_params, eval_buffers = self._eval_weights()
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
            eval_buffers={} if eval_buffers is self._buffers else eval_buffers,
            averaging={} if self._average is None else self._average.state,
            selection=self._watch.state,
            stops=dict(self._stops),
        )

    def _find_program(self, programs: dict[Any, StepProgram]) -> StepProgram:
        sizes, axes, count = self._batches.sizes, self._batches.axes, len(self._replicas)
        groups = self._batches.groups
        shapes = () if groups is None else tuple(each.shape for each in groups.inputs)
        layers = constants(self.network.module)
        key = (count, structure(self._algorithm), sizes, axes, shapes, self._on_features, self._risks, layers)
        if key not in programs:
            programs[key] = StepProgram(
                self.network,
                self._algorithm,
                sizes,
                axes,
                count,
                self._config.steps * self._config.accumulate,
                compiled=self._config.compiled,
                from_features=self._on_features,
                risks=self._risks,
            )
        return programs[key]

    def _evaluator(self, *, kept: bool = False) -> Evaluator:
        params, buffers = self._watch.weights if kept else self._eval_weights()
        return Evaluator.of_stack(self.network, params, buffers, len(self._replicas), self._config.adapt)

    def _eval_weights(self) -> tuple[Weights, Weights]:
        """Return the parameters and buffers used for prediction, which may be averages over steps."""
        if self._average is None:
            return self._algorithm.eval_params(self._views, self._state), self._buffers
        seed = self._replicas[0].seeds.at(0)
        return self._average.weights(self.network, self._buffers, self._batches, self.step, seed)

    def _measured(self, name: str) -> Float[Tensor, "replicas 3"]:
        inputs, targets = self._rows.of([name])
        return self._evaluator().measure(inputs, targets, self._rows.axis, self._rows.decode)

    def _run(self, batch: int, inputs: StepInputs) -> StepOutputs:
        # A stochastic module is never stacked, so the seed of the first replica is enough.
        seed = self._replicas[0].seeds.at(batch)
        drawing = private_random_numbers(seed, self.device) if self.network.stochastic else nullcontext()
        with drawing, precision.multiplying(self.network.precision, self.device):
            return self._program(inputs)

    def _step_inputs(self, step: int, batch: int) -> StepInputs:
        inputs, targets = self._batches.at(batch)
        return StepInputs(
            params=self._views,
            buffers=self._buffers,
            state=self._state,
            inputs=inputs,
            targets=targets,
            numbers=self._hyperparameters.at(step),
            keys=self._batches.keys(batch) if self._draws else self._no_keys,
            rates=self._rates.at(step)[:, 0],
            alive=self._alive,
            failed_at=self._failed_at,
            step=torch.full((), step, device=self.device),
            groups=() if self._batches.groups is None else self._batches.groups.tensors(),
        )

    def _take(self, outputs: StepOutputs) -> None:
        gradients = outputs.gradients
        if self._config.clip is not None:
            gradients, clipped = self._config.clip(gradients)
            self._clipped = self._clipped + clipped
        self._optimizer.apply(gradients, outputs.alive, self.step)
        self._buffers = {**self._buffers, **outputs.buffers}
        self._state, self._alive, self._failed_at = outputs.state, outputs.alive, outputs.failed_at

    def _load(self, saved: Checkpoint) -> None:
        shapes = {name: value.shape for name, value in self._views.items()}
        if {name: value.shape for name, value in saved.params.items()} != shapes:
            raise EnvariantError(
                f"replica {saved.replicas[0]}: the checkpoint belongs to a different model; choose a new "
                f"folder"
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
            self._stops = dict(saved.stops)
            if self._average is not None:
                self._average.load(saved.averaging)
            self._watch.load(saved.selection, device)
        except (KeyError, AttributeError) as error:
            raise EnvariantError(
                f"replica {saved.replicas[0]}: the checkpoint lacks {error}; choose a new folder"
            ) from None
        self._metrics, self._gradient_rms = watch.get("metrics"), watch.get("gradient_rms")
        self._clipped = watch.get("clipped", torch.zeros_like(self._failed_at))
        self._metric_names = saved.metrics
        self._alive = self._failed_at < 0
        for k, index in enumerate(self.replicas):
            if index in self._failures or index in self._stops:
                self._alive[k] = False
        self.step, self.measured = saved.step, saved.measured
        self._spent, self._started = saved.seconds, time.perf_counter()
        # Add the waiting time of earlier processes; the readers count the waiting time of this process.
        self._waited += saved.waited - self.waited
        self._ended = self._started
