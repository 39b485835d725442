"""The page on integrations: the code of each section runs if the library is installed."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "integrations.md"
LIBRARIES = {
    "Hugging Face Trainer": "transformers",
    "PyTorch Lightning": "pytorch_lightning",
    "skorch": "skorch",
    "Optuna": "optuna",
    "Hugging Face Hub": "huggingface_hub",
    "MLflow": "mlflow",
}
# Warnings of other libraries about their own code, and remarks of Envariant on tiny examples.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_code_of_every_section_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    text = PAGE.read_text(encoding="utf-8")
    introduction, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    assert [section.splitlines()[0] for section in sections] == list(LIBRARIES)
    namespace = {"__name__": "guide"}
    missing = []
    for section in (introduction, *sections):
        library = LIBRARIES.get(section.splitlines()[0])
        if library is not None and find_spec(library) is None:
            missing.append(library)
            continue
        blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
        assert blocks
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), namespace)
    if "mlflow" in namespace:
        # The folder of the example has been removed.
        namespace["mlflow"].set_tracking_uri(None)
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
