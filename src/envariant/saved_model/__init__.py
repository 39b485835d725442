"""Saved models: a trained network with its table encoding, stored in a folder for prediction."""

from pathlib import Path

from envariant.saved_model.folder import SCHEMA, TENSORS, TEXT
from envariant.saved_model.model import SavedModel
from envariant.saved_model.network import SavedNetwork


def load_model(folder: Path | str) -> SavedModel:
    """Load a saved model from a folder written by `SavedModel.save`.

    Args:
        folder: Folder of the saved model.

    Raises:
        EnvariantError: If the folder has no saved model, or the model is damaged or of another schema
            version.
    """
    return SavedModel.load(folder)


__all__ = ["SCHEMA", "TENSORS", "TEXT", "SavedModel", "SavedNetwork", "load_model"]
