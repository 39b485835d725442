"""`evaluate_table`: score the predictions in a table, or those of a saved model for its rows."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envariant.comparison.subgroups import subgroup_names
from envariant.core.conversion import in_order, several
from envariant.core.errors import EnvariantError, EnvariantWarning, listed
from envariant.core.printable import number_of
from envariant.data.tables import roles
from envariant.data.tables.assembly import remarks
from envariant.data.tables.columns import Column, concatenated
from envariant.data.tables.loading import LoadedColumns, load
from envariant.data.tables.reading import labeled, lacking_columns, open_table
from envariant.data.tables.roles import LogEntry
from envariant.evaluation.containers import Ids, Values, joined_names, values_of
from envariant.evaluation.decoding import class_of_column, labels_of
from envariant.evaluation.evaluate import MODEL, Evaluation, evaluate_values
from envariant.saved_model import load_model

# Larger whole numbers are not exact in float64.
_LARGEST = 2**53


def evaluate_table(
    data: Any,
    *,
    target: Any,
    environment: Any,
    prediction: Sequence[Any] | str = (),
    model: Path | str | None = None,
    groups: Sequence[Any] | str = (),
    cluster: Any = None,
    sample_weight: Any = None,
    encoding: str = "utf-8",
    missing_values: Sequence[str] | None = None,
    **options: Any,
) -> Evaluation:
    """Score the predictions in a table, in every environment and group; see `evaluate`.

    The table is read as by `compare`. Rows without a target or an environment are left out, with a warning.

    Args:
        data: Path (.csv, .parquet, .xlsx, .json, …), or a pandas, polars or Arrow data frame.
        target: Name of the column with the targets.
        environment: Name of the column with the environment of each row.
        prediction: Names of the columns with predictions. Columns named for the classes, such as `P(yes)` or
            `yes`, are the probabilities of one model. Otherwise, each column has the predictions of a model.
        model: Folder of a saved model, whose predictions for the rows are scored instead.
        groups: Names of the columns whose values, or combinations of values, define groups.
        cluster: Name of the column with the cluster of each row, such as the patient.
        sample_weight: Name of the column with case weights.
        encoding: Encoding of a text file.
        missing_values: Strings that represent a missing value in every column; see `compare`.
        options: Options of `evaluate`: `metric`, `task`, `kind` and `classes`.

    Raises:
        EnvariantError: If the table cannot be read, a column is missing, or values are invalid.

    Warns:
        EnvariantWarning: If rows are left out.
    """
    predicted = tuple(map(str, several(prediction, "evaluate: prediction")))
    if bool(predicted) == (model is not None):
        raise EnvariantError("evaluate: give either the columns with predictions, or a saved model")
    declared = None if missing_values is None else frozenset(map(str, several(missing_values)))
    table = open_table(data, encoding, declared)
    attributes = tuple(map(str, several(groups, "evaluate: groups")))
    one = {"target": target, "environment": environment, "cluster": cluster, "sample_weight": sample_weight}
    named = {role: (str(name),) for role, name in one.items() if name is not None}
    named |= {"prediction": predicted, "groups": attributes}
    for role, names in named.items():
        if lacking := [name for name in names if name not in table.header]:
            raise lacking_columns(table.label, lacking, table.header, f"{role} column")
    if str(target) == str(environment) or {str(target)} & set(predicted):
        raise EnvariantError(f"{table.label}: the target '{target}' has two roles; name another column")
    used = list(dict.fromkeys(name for names in named.values() for name in names))
    kept_words = {str(target), str(environment), *predicted}
    try:
        loaded = load(
            table, used, texts=predicted, target=str(target), environment=str(environment), declared=declared
        )
        if not len(loaded.index):
            raise EnvariantError("holds no rows under its header")
        columns = loaded.infer(kept_words, declared)
    except EnvariantError as error:
        raise labeled(table.label, error) from None
    rows = _complete_rows(table.label, columns[str(target)], columns[str(environment)])
    targets = Values(_values(loaded, columns[str(target)])[rows])
    if model is None:
        _check_predicted(table.label, [columns[name].rows(rows) for name in predicted])
        arrays = {name: _values(loaded, columns[name])[rows] for name in predicted}
        models = _models(table.label, arrays, targets, options.get("classes"))
        options = _with_second_class(options, predicted, targets)
    else:
        served = values_of(load_model(model).predict(data, encoding=encoding), "evaluate: predictions")
        models = {MODEL: {0: Values(served.array[rows], served.names)}}
    return evaluate_values(
        models,
        targets,
        _ids(columns[str(environment)].rows(rows)),
        joined_names({name: subgroup_names(columns[name].rows(rows)) for name in attributes}),
        None if cluster is None else _clusters(table.label, columns[str(cluster)].rows(rows)),
        None if sample_weight is None else _weights(table.label, columns[str(sample_weight)].rows(rows)),
        **options,
    )


def _complete_rows(label: str, target: Column, environment: Column) -> NDArray[np.int64]:
    """Return the indices of the rows with a target and an environment; warn of others."""
    log: list[LogEntry] = []
    rows = np.flatnonzero(roles.rows_with_values(label, target, environment, log))
    for remark in remarks(log):
        warnings.warn(f"{label}: {remark}", EnvariantWarning, stacklevel=3)
    if not len(rows):
        raise EnvariantError(f"{label}: no row has both a target and an environment")
    return rows


def _check_predicted(label: str, columns: Sequence[Column]) -> None:
    for column in columns:
        if missing := int(column.missing.sum()):
            raise EnvariantError(
                f"{label}: prediction column '{column.name}' has no value in {number_of(missing, 'row')}; "
                f"fill in the predictions, or remove those rows"
            )


def _values(loaded: LoadedColumns, column: Column) -> NDArray[Any]:
    """Return numbers, Booleans or the original words of a column, `[rows]`; whole numbers as integers."""
    if column.kind == "number":
        values = column.values
        # Whole numbers may be classes; tables store all numbers as floating-point numbers.
        whole = bool(np.isfinite(values).all()) and bool((values == np.round(values)).all())
        return values.astype(np.int64) if whole and np.abs(values).max() < _LARGEST else values
    chunk = concatenated(loaded.chunks[column.name])
    if chunk.kind is None:
        return np.array([*chunk.texts, ""], dtype=object)[chunk.values].astype(str)
    return column.values.astype(bool) if column.kind == "boolean" else np.array(column.texts(), dtype=str)


def _models(
    label: str, arrays: Mapping[str, NDArray[Any]], targets: Values, classes: object
) -> dict[str, dict[int, Values]]:
    """Return the probabilities of one model, if the columns are named for the classes, or one model each."""
    names = list(arrays)
    if len(names) > 1:
        inner = [class_of_column(name) for name in names]
        present = set(labels_of(targets.array)[0])
        if classes is not None or present <= set(inner):
            return {MODEL: {0: Values(np.column_stack(list(arrays.values())), tuple(names))}}
        if near := [n for n, each in zip(names, inner, strict=True) if n.startswith("P(") or each in present]:
            raise EnvariantError(
                f"{label}: column '{near[0]}' is the probability of a class, but the columns lack a class of "
                f"the target ({listed(sorted(present))}); name one column per class"
            )
    return {name: {0: Values(array)} for name, array in arrays.items()}


def _with_second_class(
    options: Mapping[str, Any], predicted: Sequence[str], targets: Values
) -> dict[str, Any]:
    """Return the options with the classes in the order that the name of a single column `P(…)` implies."""
    known = in_order(labels_of(targets.array)[0])
    named = class_of_column(predicted[0])
    if (
        len(predicted) > 1
        or named == predicted[0]
        or named not in known
        or options.get("classes") is not None
    ):
        return dict(options)
    others = [each for each in known if each != named]
    if len(others) != 1:
        return dict(options)
    # Also a column of zeros and ones holds probabilities, if it is named P(…).
    kind = options.get("kind") or "probabilities"
    return {**options, "classes": (others[0], named), "kind": kind}


def _ids(column: Column) -> Ids:
    """Return the environment of each row."""
    named = roles.named_environments(column)
    present, codes = np.unique(named.values, return_inverse=True)
    return Ids(codes.astype(np.int64), tuple(named.categories[k] for k in present))


def _clusters(label: str, column: Column) -> NDArray[np.int64]:
    if missing := int(column.missing.sum()):
        raise EnvariantError(
            f"{label}: cluster column '{column.name}' has no value in {number_of(missing, 'row')}; every row "
            f"needs a cluster"
        )
    return np.unique(column.values, return_inverse=True)[1].astype(np.int64)


def _weights(label: str, column: Column) -> NDArray[np.float64]:
    roles.weights_entry(label, column)
    return column.values.astype(np.float64)
