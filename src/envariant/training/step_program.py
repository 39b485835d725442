"""One step of K replicas as one program: a list of tensor operations without Python between them.

An algorithm is a pure function, so K replicas of it are the same function of stacked tensors
(`torch.func.vmap`). Python builds the operations of a step, by differentiation and stacking, in the same way
at every step. They are therefore recorded once and replayed, with bit-identical results.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, final

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
from envariant.training.network import Network, PureModel

# Recording takes about a second, most of it a first import, and saves about half a millisecond per step. It
# saves as much again for every `_LARGE_STEP` activations, because less is held in memory.
_WORTH_RECORDING = 2000
_LARGE_STEP = 2_000_000


@final
class StepInputs(NamedTuple):
    """Inputs of a step program; every tensor but `step` has the replicas along its first axis.

    Attributes:
        params: Parameters by name.
        buffers: Buffers by name.
        state: State of the algorithm.
        inputs: Inputs of the batch; the axis of replicas is the program's.
        targets: Targets of the batch; the axis of replicas is the program's.
        numbers: Hyperparameters of the algorithm at this step.
        keys: Keys of the step's random numbers.
        rates: Learning rates at this step.
        alive: Which replicas have not diverged.
        failed_at: Step at which a replica diverged; -1 if it has not.
        step: Number of updates already made.
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


@final
class StepOutputs(NamedTuple):
    """Outputs of a step program.

    Attributes:
        gradients: Gradients of all parameters, concatenated; 0 for replicas that have diverged.
        buffers: New values of the buffers that a training pass changes.
        state: New state of the algorithm.
        metrics: Metrics of the algorithm, in the order of the program's `metrics`.
        alive: Which replicas have not diverged, this step included.
        failed_at: Step at which a replica diverged; -1 if it has not.
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
    """Program of one step of a stack of replicas with one algorithm and one architecture.

    Args:
        net: The architecture.
        algorithm: The algorithm; `StepInputs.numbers` replace its hyperparameters.
        sizes: Rows of each environment in a batch.
        axes: Axes of the replicas in inputs and targets.
        replicas: Number of replicas; a single one runs without `vmap`.
        calls: Expected number of calls, which decides whether recording pays.
        compiled: Whether to compile the recorded operations (`torch.compile`).

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
    ) -> None:
        self._net, self._algorithm, self._sizes = net, algorithm, sizes
        self._axes, self._replicas, self._compiled = axes, replicas, compiled
        # Counted for one replica, so that stacks of any size run in the same way.
        activations = sum(sizes) * net.width
        worth = calls * max(1, activations // _LARGE_STEP) >= _WORTH_RECORDING
        # Random numbers of dropout come from a global generator, which a recording does not call.
        self._to_be_recorded = (compiled or worth) and not net.stochastic
        self._recorded: Function | None = None
        self.metrics: tuple[str, ...] = ()

    def __call__(self, inputs: StepInputs) -> StepOutputs:
        """Compute one step.

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
        """Compute the step of all replicas and freeze those whose gradient is infinite or NaN."""
        params, buffers, state, inputs, targets, numbers, keys, rates, alive, failed_at, step = arguments
        together = over_replicas(self._one, (0, 0, 0, *self._axes, 0, 0, 0, None), self._replicas)
        gradients, changed, new, metrics = together(
            params, buffers, state, inputs, targets, numbers, keys, rates, step
        )
        _check_state(state, new)
        total = gradients.sum(dim=1)
        # Infinity minus itself is NaN, so these two operations test for finite values.
        finite = (total - total) == 0
        failed_at = torch.where(alive & ~finite, step, failed_at)
        alive = alive & finite
        gradients = torch.where(alive[:, None], gradients, 0)
        changed, state = _chosen(alive, changed, buffers), _chosen(alive, new, state)
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
    ) -> tuple[Tensor, dict[str, Tensor], State, Tensor]:
        net = self._net
        algorithm = with_numbers(self._algorithm, numbers.unbind())
        batch = EnvironmentBatch(inputs, targets, self._sizes, net.task)

        model = PureModel(net, buffers, self._replicas)
        context = StepContext(step, rate, key if algorithm.stochastic else None)
        gradients, state, metrics = algorithm.gradients(model, params, batch, state, context)
        self.metrics = tuple(metrics)
        changed: dict[str, Tensor] = {}
        if net.changing:
            changed = {name: buffers[name].clone() for name in sorted(net.changing)}
            with torch.no_grad():
                net.forward(params, {**buffers, **changed}, inputs, training=True)
        flat = torch.cat([gradients[name].flatten() for name in params])
        reported = [value.to(flat.dtype).flatten() for value in metrics.values()]
        return flat, changed, state, torch.cat(reported) if reported else flat.new_zeros(0)

    def _record(self, inputs: StepInputs) -> Function | None:
        from torch.fx.experimental.proxy_tensor import make_fx

        try:
            # Fake tensors have no values, so that recording takes neither memory nor time for them.
            recorded = make_fx(lambda *values: tuple(self._step(*values)), tracing_mode="fake")(*inputs)
        except EnvariantError:
            raise
        except Exception as error:
            # A user's algorithm or model may contain operations that cannot be recorded.
            logging.getLogger(__name__).info("step not recorded: %s", error)
            return None
        if not self._compiled:
            return _without_idle_casts(recorded)
        # Compilers make a program for each shape; the shapes of a step never change.
        mode = "reduce-overhead" if self._net.device.type == "cuda" else None
        return torch.compile(recorded, mode=mode, dynamic=False)


def _without_idle_casts(recorded: GraphModule) -> GraphModule:
    """Return the same operations without copies where a tensor already has the type that it is cast to.

    PyTorch's fake tensors have the wrong type in places: the derivative of group norm is described as
    float32 where it is bfloat16, and the recorded cast to bfloat16 would copy it.
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
    """Call a step whose first call compiles it, which needs a C++ compiler."""
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
    """Return a function of stacks of replicas from a function of one replica.

    Args:
        function: Function of trees of tensors (nested mappings) that returns one tree or a tuple of trees.
        axes: Axis of the replicas in each argument: 0, or None where all share it.
        replicas: Number of replicas; for a single one, `vmap` is not used.
    """
    if replicas > 1:
        return vmap(function, in_dims=axes)

    def alone(*arguments: Any) -> Any:
        single = (
            _each(_only, argument) if axis == 0 else argument
            for argument, axis in zip(arguments, axes, strict=True)
        )
        return _each(_stack_of_one, function(*single))

    return alone


def _each(change: Callable[[Tensor], Tensor], tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, tuple):
        return tuple(_each(change, value) for value in tree)
    return {key: _each(change, value) for key, value in tree.items()}


def _chosen(alive: Tensor, new: Any, old: Any) -> Any:
    """Return the new tree where a replica is alive, the old one where it has diverged."""
    if isinstance(new, Tensor):
        return torch.where(alive.view(-1, *(1,) * (new.dim() - 1)), new, old)
    return {key: _chosen(alive, value, old[key]) for key, value in new.items()}


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
