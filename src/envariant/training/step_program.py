"""One training step of K replicas as a recorded program of tensor operations.

The step of an algorithm is a pure function, so `torch.func.vmap` can vectorize it over K stacked replicas.
All steps consist of the same operations. These are recorded once and then replayed without the overhead of
Python, with bit-identical results.
"""

import logging
import re
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, cast, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.func import vmap
from torch.fx import GraphModule, Node

from envariant.algorithms.base import Algorithm, Parameters, State
from envariant.algorithms.hyperparameters import with_numbers
from envariant.core.environments import EnvironmentBatch
from envariant.core.errors import EnvariantError
from envariant.core.step_context import StepContext
from envariant.training.batch_sampler import Axis
from envariant.training.network import Network
from envariant.training.pure_model import PureModel
from envariant.training.risk_model import RiskModel
from envariant.training.zero_columns import RowGroups

# Recording takes 0.1 to 0.4 seconds and saves 1.5 to 3 milliseconds per step, plus half a millisecond per
# `_LARGE_STEP` activations, because it needs less memory.
_WORTH_RECORDING = 200
_LARGE_STEP = 2_000_000


@final
class StepInputs(NamedTuple):
    """Inputs of a step program.

    The first axis of every tensor is the replica axis, except for `step` and where stated otherwise.

    Attributes:
        params: Parameters by name.
        buffers: Buffers by name.
        state: State of the algorithm.
        inputs: Inputs of the batch; they have no replica axis if all replicas share them.
        targets: Targets of the batch; they have no replica axis if all replicas share them.
        numbers: Numeric hyperparameters of the algorithm at this step.
        keys: Keys of the random number generator for this batch.
        rates: Learning rates at this step.
        alive: Mask of the replicas that have neither diverged nor stopped.
        failed_at: Step at which each replica diverged, or −1 if it has not diverged.
        step: Number of completed updates.
        groups: Tensors of `RowGroups`, without replica axis; empty if the complete inputs are used.
    """

    params: dict[str, Tensor]
    buffers: dict[str, Tensor]
    state: State
    inputs: Tensor
    targets: Tensor
    numbers: Float[Tensor, "replicas numbers"]
    keys: Int[Tensor, " replicas"]
    rates: Float[Tensor, " replicas"]
    alive: Bool[Tensor, " replicas"]
    failed_at: Int[Tensor, " replicas"]
    step: Int[Tensor, ""]
    groups: tuple[Tensor, ...] = ()


@final
class StepOutputs(NamedTuple):
    """Outputs of a step program.

    Attributes:
        gradients: Concatenated gradients of all parameters; 0 for replicas that have diverged or stopped.
        buffers: New values of all buffers that change in a forward pass in training mode.
        state: New state of the algorithm.
        metrics: Metrics of the algorithm, in the order of `StepProgram.metrics`.
        alive: Mask of the replicas that have neither stopped before this step nor diverged by the end of it.
        failed_at: Step at which each replica diverged, or −1 if it has not diverged.
    """

    gradients: Float[Tensor, "replicas numbers"]
    buffers: dict[str, Tensor]
    state: State
    metrics: Float[Tensor, "replicas metrics"]
    alive: Bool[Tensor, " replicas"]
    failed_at: Int[Tensor, " replicas"]


Function = Callable[..., Any]


@final
class StepProgram:
    """Program for one training step of a stack of replicas.

    Args:
        net: Network of the stack.
        algorithm: Algorithm; `StepInputs.numbers` replace its numeric hyperparameters.
        sizes: Number of rows of each environment in a batch.
        axes: Axis of the replicas in the inputs and in the targets: 0, or None if all replicas share them.
        replicas: Number of replicas; `vmap` is not used for a single replica.
        calls: Expected number of calls; with few calls, the step is not recorded.
        compiled: Whether to compile the recorded operations (`torch.compile`).
        from_features: Whether the inputs of a batch are features, to which only the head is applied.
        risks: Model of the risks, if the inputs of a batch have one row per environment; see `linear_risks`.

    Attributes:
        metrics: Names of the algorithm's metrics; known after the first call.
    """

    def __init__(
        self,
        net: Network,
        algorithm: Algorithm,
        sizes: tuple[int, ...],
        axes: tuple[Axis, Axis],
        replicas: int,
        calls: int,
        *,
        compiled: bool,
        from_features: bool = False,
        risks: RiskModel | None = None,
    ) -> None:
        self._from_features, self._risks = from_features, risks
        self._net, self._algorithm, self._sizes = net, algorithm, sizes
        self._axes, self._replicas, self._compiled = axes, replicas, compiled
        # Independent of the number of replicas, so that stacks of all sizes run in the same way.
        activations = sum(sizes) * net.width
        worth = calls * max(1, activations // _LARGE_STEP) >= _WORTH_RECORDING
        # Random numbers of dropout come from a global generator, which a recording does not call.
        self._to_be_recorded = (compiled or worth) and not net.stochastic
        self._recorded: Function | None = None
        self.metrics: tuple[str, ...] = ()

    def __call__(self, inputs: StepInputs) -> StepOutputs:
        """Compute one training step.

        Args:
            inputs: State, batch and hyperparameters of the step.
        """
        with torch.no_grad():
            if self._to_be_recorded:
                self._to_be_recorded = False
                self._recorded = self._record(inputs)
            if self._recorded is None:
                return self._step(*inputs)
            if not self._compiled:
                return StepOutputs(*self._recorded(*inputs))
            gradients, *rest = _compiling(self._recorded, inputs)
            if self._net.device.type == "cuda":
                # A CUDA graph overwrites its results at the next step. Gradients are used before that; the
                # rest is copied.
                rest = [_each(torch.clone, tree) for tree in rest]
            return StepOutputs(gradients, *rest)

    def _step(self, *arguments: Any) -> StepOutputs:
        """Compute one step of all replicas; replicas with an infinite or NaN gradient stop training."""
        params, buffers, state, inputs, targets, numbers, keys, rates, alive, failed_at, step, groups = (
            arguments
        )
        together = over_replicas(self._one, (0, 0, 0, *self._axes, 0, 0, 0, None, None), self._replicas)
        gradients, changed, new, metrics = together(
            params, buffers, state, inputs, targets, numbers, keys, rates, step, groups
        )
        _check_state(state, new)
        total = gradients.sum(dim=1)
        # Infinity minus itself is NaN, so these two operations test for finite values.
        finite = (total - total) == 0
        failed_at = torch.where(alive & ~finite, step, failed_at)
        alive = alive & finite
        gradients = torch.where(alive[:, None], gradients, 0)
        changed, state = chosen(alive, changed, buffers), chosen(alive, new, state)
        return StepOutputs(gradients, changed, state, metrics, alive, failed_at)

    def _one(
        self,
        params: Parameters,
        buffers: Mapping[str, Tensor],
        state: State,
        inputs: Tensor,
        targets: Tensor,
        numbers: Tensor,
        key: Tensor,
        rate: Tensor,
        step: Any,
        groups: tuple[Tensor, ...],
    ) -> tuple[Tensor, dict[str, Tensor], State, Tensor]:
        algorithm = with_numbers(self._algorithm, numbers.unbind())
        model, batch = self._model_and_batch(params, buffers, inputs, targets, key, groups)
        context = StepContext(step, rate, key if algorithm.stochastic else None)
        gradients, state, metrics = algorithm.gradients(model, params, batch, state, context)
        self.metrics = tuple(metrics)
        changed = model.updated_buffers()
        flat = torch.cat([gradients[name].flatten() for name in params])
        reported = [value.to(flat.dtype).flatten() for value in metrics.values()]
        return flat, changed, state, torch.cat(reported) if reported else flat.new_zeros(0)

    def _model_and_batch(
        self,
        params: Parameters,
        buffers: Mapping[str, Tensor],
        inputs: Tensor,
        targets: Tensor,
        key: Tensor,
        groups: tuple[Tensor, ...],
    ) -> tuple[PureModel | RiskModel, EnvironmentBatch]:
        if self._risks is not None:
            return self._risks, self._risks.batch(inputs)
        model = PureModel(
            self._net, params, buffers, inputs, self._replicas, key,
            RowGroups.from_tensors(groups) if groups else None, from_features=self._from_features,
        )  # fmt: skip
        return model, EnvironmentBatch(inputs, targets, self._sizes, self._net.task)

    def _record(self, inputs: StepInputs) -> Function | None:
        from torch.fx.experimental.proxy_tensor import make_fx

        try:
            # Fake tensors have no values, so recording needs little memory and time.
            recorded = make_fx(lambda *values: tuple(self._step(*values)), tracing_mode="fake")(*inputs)
        except EnvariantError:
            raise
        except Exception as error:
            # A user's algorithm or model may contain operations that cannot be recorded.
            logging.getLogger(__name__).info("step not recorded: %s", error)
            return None
        if not self._compiled:
            return _without_idle_casts(_without_repetitions(recorded))
        # The shapes of a step never change, so dynamic shapes are not needed.
        mode = "reduce-overhead" if self._net.device.type == "cuda" else None
        return torch.compile(recorded, mode=mode, dynamic=False)


def _without_repetitions(recorded: GraphModule) -> GraphModule:
    """Remove operations that repeat an earlier one, and operations whose results are not used.

    Nothing is removed from programs that change tensors in place, as a user's model may do, or that draw
    random numbers.
    """
    calls = [node for node in recorded.graph.nodes if node.op == "call_function"]
    if any(node.is_impure() for node in calls):
        return recorded
    first: dict[tuple[object, ...], Node] = {}
    for node in calls:
        # As text, 1, 1.0 and True differ. The names of nodes are unique.
        key = (node.target, str(node.args), str(node.kwargs))
        node.replace_all_uses_with(first.setdefault(key, node))
    recorded.graph.eliminate_dead_code()
    return recorded


def _without_idle_casts(recorded: GraphModule) -> GraphModule:
    """Make recorded type casts copy a tensor only if its type differs from the target type.

    PyTorch's fake tensors sometimes have the wrong type: the derivative of group norm is reported as float32,
    although it is bfloat16, so the recorded cast to bfloat16 would copy it.
    """
    aten = torch.ops.aten
    for node in recorded.graph.find_nodes(op="call_function", target=aten._to_copy.default):
        (source,), dtype = node.args, node.kwargs.get("dtype")
        described = source.meta["val"].dtype if isinstance(source, Node) else dtype
        # Casts that also change the device or the memory layout stay as they are.
        if described != dtype and set(node.kwargs) == {"dtype"}:
            node.target, node.args, node.kwargs = aten.to.dtype, (source, dtype), {}
    recorded.recompile()
    return recorded


def _compiling(step: Function, inputs: StepInputs) -> tuple[Any, ...]:
    """Call a compiled step. The first call compiles the step, which needs a C++ compiler."""
    try:
        return step(*inputs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EnvariantError(
            f"compile: PyTorch could not compile the program ({first}); install a C++ compiler, or set "
            f"compile to false"
        ) from error


def over_replicas(function: Function, axes: tuple[Axis, ...], replicas: int) -> Function:
    """Convert a function for one replica to a function for a stack of replicas.

    Args:
        function: Function of trees of tensors (nested mappings) that returns one tree or a tuple of trees.
        axes: Axis of the replicas in each argument: 0, or None if all replicas share the argument.
        replicas: Number of replicas; `vmap` is not used for a single replica.
    """
    if replicas > 1:
        stacked = vmap(function, in_dims=axes)

        def together(*arguments: Any) -> Any:
            with _quiet_fallback():
                return stacked(*arguments)

        return together

    def alone(*arguments: Any) -> Any:
        single = (
            _each(_only, argument) if axis == 0 else argument
            for argument, axis in zip(arguments, axes, strict=True)
        )
        return _each(_stack_of_one, function(*single))

    return alone


# Slow operations of a user's network are not an error, and the user cannot change them.
_FALLBACK = ("ignore", re.compile("There is a performance drop because we have not"), UserWarning, None, 0)


@contextmanager
def _quiet_fallback() -> Generator[None]:
    """Ignore PyTorch's warning about operations that `vmap` runs one replica at a time."""
    # `catch_warnings` would make Python repeat, at every step, warnings that are shown only once.
    filters = cast("list[Any]", warnings.filters)
    filters.insert(0, _FALLBACK)
    try:
        yield
    finally:
        with suppress(ValueError):
            filters.remove(_FALLBACK)


def _each(change: Callable[[Tensor], Tensor], tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, tuple):
        return tuple(_each(change, value) for value in tree)
    return {key: _each(change, value) for key, value in tree.items()}


def chosen(alive: Tensor, new: Any, old: Any) -> Any:
    """Return the new values of replicas that still train, and the old values of the others.

    Args:
        alive: Mask of the replicas that have neither diverged nor stopped.
        new: Tensor with one entry per replica, or a nested mapping of such tensors.
        old: Old values in the same form as `new`; additional keys are ignored.
    """
    if isinstance(new, Tensor):
        return torch.where(alive.view(-1, *(1,) * (new.dim() - 1)), new, old)
    return {key: chosen(alive, value, old[key]) for key, value in new.items()}


def _check_state(before: State, after: State) -> None:
    if _shape(before) != _shape(after):
        raise EnvariantError(
            f"algorithm: its state must keep the keys and shapes that init returned; "
            f"got {_shape(after)} after {_shape(before)}"
        )


def _shape(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tuple(tree.shape)
    return {key: _shape(value) for key, value in tree.items()}


def _only(stack: Tensor) -> Tensor:
    return stack[0]


def _stack_of_one(value: Tensor) -> Tensor:
    return value[None]
