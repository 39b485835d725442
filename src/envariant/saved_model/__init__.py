"""Saved models: a trained network with its table encoding, stored in a folder and ready to predict."""

from pathlib import Path

from envariant.saved_model.folder import SCHEMA, TENSORS, TEXT
from envariant.saved_model.model import SavedModel
from envariant.saved_model.network import SavedNetwork


def load_model(folder: Path | str) -> SavedModel:
    """Load a model that `SavedModel.save` stored.

    Args:
        folder: Folder of the saved model.

    Raises:
        EnvariantError: If the folder holds no saved model, a damaged one, or one of another schema version.
    """
    return SavedModel.load(folder)


__all__ = ["SCHEMA", "TENSORS", "TEXT", "SavedModel", "SavedNetwork", "load_model"]
