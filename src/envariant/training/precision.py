"""Precision of matrix products: float32, bfloat16 or, on CUDA, TF32.

Parameters, optimizer state, losses and penalties are always float32.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from envariant.core.errors import EnvariantError
from envariant.core.multi_target import MultiOutputRegression
from envariant.core.tasks import Regression, Task

Precision = Literal["float32", "bfloat16", "tf32"]


def resolve(requested: str, device: torch.device, model: nn.Module, task: Task) -> Precision:
    """Return the precision for a device, model and task.

    "auto" gives bfloat16 if the device supports it natively, the task is classification, and the model is
    large: at least one parameter with two or more axes has at least 128² = 16,384 elements. Otherwise, "auto"
    gives float32. For regression, bfloat16 is not precise enough.

    Args:
        requested: "auto", "float32", "bfloat16" or "tf32".
        device: Device used for training.
        model: Model to train.
        task: Task of the model.

    Raises:
        EnvariantError: If `requested` is not an allowed value, or the device does not support TF32.
    """
    if requested == "tf32" and device.type != "cuda":
        raise EnvariantError("precision: tf32 needs a CUDA device; choose auto, float32 or bfloat16")
    if requested in ("float32", "bfloat16", "tf32"):
        return requested
    if requested != "auto":
        raise EnvariantError(f"precision must be auto, float32, bfloat16 or tf32; got '{requested}'")
    large = any(p.dim() >= 2 and p.numel() >= 128 * 128 for p in model.parameters())
    pays = large and not isinstance(task, Regression | MultiOutputRegression)
    return "bfloat16" if pays and native_bfloat16(device) else "float32"


def native_bfloat16(device: torch.device) -> bool:
    """Return whether a device has instructions for bfloat16 products.

    On CPUs, these are AMX and AVX512-BF16 instructions. Among CUDA devices, recent GPUs have them.

    Args:
        device: Device used for training.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict[str, bool])()
    return any(capabilities.get(name) for name in ("amx_bf16", "amx_tile", "avx512_bf16"))


@contextmanager
def multiplying(precision: Precision, device: torch.device) -> Generator[None]:
    """Set the precision of a GPU's matrix products within a `with` block; do nothing on a CPU.

    By default, PyTorch rounds float32 convolutions on a GPU to TF32 and uses nondeterministic algorithms.
    Within the block, TF32 is used only if the precision is "tf32", and algorithms are deterministic.
    PyTorch's global settings are restored afterwards.

    Args:
        precision: Precision of the matrix products.
        device: Device used for the computation.
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


@contextmanager
def plain_recurrent_kernels(rounding: torch.autocast) -> Generator[None]:
    """Disable the fast kernels of recurrent layers, which have no derivatives under `torch.func`.

    Args:
        rounding: Context manager that sets the precision of matrix products, entered at the same time.
    """
    # The context manager of oneDNN's flags also sets its precision, with a warning.
    set_flags: Any = torch.backends.mkldnn.set_flags
    enabled = set_flags(False, _fp32_precision=None)[0]
    try:
        with rounding, torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        set_flags(enabled, _fp32_precision=None)
