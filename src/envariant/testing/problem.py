"""`Problem`: a small batch and a small network for checking algorithms."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self, cast, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from envariant.algorithms import Algorithm, TrainContext
from envariant.algorithms.base import Metrics, Parameters, State
from envariant.core.environments import EnvironmentBatch
from envariant.core.step_context import START, StepContext
from envariant.core.tasks import Binary, Multiclass, Regression, Task

TASKS: Mapping[str, Task] = {"binary": Binary(), "multiclass": Multiclass(3), "regression": Regression()}
"""Tasks used in checks, by name."""


@final
@dataclass(frozen=True)
class Problem:
    """Test problem for algorithms: a float64 batch of several environments and a small network.

    The environments have different sizes. The problem itself is passed to algorithms as their `Model`.

    Attributes:
        task: Prediction task.
        batch: Rows of every environment.
        params: Parameters of the network and of the algorithm's auxiliary networks, by name.
        own: Auxiliary networks of the algorithm, by name.
        module: Network returned by `Algorithm.wrap_model`; None if the algorithm does not wrap the network.
        has_features: Whether the network returns its features (the inputs of its head). If not, it returns
            features of width 0.
    """

    task: Task
    batch: EnvironmentBatch
    params: Parameters
    own: Mapping[str, nn.Module] = field(default_factory=dict[str, nn.Module])
    module: nn.Module | None = None
    has_features: bool = True

    @classmethod
    def example(cls, task: Task, environments: int = 3) -> Self:
        """Return the fixed example problem for a task and a number of environments."""
        generator = torch.Generator().manual_seed(7)

        def sample(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        sizes = tuple(itertools.islice(itertools.cycle((5, 9, 4)), environments))
        inputs, noise = sample(sum(sizes), 3), sample(sum(sizes), 3)
        params = {
            "featurizer.weight": sample(4, 3),
            "featurizer.bias": sample(4),
            "head.weight": sample(task.outputs, 4),
            "head.bias": sample(task.outputs),
        }
        x = inputs + noise
        if isinstance(task, Regression):
            targets = x[:, 0] - 0.5 * x[:, 1]
        else:
            targets = (x[:, 0] > 0).double() if task.outputs == 1 else x.argmax(dim=1)
        return cls(task, EnvironmentBatch(inputs, targets, sizes, task), params)

    @property
    def auxiliary_networks(self) -> tuple[str, ...]:
        """Names of the auxiliary networks."""
        return tuple(self.own)

    @property
    def context(self) -> TrainContext:
        """`TrainContext` of the problem, which is passed to `Algorithm.init`."""
        return TrainContext(
            tuple(f"environment {e}" for e in range(len(self.batch.sizes))),
            self.batch.sizes,
            self.task,
            features=4 if self.has_features else 0,
            input_shape=(3,),
            linear_head=True,
            layers={"features": 4},
            build=lambda shape: _Network(shape[0], self.task.outputs),
        )

    def __call__(self, params: Parameters, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if self.module is None:
            features = torch.tanh(inputs @ params["featurizer.weight"].T + params["featurizer.bias"])
        elif hasattr(self.module, "featurizer"):
            features = self._call_part("featurizer", params, inputs)
        else:
            own = {name: params[name] for name, _ in _trained(self.module)}
            return inputs[:, :0], self.task.logits(functional_call(self.module, own, (inputs,)))
        logits = self.head(params, features)
        return features if self.has_features else features[:, :0], logits

    def layers(self, params: Parameters, inputs: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return two values: a tuple with the outputs of the only layer before the head, and the logits."""
        features, logits = self(params, inputs)
        return (features,), logits

    def head(self, params: Parameters, features: Tensor) -> Tensor:
        """Return the logits of the head for features `[rows, 4]`."""
        if self.module is not None:
            return self.task.logits(self._call_part("head", params, features))
        return self.task.logits(features @ params["head.weight"].T + params["head.bias"])

    def network(self, name: str, params: Parameters, inputs: Tensor) -> Tensor:
        """Return the output of the auxiliary network with a given name."""
        return functional_call(self.own[name], _of_network(params, name), (inputs,))

    def step(
        self,
        algorithm: Algorithm,
        context: StepContext = START,
        params: Parameters | None = None,
        state: State | None = None,
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        """Run one step of an algorithm, and return its gradients, new state and metrics.

        Args:
            algorithm: Algorithm to check.
            context: Step number, learning rate and random numbers.
            params: Mapping from name to parameter. Default: the parameters of the problem.
            state: State of the algorithm. Default: its initial state.
        """
        params = self.params if params is None else params
        state = algorithm.init(params, self.context) if state is None else state
        if not algorithm.stochastic:
            # Without a key, using random numbers raises an error that asks to declare `stochastic`.
            context = replace(context, key=None)
        return algorithm.gradients(self, params, self.batch, state, context)

    def with_networks_of(self, algorithm: Algorithm) -> Self:
        """Return a copy of the problem with an algorithm's wrapped model and auxiliary networks."""
        with torch.random.fork_rng():
            torch.manual_seed(5)
            plain = _Network(3, self.task.outputs).double()
            plain.load_state_dict(dict(self.params))
            module = algorithm.wrap_model(plain, self.context).double()
            own = {name: net.double() for name, net in algorithm.auxiliary_networks(self.context).items()}
        params = {name: value.detach() for name, value in _trained(module)}
        added = {f"{n}.{k}": v.detach() for n, net in own.items() for k, v in _trained(net)}
        changed = params.keys() != self.params.keys()
        return replace(self, own=own, params={**params, **added}, module=module if changed else None)

    def with_batch(self, environments: Sequence[tuple[Tensor, Tensor]]) -> Self:
        """Return a copy of the problem with the given rows.

        Args:
            environments: Inputs and targets of each environment.
        """
        inputs, targets = (torch.cat(parts) for parts in zip(*environments, strict=True))
        sizes = tuple(len(x) for x, _ in environments)
        return replace(self, batch=EnvironmentBatch(inputs, targets, sizes, self.task))

    def environments(self) -> list[tuple[Tensor, Tensor]]:
        """Return a list with the inputs and targets of each environment."""
        return list(zip(*map(self.batch.split, (self.batch.inputs, self.batch.targets)), strict=True))

    def first(self, environments: int) -> Self:
        """Return a copy of the problem with only the first `environments` environments."""
        return self.with_batch(self.environments()[:environments])

    def _call_part(self, name: str, params: Parameters, inputs: Tensor) -> Tensor:
        module = cast("nn.Module", self.module).get_submodule(name)
        return functional_call(module, _of_network(params, name), (inputs,))


@final
class _Network(nn.Module):
    """PyTorch module of the example network."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.featurizer = _TanhLinear(inputs, 4)
        self.head = nn.Linear(4, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.featurizer(inputs))


@final
class _TanhLinear(nn.Linear):
    """Linear layer followed by tanh."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return torch.tanh(super().forward(input))


def _trained(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, value) for name, value in module.named_parameters() if value.requires_grad]


def _of_network(params: Parameters, name: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{name}."): v for k, v in params.items() if k.startswith(f"{name}.")}


def require(condition: bool, message: str) -> None:
    """Raise an `AssertionError` with the given message unless a condition is true."""
    if not condition:
        raise AssertionError(message)
