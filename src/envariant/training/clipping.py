"""Gradient clipping: `norm(1.0)` limits the norm of the gradient, and `value(0.5)` limits each entry."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, final

from pydantic import Field

from envariant.core import specs
from envariant.core.errors import EnvariantError

if TYPE_CHECKING:
    from torch import Tensor


class Clipping(ABC):
    """Base class of gradient clipping, which is applied to the output of the gradient aggregator."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        specs.validate(self, self.name)

    def __str__(self) -> str:
        return specs.describe(self.name, self, positional=("limit",))

    @abstractmethod
    def __call__(self, gradients: "Tensor") -> "tuple[Tensor, Tensor]":
        """Return the clipped gradients, and whether each replica's gradient was changed.

        Args:
            gradients: Gradient of each replica, `[replicas, numbers]`.
        """


@final
@dataclass(frozen=True)
class ClipNorm(Clipping):
    """Scale a gradient g to g·min(1, limit/(‖g‖ + 1e-6)), as `torch.nn.utils.clip_grad_norm_` does.

    Attributes:
        limit: Largest allowed gradient norm of a replica, over all its trained parameters.
    """

    name: ClassVar[str] = "norm"
    limit: Annotated[float, Field(gt=0)]

    def __call__(self, gradients: "Tensor") -> "tuple[Tensor, Tensor]":
        norms = gradients.square().sum(dim=1).sqrt()
        scales = (self.limit / (norms + 1e-6)).clamp(max=1.0)
        return gradients * scales[:, None], scales < 1


@final
@dataclass(frozen=True)
class ClipValue(Clipping):
    """Limit every entry of a gradient to [−limit, limit], as `torch.nn.utils.clip_grad_value_` does.

    Attributes:
        limit: Largest allowed absolute value of an entry.
    """

    name: ClassVar[str] = "value"
    limit: Annotated[float, Field(gt=0)]

    def __call__(self, gradients: "Tensor") -> "tuple[Tensor, Tensor]":
        return gradients.clamp(-self.limit, self.limit), gradients.abs().amax(dim=1) > self.limit


CLIPPINGS: dict[str, type[Any]] = {cls.name: cls for cls in (ClipNorm, ClipValue)}


def clipping(value: object) -> Clipping | None:
    """Convert a number (the largest norm) or a string such as `norm(1.0)` to a `Clipping` object.

    Raises:
        ValueError: If the value is not allowed. The message does not name the option; the caller adds its
            name.
    """
    if value is None or isinstance(value, Clipping):
        return value
    try:
        parsed = specs.parse_value(value) if isinstance(value, str) else value
        if isinstance(parsed, bool) or not isinstance(parsed, Real):
            return specs.build("clipping", str(value), CLIPPINGS) if isinstance(value, str) else _reject()
        return ClipNorm(float(parsed))
    except EnvariantError as error:
        raise ValueError(f'must be a number, "norm(1.0)" or "value(0.5)" ({error})') from None


def _reject() -> None:
    raise ValueError('must be a number, "norm(1.0)" or "value(0.5)"')
