"""K replicas that train as one program: their data, parameters, state, and one step of all of them.

A group knows nothing of disks, progress or defaults. Its replicas share a model's architecture and an
algorithm's structure; they differ in seeds and in numbers. One that ceases to be finite stands still from
then on and is reported with the step at which it happened; the others never notice.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from envariant.algorithms.hyperparameters import numbers, structure
from envariant.core.counter_rng import private_random_numbers
from envariant.core.environments import EnvironmentSet, EnvironmentSource
from envariant.core.errors import EnvariantError
from envariant.core.schedules import Schedule
from envariant.models import FeaturizerAndHead
from envariant.training import precision
from envariant.training.batch_sampler import BatchSampler, Rows, StackingError
from envariant.training.checkpoint import Checkpoint, Failure
from envariant.training.history import BATCH, GRADIENT_RMS, LOSS, OUTPUT_SD, HistoryRow
from envariant.training.network import constants
from envariant.training.optimizers import SGD, StackedOptimizer
from envariant.training.replicas import Replica
from envariant.training.run_config import RunConfig, module_of, network, own_networks
from envariant.training.step_program import StepInputs, StepOutputs, StepProgram, over_replicas

Change = Callable[[Tensor], Tensor]
"""Inputs `[…, rows, *shape]` to others of that shape."""


@final
class ReplicaStack:
    """Some replicas, ready for a step.

    Args:
        source: where each replica draws its data.
        replicas: of one algorithm's structure.
        plan: what they share.
        checkpoint: to go on from, if any.
        programs: those of earlier groups; this group's is looked up there, or put there.

    Attributes:
        step: updates made.
        measured: the step at which they were last measured; -1 if they never were.
        network: the architecture.

    Raises:
        EnvariantError: the data, the model and the algorithm do not fit one another.
        StackingError: the replicas cannot lie side by side.
    """

    def __init__(
        self,
        source: EnvironmentSource,
        replicas: Sequence[Replica],
        plan: RunConfig,
        checkpoint: Checkpoint | None = None,
        programs: dict[Any, StepProgram] | None = None,
    ) -> None:
        self._replicas, self._plan = tuple(replicas), plan
        sets = [source.sample(replica.seeds.data) for replica in replicas]
        self._roles = sets[0].roles(plan.test)
        self._names = sets[0].names
        self._origins = {each.name: each.origin or each.name for each in sets[0].environments}
        net, context = network(sets[0], replicas[0], plan)
        self.network = net
        self._draws, self._constants = net.stochastic, constants(net.module)
        self._rows = Rows(sets, self._roles, plan.device)
        trained = self._rows
        if any(replica.start.environments for replica in replicas):
            found = [r.start.environments or drawn for r, drawn in zip(replicas, sets, strict=True)]
            trained = Rows(found, found[0].roles(()), plan.device)
        whole = plan.batch_size is None and plan.augmentation is None
        families = isinstance(net.module, FeaturizerAndHead)
        self._batches = BatchSampler(
            trained,
            [replica.seeds.order for replica in replicas],
            plan.batch_size,
            plan.augmentation,
            # All families begin with a product, which would round the inputs at every step to these bits.
            torch.bfloat16 if net.precision == "bfloat16" and whole and families else torch.float32,
        )
        names = trained.training
        self._context = replace(
            context,
            environment_names=names,
            environment_sizes=tuple(trained.sizes[name] for name in names),
        )
        self._params, self._views, self._buffers = self._weights(sets)
        self._state = _stacked(
            [
                replica.algorithm.init({name: v[k] for name, v in self._views.items()}, self._context)
                for k, replica in enumerate(replicas)
            ]
        )
        rates, decays = zip(*((r.learning_rate, r.weight_decay) for r in replicas), strict=True)
        self._rates = torch.tensor(rates, device=plan.device)
        if replicas[0].algorithm.returns_updates:
            self._updates = StackedOptimizer(
                SGD(), self._params, [1.0] * len(replicas), [0.0] * len(replicas)
            )
        else:
            self._updates = StackedOptimizer(plan.optimizer, self._params, rates, decays)
        self._numbers = _Hyperparameters([replica.algorithm for replica in replicas], plan.device)
        self._program = self._find_program({} if programs is None else programs)
        self._alive = torch.ones(len(replicas), dtype=torch.bool, device=plan.device)
        self._failed_at = torch.full((len(replicas),), -1, device=plan.device)
        self._no_keys = torch.zeros(len(replicas), dtype=torch.int64, device=plan.device)
        self._failures: dict[int, Failure] = {}
        self._metrics: Tensor | None = None
        self._gradient_rms: Tensor | None = None
        self._metric_names: tuple[str, ...] = ()
        self.measured = -1
        self._started, self._spent = time.perf_counter(), 0.0
        # When the last step or measurement ended, so that two checkpoints of one state are the same.
        self._ended = self._started
        self.step = 0
        if checkpoint is not None:
            self._load(checkpoint)

    @property
    def replicas(self) -> tuple[int, ...]:
        """Their numbers."""
        return tuple(replica.index for replica in self._replicas)

    @property
    def device(self) -> torch.device:
        """Where they train."""
        return self._plan.device

    @property
    def failed(self) -> bool:
        """Whether no replica is left, as far as has been measured."""
        return len(self._failures) == len(self._replicas)

    def advance(self) -> None:
        """One update of every replica that is alive."""
        step, first = self.step, self._replicas[0]
        # A module that draws for itself trains alone.
        drawing = private_random_numbers(first.seeds.at(step), self.device) if self._draws else nullcontext()
        with drawing, self._multiplying():
            made = self._program(self._given(step))
        with torch.no_grad():
            # Of a replica that fails, the metrics of the failing step are kept.
            held = self._metrics
            keep = self._alive[:, None]
            self._metrics = made.metrics if held is None else torch.where(keep, made.metrics, held)
            self._metric_names = self._program.metrics
            if self._plan.measures_at(step + 1):
                self._gradient_rms = made.gradients.square().mean(dim=1).sqrt()
            self._take(made)
        self.step, self._ended = step + 1, time.perf_counter()

    def measure(self) -> tuple[HistoryRow, ...]:
        """Every environment's loss and score, for each replica that has not been reported as failed.

        One that failed since the last time is measured once more, as it stood before the step that it
        could not take.
        """
        reached = self._failed_at.tolist()
        # By environment, then by replica.
        with self._multiplying():
            found = {name: self._measured(name).tolist() for name in self._names}
        reported = [] if self._metrics is None else self._metrics.tolist()
        sizes = [] if self._gradient_rms is None else self._gradient_rms.tolist()
        rows: list[HistoryRow] = []
        for k, replica in enumerate(self._replicas):
            if replica.index in self._failures:
                continue
            at = self.step if reached[k] < 0 else reached[k]
            own = [
                HistoryRow(replica.index, at, self._origins[name], self._roles[name], metric, value)
                for name in self._names
                for metric, value in zip(
                    (LOSS, self.network.task.metric, OUTPUT_SD), found[name][k], strict=True
                )
            ]
            metrics = dict(zip(self._metric_names, reported[k], strict=True)) if reported else {}
            size = {GRADIENT_RMS: sizes[k]} if sizes else {}
            self._note_failure(replica.index, k, reached[k], own, metrics)
            if at > self.measured:
                rows += own
                # Those of a step that failed are in the reason; they do not belong to where it stands.
                on_progress = {**metrics, **size}.items() if reached[k] < 0 else ()
                rows += [
                    HistoryRow(replica.index, at, "*", BATCH, name, value) for name, value in on_progress
                ]
        self.measured = self.step
        self._ended = time.perf_counter()
        return tuple(rows)

    def measured_at_once(self, replicas: int) -> float:
        """How many replicas' worth of the largest environment is measured at one time in a group so large."""
        return replicas / len(self.network.blocks(max(self._rows.sizes.values()), replicas))

    def outputs(self, inputs: Tensor) -> Tensor:
        """What each replica's model says of some rows, the same for all: logits `[replicas, rows, *c]`."""
        return self._logits(inputs.to(self.device), None)

    def answers(
        self, name: str, rows: Tensor | None = None, change: Change | None = None, /
    ) -> tuple[Tensor, Tensor]:
        """Logits and targets of each replica on its own rows of an environment: `[replicas, rows, …]`.

        Args:
            name: of the environment.
            rows: numbers of those that are wanted; None is all.
            change: of their inputs.
        """
        inputs, targets = self._rows.of([name])
        axis = self._rows.axis
        if rows is not None:
            along, index = (0 if axis is None else 1), rows.to(targets.device)
            inputs, targets = inputs.index_select(along, index), targets.index_select(along, index)
        inputs = inputs if change is None else change(inputs)
        own = targets.expand(len(self._replicas), -1) if axis is None else targets
        return self._logits(inputs, axis), own

    def _logits(self, inputs: Tensor, axis: int | None) -> Tensor:
        replicas, along = len(self._replicas), 0 if axis is None else 1

        def of_block(params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
            return self.network.forward(params, buffers, inputs, training=False, replicas=replicas)[1]

        together = over_replicas(of_block, (0, 0, axis), replicas)
        with torch.inference_mode(), self._multiplying():
            blocks = inputs.split(self.network.blocks(inputs.shape[along], replicas), dim=along)
            found = [together(self._eval_params(), self._buffers, block) for block in blocks]
        return torch.cat(found, dim=1).clone()

    def checkpoint(self) -> Checkpoint:
        """Where the group stands; its tensors are the group's own and change with the next step."""
        return Checkpoint(
            self.replicas,
            self.step,
            self.measured,
            self._views,
            self._buffers,
            self._updates.state(),
            self._state,
            self._watch(),
            self._metric_names,
            dict(self._failures),
            self._spent + self._ended - self._started,
            {} if (eval_params := self._eval_params()) is self._views else eval_params,
        )

    def _multiplying(self) -> AbstractContextManager[None]:
        return precision.multiplying(self.network.precision, self.device)

    def _eval_params(self) -> Mapping[str, Tensor]:
        """The parameters that predict; for most algorithms those that are trained."""
        algorithm = self._replicas[0].algorithm
        return algorithm.eval_params(self._views, self._state)

    def _watch(self) -> dict[str, Tensor]:
        seen = {"metrics": self._metrics, "gradient_rms": self._gradient_rms}
        return {"failed_at": self._failed_at, **{k: v for k, v in seen.items() if v is not None}}

    def _given(self, step: int) -> StepInputs:
        inputs, targets = self._batches.at(step)
        return StepInputs(
            self._views,
            self._buffers,
            self._state,
            inputs,
            targets,
            self._numbers.at(step),
            self._batches.keys(step) if self._replicas[0].algorithm.stochastic else self._no_keys,
            self._rates,
            self._alive,
            self._failed_at,
            torch.full((), step, device=self._plan.device),
        )

    def _take(self, made: StepOutputs) -> None:
        self._updates.apply(made.gradients, made.alive, self.step)
        self._buffers = {**self._buffers, **made.buffers}
        self._state, self._alive, self._failed_at = made.state, made.alive, made.failed_at

    def _measured(self, name: str) -> Tensor:
        """Mean loss, mean score and spread of the output in one environment: `[replicas, 3]`, float64."""
        inputs, targets = self._rows.of([name])
        net, replicas, axis = self.network, len(self._replicas), self._rows.axis

        def blockwise(
            params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], inputs: Tensor, targets: Tensor
        ) -> Tensor:
            _, logits = net.forward(params, buffers, inputs, training=False, replicas=replicas)
            values = (net.task.losses(logits, targets), net.task.scores(logits, targets))
            outputs = logits.double().reshape(len(logits), -1)
            sums = torch.stack([value.double().sum() for value in values])
            return torch.cat([sums, outputs.sum(dim=0), outputs.square().sum(dim=0)])

        sums = over_replicas(blockwise, (0, 0, axis, axis), replicas)
        rows, along = self._rows.sizes[name], 0 if axis is None else 1
        blocks = net.blocks(rows, replicas)
        total, params = torch.zeros((), device=self.device), self._eval_params()
        # Block by block, so that nothing of the size of an environment is held for all replicas at once.
        with torch.inference_mode():
            for block in zip(*(v.split(blocks, dim=along) for v in (inputs, targets)), strict=True):
                total = total + sums(params, self._buffers, *block)
        means, outputs = total / rows, self.network.task.outputs
        loss_and_score, first, second = means.split([2, outputs, outputs], dim=1)
        variance = (second - first.square()).clamp(min=0).mean(dim=1, keepdim=True)
        return torch.cat([loss_and_score, variance.sqrt()], dim=1)

    def _note_failure(
        self, index: int, k: int, failed_at: int, rows: Sequence[HistoryRow], metrics: Mapping[str, float]
    ) -> None:
        usual = "usual causes: the learning rate or a coefficient is too large"
        lost = [row for row in rows if row.role == "train" and not math.isfinite(row.value)]
        if failed_at >= 0:
            seen = ", ".join(f"{name} {value:.3g}" for name, value in metrics.items())
            where = f" ({seen})" if seen else ""
            self._failures[index] = Failure(
                failed_at, f"the gradient became infinite or NaN at step {failed_at}{where}; {usual}"
            )
        elif lost:
            row = lost[0]
            self._failures[index] = Failure(
                row.step,
                f"{row.metric} of '{row.environment}' became {row.value} by step {row.step}; {usual}",
            )
            self._alive[k] = False

    def _weights(self, sets: Sequence[EnvironmentSet]) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """All parameters, one row a replica; views of them by name; and stacked buffers."""
        net = self.network
        found = [(net.params, net.buffers)]
        for drawn, replica in zip(sets[1:], self._replicas[1:], strict=True):
            module, _ = module_of(drawn, replica, self._plan)
            if constants(module) != self._constants:
                raise StackingError(
                    "the models differ in more than parameters and buffers (register tensors as buffers)"
                )
            params, buffers = net.weights(module)
            found.append(
                (
                    {**params, **net.own_weights(own_networks(replica, self._context, self._plan.device))},
                    buffers,
                )
            )
        found = [
            (_replaced(params, replica), _replaced(buffers, replica))
            for (params, buffers), replica in zip(found, self._replicas, strict=True)
        ]
        shapes = {name: value.shape for name, value in net.params.items()}
        if any({name: value.shape for name, value in params.items()} != shapes for params, _ in found):
            raise StackingError("the models differ in the shapes of their parameters")
        flat = torch.stack([torch.cat([value.flatten() for value in params.values()]) for params, _ in found])
        parts = flat.split([shape.numel() for shape in shapes.values()], dim=1)
        views = {
            name: part.view(len(found), *shape)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }
        return flat, views, {name: torch.stack([held[name] for _, held in found]) for name in net.buffers}

    def _find_program(self, programs: dict[Any, StepProgram]) -> StepProgram:
        net, first = self.network, self._replicas[0].algorithm
        key = (
            len(self._replicas),
            structure(first),
            self._batches.sizes,
            self._batches.axes,
            self._constants,
        )
        if key not in programs:
            programs[key] = StepProgram(
                net,
                first,
                self._batches.sizes,
                self._batches.axes,
                len(self._replicas),
                self._plan.steps,
                compiled=self._plan.compiled,
            )
        return programs[key]

    def _load(self, saved: Checkpoint) -> None:
        device = self._plan.device
        shapes = {name: value.shape for name, value in self._views.items()}
        if {name: value.shape for name, value in saved.params.items()} != shapes:
            raise EnvariantError(
                f"replica {saved.replicas[0]}: its checkpoint holds another model; train into a new folder"
            )
        for name, view in self._views.items():
            view.copy_(saved.params[name])
        self._buffers = {name: saved.buffers[name].to(device) for name in self._buffers}
        self._state = _merged(self._state, saved.algorithm, device)
        self._updates.load({name: value.to(device) for name, value in saved.optimizer.items()})
        self._failures = dict(saved.failures)
        self._failed_at = saved.watch["failed_at"].to(device)
        self._metrics = saved.watch["metrics"].to(device) if "metrics" in saved.watch else None
        if "gradient_rms" in saved.watch:
            self._gradient_rms = saved.watch["gradient_rms"].to(device)
        self._metric_names = saved.metrics
        self._alive = self._failed_at < 0
        for k, index in enumerate(self.replicas):
            if index in self._failures:
                self._alive[k] = False
        self.step, self.measured = saved.step, saved.measured
        self._spent = saved.seconds


def _replaced(values: Mapping[str, Tensor], replica: Replica) -> dict[str, Tensor]:
    """Freshly drawn weights, but for those from which the replica starts."""
    given = replica.start.params
    for name in values.keys() & given.keys():
        if given[name].shape != values[name].shape:
            raise EnvariantError(f"init: '{name}' has another shape in the model that is to start from it")
    return {name: given[name].to(value) if name in given else value for name, value in values.items()}


@final
class _Hyperparameters:
    """The hyperparameters of every replica at every step: `[replicas, numbers]`."""

    def __init__(self, algorithms: Sequence[Any], device: torch.device) -> None:
        table = [numbers(algorithm) for algorithm in algorithms]
        # A thousand replicas may follow a handful of schedules: each is asked once a step.
        distinct = list(dict.fromkeys(number for row in table for number in row))
        places = {number: i for i, number in enumerate(distinct)}
        self._distinct, self._device = distinct, device
        self._index = torch.tensor([[places[number] for number in row] for row in table], dtype=torch.long)
        self._values: list[float] | None = None
        self._tensor = torch.empty(0)

    def at(self, step: int) -> Tensor:
        values = [n(step) if isinstance(n, Schedule) else n for n in self._distinct]
        if values != self._values:
            self._values = values
            self._tensor = torch.tensor(values, dtype=torch.float32)[self._index].to(self._device)
        return self._tensor


def _stacked(trees: Sequence[Any]) -> Any:
    first = trees[0]
    if isinstance(first, Tensor):
        return torch.stack(list(trees))
    return {key: _stacked([tree[key] for tree in trees]) for key in first}


def _merged(fresh: Mapping[str, Any], stored: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        key: _merged(value, stored.get(key, {}), device)
        if isinstance(value, Mapping)
        else stored[key].to(device)
        for key, value in fresh.items()
    }
