"""Which numbers the matrix products use: float32, bfloat16 where it is native, or TF32 on CUDA.

Parameters, optimizer state, losses and penalties are float32 either way.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from envariant.core.errors import EnvariantError
from envariant.core.tasks import Regression, Task

Precision = Literal["float32", "bfloat16", "tf32"]


def resolve(wanted: str, device: torch.device, model: nn.Module, task: Task) -> Precision:
    """The precision to use for "auto", "float32", "bfloat16" or "tf32".

    "auto" takes bfloat16 only where it is native, the model has a matrix large enough to gain from it
    (128×128) and the task is classification: three significant digits are too few for a regression.

    Raises:
        EnvariantError: `wanted` is none of these, or the device does not have it.
    """
    if wanted == "tf32" and device.type != "cuda":
        raise EnvariantError("precision: tf32 is a GPU's; here choose auto, float32 or bfloat16")
    if wanted in ("float32", "bfloat16", "tf32"):
        return wanted
    if wanted != "auto":
        raise EnvariantError(f"precision must be auto, float32, bfloat16 or tf32; got '{wanted}'")
    large = any(p.dim() >= 2 and p.numel() >= 128 * 128 for p in model.parameters())
    pays = large and not isinstance(task, Regression)
    return "bfloat16" if pays and native_bfloat16(device) else "float32"


def native_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16 products (AMX, AVX512-BF16, recent CUDA)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict[str, bool])()
    return any(capabilities.get(name) for name in ("amx_bf16", "amx_tile", "avx512_bf16"))


@contextmanager
def multiplying(precision: Precision, device: torch.device) -> Generator[None]:
    """Makes a GPU multiply for the block as the precision says; elsewhere there is nothing to set.

    PyTorch rounds the float32 convolutions of a GPU to TF32 unless it is told not to, and picks algorithms
    that add up in another order from run to run. Its settings are global and put back afterwards.
    """
    if device.type != "cuda":
        yield
        return
    rounding, before = precision == "tf32", torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if rounding else "highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=rounding):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
