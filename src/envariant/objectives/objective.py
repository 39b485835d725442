"""`Objective`: the loss of an algorithm as a PyTorch module, for training loops of your own."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast, final

import torch
from torch import Tensor, nn

from envariant.algorithms import Algorithm, Composition, Part, Recipe, TrainContext, as_algorithm
from envariant.algorithms.base import GradientPenalty, State
from envariant.core import counter_rng
from envariant.core.counter_rng import private_random_numbers
from envariant.core.environments import PredictedBatch
from envariant.core.errors import EnvariantError
from envariant.core.step_context import StepContext
from envariant.core.tasks import Regression, Task
from envariant.data.with_loss import check_loss
from envariant.objectives import requirements
from envariant.objectives.gradient_shares import (
    Differentiated,
    accumulate,
    check_differentiable,
    risk_gradients,
    shares,
)
from envariant.objectives.grouping import Grouping, places
from envariant.objectives.joined_batch import JoinedBatch
from envariant.objectives.processes import Processes, is_distributed
from envariant.objectives.state_buffers import StateBuffers, updated
from envariant.objectives.tasks import single_or_double, targets_for, task_code, task_of, task_of_code

F = TypeVar("F", bound=Callable[..., Any])


def _uncompiled(function: F) -> F:
    """Run a function as it is in code that `torch.compile` compiles.

    The number of rows per environment changes from batch to batch; each change would compile it again.
    """
    return cast("F", torch.compiler.disable(function))


@final
@dataclass(frozen=True, eq=False)
class _Last:
    """Values of the last step, from which the metrics are computed."""

    step: int
    loss: Tensor
    risks: Tensor
    names: tuple[str, ...]
    metrics: Mapping[str, Tensor]


@final
class Objective(nn.Module):
    """Loss of an algorithm, for any training loop in PyTorch; `envariant.objective` describes its arguments.

    The module holds the state of the algorithm, such as GroupDRO's weights and Fishr's moving averages. Save
    it with `state_dict`. In evaluation mode (`eval()`), the state does not change and processes do not
    communicate.

    Attributes:
        algorithm: Composition whose loss is computed.
        networks: Auxiliary networks of the algorithm, to be trained with the model; empty for most.
    """

    def __init__(
        self,
        algorithm: Composition,
        *,
        environments: Sequence[str] = (),
        sizes: Sequence[int] = (),
        loss: Any = None,
        features: int | None = None,
        seed: int = 0,
        group: Any = None,
    ) -> None:
        super().__init__()
        self.algorithm = algorithm
        self._names, self._sizes = tuple(environments), tuple(sizes)
        self._loss, self._seed, self._group = loss, seed, group
        # Environments that are not given in advance are learned from the batches.
        self._known = list(range(len(self._names)))
        self._task: Task | None = loss if isinstance(loss, Task) else None
        self._calls, self._initialized_for = 0, -1
        self._last: _Last | None = None
        self.state = StateBuffers()
        with private_random_numbers(seed, torch.device("cpu")):
            self.networks = nn.ModuleDict(requirements.auxiliary_networks(algorithm, features, self._task))

    @property
    def environments(self) -> tuple[str, ...]:
        """Names of the environments; names that were not given are the numbers in the batches."""
        return self._names or tuple(map(str, self._known))

    @_uncompiled
    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        environments: Tensor,
        *,
        features: Tensor | None = None,
        model: nn.Module | None = None,
        step: int | None = None,
    ) -> Tensor:
        """Return the loss of a batch, and update the state of the algorithm.

        Rows may be in any order, environments may differ in size, and some may be absent. If several
        processes train together, the loss is that of their joined batch, and the gradients that
        `DistributedDataParallel` averages are those of one process with this batch.

        Args:
            logits: Outputs of the model, `[rows]` or `[rows, outputs]`.
            targets: Targets, `[rows]` or `[rows, outputs]`.
            environments: Number of the environment of each row, `[rows]`. On the CPU, reading it does not
                wait for a GPU.
            features: Inputs of the model's last layer, `[rows, width]`, for algorithms that need them.
            model: Model whose trained parameters the loss contains, if `l2` is positive or the algorithm
                penalizes gradients.
            step: Number of completed updates. Default: number of earlier calls in training mode.

        Raises:
            EnvariantError: If shapes or values are not valid, or the algorithm needs an argument that is
                missing.
        """
        if not requirements.has_loss(self.algorithm):
            raise EnvariantError(
                f"{self.algorithm.name}: combines the environments' gradients, which no loss expresses; call "
                f"objective.backward(model, logits, targets, environments) instead of loss.backward()"
            )
        with _in_single_precision(logits), self._unchanged_unless_trained():
            return self._loss_of(self._batch(logits, targets, environments, features, step), model)

    @_uncompiled
    def backward(
        self,
        model: nn.Module,
        logits: Tensor,
        targets: Tensor,
        environments: Tensor,
        *,
        features: Tensor | None = None,
        step: int | None = None,
    ) -> Tensor:
        """Add the gradients of a step to the attribute `grad` of the parameters, and return the loss.

        Use it instead of `loss.backward()` for algorithms that combine the environments' gradients, such as
        AND-mask. It needs one backward pass per environment. If several processes train together, their
        gradients are summed here, so the model must not be in `DistributedDataParallel`.

        Args:
            model: Model that computed the logits.
            logits: Outputs of the model, `[rows]` or `[rows, outputs]`.
            targets: Targets, `[rows]` or `[rows, outputs]`.
            environments: Number of the environment of each row, `[rows]`.
            features: Inputs of the model's last layer, `[rows, width]`, for algorithms that need them.
            step: Number of completed updates. Default: number of earlier calls in training mode.

        Raises:
            EnvariantError: If shapes or values are not valid, or the algorithm needs an argument that is
                missing.
        """
        with _in_single_precision(logits), self._unchanged_unless_trained():
            return self._backward(self._batch(logits, targets, environments, features, step), model)

    @_uncompiled
    def backward_losses(
        self, model: nn.Module, losses: Mapping[int, Tensor], *, step: int | None = None
    ) -> Tensor:
        """Add the gradients of a step to the attribute `grad` of the parameters, and return the loss.

        Like `backward`, for losses that your loop computes, such as those of a language model. The algorithm
        must need nothing but losses: a risk aggregator, V-REx, RDM, IGA or a gradient aggregator.

        Args:
            model: Model that computed the losses.
            losses: Losses of the rows of each environment, `[rows]`, or their mean, by environment number.
            step: Number of completed updates. Default: number of earlier calls in training mode.

        Raises:
            EnvariantError: If the algorithm needs logits or features, or a loss is not valid.
        """
        requirements.check_needs_only_losses(self.algorithm)
        requirements.check_losses(losses)
        parts = [value.reshape(-1) for value in losses.values()]
        rows = torch.cat(parts)
        ids = torch.tensor([number for number, part in zip(losses, parts, strict=True) for _ in part])
        with _in_single_precision(rows), self._unchanged_unless_trained():
            return self._backward(self._batch(rows, None, ids, None, step), model)

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the last batch for a logger: loss, risks, penalties and coefficients.

        Reading them waits for a GPU; the dictionary is empty before the first batch.
        """
        if (last := self._last) is None:
            return {}
        risks = {f"risk {name}": risk for name, risk in zip(last.names, last.risks, strict=True)}
        coefficients = self.algorithm.coefficients(last.step, last.loss)
        values = {"loss": last.loss, **last.metrics, **risks, **coefficients}
        numbers = torch.stack([value.reshape(()).to(last.loss) for value in values.values()]).tolist()
        return dict(zip(values, numbers, strict=True))

    def extra_repr(self) -> str:
        """Return name and environments of the algorithm, for `repr`."""
        return f"{self.algorithm.name}, environments={len(self._known) or 'learned from the batches'}"

    def get_extra_state(self) -> Tensor:
        """Return number of calls, inferred task and numbers of known environments, for `state_dict`."""
        return torch.tensor([self._calls, *task_code(self._task), *self._known])

    def set_extra_state(self, state: Any) -> None:
        """Restore the number of calls, the inferred task and the numbers of the known environments.

        Args:
            state: Result of `get_extra_state`.

        Raises:
            EnvariantError: If the objective was built for other environments.
        """
        calls, code, outputs, *known = state.tolist()
        if self._names and known != self._known:
            raise EnvariantError(
                f"objective: the saved state has {len(known)} environments, but the objective has "
                f"{len(self._known)}; build it with environments={len(known)}"
            )
        self._calls, self._known, self._initialized_for = calls, known, -1
        self._task = self._task or task_of_code(code, outputs, self._loss)

    def _loss_of(self, batch: JoinedBatch, model: nn.Module | None) -> Tensor:
        algorithm, processes = self.algorithm, batch.processes
        parameters = requirements.parameters(algorithm, model)
        gradients: dict[str, Tensor] | None = None
        if any(isinstance(part, GradientPenalty) for part in algorithm.penalties):
            own = risk_gradients(batch, parameters)
            gradients = {name: processes.total(values) for name, values in own.items()}
        logits, features = processes.joined(batch.logits), processes.joined(batch.features)
        predicted = batch.predicted(logits, features, self._functions())
        state = self._state(batch, parameters)
        loss, state, metrics = algorithm.loss(predicted, state, gradients)
        if algorithm.l2:
            squares = torch.stack([value.square().sum() for value in parameters.values()])
            loss = loss + algorithm.l2 / algorithm.divisor(batch.context.step) * squares.sum()
        self._finish(batch, predicted, loss, state, metrics)
        return loss

    def _backward(self, batch: JoinedBatch, model: nn.Module) -> Tensor:
        algorithm, processes = self.algorithm, batch.processes
        parameters = requirements.trained(model)
        check_differentiable(batch)
        penalized = any(isinstance(part, GradientPenalty) for part in algorithm.penalties)
        own = risk_gradients(batch, parameters) if penalized else {}
        outputs = [each for each in (batch.logits, batch.features) if each.requires_grad]
        with torch.enable_grad():
            logits, features = (
                processes.joined(each.detach()).requires_grad_(each.requires_grad)
                for each in (batch.logits, batch.features)
            )
            totals = {name: processes.total(g.detach()).requires_grad_() for name, g in own.items()}
            predicted = batch.predicted(logits, features, self._functions())
            state = self._state(batch, parameters)
            loss, state, metrics = algorithm.loss(predicted, state, totals if penalized else None)
        leaves = [each for each in (logits, features) if each.requires_grad]
        networks = dict(self.networks.named_parameters())
        gradients = torch.autograd.grad(
            loss, [*leaves, *totals.values(), *networks.values()], allow_unused=True, materialize_grads=True
        )
        rows, stacks = gradients[: len(leaves)], gradients[len(leaves) : len(leaves) + len(own)]
        differentiated = Differentiated(
            [(output, g[processes.own]) for output, g in zip(outputs, rows, strict=True)],
            list(zip(own.values(), stacks, strict=True)),
        )
        each = shares(batch, differentiated, parameters)
        combined, state, reported = algorithm.aggregate(each, state, batch.context)
        decay = 2 * algorithm.l2 / algorithm.divisor(batch.context.step)
        accumulate(parameters, {name: g + decay * parameters[name] for name, g in combined.items()})
        accumulate(networks, dict(zip(networks, gradients[len(leaves) + len(own) :], strict=True)))
        self._finish(batch, predicted, loss, state, {**metrics, **reported})
        return loss.detach()

    def _batch(
        self, logits: Tensor, targets: Any, environments: Any, features: Tensor | None, step: int | None
    ) -> JoinedBatch:
        """Check the tensors of a batch, and join the rows of all processes.

        If `targets` is None, the losses of the rows are given instead of logits.
        """
        requirements.check_rows(self.algorithm, logits, targets, environments, features)
        requirements.check_step(step)
        logits, device = single_or_double(logits), logits.device
        ids, rows = torch.as_tensor(environments), len(logits)
        targets = logits.detach() if (given := targets is None) else torch.as_tensor(targets).to(device)
        width = logits.new_zeros(rows, 0)
        if features is not None and self.algorithm.needs_features:
            width = single_or_double(features).flatten(1)
        processes = Processes((rows,))
        # Evaluation may run in one process only.
        if self.training and is_distributed(self._group):
            processes = Processes.of(rows, device, self._group)
            ids, targets = processes.joined(ids.to(device)), processes.joined(targets)
        if not given:
            if self._task is None:
                self._task = task_of(logits, targets, self._loss)
            targets = targets_for(self._task, targets, logits)
        if not len(ids):
            raise EnvariantError("objective: the batch has no rows; leave empty batches out")
        grouping = Grouping.of(ids)
        place = self._places(grouping.ids)
        everywhere = place == list(range(len(self._known)))
        return JoinedBatch(
            logits,
            width,
            targets,
            ids.to(device),
            grouping,
            processes,
            None if given else self._task,
            self._context(step, device),
            tuple(self._names[k] if self._names else str(self._known[k]) for k in place),
            None if everywhere else torch.tensor(place, device=device),
        )

    @contextmanager
    def _unchanged_unless_trained(self) -> Generator[None]:
        """Restore state, known environments and task after a call in evaluation mode, or one that failed."""
        before = list(self._known), self._initialized_for, self._task
        state, trained = self.state.tree(), False
        try:
            yield
            trained = self.training
        finally:
            if not trained:
                self._known, self._initialized_for, self._task = before
                self.state.replace(state)

    def _places(self, ids: Sequence[int]) -> list[int]:
        """Return the index of each environment; environments not seen before are added, unless given."""
        if not self._names:
            self._known += [number for number in ids if number not in self._known]
        return places(ids, self._known)

    def _context(self, step: int | None, device: torch.device) -> StepContext:
        key: Tensor | None = None
        if self.algorithm.stochastic:
            key = counter_rng.step_keys([self._seed], self._calls, 1, device)[0, 0]
        return StepContext(self._calls if step is None else step, key=key)

    def _functions(self) -> dict[str, nn.Module]:
        return dict(self.networks.items())

    def _state(self, batch: JoinedBatch, parameters: Mapping[str, Tensor]) -> State:
        """Return the state of all parts, with initial values for environments not seen before."""
        if self._initialized_for != len(self._known):
            task = Regression() if batch.task is None else batch.task
            context = TrainContext(
                self.environments, self._sizes, task, features=batch.features.shape[1], linear_head=True
            )
            known = {name: single_or_double(value.detach()) for name, value in parameters.items()}
            initial = self.algorithm.init(known or {"logits": batch.logits.detach()}, context)
            self.state.replace(updated(initial, self.state.tree(), batch.logits))
            self._initialized_for = len(self._known)
        return {**{str(i): {} for i in range(len(self.algorithm.parts))}, **self.state.tree()}

    def _finish(
        self,
        batch: JoinedBatch,
        predicted: PredictedBatch,
        loss: Tensor,
        state: State,
        metrics: Mapping[str, Tensor],
    ) -> None:
        risks = predicted.risks.detach()
        self._last = _Last(batch.context.step, loss.detach(), risks, batch.names, metrics)
        if self.training:
            self._calls += 1
            if known := self.state.tree():
                requirements.check_state(self.algorithm, known, state)
                self.state.replace(state)


@contextmanager
def _in_single_precision(like: object) -> Generator[None]:
    """Compute losses in single precision, also where the training loop uses autocast."""
    # What is not a tensor is reported where the batch is checked.
    if not isinstance(like, Tensor) or not torch.is_autocast_enabled(like.device.type):
        yield
        return
    with torch.autocast(like.device.type, enabled=False):
        yield


def objective(
    algorithm: Algorithm | Recipe | Part | str,
    *,
    environments: int | Sequence[str] | None = None,
    sizes: Sequence[int] | None = None,
    loss: Any = None,
    features: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    group: Any = None,
) -> Objective:
    """Build the loss of an algorithm as a PyTorch module, for a training loop of your own.

    Args:
        algorithm: Name such as "vrex", "irm(coefficient=100) + coral", recipe, part or composition. Its
            schedules are used as they are; defaults are not scaled to the length of your run.
        environments: Number of training environments, which are then numbered from 0, or their names in this
            order. Default: learned from the numbers in the batches.
        sizes: Number of training rows of each environment; needed only for `risk_aggregator=pooled`.
        loss: Name of a loss, function of logits and targets that returns one loss per row, or task. Default:
            cross-entropy or squared error, inferred from the first batch.
        features: Width of the features; needed only for algorithms with networks of their own, such as
            `selfreg`, whose parameters the optimizer must receive.
        steps: Length of the run in updates; needed only for relative schedules such as `step(1, 10, at=40%)`.
        seed: Seed of the algorithm's random numbers; equal in all processes of a distributed run.
        group: Process group of a distributed run. Default: the default group.

    Raises:
        EnvariantError: If the algorithm is unknown, or cannot be expressed as a loss or as gradients of one
            forward pass.

    Example:
        >>> import torch, envariant
        >>> objective = envariant.objective("vrex(coefficient=10)")
        >>> logits, targets = torch.tensor([0.5, -1.0, 2.0, 0.1]), torch.tensor([1.0, 0.0, 1.0, 1.0])
        >>> loss = objective(logits, targets, environments=torch.tensor([0, 1, 0, 1]))
        >>> sorted(objective.metrics())
        ['loss', 'risk', 'risk 0', 'risk 1', 'vrex coefficient', 'vrex penalty']
    """
    composition = requirements.composition_of(as_algorithm(algorithm), steps)
    names, counts = requirements.names_and_sizes(composition, environments, sizes)
    if loss is not None:
        check_loss(loss)
    return Objective(
        composition,
        environments=names,
        sizes=counts,
        loss=loss,
        features=features,
        seed=seed,
        group=group,
    )
