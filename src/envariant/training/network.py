"""Apply a `torch.nn.Module`, as a pure function of its parameters, to blocks of rows.

A full batch is processed in blocks of a few thousand rows, and the outputs are concatenated before the loss.
Autograd then works block by block, and activations stay in the processor's cache.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import pairwise
from operator import attrgetter
from typing import Any, cast, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from envariant.core.conversion import joined
from envariant.core.counter_rng import default_generator, other_generators, private_random_numbers
from envariant.core.errors import EnvariantError, first_line
from envariant.core.tasks import Task
from envariant.models.dropout import Dropout, MaskNumbers, masks
from envariant.training.content_hash import constants
from envariant.training.layer_outputs import FeaturesAndOutput, channels_of, check_layers
from envariant.training.module_outputs import logits_of, remark_on
from envariant.training.precision import Precision, plain_recurrent_kernels
from envariant.training.zero_columns import RowGroups, first_weights

ModelBuilder = Callable[[Sequence[int], int], nn.Module]
"""Function `(input_shape, outputs) → module`; initial weights use PyTorch's default generator."""

# Bytes of a block's float32 activations, by type of device. Measured on full batches of several
# architectures: smaller blocks spend more time on casting weights and starting products; larger blocks do not
# fit in a CPU's caches. On a GPU, blocks only have to be large enough to keep it busy.
BLOCK_BYTES = {"cpu": 100 * 2**20, "cuda": 2**30}
_BLOCK_ROWS = (64, 2**20)

# First stream of the dropout masks, above the streams of an algorithm's parts.
_MASKS = 2**16
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Classes of BatchNorm layers, which keep running statistics of their inputs."""

TOGETHER = "rows_together"
"""Name of an attribute of modules that predict groups of rows jointly: the number of rows in a group."""


@final
class Network:
    """Model as a pure function of its parameters and buffers.

    Args:
        module: Module to train; its weights are copied and stay unchanged.
        task: Task of the module.
        precision: Precision of the matrix products.
        device: Device of the weights.
        needs_features: Whether the algorithm uses the inputs of the head (features).
        input_shape: Shape of one row of inputs.
        layers: Names of the layers whose outputs the algorithm uses; see `Algorithm.layers_used`.
        frozen_batch_norm: Whether BatchNorm layers stay in evaluation mode, so that their statistics never
            change.

    Attributes:
        params: Initial values of the trainable parameters (`requires_grad=True`), by name.
        buffers: Initial values of running statistics, constants and frozen weights, by name.
        changing: Names of the buffers that change in a forward pass in training mode.
        width: Approximate number of activations that the model computes per row.
        features: Number of features per row; 0 if the algorithm does not need features.
        layers: Number of channels of each layer whose outputs the algorithm uses, by name.
        auxiliary: Auxiliary networks of the algorithm by name; `params` includes their parameters.
        stochastic: Whether a forward pass in training mode uses random numbers, as in dropout, or changes
            attributes of the module.
        has_masks: Whether the network has dropout layers whose masks depend on the key of the step.
        remark: Warning that the outputs cannot be logits; "" if there is none.
        together: Number of neighboring rows whose predictions depend on each other; 1 for most models.

    Raises:
        EnvariantError: If the module does not accept the inputs, does not return one output per row, or has
            no parameters to train.
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
        layers: Sequence[str] = (),
        frozen_batch_norm: bool = False,
    ) -> None:
        if any(value.is_meta for value in (*module.parameters(), *module.buffers())):
            raise EnvariantError(
                "model: has parameters without values (on the device 'meta'); build it on the CPU"
            )
        self.module = module.to(device)
        self.task = task
        self.precision: Precision = precision
        self.device = device
        self.auxiliary: dict[str, nn.Module] = {}
        self.params, self.buffers = self.weights(module)
        # All parameters are stored in one matrix of one type; the forward pass restores each one's type.
        self._types = {name: value.dtype for name, value in self.params.items()}
        if not self.params:
            raise EnvariantError("model: has no parameters to train; at least one must require a gradient")
        if needs_features and not all(hasattr(module, part) for part in ("featurizer", "head")):
            raise EnvariantError(
                "model: this algorithm uses features, so the module needs the submodules featurizer and head"
            )
        check_layers(module, layers)
        self.layers = dict.fromkeys(layers, 0)
        frozen = [part for part in module.modules() if frozen_batch_norm and isinstance(part, BATCH_NORMS)]
        self._both = FeaturesAndOutput(module, needs_features, task, frozen).to(device)
        # The fast kernels of recurrent layers have no derivatives under `torch.func`.
        self._recurrent = any(isinstance(part, nn.RNNBase) for part in module.modules())
        self._dropout = [part for part in module.modules() if isinstance(part, Dropout)]
        self.has_masks = bool(self._dropout)
        self._changes_inputs, self.remark = False, ""
        self.together = max(getattr(part, TOGETHER, 1) for part in module.modules())
        self._block = _BLOCK_ROWS[0]
        self.changing, self.stochastic, self.width, self.features = self._probe(input_shape)
        least, most = _BLOCK_ROWS
        self._block = max(least, min(most, BLOCK_BYTES[device.type] // (4 * self.width)))
        self._first = first_weights(module, input_shape)

    @property
    def skips_zeros(self) -> bool:
        """Whether `outputs` can skip zero columns of the inputs in training."""
        return self._first in self.params and self.features == 0 and not self.layers

    def adopt(self, auxiliary: Mapping[str, nn.Module]) -> None:
        """Add the algorithm's auxiliary networks, which are trained together with the model.

        Args:
            auxiliary: Auxiliary networks by name.

        Raises:
            EnvariantError: If an auxiliary network has buffers or frozen parameters, or the same name as a
                part of the model.
        """
        for name, network in auxiliary.items():
            # Weight decay would change frozen parameters.
            frozen = not all(parameter.requires_grad for parameter in network.parameters())
            if hasattr(self.module, name) or list(network.buffers()) or frozen:
                raise EnvariantError(
                    f"algorithm: its network '{name}' must not contain buffers (such as running statistics) "
                    f"or frozen parameters, and its name must differ from the name of every part of the model"
                )
            self.auxiliary[name] = network.to(self.device)
        added = self.auxiliary_weights(auxiliary)
        self.params |= added
        self._types |= {name: value.dtype for name, value in added.items()}

    def auxiliary_weights(self, auxiliary: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """Return copies of the parameters of auxiliary networks, with the names used in `params`.

        Args:
            auxiliary: Auxiliary networks by name.
        """
        return {
            f"{name}.{key}": _copy(value, self.device)
            for name, network in auxiliary.items()
            for key, value in network.named_parameters()
        }

    def weights(self, module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return copies of a module's weights as two dictionaries, in the format of `params` and `buffers`.

        The first dictionary contains the trainable parameters; the second contains frozen parameters and
        buffers.

        Args:
            module: Module with the architecture of the model.
        """
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
        key: Tensor | None = None,
        number: int = 0,
    ) -> tuple[Float[Tensor, "rows width"], Float[Tensor, "rows *c"]]:
        """Return features and logits in float32; features have width 0 if the algorithm does not need them.

        Args:
            params: Parameters by name.
            buffers: Buffers by name; if `training` is set, running statistics are updated in place.
            inputs: Inputs, `[rows, *input_shape]`.
            training: Whether layers are in training mode.
            replicas: Number of replicas stacked by `torch.func.vmap`; with more replicas, the inputs are
                processed in smaller blocks to limit memory use.
            key: Random-number key of dropout masks in training mode. Default: 0.
            number: Number of this pass within the step; every pass has its own masks.
        """
        features, raw = self.outputs(
            params, buffers, inputs, training=training, replicas=replicas, key=key, number=number
        )
        return features, self.task.logits(raw)

    def outputs(
        self,
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        inputs: Float[Tensor, "rows *input_shape"],
        *,
        training: bool,
        replicas: int = 1,
        layers: Sequence[str] = (),
        key: Tensor | None = None,
        number: int = 0,
        groups: RowGroups | None = None,
        from_features: bool = False,
    ) -> list[Tensor]:
        """Return features, outputs of the head, and outputs of layers, in float32; see `forward`.

        Args:
            params: Parameters by name.
            buffers: Buffers by name.
            inputs: Inputs, `[rows, *input_shape]`.
            training: Whether layers are in training mode.
            replicas: Number of replicas stacked by `torch.func.vmap`.
            layers: Names of layers.
            key: Random-number key of dropout masks in training mode. Default: 0.
            number: Number of this pass within the step; every pass has its own masks.
            groups: The same inputs in groups without zero columns, which are used instead of `inputs`.
            from_features: Whether `inputs` are the features, to which only the head is applied.
        """
        self._both.train(training)
        held = self._part(params, "")
        names = {f"module.{name}": value for name, value in (*held.items(), *buffers.items())}
        if groups is not None:
            return self._of_groups(names, groups, replicas)
        # Batch statistics in training must be computed over the whole batch.
        whole = training and (self.changing or self.together > 1)
        blocks = [len(inputs)] if whole else self.blocks(len(inputs), replicas)
        # Weights are cast again for every block, so that their gradients add up over blocks in float32.
        # Cloned if the module changes its inputs in place, because later steps use the same rows.
        inputs = inputs.clone() if self._changes_inputs else inputs
        drawn = self._mask_numbers(inputs.device, key, number) if training else None
        with self._kernels():
            outputs = [
                self._of_block(
                    names, block, drawn and replace(drawn, first_row=sum(blocks[:i])), layers, from_features
                )
                for i, block in enumerate(inputs.split(blocks))
            ]
        return [joined(parts).float() for parts in zip(*outputs, strict=True)]

    def _of_groups(self, names: Mapping[str, Tensor], groups: RowGroups, replicas: int) -> list[Tensor]:
        first, outputs = f"module.{self._first}", list[tuple[Tensor, ...]]()
        with self._kernels():
            for inputs, columns in zip(groups.inputs, groups.columns, strict=True):
                own = {**names, first: names[first].index_select(1, columns)}
                blocks = inputs.split(self.blocks(len(inputs), replicas))
                outputs += [self._of_block(own, block, None, ()) for block in blocks]
        return [
            joined(parts).float().index_select(0, groups.positions) for parts in zip(*outputs, strict=True)
        ]

    def _of_block(
        self,
        names: Mapping[str, Tensor],
        block: Tensor,
        numbers: MaskNumbers | None,
        layers: Sequence[str],
        from_features: bool = False,
    ) -> tuple[Tensor, ...]:
        try:
            with masks(self._dropout, numbers):
                return functional_call(self._both, dict(names), (block, layers, from_features))
        except ValueError as error:
            if len(block) > 1 or not (self._both.training and self.changing):
                raise
            raise EnvariantError(
                f"model {type(self.module).__name__}: BatchNorm layers need at least two rows in a pass of "
                f"training, but got one; increase batch_size"
            ) from error

    def _mask_numbers(self, device: torch.device, key: Tensor | None, number: int) -> MaskNumbers | None:
        """Return the random numbers of the dropout masks in one pass; None without dropout layers."""
        if not self.has_masks:
            return None
        key = torch.zeros((), dtype=torch.int64, device=device) if key is None else key
        return MaskNumbers(key, _MASKS + number * len(self._dropout))

    def featurized(self, buffers: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Return the output of a frozen featurizer, in the data type in which the head receives it.

        Args:
            buffers: Buffers by name, which include the weights of the featurizer.
            inputs: Inputs, `[rows, *input_shape]`.
        """
        featurizer, prefix = self.module.featurizer, "featurizer."
        assert isinstance(featurizer, nn.Module)
        weights = {n.removeprefix(prefix): each for n, each in buffers.items() if n.startswith(prefix)}
        with torch.no_grad(), self._kernels():
            parts = [functional_call(featurizer, weights, (part,)) for part in inputs.split(self._block)]
        return torch.cat(parts)

    def call(self, part: str, params: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Return the output of the model's head or of an auxiliary network, in float32.

        Args:
            part: "head", or the name of an auxiliary network.
            params: Parameters by name.
            inputs: Inputs of the head or of the auxiliary network, `[rows, …]`.
        """
        self._both.train()
        module = self.auxiliary[part].train() if part in self.auxiliary else getattr(self.module, part)
        with self._kernels():
            output = functional_call(module, self._part(params, f"{part}."), (inputs,))
        return (
            output if part in self.auxiliary else logits_of(output, len(inputs), self.task, module)
        ).float()

    def _part(self, params: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Return the parameters whose names begin with a prefix, in their original data types.

        With an empty prefix, return the parameters of the model without auxiliary networks.
        """
        return {
            name.removeprefix(prefix): value.to(self._types[name])
            for name, value in params.items()
            if (name.startswith(prefix) if prefix else name.split(".")[0] not in self.auxiliary)
        }

    def _kernels(self) -> AbstractContextManager[Any]:
        """Return a context manager that sets the precision and disables fast kernels of recurrent layers."""
        rounding = torch.autocast(
            self.device.type,
            torch.bfloat16,
            enabled=self.precision == "bfloat16",
            cache_enabled=False,
        )
        return plain_recurrent_kernels(rounding) if self._recurrent else rounding

    def rows_of_a_block(self, replicas: int) -> int:
        """Return the maximum number of rows per block.

        Args:
            replicas: Number of stacked replicas.
        """
        rows = max(_BLOCK_ROWS[0], self._block // replicas)
        return max(self.together, rows - rows % self.together)

    def blocks(self, rows: int, replicas: int) -> list[int]:
        """Return the sizes of about equal blocks of rows; jointly predicted rows are never separated.

        Args:
            rows: Number of rows to split.
            replicas: Number of stacked replicas.
        """
        groups = math.ceil(rows / self.together)
        parts = math.ceil(groups / (self.rows_of_a_block(replicas) // self.together))
        edges = [min(rows, self.together * (i * groups // parts)) for i in range(parts + 1)]
        return [end - start for start, end in pairwise(edges)]

    def fingerprint(self) -> str:
        """Return a digest of the architecture (the module's `repr`) and of the initial weights."""
        digest = hashlib.blake2b(repr(self.module).encode(), digest_size=16)
        for name, value in (*self.params.items(), *self.buffers.items()):
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _probe(self, input_shape: Sequence[int]) -> tuple[frozenset[str], bool, int, int]:
        """Return `changing`, `stochastic`, `width` and `features`, found by a training pass over two rows."""
        inputs = torch.zeros(2, *input_shape, device=self.device)
        # Batch norm needs two different rows.
        inputs[1] = 1
        changes = attrgetter("_version")
        version = changes(inputs)
        buffers = {name: buffer.clone() for name, buffer in self.buffers.items()}
        sizes: list[int] = [inputs.numel()]

        def measure(_module: nn.Module, _inputs: object, output: object) -> None:
            parts = cast("tuple[object, ...]", output) if isinstance(output, tuple) else (output,)
            sizes.extend(part.numel() for part in parts if isinstance(part, Tensor))

        name = type(self.module).__name__
        attributes, generators = constants(self.module), other_generators()
        leaves = [module for module in self.module.modules() if not list(module.children())]
        hooks = [leaf.register_forward_hook(measure) for leaf in leaves]
        try:
            with torch.enable_grad(), private_random_numbers(0, self.device):
                # Copies of the parameters, because a module may change them in place.
                params = {k: v.detach().requires_grad_().clone() for k, v in self.params.items()}
                names = {f"module.{k}": v for k, v in (*params.items(), *buffers.items())}
                self._both.train(True)
                generator = default_generator(self.device)
                before = generator.get_state()
                numbers = self._mask_numbers(self.device, None, 0)
                features, output, *layers = self._of_block(names, inputs, numbers, list(self.layers))
                stochastic = not torch.equal(before, generator.get_state())
        except (torch.OutOfMemoryError, EnvariantError):
            raise
        except Exception as error:
            raise EnvariantError(
                f"model {name}: cannot take inputs of shape {tuple(input_shape)} ({first_line(error)})"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
        if other_generators() != generators:
            raise EnvariantError(
                f"model {name}: its forward() draws random numbers from Python or NumPy, and the seeds of a "
                f"run do not control these; draw them with PyTorch instead"
            )
        if not output.requires_grad:
            raise EnvariantError(
                f"model {name}: its output does not depend on its trained parameters; compute it in forward "
                f"with PyTorch, without no_grad, detach or NumPy"
            )
        self.layers = {k: channels_of(each) for k, each in zip(self.layers, layers, strict=True)}
        stochastic = stochastic or constants(self.module) != attributes
        self._changes_inputs = changes(inputs) != version
        self.remark = remark_on(self.module, output, self.task, input_shape)
        changed = [k for k, buffer in self.buffers.items() if not torch.equal(buffer, buffers[k])]
        return frozenset(changed), stochastic, sum(sizes) // 2, features.shape[1]


def _copy(value: Tensor, device: torch.device) -> Tensor:
    return value.detach().to(device, copy=True)
