"""Log saved models as MLflow models of the flavor `pyfunc`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from envariant.core.errors import EnvariantError, first_line
from envariant.integrations.requirement import required
from envariant.saved_model import SavedModel, load_model

# MLflow finds `_load_pyfunc` by its name.
__all__ = ["_load_pyfunc", "log_model"]

_FOLDER = "envariant_model"


def log_model(model: SavedModel, name: str = "model", **options: Any) -> Any:
    """Log a saved model to the active run of MLflow.

    `mlflow.pyfunc.load_model` then returns an object whose `predict` has a data frame as input and output.
    The model is stored as by `SavedModel.save`, without pickled objects, and loaded by the code of Envariant.

    Args:
        model: Saved model.
        name: Name of the MLflow model.
        options: Other arguments of `mlflow.pyfunc.log_model`, such as `registered_model_name`.

    Returns:
        Description of the logged model, whose `model_uri` is the argument of `mlflow.pyfunc.load_model`.

    Raises:
        EnvariantError: If MLflow is not installed or raises an error.
    """
    mlflow = required("mlflow", "tracking")
    pyfunc = required("mlflow.pyfunc", "tracking")
    metadata = {"envariant": dict(model.about), "environments": list(model.environments)}
    given = {"metadata": metadata, "pip_requirements": ["envariant"], **options}
    try:
        with TemporaryDirectory() as parent:
            folder = Path(parent) / _FOLDER
            model.save(folder)
            return pyfunc.log_model(name=name, loader_module=__name__, data_path=str(folder), **given)
    except mlflow.exceptions.MlflowException as error:
        raise EnvariantError(f"MLflow: {first_line(error)}") from None


def _load_pyfunc(path: str) -> SavedModel:
    """Return the saved model in a folder; MLflow calls this function and the model's `predict`."""
    folder = Path(path)
    return load_model(folder / _FOLDER if (folder / _FOLDER).is_dir() else folder)
