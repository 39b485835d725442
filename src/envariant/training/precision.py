"""Precision of matrix products: float32, bfloat16 or, on CUDA, TF32.

Parameters, optimizer state, losses and penalties are always float32.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from envariant.core.errors import EnvariantError
from envariant.core.tasks import Regression, Task

Precision = Literal["float32", "bfloat16", "tf32"]


def resolve(requested: str, device: torch.device, model: nn.Module, task: Task) -> Precision:
    """Return the precision to use.

    "auto" chooses bfloat16 if the device has instructions for it, the model has a matrix large enough to
    gain from it (128×128) and the task is classification; three significant digits are too few for
    regression.

    Args:
        requested: "auto", "float32", "bfloat16" or "tf32".
        device: Device that trains.
        model: The model.
        task: What is predicted.

    Raises:
        EnvariantError: If `requested` is none of these, or the device does not support it.
    """
    if requested == "tf32" and device.type != "cuda":
        raise EnvariantError("precision: tf32 needs a CUDA device; choose auto, float32 or bfloat16")
    if requested in ("float32", "bfloat16", "tf32"):
        return requested
    if requested != "auto":
        raise EnvariantError(f"precision must be auto, float32, bfloat16 or tf32; got '{requested}'")
    large = any(p.dim() >= 2 and p.numel() >= 128 * 128 for p in model.parameters())
    pays = large and not isinstance(task, Regression)
    return "bfloat16" if pays and native_bfloat16(device) else "float32"


def native_bfloat16(device: torch.device) -> bool:
    """Return whether a device has instructions for bfloat16 products (AMX, AVX512-BF16, recent CUDA).

    Args:
        device: Device that trains.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict[str, bool])()
    return any(capabilities.get(name) for name in ("amx_bf16", "amx_tile", "avx512_bf16"))


@contextmanager
def multiplying(precision: Precision, device: torch.device) -> Generator[None]:
    """Set a GPU's matrix products to a precision within a `with` block; on a CPU there is nothing to set.

    By default PyTorch rounds float32 convolutions of a GPU to TF32, and selects algorithms whose order of
    summation differs between runs. Its settings are global; they are restored afterwards.

    Args:
        precision: Precision of the products.
        device: Device that computes.
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
