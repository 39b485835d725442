"""Files of a saved model: a safetensors file and a JSON description; nothing is pickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from envariant.core.errors import EnvariantError

SCHEMA = 3
"""Schema version of the stored description."""

TENSORS, TEXT = "model.safetensors", "model.json"
"""Names of the file with the whole model and of the file with its description."""

_HEADER = "envariant.model"


def write(folder: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write both files of a saved model; if interrupted, either the old or the new model can be loaded.

    Args:
        folder: Folder to write to, created if missing.
        description: JSON-compatible description of the model.
        tensors: Arrays of the model, by name.

    Raises:
        EnvariantError: If the folder cannot be written.
    """
    text, partial = to_json(description), folder / "model.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The header includes the description, so that tensors and description are always of the same model.
        save_file({k: v.contiguous() for k, v in tensors.items()}, partial, metadata={_HEADER: text})
        partial.replace(folder / TENSORS)
        partial.write_text(text, encoding="utf-8")
        partial.replace(folder / TEXT)
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EnvariantError(f"{folder}: cannot be written ({reason})") from None


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the description and the tensors of a saved model.

    Raises:
        EnvariantError: If the folder has no saved model, or the model is damaged or of another schema
            version.
    """
    path = folder / TENSORS
    if not path.exists():
        raise EnvariantError(f"{folder}: holds no model (no {TENSORS}); pass the folder of a saved model")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_HEADER)
        tensors = load_file(path)
        description = None if text is None else json.loads(text)
    except (OSError, safetensors.SafetensorError, ValueError) as error:
        raise damaged(folder, error) from None
    if not isinstance(description, dict) or "schema" not in description:
        raise EnvariantError(f"{path}: holds tensors, but no model saved by envariant")
    if description["schema"] != SCHEMA:
        raise EnvariantError(
            f"{path}: has schema {description['schema']}, but this version reads schema {SCHEMA}; "
            f"save the model again"
        )
    return description, tensors


def damaged(folder: Path, error: Exception) -> EnvariantError:
    """Return the error for a saved model that cannot be read."""
    reason = str(error).splitlines()[0]
    if isinstance(error, ValidationError):
        fault = error.errors()[0]
        reason = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
    return EnvariantError(f"{folder / TENSORS}: is damaged ({reason}); save the model again")


def to_json(description: Mapping[str, Any]) -> str:
    """Return the JSON text of a description."""
    return json.dumps(description, ensure_ascii=False, indent=1) + "\n"
