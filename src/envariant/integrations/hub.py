"""Publish saved models on the Hugging Face Hub, with a model card that is written from the model's record."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from envariant.comparison.compare import Comparison
from envariant.core.errors import EnvariantError, first_line, shown
from envariant.core.files import as_path, write_text
from envariant.core.tasks import Regression
from envariant.integrations.requirement import required
from envariant.saved_model import TENSORS, TEXT, SavedModel, load_model

CARD = "README.md"
"""Name of the model card in a repository of the Hub."""

_EXTRA = "huggingface"
_SELECTION = "not recorded (a single model was trained, without selection among models)"
_LIMITS = """\
Predictions are reliable only for environments that resemble the training environments. Before using the
model for a new environment, check its inputs with `model.resembles(table)`. A score in the training
environments does not show how the model performs in a new one."""


def write_card(
    model: SavedModel,
    *,
    drops: Mapping[str, float] | None = None,
    metric: str = "",
    selection: str = "",
    intended_use: str = "",
    license_id: str | None = None,
    name: str = "",
) -> str:
    """Return the model card of a saved model: Markdown with metadata in YAML.

    Args:
        model: Saved model.
        drops: Drop (in-domain score − out-of-domain score) in each environment, by name, for example from a
            comparison; NaN for environments in which it was not measured. Default: the card states that no
            drop was measured.
        metric: Name of the metric of the drops.
        selection: Rule by which the model was selected. Default: the rule recorded in `about["selection"]`.
        intended_use: Purpose of the model, one or more sentences.
        license_id: Identifier of a license, such as "mit".
        name: Title of the card. Default: the name of the data.

    Raises:
        EnvariantError: If a drop is not a number.
    """
    about = model.about
    title = _line(name or f"{about.get('data', 'Model')}: {model.target}")
    metadata: dict[str, Any] = {
        "library_name": "envariant",
        "tags": ["envariant", "out-of-distribution", _pipeline(model)],
        "pipeline_tag": _pipeline(model),
    }
    if license_id is not None:
        metadata["license"] = license_id
    facts = {key: _line(value) for key, value in about.items() if value}
    parts = [
        f"# {title}",
        f"Predicts `{_line(model.target)}` ({model.task}{_classes(model)}) from "
        f"{len(model.encoder.columns) + len(model.other_columns)} columns. Trained with Envariant on "
        f"{len(model.environments)} environments.",
        "## Intended use",
        intended_use.strip()
        or f"Predictions of `{_line(model.target)}` for tables with the columns below. {_LIMITS}",
        "## Training environments",
        _bullets(model.environments),
        "## Drop per environment",
        _drops(drops, metric),
        "## Model selection",
        _line(selection or about.get("selection", _SELECTION)),
        "## Columns",
        _bullets([column.name for column in (*model.encoder.columns, *model.other_columns)]),
        "## Record",
        "\n".join(f"- {_line(key)}: {value}" for key, value in facts.items()) or "- none",
        "## Usage",
        _USAGE,
    ]
    # JSON is valid YAML, and quotes every character.
    yaml = "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in metadata.items())
    return f"---\n{yaml}\n---\n\n" + "\n\n".join(parts) + "\n"


def comparison_card(comparison: Comparison, **options: Any) -> str:
    """Return the model card of the model that a comparison recommends, with its drop in every environment.

    Args:
        comparison: Result of `envariant.compare`.
        options: Other arguments of `write_card`, such as `intended_use`.
    """
    results = comparison.results
    cells = results.cells[results.recommended]
    given: dict[str, Any] = {
        "drops": {name: results.drop(cell).mean for name, cell in cells.items()},
        "metric": results.metric.name,
        "selection": f"envariant.compare: {comparison.recommendation.headline}",
    }
    return write_card(comparison.best_model, **{**given, **options})


def prepare_folder(model: SavedModel, folder: Path | str, card: str | None = None) -> Path:
    """Write the files of a repository: the saved model and its card. No file contains pickled objects.

    Args:
        model: Saved model.
        folder: Folder to write to, created if missing.
        card: Model card. Default: `write_card(model)`.

    Returns:
        The folder.

    Raises:
        EnvariantError: If the folder cannot be written.
    """
    path = as_path(folder, "folder")
    model.save(path)
    write_text(write_card(model) if card is None else card, path / CARD)
    return path


def push_model(
    model: SavedModel, repository: str, *, card: str | None = None, private: bool = True, **options: Any
) -> str:
    """Upload a saved model and its card to the Hub.

    Args:
        model: Saved model.
        repository: Name of the repository, such as "user/ward-model"; created if missing.
        card: Model card. Default: `write_card(model)`.
        private: Whether a new repository is private.
        options: Other arguments of `huggingface_hub.HfApi.upload_folder`, such as `revision`.

    Returns:
        Address of the commit.

    Raises:
        EnvariantError: If the Hub rejects the upload, or `huggingface_hub` is not installed.
    """
    hub = required("huggingface_hub", _EXTRA)
    api = hub.HfApi()
    try:
        with TemporaryDirectory() as folder:
            prepare_folder(model, folder, card)
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=repository, folder_path=folder, **options)
    except (OSError, hub.errors.HfHubHTTPError, hub.errors.HFValidationError) as error:
        raise EnvariantError(f"{repository}: cannot be uploaded ({first_line(error)})") from None
    return str(commit)


def load_from_hub(
    repository: str, *, revision: str | None = None, trusted: Sequence[str] = (), **options: Any
) -> SavedModel:
    """Download a saved model from the Hub. Nothing is unpickled.

    Args:
        repository: Name of the repository, such as "user/ward-model".
        revision: Branch, tag or commit. Pass a commit to always get the same model. Default: the main branch.
        trusted: Full names of Python classes that the model may contain; see `envariant.load_model`.
        options: Other arguments of `huggingface_hub.snapshot_download`, such as `cache_dir`.

    Raises:
        EnvariantError: If the repository cannot be downloaded, or contains no valid model.
    """
    if not isinstance(repository, str) or not repository:
        raise EnvariantError(f"repository must be a name such as 'user/model'; got {shown(repository)}")
    hub = required("huggingface_hub", _EXTRA)
    errors = hub.errors
    try:
        # Other files, which might be pickled, are not even downloaded.
        folder = hub.snapshot_download(
            repository, revision=revision, allow_patterns=[TENSORS, TEXT], **options
        )
    except (
        OSError,
        errors.HfHubHTTPError,
        errors.HFValidationError,
        errors.LocalEntryNotFoundError,
    ) as error:
        raise EnvariantError(f"{repository}: cannot be downloaded ({first_line(error)})") from None
    return load_model(folder, trusted=trusted)


_USAGE = """\
```python
from envariant.integrations.hub import load_from_hub

model = load_from_hub("USER/REPOSITORY", revision="COMMIT")
model.predict("new-rows.csv")
```"""


def _pipeline(model: SavedModel) -> str:
    return "tabular-regression" if model.task == Regression.name else "tabular-classification"


def _classes(model: SavedModel) -> str:
    return f": {', '.join(map(_line, model.classes))}" if model.classes else ""


def _bullets(names: Sequence[str]) -> str:
    return "\n".join(f"- {_line(name)}" for name in names) or "- none"


def _drops(drops: Mapping[str, float] | None, metric: str) -> str:
    if not drops:
        return "No drop was measured. `envariant.compare` measures it for every environment."
    for name, drop in drops.items():
        if isinstance(drop, bool) or not isinstance(drop, int | float):
            raise EnvariantError(f"write_card: the drop of '{name}' must be a number; got {shown(drop)}")
    unit = f" ({_line(metric)})" if metric else ""
    texts = {name: f"{drop:+.3f}" if math.isfinite(drop) else "not measured" for name, drop in drops.items()}
    rows = "\n".join(f"| {_line(name)} | {text} |" for name, text in texts.items())
    return f"In-domain score − out-of-domain score{unit}:\n\n| environment | drop |\n| --- | --- |\n{rows}"


def _line(text: object) -> str:
    """Return text from data as one line that Markdown does not interpret as HTML, tables or headings."""
    line = " ".join(str(text).split())
    for character in "\\`*_[]<>|#":
        line = line.replace(character, f"\\{character}")
    return line
