"""Input and output of saved models: read the rows of new tables, and format predictions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from envariant.analysis.column_sketch import Sketch
from envariant.core.tasks import Regression, Task
from envariant.data.tables.columns import Column
from envariant.data.tables.encoding import ColumnEncoding
from envariant.data.tables.kinds import Kind
from envariant.data.tables.loading import read_columns
from envariant.data.tables.target_type import TargetType
from envariant.saved_model.onnx_export import probabilities
from envariant.saved_model.reference import recognized

Rows = Iterator[tuple["pd.Index[Any]", dict[str, Column]]]
"""Index and columns of each chunk of rows."""


def read_rows(
    data: Any,
    encoding: str,
    encodings: Sequence[ColumnEncoding],
    reference: Sequence[Sketch],
    missing_values: Sequence[str] | None,
    target: Mapping[str, tuple[Kind, Sequence[str]]],
    optional: Sequence[str] = (),
) -> Rows:
    """Read the columns that a model needs in chunks of rows, with categories spelled as in training.

    Args:
        data: Path of a table, or data frame of pandas, polars or Arrow.
        encoding: Encoding of a text file.
        encodings: Encodings of the columns.
        reference: Distribution of each encoded column in training.
        missing_values: Strings that were declared as missing values for the training table. None: missing
            values are recognized in each column separately.
        target: Mapping from the name of the target column to its kind and classes; empty to skip the target.
        optional: Names of categorical columns that are read only if the table contains them.

    Raises:
        EnvariantError: If a column is missing, or a value does not have the type of its column.
    """
    kinds: dict[str, Kind] = {column.name: column.kind for column in encodings}
    known = {sketch.name: frozenset(sketch.categories) for sketch in reference}
    blocks = read_columns(
        data,
        dict[str, Kind].fromkeys(optional, "category")
        | kinds
        | {name: kind for name, (kind, _) in target.items()},
        notations={column.name: column.notation for column in encodings},
        known=known | {name: frozenset(classes) for name, (_, classes) in target.items()},
        declared=None if missing_values is None else frozenset(missing_values),
        encoding=encoding,
        optional=[name for name in optional if name not in kinds],
    )
    for index, columns in blocks:
        yield index, columns | {s.name: recognized(columns[s.name], s) for s in reference}


def prediction_frame(
    logits: torch.Tensor,
    task: Task,
    classes: Sequence[str],
    target_type: TargetType,
    index: "pd.Index[Any]",
) -> pd.DataFrame:
    """Return a data frame of predictions.

    The data frame has a column `prediction` and, for classification, a column `P(…)` with the probability of
    each class.

    Args:
        logits: Logits, or standardized predictions for regression.
        task: Prediction task.
        classes: Class labels; empty for regression.
        target_type: Type of the target column.
        index: Index of the data frame.
    """
    if isinstance(task, Regression):
        # Use float64, because targets such as years are large compared with their standard deviation.
        numbers = target_type.of_numbers((logits.double() * task.scale + task.center).numpy())
        return numbers.set_axis(index).to_frame("prediction")
    predicted = (logits > 0).long() if logits.dim() == 1 else logits.argmax(dim=1)
    labels = target_type.decode(predicted.numpy(), classes).set_axis(index)
    shares = {f"P({c})": p for c, p in zip(classes, probabilities(logits).numpy().T, strict=True)}
    return pd.DataFrame({"prediction": labels} | shares, index=index)
