"""A `torch.nn.Module` seen as a pure function of its parameters, cut into row blocks.

A full batch goes through the model a few thousand rows at a time and the outputs are laid end to end
before the loss; autograd then walks back block by block and activations stay in the processor's cache.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from envariant.tasks import Task
from envariant.training.precision import Precision

ModelBuilder = Callable[[Sequence[int], int], nn.Module]
"""`(input_shape, outputs) → module`, with weights drawn from PyTorch's default generator."""

# Activations of one block, in bytes: about what the second- and third-level caches of one core hold.
_BLOCK_BYTES = 40 * 2**20
_BLOCK_ROWS = (64, 5000)


@contextmanager
def private_random_numbers(seed: int) -> Generator[None]:
    """Seeds PyTorch's default generator for the block and puts it back as it was.

    Modules draw initial weights and dropout from that generator; nobody else should notice.
    """
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(before)


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
        featurizer, head = (getattr(self.module, part, None) for part in ("featurizer", "head"))
        if featurizer is None or head is None:
            output = self.module(inputs)
            return output, output
        features = featurizer(inputs)
        return features, head(features)


@final
class Network:
    """One architecture: pure forward passes, given parameters and buffers.

    Args:
        module: any module; its own weights become `params` and are not touched again.
        task: shapes the logits.
        precision: of the matrix products.
        device: where the numbers live.
        needs_features: whether anyone looks at what the head reads.
        input_shape: of one row.
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
        self.module = module
        self.task = task
        self.precision: Precision = precision
        self.device = device
        self.params = _copies(module.named_parameters(), device)
        self.buffers = _copies(module.named_buffers(), device)
        self._both = _FeaturesAndOutput(module, needs_features).to(device)
        self._block = _block_rows(module.to(device), torch.zeros(1, *input_shape, device=device))

    def forward(
        self,
        params: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        inputs: Float[Tensor, "rows *input_shape"],
        *,
        training: bool,
    ) -> tuple[Float[Tensor, "rows width"], Float[Tensor, "rows *c"]]:
        """Features (of width 0 where nobody needs them) and logits, float32.

        Running statistics are updated in `buffers` in place if `training`.
        """
        self._both.train(training)
        names = {f"module.{name}": value for name, value in (*params.items(), *buffers.items())}
        # A model with running statistics must see its whole batch at once: they are part of its answer.
        rows = len(inputs) if training and buffers else self._block
        # Casting weights anew for every block makes their gradients add up over blocks in float32.
        with torch.autocast(
            self.device.type,
            torch.bfloat16,
            enabled=self.precision == "bfloat16",
            cache_enabled=False,
        ):
            outputs = [functional_call(self._both, names, (block,)) for block in inputs.split(rows)]
        features, raw = (torch.cat(parts).float() for parts in zip(*outputs, strict=True))
        return features, self.task.logits(raw)


def _copies(named: Iterator[tuple[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    return {name: value.detach().to(device, copy=True) for name, value in named}


def _block_rows(module: nn.Module, row: Tensor) -> int:
    """Rows whose activations fit in `_BLOCK_BYTES`, from what every layer gives for one row."""
    sizes: list[int] = [row.numel()]

    def measure(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    hooks = [m.register_forward_hook(measure) for m in module.modules() if not list(m.children())]
    try:
        module.eval()
        with torch.no_grad():
            module(row)
    finally:
        for hook in hooks:
            hook.remove()
    least, most = _BLOCK_ROWS
    return max(least, min(most, _BLOCK_BYTES // (4 * sum(sizes))))
