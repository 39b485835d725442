"""One step of K replicas as one program: a list of tensor operations without Python between them.

An algorithm is a pure function, so K replicas of it are the same function of stacked tensors
(`torch.func.vmap`). What Python does to build a step, differentiating and stacking, is the same at every
step; so it is done once, recorded, and from then on only the recorded operations run. They are the same
operations on the same numbers, hence the same bits.
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

# Recording takes about a second, most of it a first import, and saves about half a millisecond a step. Of a
# step that makes many numbers it saves more, because less is held in memory: so much for each _LARGE_STEP.
_WORTH_RECORDING = 2000
_LARGE_STEP = 2_000_000


@final
class StepInputs(NamedTuple):
    """What a step starts from; every tensor but `step` has the replicas along its first axis.

    Attributes:
        params, buffers: of the networks.
        state: of the algorithm.
        inputs, targets: of the batch; their axis of replicas is the program's `axes`.
        numbers: the algorithm's hyperparameters at this step.
        keys: of the step's random numbers.
        rates: learning rates.
        alive: which replicas have been finite so far.
        failed_at: the step at which a replica ceased to be, else -1.
        step: updates made.
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
    """What a step makes.

    Attributes:
        gradients: all parameters end to end; 0 for replicas that are not alive.
        buffers: those that a training pass changes.
        state: of the algorithm.
        metrics: in the order of the program's `metrics`.
        alive, failed_at: brought up to date.
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
    """The step of `replicas` replicas of one algorithm and one architecture.

    Args:
        net: the architecture.
        algorithm: whose numbers are replaced by `StepInputs.numbers`.
        sizes: rows of each environment in a batch.
        axes: of the replicas in inputs and targets.
        replicas: how many; one alone is run without `vmap`.
        calls: how often it will be called, which decides whether recording pays.
        compiled: whether to compile the recorded operations (`torch.compile`).

    Attributes:
        metrics: names of the algorithm's metrics; known after the first call.
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
        # Of one replica, whatever their number: a group of any size is run in the same way.
        numbers = sum(sizes) * net.width
        worth = calls * max(1, numbers // _LARGE_STEP) >= _WORTH_RECORDING
        # What dropout draws depends on a global generator, and so it stays with Python.
        self._to_be_recorded = (compiled or worth) and not net.stochastic
        self._recorded: Function | None = None
        self.metrics: tuple[str, ...] = ()

    def __call__(self, given: StepInputs) -> StepOutputs:
        """One step."""
        with torch.no_grad():
            if self._to_be_recorded:
                self._to_be_recorded = False
                self._recorded = self._record(given)
            if self._recorded is None:
                return self._step(*given)
            if not self._compiled:
                return StepOutputs(*self._recorded(*given))
            gradients, *rest = _compiling(self._recorded, given)
            if self._net.device.type == "cuda":
                # A CUDA graph writes its results to the same place at the next step; gradients are used
                # before that, everything else is kept.
                rest = [_each(torch.clone, tree) for tree in rest]
            return StepOutputs(gradients, *rest)

    def _step(self, *given: Any) -> StepOutputs:
        """What is recorded: all replicas, and which of them are still finite."""
        params, buffers, state, inputs, targets, numbers, keys, rates, alive, failed_at, step = given
        together = over_replicas(self._one, (0, 0, 0, *self._axes, 0, 0, 0, None), self._replicas)
        gradients, changed, new, metrics = together(
            params, buffers, state, inputs, targets, numbers, keys, rates, step
        )
        _check_state(state, new)
        total = gradients.sum(dim=1)
        # Infinity less itself is NaN, so this is finiteness in two operations.
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

    def _record(self, given: StepInputs) -> Function | None:
        from torch.fx.experimental.proxy_tensor import make_fx

        try:
            # On tensors without numbers, so that recording takes neither their memory nor their time.
            recorded = make_fx(lambda *given: tuple(self._step(*given)), tracing_mode="fake")(*given)
        except EnvariantError:
            raise
        except Exception as error:
            # An algorithm or a model of the user's own may do what cannot be recorded.
            logging.getLogger(__name__).info("not recorded: %s", error)
            return None
        if not self._compiled:
            return _without_idle_casts(recorded)
        # Compilers make a program for each shape; ours never changes shape.
        mode = "reduce-overhead" if self._net.device.type == "cuda" else None
        return torch.compile(recorded, mode=mode, dynamic=False)


def _without_idle_casts(recorded: GraphModule) -> GraphModule:
    """The same operations, with no copy where a tensor turns out to have the type that it is cast to.

    PyTorch's descriptions of its operations err here and there: that of the group norm's derivative says
    float32 where bfloat16 comes out, and the recorded cast would copy it to bfloat16.
    """
    aten = torch.ops.aten
    for node in recorded.graph.find_nodes(op="call_function", target=aten._to_copy.default):
        (source,), wanted = node.args, node.kwargs.get("dtype")
        described = source.meta["val"].dtype if isinstance(source, Node) else wanted
        # What is also moved, or laid out anew, stays as it was recorded.
        if described != wanted and set(node.kwargs) == {"dtype"}:
            node.target, node.args, node.kwargs = aten.to.dtype, (source, wanted), {}
    recorded.recompile()
    return recorded


def _compiling(step: Function, given: StepInputs) -> tuple[Any, ...]:
    """A step whose first call compiles it, which needs a compiler."""
    try:
        return step(*given)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EnvariantError(
            f"compile: PyTorch could not compile the program ({first}); it needs a C++ compiler. "
            f"Leave --compile out, or mend that"
        ) from error


def over_replicas(function: Function, axes: tuple[Axis, ...], replicas: int) -> Function:
    """A function of one replica as a function of stacks of them.

    Args:
        function: of trees of tensors (nested mappings), returning one tree or a tuple of them.
        axes: for each argument 0, if it has the replicas along its first axis, or None.
        replicas: how many there are; one alone needs no `vmap`.
    """
    if replicas > 1:
        return vmap(function, in_dims=axes)

    def alone(*arguments: Any) -> Any:
        given = (
            _each(_only, argument) if axis == 0 else argument
            for argument, axis in zip(arguments, axes, strict=True)
        )
        return _each(_stack_of_one, function(*given))

    return alone


def _each(change: Callable[[Tensor], Tensor], tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, tuple):
        return tuple(_each(change, value) for value in tree)
    return {key: _each(change, value) for key, value in tree.items()}


def _chosen(alive: Tensor, new: Any, old: Any) -> Any:
    """The new tree where a replica is alive, the old one where it is not."""
    if isinstance(new, Tensor):
        return torch.where(alive.view(-1, *(1,) * (new.dim() - 1)), new, old)
    return {key: _chosen(alive, value, old[key]) for key, value in new.items()}


def _check_state(before: State, after: State) -> None:
    if _shape(before) != _shape(after):
        raise EnvariantError(
            f"algorithm: its state must keep the keys and shapes that init gave it; "
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
