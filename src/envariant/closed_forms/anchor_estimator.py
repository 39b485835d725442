"""Base class of estimators with environments or numeric columns as anchors."""

from abc import ABC
from typing import Any

from numpy.typing import ArrayLike

from envariant.closed_forms.anchors import Anchors, column_anchors, environment_anchors
from envariant.closed_forms.base import EnvironmentEstimator, Rows
from envariant.core.errors import EnvariantError, unknown_name


class AnchorEstimator(EnvironmentEstimator, ABC):
    """Base class of estimators with environments or numeric columns as anchors."""

    __metadata_request__fit = {"anchors": True}  # noqa: RUF012  # pyright: ignore[reportUnusedVariable]

    anchor_columns_: tuple[str, ...]

    def _read_anchors(
        self,
        X: Any,  # noqa: N803
        y: Any,
        environments: ArrayLike | str | None,
        anchors: Any,
        instead: str,
    ) -> tuple[Rows, Anchors | None]:
        """Return the rows, and their anchors; None if `fit` received neither environments nor anchors."""
        name = type(self).__name__
        if anchors is None:
            rows = self._read_rows(X, y, environments, instead)
            self.anchor_columns_ = ()
            self._remember(rows, environments)
            return rows, environment_anchors(rows.codes) if len(rows.names) > 1 else None
        if environments is not None:
            raise EnvariantError(
                f"{name}: got both environments and anchors; pass one of them, for example indicators of the "
                f"environments among the anchor columns"
            )
        inputs, columns = X, _names(anchors)
        if columns:
            table = getattr(X, "columns", None)
            if table is None:
                raise EnvariantError(
                    f"{name}: anchors={anchors!r} are column names, but X is of type {type(X).__name__}; "
                    f"pass a DataFrame, or anchor columns of shape [rows, columns]"
                )
            for each in columns:
                if each not in table:
                    raise unknown_name("column", each, map(str, table), where=f"{name}: anchors")
            inputs = X[[each for each in table if each not in columns]]
            anchors = X[list(columns)]
        rows = self._read_rows(inputs, y, None, "")
        found = column_anchors(name, anchors, len(rows.inputs))
        self.anchor_columns_ = columns
        self._remember(rows, None)
        return rows, found

    def _without_other_columns(self, X: Any) -> Any:  # noqa: N803
        table = getattr(X, "columns", ())
        if any(each in table for each in self.anchor_columns_):
            return X[[each for each in table if each not in self.anchor_columns_]]
        return super()._without_other_columns(X)


def _names(anchors: Any) -> tuple[str, ...]:
    """Return the column names that `anchors` consists of; empty if it holds values."""
    if isinstance(anchors, str):
        return (anchors,)
    is_list = isinstance(anchors, list | tuple)
    return tuple(anchors) if is_list and anchors and all(isinstance(each, str) for each in anchors) else ()
