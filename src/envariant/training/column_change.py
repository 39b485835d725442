"""`ColumnChange`: change table columns in the rows of an environment, for permutation importance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd


@final
@dataclass(frozen=True, eq=False)
class ColumnChange:
    """Function that returns several copies of the given rows, each with one column changed.

    Attributes:
        names: For each copy, the name of the changed column.
        places: For each copy, the slice of input positions that contain the changed column.
        order: Permutation of the rows that is used to shuffle columns.
        replacements: One entry for each copy: indices of the training rows whose values replace the column,
            or None if the column of this copy is shuffled.
        pooled_inputs: Function that returns the inputs of all training rows.
        pooled_frame: Function that returns the raw columns of all training rows.
    """

    names: Sequence[str]
    places: Sequence[slice]
    order: Tensor
    replacements: Sequence[Tensor | None]
    pooled_inputs: Callable[[], Tensor]
    pooled_frame: Callable[[], "pd.DataFrame"]

    def __call__(self, inputs: Tensor) -> Tensor:
        copies = inputs.unsqueeze(-3).repeat_interleave(len(self.places), dim=-3)
        for k, (place, rows) in enumerate(zip(self.places, self.replacements, strict=True)):
            if rows is None:
                copies[..., k, :, place] = inputs[..., self.order.to(inputs.device), place]
            else:
                copies[..., k, :, place] = self.pooled_inputs()[rows][:, place].to(inputs.device)
        return copies.flatten(-3, -2)

    def of_frame(self, frame: "pd.DataFrame") -> "pd.DataFrame":
        """Return one copy of the raw columns for each changed column, concatenated along the rows.

        Args:
            frame: Raw columns of the rows.
        """
        import pandas as pd  # not at the top, because only rows of tables have columns

        copies: list[pd.DataFrame] = []
        for name, rows in zip(self.names, self.replacements, strict=True):
            source, index = (frame, self.order) if rows is None else (self.pooled_frame(), rows)
            copies.append(frame.assign(**{name: source[name].to_numpy()[index.numpy()]}))
        return pd.concat(copies, ignore_index=True)
