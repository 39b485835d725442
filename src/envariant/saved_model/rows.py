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
from envariant.data.tables.reading import lacking_columns, open_table
from envariant.data.tables.target_type import TargetType
from envariant.features.columns import is_feature
from envariant.features.tables import expanded
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
    embedded: Sequence[tuple[str, str]] = (),
) -> Rows:
    """Read, in chunks of rows, the columns that a model needs, with categories spelled as in training.

    Args:
        data: Path of a table, or pandas, polars or Arrow data frame.
        encoding: Encoding of a text file.
        encodings: Encodings of the columns.
        reference: Distribution of each encoded column in training.
        missing_values: Strings that were declared as missing values for the training table. None: missing
            values are recognized in each column separately.
        target: Kind and classes of the target column, by its name; empty to skip the target.
        optional: Names of categorical columns that are read only if the table contains them.
        embedded: Name and encoder of each column of texts or images that is replaced by features. A table may
            contain the feature columns instead.

    Raises:
        EnvariantError: If a column is missing, or a value does not have the type of its column.
    """
    declared = None if missing_values is None else frozenset(missing_values)
    table = open_table(data, encoding, declared) if embedded else None
    header = () if table is None else table.header
    raw = [(name, encoder) for name, encoder in embedded if name in header]
    absent = [name for name, _ in embedded if not any(h == name or is_feature(h, [name]) for h in header)]
    if table is not None and absent:
        # The names of their features would say nothing to the user.
        raise lacking_columns(table.label, absent, header)
    encodings = [each for each in encodings if not is_feature(each.name, [name for name, _ in raw])]
    kinds: dict[str, Kind] = {column.name: column.kind for column in encodings}
    kinds |= {name: "category" for name, _ in raw}
    known = {sketch.name: frozenset(sketch.categories) for sketch in reference}
    blocks = read_columns(
        data,
        dict[str, Kind].fromkeys(optional, "category")
        | kinds
        | {name: kind for name, (kind, _) in target.items()},
        notations={column.name: column.notation for column in encodings},
        known=known | {name: frozenset(classes) for name, (_, classes) in target.items()},
        declared=declared,
        encoding=encoding,
        optional=[name for name in optional if name not in kinds],
    )
    for index, read in blocks:
        columns = expanded(read, raw)
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
