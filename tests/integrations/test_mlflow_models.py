"""Saved models as MLflow models, in a store on the local disk."""

import pandas as pd
import pytest

import envariant
from envariant.data.tables import table as tables
from envariant.data.tables.source import TableSource
from envariant.integrations.mlflow import log_model
from envariant.predictors import Linear
from envariant.saved_model import SavedModel

# Warnings of MLflow about its own code and about the store.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("mlflow", reason="the extra `tracking` is not installed")


def test_a_logged_model_predicts_what_the_saved_model_predicts(library, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    table = envariant.data.heart_disease()[["age", "sex", "chol", "hospital", "disease"]]
    source = TableSource(tables.read(table, "disease", "hospital"), "patients")
    model = SavedModel.of_predictor(source, Linear())
    previous = library.get_tracking_uri()
    library.set_tracking_uri((tmp_path / "store").as_uri())
    try:
        with library.start_run():
            logged = log_model(model, name="heart")
        loaded = library.pyfunc.load_model(logged.model_uri)
        rows = table.head(20)
        pd.testing.assert_frame_equal(loaded.predict(rows), model.predict(rows))
        assert loaded.metadata.metadata["environments"] == list(model.environments)
        assert loaded.metadata.metadata["envariant"]["method"] == model.about["method"]
        files = {path.name for path in (tmp_path / "store").rglob("*") if path.is_file()}
        assert {"MLmodel", "model.safetensors", "model.json", "requirements.txt"} <= files
        assert not {name for name in files if name.endswith((".pkl", ".pickle"))}
    finally:
        library.set_tracking_uri(previous)
