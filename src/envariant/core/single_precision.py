"""Convert numbers to float32; raise an error if rounding would distort the differences between them."""

import torch
from torch import Tensor

from envariant.core.errors import EnvariantError

# Largest rounding error relative to the standard deviation of a column.
_MOST = 0.05
# Relative deviation of a column that is constant up to rounding errors of float64.
_CONSTANT = 1e-14


def single_precision(values: Tensor, what: str) -> Tensor:
    """Convert finite numbers to float32, and check that rounding does not distort their differences.

    Args:
        values: Numbers of any type. Only shapes `[rows]` and `[rows, columns]` are checked.
        what: Name of the values, for error messages.

    Raises:
        EnvariantError: If the numbers in a column differ by amounts too small for float32.
    """
    rounded = values.to(torch.float32)
    exact = values.dtype in (torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8)
    if exact or values.dim() not in (1, 2) or len(values) < 2:
        return rounded
    columns = values.double().reshape(len(values), -1)
    error = (rounded.reshape(columns.shape).double() - columns).abs().amax(dim=0)
    deviation, mean = columns.std(dim=0), columns.mean(dim=0)
    lost = (error > _MOST * deviation) & (deviation > _CONSTANT * mean.abs())
    if bool(lost.any()):
        k = int(lost.nonzero()[0])
        where = f" in column {k}" if values.dim() == 2 else ""
        size = f"{float(mean[k]):.6g}{where} with deviations of {float(deviation[k]):.2g}"
        raise EnvariantError(
            f"{what} are numbers near {size}, which float32 is too coarse to tell apart; subtract their "
            f"mean first"
        )
    return rounded
