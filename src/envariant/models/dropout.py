"""Dropout with masks from the counter-based random number generator, so that replicas can be stacked."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import final

from torch import Tensor, nn
from torch.nn import functional

from envariant.core import counter_rng


@final
@dataclass(frozen=True, eq=False)
class MaskNumbers:
    """Key and stream of the random numbers for dropout masks in one pass through a network.

    Every dropout layer has its own stream in every pass of a step: layer i of a pass uses the number of the
    first layer's stream, plus i.

    Attributes:
        key: Random-number key of the step.
        stream: Number of the stream of the first dropout layer; in the copy that `masks` gives to a layer,
            number of that layer's stream.
        first_row: Index in the batch of the first row that is computed. A batch may be computed in several
            blocks of rows; the mask of a row does not depend on this division.
    """

    key: Tensor
    stream: int
    first_row: int = 0


@final
class Dropout(nn.Module):
    """Dropout whose mask depends only on the key of the step, the layer, the pass and the row.

    Outside a training run of this library, it draws from PyTorch's default generator as `nn.Dropout` does.

    Args:
        p: Probability that an activation is set to zero; the others are divided by 1 − p.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.numbers: MaskNumbers | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training or self.numbers is None:
            return functional.dropout(inputs, self.p, self.training)
        numbers, rows = self.numbers, len(inputs)
        kept = ~counter_rng.coins(
            numbers.key, numbers.stream, rows, inputs[0].numel(), self.p, first_row=numbers.first_row
        )
        return inputs * kept.view(inputs.shape).to(inputs.dtype) / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


@contextmanager
def masks(layers: Sequence[Dropout], numbers: MaskNumbers | None) -> Generator[None]:
    """Let dropout layers use the given random numbers within a `with` block.

    Args:
        layers: Dropout layers of a network; layer i uses the stream `numbers.stream` + i.
        numbers: Random numbers of the pass; None to leave the layers as they are.
    """
    if numbers is None:
        yield
        return
    try:
        for i, layer in enumerate(layers):
            layer.numbers = replace(numbers, stream=numbers.stream + i)
        yield
    finally:
        for layer in layers:
            layer.numbers = None
