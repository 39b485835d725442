"""Files of a saved model: a safetensors file and a JSON description, without pickled objects."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from envariant.core.errors import EnvariantError, first_line
from envariant.core.files import read_tensors, write_tensors, write_text
from envariant.core.paths import check_file, check_overwrite

SCHEMA = 3
"""Schema version of the stored description."""

TENSORS, TEXT = "model.safetensors", "model.json"
"""Names of the file with the whole model and of the file with its description."""

OURS = r'\A\{\s*"schema": \d+,\s*"inputs":'
"""Regular expression that the beginning of a description matches."""

_HEADER = "envariant.model"
_REMEDY = "save the model again, or repeat the comparison that saved it"


def write(folder: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write both files of a saved model; an interruption leaves either the old or the new model complete.

    Args:
        folder: Folder to write to, created if missing.
        description: JSON-compatible description of the model.
        tensors: Arrays of the model, by name.

    Raises:
        EnvariantError: If the folder cannot be written.
    """
    check(folder)
    text = to_json(description)
    # The header includes the description, so that tensors and description are always of the same model.
    write_tensors(folder / TENSORS, tensors, {_HEADER: text})
    write_text(text, folder / TEXT)


def check(folder: Path) -> None:
    """Check that saving a model would overwrite no files except those of an earlier saved model.

    Raises:
        EnvariantError: If a file named `model.safetensors` or `model.json` exists and is not part of a saved
            model.
    """
    check_overwrite(folder / TENSORS, r'__metadata__":\{"(checksum|envariant\.model)"')
    check_overwrite(folder / TEXT, OURS)


def check_adapted(folder: Path, original: Path) -> None:
    """Check that saving an adapted model would overwrite no files except those of an earlier adapted model.

    Args:
        folder: Folder to which the adapted model will be saved.
        original: Folder of the original model.

    Raises:
        EnvariantError: If the folder is that of the original model, or contains a model that is not adapted,
            or another file named `model.safetensors` or `model.json`.
    """
    check(folder)
    if not (folder / TENSORS).exists():
        return
    if folder.resolve() == original.resolve() or not read(folder)[0].get("adaptation"):
        raise EnvariantError(f"{folder}: contains a model that is not an adapted one; choose another folder")


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the description and the tensors of a saved model.

    Raises:
        EnvariantError: If the folder contains no saved model, or the model is damaged or has an unsupported
            schema version.
    """
    path = folder / TENSORS
    check_file(path, f"{folder}: holds no model (no {TENSORS}); pass the folder of a saved model")
    texts, tensors = read_tensors(path, _REMEDY)
    try:
        description = json.loads(texts.get(_HEADER, "null"))
    except (ValueError, RecursionError) as error:
        raise damaged(folder, error) from None
    if not isinstance(description, dict) or "schema" not in description:
        raise EnvariantError(f"{path}: is a tensor file, but not a model saved by envariant")
    if description["schema"] != SCHEMA:
        raise EnvariantError(
            f"{path}: has schema {description['schema']}, but this version reads schema {SCHEMA}; "
            f"save the model again"
        )
    return description, tensors


def damaged(folder: Path, error: Exception) -> EnvariantError:
    """Return the `EnvariantError` for a saved model that cannot be read."""
    reason = first_line(error)
    if isinstance(error, ValidationError):
        fault = error.errors()[0]
        reason = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
    return EnvariantError(f"{folder / TENSORS}: is damaged ({reason}); {_REMEDY}")


def to_json(description: Mapping[str, Any]) -> str:
    """Convert the description of a model to JSON text."""
    return json.dumps(description, ensure_ascii=False, indent=1) + "\n"
