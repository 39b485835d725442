"""A `torch.nn.Module` seen as a pure function of its parameters, cut into row blocks.

A full batch goes through the model a few thousand rows at a time and the outputs are laid end to end
before the loss; autograd then walks back block by block and activations stay in the processor's cache.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from envariant.core.conversion import joined
from envariant.core.counter_rng import default_generator, private_random_numbers
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Task
from envariant.training.precision import Precision

ModelBuilder = Callable[[Sequence[int], int], nn.Module]
"""`(input_shape, outputs) → module`, with weights drawn from PyTorch's default generator."""

# Activations of one block, in bytes of float32, by kind of device. Measured on full batches of a few
# architectures: smaller blocks pay for casting weights and starting products, larger ones for leaving a
# processor's caches. A GPU streams from its memory, and only has to be kept busy.
BLOCK_BYTES = {"cpu": 100 * 2**20, "cuda": 2**30}
_BLOCK_ROWS = (64, 2**20)

TOGETHER = "rows_together"
"""An attribute of modules whose answer for a row depends on its neighbors: of how many, when eval_params."""


@final
class _FeaturesAndOutput(nn.Module):
    def __init__(self, module: nn.Module, needs_features: bool) -> None:
        super().__init__()
        self.module = module
        self.needs_features = needs_features

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if not self.needs_features:
            output = self.module(inputs)
            # Nobody looks at the features, so none are carried along: that would cost a copy a step.
            return output.new_zeros(len(output), 0), output
        featurizer, head = (getattr(self.module, part) for part in ("featurizer", "head"))
        features = featurizer(inputs)
        return features, head(features)


@final
class Network:
    """One architecture: pure forward passes, given parameters and buffers.

    Args:
        module: any module; its own weights are copied and not touched again.
        task: shapes the logits.
        precision: of the matrix products.
        device: where the numbers live.
        needs_features: whether anyone looks at what the head reads.
        input_shape: of one row.

    Attributes:
        params: what is trained: every parameter that asks for a gradient.
        buffers: everything else of the module: running statistics, constants, frozen weights.
        changing: names of the buffers that a training pass changes.
        width: numbers that its layers make of one row, about.
        features: numbers that the head reads; 0 where nobody looks at them.
        own: networks of the algorithm's own, by name, whose parameters are among `params`.
        draws: whether a training pass draws random numbers, as dropout does.
        together: rows that a prediction looks at side by side; 1 for most models.

    Raises:
        EnvariantError: the module cannot take such inputs, does not give one row of outputs for each row
            of inputs, or has nothing to train.
    """

    def __init__(
        self,
        module: nn.Module,
        task: Task,
        precision: Precision,
        device: torch.device,
        *,
        needs_features: bool,
        input_shape: Sequence[int],
    ) -> None:
        self.module = module.to(device)
        self.task = task
        self.precision: Precision = precision
        self.device = device
        self.own: dict[str, nn.Module] = {}
        self.params, self.buffers = self.weights(module)
        # Where parameters of several types are kept side by side, each is used in its own.
        self._types = {name: value.dtype for name, value in self.params.items()}
        if not self.params:
            raise EnvariantError("model: has no parameters to train; at least one must require a gradient")
        if needs_features and not all(hasattr(module, part) for part in ("featurizer", "head")):
            raise EnvariantError(
                "model: this algorithm looks at features, so the module needs the parts featurizer and head"
            )
        self._both = _FeaturesAndOutput(module, needs_features).to(device)
        self.together = max(getattr(part, TOGETHER, 1) for part in module.modules())
        self._block = _BLOCK_ROWS[0]
        self.changing, self.stochastic, self.width, self.features = self._probe(input_shape)
        least, most = _BLOCK_ROWS
        self._block = max(least, min(most, BLOCK_BYTES[device.type] // (4 * self.width)))

    def adopt(self, own: Mapping[str, nn.Module]) -> None:
        """Takes in networks of the algorithm's own, which train beside the model.

        Raises:
            EnvariantError: one holds buffers, or a part of the model has its name.
        """
        for name, network in own.items():
            if hasattr(self.module, name) or list(network.buffers()):
                raise EnvariantError(
                    f"algorithm: its network '{name}' must have a name of its own and no buffers (running "
                    f"statistics among them)"
                )
            self.own[name] = network.to(self.device)
        added = self.own_weights(own)
        self.params |= added
        self._types |= {name: value.dtype for name, value in added.items()}

    def own_weights(self, own: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """Copies of what such networks train, by the names under which they train here."""
        return {
            f"{name}.{key}": _copy(value, self.device)
            for name, network in own.items()
            for key, value in network.named_parameters()
        }

    def weights(self, module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Copies of what a module trains, and of everything else it holds."""
        named = dict(module.named_parameters())
        frozen = {name: p for name, p in named.items() if not p.requires_grad}
        held = {**frozen, **dict(module.named_buffers())}
        return (
            {name: _copy(p, self.device) for name, p in named.items() if p.requires_grad},
            {name: _copy(value, self.device) for name, value in held.items()},
        )

    def forward(
        self,
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        inputs: Float[Tensor, "rows *input_shape"],
        *,
        training: bool,
        replicas: int = 1,
    ) -> tuple[Float[Tensor, "rows width"], Float[Tensor, "rows *c"]]:
        """Features (of width 0 where nobody needs them) and logits, float32.

        Running statistics are updated in `buffers` in place if `training`. Row blocks are smaller where
        `replicas` go through side by side, under `torch.func.vmap`.
        """
        self._both.train(training)
        held = self._part(params, "")
        names = {f"module.{name}": value for name, value in (*held.items(), *buffers.items())}
        # A model with running statistics must see its whole batch at once: they are part of its answer.
        whole = training and (self.changing or self.together > 1)
        blocks = [len(inputs)] if whole else self.blocks(len(inputs), replicas)
        # Casting weights anew for every block makes their gradients add up over blocks in float32.
        with self._rounding():
            outputs = [functional_call(self._both, names, (block,)) for block in inputs.split(blocks)]
        features, raw = (joined(parts).float() for parts in zip(*outputs, strict=True))
        return features, self.task.logits(raw)

    def call(self, part: str, params: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """What the model's head, or a network of the algorithm's own, makes of some inputs, float32."""
        module = self.own[part] if part in self.own else getattr(self.module, part)
        with self._rounding():
            return functional_call(module.train(), self._part(params, f"{part}."), (inputs,)).float()

    def _part(self, params: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """The parameters under a prefix, in the types in which they are used; under none, the model's."""
        return {
            name.removeprefix(prefix): value.to(self._types[name])
            for name, value in params.items()
            if (name.startswith(prefix) if prefix else name.split(".")[0] not in self.own)
        }

    def _rounding(self) -> torch.autocast:
        return torch.autocast(
            self.device.type,
            torch.bfloat16,
            enabled=self.precision == "bfloat16",
            cache_enabled=False,
        )

    def rows_of_a_block(self, replicas: int) -> int:
        """How many rows go through at a time where so many replicas go side by side."""
        rows = max(_BLOCK_ROWS[0], self._block // replicas)
        return max(self.together, rows - rows % self.together)

    def blocks(self, rows: int, replicas: int) -> list[int]:
        """Sizes of about equal blocks, in which no rows are parted that are looked at side by side."""
        groups = math.ceil(rows / self.together)
        parts = math.ceil(groups / (self.rows_of_a_block(replicas) // self.together))
        edges = [min(rows, self.together * (i * groups // parts)) for i in range(parts + 1)]
        return [end - start for start, end in pairwise(edges)]

    def fingerprint(self) -> str:
        """A digest of the architecture as it prints itself and of the weights before training."""
        digest = hashlib.blake2b(repr(self.module).encode(), digest_size=16)
        for name, value in (*self.params.items(), *self.buffers.items()):
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _probe(self, input_shape: Sequence[int]) -> tuple[frozenset[str], bool, int, int]:
        """One training pass over two rows: what it changes and draws, how wide it is, and its features."""
        inputs = torch.zeros(2, *input_shape, device=self.device)
        # BatchNorm insists on differences.
        inputs[1] = 1
        buffers = {name: buffer.clone() for name, buffer in self.buffers.items()}
        sizes: list[int] = [inputs.numel()]

        def measure(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor):
                sizes.append(output.numel())

        leaves = [module for module in self.module.modules() if not list(module.children())]
        hooks = [leaf.register_forward_hook(measure) for leaf in leaves]
        try:
            with torch.no_grad(), private_random_numbers(0, self.device):
                names = {f"module.{k}": v for k, v in (*self.params.items(), *buffers.items())}
                self._both.train(True)
                generator = default_generator(self.device)
                before = generator.get_state()
                features, output = functional_call(self._both, names, (inputs,))
                stochastic = not torch.equal(before, generator.get_state())
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise EnvariantError(
                f"model: cannot take inputs of shape {tuple(input_shape)} ({first})"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
        wanted = {(2,), (2, 1)} if self.task.outputs == 1 else {(2, self.task.outputs)}
        if not isinstance(output, Tensor) or tuple(output.shape) not in wanted:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise EnvariantError(
                f"model: must give {self.task.outputs} number(s) a row for {self.task.name} data; "
                f"two rows gave {got}"
            )
        changed = [k for k, buffer in self.buffers.items() if not torch.equal(buffer, buffers[k])]
        return frozenset(changed), stochastic, sum(sizes) // 2, features.shape[1]


@final
class PureModel:
    """A network and its buffers as algorithms see them (`algorithms.contract.Model`): a pure function.

    Args:
        net: the network.
        buffers: of this replica.
        replicas: how many go through side by side.
    """

    def __init__(self, net: Network, buffers: Mapping[str, Tensor], replicas: int) -> None:
        self._net, self._buffers, self._replicas = net, buffers, replicas
        self.auxiliary_networks = tuple(net.own)

    def __call__(self, params: Mapping[str, Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
        net = self._net
        # Differentiation must not see running statistics change, so it gets copies to spoil.
        spoiled = {k: v.clone() if k in net.changing else v for k, v in self._buffers.items()}
        return net.forward(params, spoiled, inputs, training=True, replicas=self._replicas)

    def head(self, params: Mapping[str, Tensor], features: Tensor) -> Tensor:
        return self._net.task.logits(self._net.call("head", params, features))

    def network(self, name: str, params: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        return self._net.call(name, params, inputs)


def constants(module: nn.Module) -> str:
    """A digest of what a module computes with besides parameters and buffers: its layers and attributes.

    One program can serve two modules only if these are the same.
    """
    digest = hashlib.blake2b(repr(module).encode(), digest_size=16)
    for name, part in module.named_modules():
        for key, value in sorted(vars(part).items()):
            if key.startswith("_") or key == "training":
                continue
            digest.update(f"{name}.{key}".encode())
            if isinstance(value, Tensor):
                digest.update(value.detach().cpu().contiguous().numpy().tobytes())
            elif isinstance(value, int | float | str | bytes | tuple | list | dict):
                digest.update(repr(value).encode())
    return digest.hexdigest()


def _copy(value: Tensor, device: torch.device) -> Tensor:
    return value.detach().to(device, copy=True)
