"""Convert labels, probabilities, logits and predicted values to the logits and targets of a task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

import numpy as np
from numpy.typing import NDArray

from envariant.core.conversion import (
    check_lengths,
    in_order,
    several,
    targets_of,
    text_of,
    warn_of_look_alikes,
)
from envariant.core.errors import EnvariantError, closest_name, listed, unknown_name
from envariant.core.tasks import Binary, Multiclass, Regression, Task
from envariant.data.tables.table import TASKS
from envariant.evaluation.containers import Values

Array = NDArray[Any]
Kind = Literal["labels", "probabilities", "logits", "values"]
"""Kind of predictions; "values" are predictions of real-valued targets."""

KINDS: tuple[Kind, ...] = get_args(Kind)
_WHERE = "evaluate"
# Largest difference between 1 and the sum of a row's probabilities.
_SUM_TOLERANCE = 1e-3
# Classes that are known even if only one of them occurs.
_PAIRS: tuple[tuple[str, ...], ...] = (("0", "1"), ("false", "true"))


@final
@dataclass(frozen=True, eq=False)
class Decoded:
    """Predictions of models as logits of a task.

    Attributes:
        task: Prediction task.
        classes: Names of the classes in the order of the class indices; empty for regression.
        kind: Kind of the predictions.
        logits: Logits, `[rows]` or `[rows, classes]`, by model and replica; for regression, predictions,
            standardized as the targets are.
        targets: Class index of each row, or standardized target, `[rows]`.
    """

    task: Task
    classes: tuple[str, ...]
    kind: Kind
    logits: Mapping[str, Mapping[int, Array]]
    targets: Array


def decode(
    predictions: Mapping[str, Mapping[int, Values]],
    targets: Values,
    *,
    task: str | None = None,
    kind: str | None = None,
    classes: Sequence[Any] | None = None,
) -> Decoded:
    """Convert predictions and targets; infer the task, the kind and the classes unless they are given.

    A probability p becomes the logit log p − log(1 − p), and class probabilities become their logarithms.
    Probabilities of 0 and 1 are first clipped by the precision of their data type, as in scikit-learn. Labels
    become logits whose largest entry is the predicted class.

    Args:
        predictions: Predictions by model and replica.
        targets: Targets, numbers or text.
        task: "binary", "multiclass" or "regression". Default: inferred.
        kind: Kind of the predictions, one of `KINDS`. Default: inferred.
        classes: Labels of the classes, in the order of the columns of probabilities; with one column, it is
            the probability of the second class. Default: inferred from names of columns, or sorted.

    Raises:
        EnvariantError: If the arguments do not fit each other.
    """
    if task is not None and task not in TASKS:
        raise unknown_name("task", str(task), TASKS, _WHERE)
    if kind is not None and kind not in KINDS:
        raise unknown_name("kind of predictions", str(kind), KINDS, _WHERE)
    if targets.array.ndim != 1:
        raise EnvariantError(
            f"{_WHERE}: targets must hold one value per row; got shape {targets.array.shape}"
        )
    for name, own in predictions.items():
        for values in own.values():
            check_lengths({f"predictions of {name}": len(values), "targets": len(targets)}, _WHERE)
    sides = [values for own in predictions.values() for values in own.values()]
    if _is_regression(sides, targets, task, kind, classes):
        return _of_values(predictions, targets.array, kind)
    like = {
        m: {k: _like(v if classes is not None else _sorted(v), targets.array) for k, v in own.items()}
        for m, own in predictions.items()
    }
    sides = [values for own in like.values() for values in own.values()]
    chosen = _kind(sides, targets.array) if kind is None else kind
    names = _class_names(sides, targets.array, chosen, classes)
    if task == "binary" and len(names) != 2:
        raise EnvariantError(f"{_WHERE}: a binary task has two classes; got {len(names)} ({listed(names)})")
    codes = _codes(targets.array, names, "targets")
    logits = {
        model: {k: _logits(values, names, chosen, f"predictions of {model}") for k, values in own.items()}
        for model, own in like.items()
    }
    assert chosen in KINDS
    return Decoded(Binary() if len(names) == 2 else Multiclass(len(names)), names, chosen, logits, codes)


def _is_regression(
    sides: Sequence[Values], targets: Values, task: str | None, kind: str | None, classes: object
) -> bool:
    if task is not None:
        return task == Regression.name
    if kind is not None:
        return kind == "values"
    if classes is not None or targets.array.dtype.kind not in "iuf":
        return False
    if any(values.array.ndim > 1 or values.array.dtype.kind not in "iuf" for values in sides):
        return False
    distinct = np.unique(targets.array)
    if len(distinct) <= 2:
        return False
    # With three or more classes, one number per row can only be a label.
    others = any(not np.isin(values.array, distinct).all() for values in sides)
    return others or isinstance(targets_of(targets.array, None, _WHERE)[1], Regression)


def _of_values(predictions: Mapping[str, Mapping[int, Values]], targets: Array, kind: str | None) -> Decoded:
    """Standardize the targets of a regression, so that single precision is enough for their differences."""
    if kind not in (None, "values"):
        raise EnvariantError(f"{_WHERE}: predictions of a regression are values, not {kind}; leave out kind")
    if targets.dtype.kind not in "biuf" or not np.isfinite(targets.astype(np.float64)).all():
        raise EnvariantError(f"{_WHERE}: targets of a regression must be finite numbers")
    y = targets.astype(np.float64)
    center, scale = float(y.mean()), float(y.std())
    scale = scale if scale > 0 else 1.0
    logits: dict[str, dict[int, Array]] = {}
    for model, own in predictions.items():
        for k, values in own.items():
            where = f"{_WHERE}: predictions of {model}"
            if values.array.ndim > 1 or not values.is_numeric:
                raise EnvariantError(f"{where} must be one number per row for a regression")
            _check_finite(values.array, where)
            logits.setdefault(model, {})[k] = (values.array.astype(np.float64) - center) / scale
    return Decoded(Regression(scale=scale, center=center), (), "values", logits, (y - center) / scale)


def _sorted(values: Values) -> Values:
    """Sort columns by the classes that they are named for, so that results do not depend on their order."""
    inner = [class_of_column(name) for name in values.names]
    if values.array.ndim < 2 or len(set(inner)) < values.array.shape[1]:
        return values
    order = [inner.index(name) for name in in_order(inner)]
    return Values(values.array[:, order], tuple(values.names[k] for k in order))


def _like(values: Values, targets: Array) -> Values:
    """Write Booleans as the targets do: as 0 and 1, or as false and true."""
    array, numbers = values.array, "iuf"
    if array.dtype.kind == "b" and targets.dtype.kind in numbers:
        return Values(array.astype(np.int64), values.names)
    if (
        targets.dtype.kind == "b"
        and array.ndim == 1
        and array.dtype.kind in numbers
        and np.isin(array, (0, 1)).all()
    ):
        return Values(array.astype(bool), values.names)
    return values


def _kind(sides: Sequence[Values], targets: Array) -> Kind:
    if any(not values.is_numeric or values.array.dtype.kind == "b" for values in sides):
        return "labels"
    known = set(labels_of(targets)[0])
    if all(values.array.ndim == 1 and known.issuperset(labels_of(values.array)[0]) for values in sides):
        return "labels"
    if all(values.array.min() >= 0 and values.array.max() <= 1 for values in sides):
        return "probabilities"
    low, high = (end(float(end(values.array)) for values in sides) for end in (min, max))
    raise EnvariantError(
        f"{_WHERE}: predictions in [{low:.4g}, {high:.4g}] are neither classes of the targets "
        f"({listed(in_order(known))}) nor probabilities; if they are logits, set kind to logits, and if they "
        f"are values of a regression, set task to regression"
    )


def _class_names(
    sides: Sequence[Values], targets: Array, kind: str, classes: Sequence[Any] | None
) -> tuple[str, ...]:
    widths = {values.array.shape[1] if values.array.ndim > 1 else 1 for values in sides}
    if len(widths) > 1:
        raise EnvariantError(f"{_WHERE}: all models must have equally many columns; got {sorted(widths)}")
    (width,) = widths
    if kind == "labels" and width > 1:
        raise EnvariantError(f"{_WHERE}: labels must be one per row; got {width} columns")
    if classes is not None:
        return _given_classes(classes, width, kind)
    known = in_order(labels_of(targets)[0])
    if kind == "labels":
        known = _with_predicted(known, [set(labels_of(values.array)[0]) for values in sides])
    elif width > 1:
        orders = {_classes_of_columns(values.names, width, known): None for values in sides}
        if len(orders) > 1:
            first, second, *_ = orders
            raise EnvariantError(
                f"{_WHERE}: the columns of one model are the classes {listed(first)}, those of another are "
                f"{listed(second)}; name the columns equally, or set classes"
            )
        return next(iter(orders))
    known = next((pair for pair in _PAIRS if set(known) <= set(pair)), known)
    if len(known) == 1:
        raise EnvariantError(
            f"{_WHERE}: all targets are {known[0]}; set classes to the labels of all classes"
        )
    if kind != "labels" and len(known) > 2:
        raise EnvariantError(
            f"{_WHERE}: targets hold {len(known)} classes ({listed(known)}), which need predicted labels, or "
            f"one probability per class; got one number per row"
        )
    return known


def _given_classes(classes: Sequence[Any], width: int, kind: str) -> tuple[str, ...]:
    names = tuple(text_of(each) for each in several(classes, f"{_WHERE}: classes"))
    if len(set(names)) < max(2, len(names)):
        raise EnvariantError(f"{_WHERE}: classes must be at least two different labels; got {listed(names)}")
    if width > 1 and len(names) != width:
        raise EnvariantError(
            f"{_WHERE}: {width} columns of predictions need {width} classes; got {len(names)}"
        )
    if width == 1 and kind != "labels" and len(names) > 2:
        raise EnvariantError(
            f"{_WHERE}: {len(names)} classes need predicted labels, or one column per class; got one number "
            f"per row"
        )
    return names


def _with_predicted(known: tuple[str, ...], predicted: Sequence[set[str]]) -> tuple[str, ...]:
    """Return the classes of the targets and of the predictions of all models."""
    for own in predicted:
        if own & set(known):
            continue
        first = min(own)
        hint = f" (did you mean '{near}'?)" if (near := closest_name(first, known)) else ""
        raise EnvariantError(
            f"{_WHERE}: no predicted label, such as '{first}'{hint}, occurs in the targets "
            f"({listed(known)}); spell them identically"
        )
    names = {*known}.union(*predicted)
    warn_of_look_alikes(names, f"{_WHERE}: labels")
    return in_order(names)


def _classes_of_columns(names: tuple[str, ...], width: int, known: tuple[str, ...]) -> tuple[str, ...]:
    """Return the class of each column: its name, or the classes of the targets in sorted order."""
    inner = tuple(class_of_column(name) for name in names)
    if names and set(known) <= set(inner):
        return inner
    if names and not all(name.isdecimal() for name in names):
        raise EnvariantError(
            f"{_WHERE}: columns {listed(names)} are not named for the classes of the targets "
            f"({listed(known)}); rename them, or set classes to the labels in the order of the columns"
        )
    if len(known) == width:
        return known
    numbers = tuple(map(str, range(width)))
    if set(known) <= set(numbers):
        return numbers
    raise EnvariantError(
        f"{_WHERE}: predictions have {width} columns, but targets hold {len(known)} classes "
        f"({listed(known)}); set classes to the labels in the order of the columns"
    )


def class_of_column(name: str) -> str:
    """Return the class of a column of probabilities: "yes" for `P(yes)` and for `yes`."""
    return name[2:-1] if name.startswith("P(") and name.endswith(")") else name


def labels_of(column: Array) -> tuple[list[str], NDArray[np.int64]]:
    """Return the distinct labels as text, and the index of each row's label."""
    distinct, codes = np.unique(column, return_inverse=True)
    return [text_of(value) for value in distinct], codes


def _codes(column: Array, classes: tuple[str, ...], what: str) -> NDArray[np.int64]:
    """Return the class index of each label.

    Raises:
        EnvariantError: If a label is not a class.
    """
    texts, codes = labels_of(column)
    if unknown := [text for text in texts if text not in classes]:
        hint = f" (did you mean '{near}'?)" if (near := closest_name(unknown[0], classes)) else ""
        raise EnvariantError(
            f"{_WHERE}: {what} hold '{unknown[0]}'{hint}, which is not one of the classes {listed(classes)}"
        )
    return np.array([classes.index(text) for text in texts], dtype=np.int64)[codes]


def _logits(values: Values, classes: tuple[str, ...], kind: str, what: str) -> Array:
    if kind == "labels":
        codes = _codes(values.array, classes, what)
        return 2.0 * codes - 1 if len(classes) == 2 else np.eye(len(classes))[codes]
    if kind == "values" or not values.is_numeric:
        expected = "labels, probabilities or logits" if kind == "values" else f"{kind}, which are numbers"
        raise EnvariantError(f"{_WHERE}: {what} of classes must be {expected}")
    array = values.array.astype(np.float64)
    _check_finite(array, f"{_WHERE}: {what}")
    if kind == "probabilities":
        array = _log(
            array, np.finfo(values.array.dtype if values.array.dtype.kind == "f" else np.float64).eps, what
        )
    if array.ndim == 1:
        return array
    return array[:, 1] - array[:, 0] if len(classes) == 2 else array


def _log(p: Array, eps: float, what: str) -> Array:
    """Return the logit of each probability, or the logarithms of each row's class probabilities."""
    if len(wrong := np.flatnonzero(((p < 0) | (p > 1)).reshape(len(p), -1).any(axis=1))):
        row = int(wrong[0])
        value = p[row] if p.ndim == 1 else p[row][(p[row] < 0) | (p[row] > 1)][0]
        raise EnvariantError(
            f"{_WHERE}: {what}: probabilities must be in [0, 1]; got {value:.4g} in row {row}"
        )
    if p.ndim > 1 and len(wrong := np.flatnonzero(np.abs(p.sum(axis=1) - 1) > _SUM_TOLERANCE)):
        row = int(wrong[0])
        total = float(p[row].sum())
        raise EnvariantError(
            f"{_WHERE}: {what}: the probabilities of a row must sum to 1; those of row {row} sum to "
            f"{total:.4g}"
        )
    clipped = np.clip(p, eps, 1 - eps)
    return np.log(clipped) - np.log1p(-clipped) if p.ndim == 1 else np.log(clipped)


def _check_finite(array: Array, where: str) -> None:
    if len(
        wrong := np.flatnonzero(~np.isfinite(array.astype(np.float64)).reshape(len(array), -1).all(axis=1))
    ):
        raise EnvariantError(f"{where} must be finite; row {wrong[0]} is not")
