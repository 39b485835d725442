"""Saved models: trained networks or fitted predictors, stored in a folder with their input encoding."""

from collections.abc import Sequence
from pathlib import Path

from envariant.saved_model.adaptation import Adaptation
from envariant.saved_model.folder import SCHEMA, TENSORS, TEXT
from envariant.saved_model.model import SavedModel
from envariant.saved_model.network import SavedNetwork
from envariant.saved_model.served import Served


def load_model(folder: Path | str, *, trusted: Sequence[str] = ()) -> SavedModel:
    """Load a saved model from a folder written by `SavedModel.save`.

    Args:
        folder: Folder of the saved model.
        trusted: Full names of Python classes and functions that the model may contain, in addition to those
            of scikit-learn, XGBoost and LightGBM. Only trust code that you know.

    Raises:
        EnvariantError: If the folder contains no saved model, or the model is damaged, has an unsupported
            schema version, or contains a type that is not trusted.
    """
    return SavedModel.load(folder, trusted=trusted)


__all__ = ["SCHEMA", "TENSORS", "TEXT", "Adaptation", "SavedModel", "SavedNetwork", "Served", "load_model"]
