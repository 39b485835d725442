"""Stored results of computations that are not training runs.

A computation is a function of declared inputs. Its result is stored under a digest of the name, the inputs
and a version number, so that it is computed only once.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from envariant.core.errors import EnvariantError
from envariant.core.files import write_text


@final
@dataclass(frozen=True)
class Computation:
    """Result of a computation, with the conditions under which it was computed.

    Attributes:
        name: Name of the computation.
        inputs: Arguments of the function, as JSON values.
        version: Version number of the function.
        result: Returned value, as JSON values.
        seconds: Computing time in seconds.
        machine: Hardware and package versions by name.
    """

    name: str
    inputs: Mapping[str, Any]
    version: int
    result: Any
    seconds: float
    machine: Mapping[str, Any]


def file_of(folder: Path, name: str, inputs: Mapping[str, Any], version: int) -> Path:
    """Return the file path of a computation; the file name contains a digest of name, inputs and version.

    Raises:
        EnvariantError: If an input is not a JSON value, that is, a number, string, list or dictionary.
    """
    try:
        declaration = json.dumps([name, dict(inputs), version], sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise EnvariantError(
            f"{name}: inputs must be finite numbers, strings, lists or dictionaries"
        ) from error
    digest = hashlib.blake2b(declaration.encode(), digest_size=8).hexdigest()
    return folder / f"{name}-{digest}.json"


def load(path: Path) -> Computation | None:
    """Return a stored computation, or None if the file does not exist.

    Raises:
        EnvariantError: If the file was changed, or does not contain a computation.
    """
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        checksum = stored.pop("checksum")
        intact = checksum == _checksum(stored)
        computation = Computation(**stored)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EnvariantError(f"{path}: is damaged; delete it to compute it again") from error
    if not intact:
        raise EnvariantError(f"{path}: was changed after it was written; delete it to compute it again")
    return computation


def perform(
    path: Path, name: str, inputs: Mapping[str, Any], version: int, function: Callable[..., Any]
) -> Computation:
    """Compute and store a result; return it as `load` would return it, with lists instead of tuples.

    Args:
        path: File of the computation.
        name: Name of the computation.
        inputs: Arguments of `function`.
        version: Version number of `function`.
        function: Function that returns JSON values; NaN and infinite numbers are permitted.

    Raises:
        EnvariantError: If the result is not a JSON value, or the file cannot be written.
    """
    # Imported here because PyTorch is slow to import and a stored computation does not need it.
    import torch

    from envariant.training import provenance

    start = time.perf_counter()
    result = function(**inputs)
    seconds = time.perf_counter() - start
    machine = {**provenance.hardware(torch.device("cpu")), **provenance.versions()}
    stored = asdict(Computation(name, dict(inputs), version, None, round(seconds, 2), machine))
    try:
        # Lists and tuples, and integer and text keys, are the same in JSON.
        stored = json.loads(json.dumps({**stored, "result": result}))
    except (TypeError, ValueError) as error:
        raise EnvariantError(
            f"{name}: the result must consist of numbers, strings, lists and dictionaries"
        ) from error
    write_text(json.dumps({**stored, "checksum": _checksum(stored)}), path)
    return Computation(**stored)


def _checksum(stored: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(stored, sort_keys=True).encode(), digest_size=16).hexdigest()
