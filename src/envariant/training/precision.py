"""Which numbers the matrix products use: float32, or bfloat16 where the processor multiplies it natively.

Parameters, optimizer state, losses and penalties are float32 either way.
"""

from typing import Literal

import torch
from torch import nn

from envariant.errors import EnvariantError
from envariant.tasks import Regression, Task

Precision = Literal["float32", "bfloat16"]


def resolve(wanted: str, device: torch.device, model: nn.Module, task: Task) -> Precision:
    """The precision to use for "auto", "float32" or "bfloat16".

    "auto" takes bfloat16 only where it is native, the model has a matrix large enough to gain from it
    (128×128) and the task is classification: three significant digits are too few for a regression.

    Raises:
        EnvariantError: `wanted` is none of the three.
    """
    if wanted in ("float32", "bfloat16"):
        return wanted
    if wanted != "auto":
        raise EnvariantError(f"precision must be auto, float32 or bfloat16; got '{wanted}'")
    large = any(p.dim() >= 2 and p.numel() >= 128 * 128 for p in model.parameters())
    pays = large and not isinstance(task, Regression)
    return "bfloat16" if pays and native_bfloat16(device) else "float32"


def native_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16 products (AMX, AVX512-BF16, recent CUDA)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict[str, bool])()
    return any(capabilities.get(name) for name in ("amx_bf16", "amx_tile", "avx512_bf16"))
