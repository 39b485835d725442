"""Convert the network or predictor of a saved model to a JSON-compatible description and arrays, and back."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from envariant.core.display import Summary, named
from envariant.core.tasks import Task
from envariant.predictors import FittedPredictor, stored_format
from envariant.saved_model.network import WEIGHTS, SavedNetwork
from envariant.saved_model.validation import check_weights

Predicting = SavedNetwork | FittedPredictor
"""Part of a saved model that predicts."""


def store(predictor: Predicting) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a JSON-compatible description of a predictor, and its arrays by their names in the tensor file.

    Raises:
        EnvariantError: If the predictor cannot be saved.
    """
    if isinstance(predictor, SavedNetwork):
        return predictor.describe(), predictor.to_tensors()
    form = predictor.stored_form()
    facts, arrays = form.store()
    return {"kind": form.kind, **facts}, {f"{WEIGHTS}{name}": value for name, value in arrays.items()}


def restore(
    description: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    task: Task,
    width: int,
    trusted: Sequence[str],
) -> Predicting:
    """Rebuild a network or predictor from the output of `store`, which may come from an untrusted file.

    Args:
        description: Description of the predictor.
        tensors: All tensors of the saved model, by name.
        task: Prediction task.
        width: Number of encoded inputs per row.
        trusted: Full names of Python classes and functions that the description may refer to.

    Raises:
        ValueError: If the description or a tensor is invalid.
        UntrustedTypes: If the description refers to a class or function that is not trusted.
    """
    if "kind" not in description:
        network = SavedNetwork.from_tensors(description, tensors)
        check_weights(network.weights)
        return network
    facts = {key: value for key, value in description.items() if key != "kind"}
    kind = str(description["kind"])
    if (fitted := stored_format(kind)) is None:
        raise ValueError(f"unknown predictor '{kind[:40]}'")
    arrays = {k.removeprefix(WEIGHTS): v for k, v in tensors.items() if k.startswith(WEIGHTS)}
    return fitted.restore(facts, arrays, task, width, trusted)


def columns_of(predictor: Predicting) -> tuple[str, ...]:
    """Return the raw columns that a predictor needs; an empty collection if it uses encoded inputs."""
    return predictor.columns if isinstance(predictor, FittedPredictor) else ()


def described(
    predictor: Predicting,
    target: str,
    columns: Sequence[str],
    environments: Sequence[str],
    about: Mapping[str, str],
) -> Summary:
    """Return the summary of a saved model that consoles and notebooks display.

    Args:
        predictor: Network or predictor of the model.
        target: Name and type of the target.
        columns: Names of the input columns.
        environments: Names of the training environments.
        about: Provenance of the model: mapping from name to text.
    """
    if isinstance(predictor, SavedNetwork):
        method = f"{predictor.algorithm}, {predictor.model}"
    else:
        method = about.get("method", predictor.kind)
    return Summary(
        f"SavedModel: {method}",
        {
            "predicts": target,
            "columns": named(columns, 10),
            "training environments": named(environments),
            "data": about.get("data", ""),
            "trained on": about.get("date", ""),
            "note": about.get("note", ""),
        },
    )
