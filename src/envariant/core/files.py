"""Write files completely or not at all, and read tensor files after verifying their checksum."""

import errno
import glob
import hashlib
import json
import os
import re
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from envariant.core.errors import EnvariantError, shown
from envariant.core.machine import memory
from envariant.core.paths import check_file, check_name

if TYPE_CHECKING:
    from torch import Tensor

_NO_SPACE = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_NO_RIGHT = {errno.EACCES, errno.EPERM, errno.EROFS}
# The digest covers the whole file with zeros in the place of the digest itself.
_UNSEALED = b"0" * 32
_SEAL = re.compile(rb'"checksum":"([0-9a-f]{32})"')


def cannot_write(path: Path, error: Exception, remedy: str = "") -> EnvariantError:
    """Return the error for a file or folder that cannot be written.

    Args:
        path: File or folder that cannot be written.
        error: Error of the operating system, or of a library.
        remedy: Advice for the user. Default: advice that fits the cause of the error.
    """
    code = getattr(error, "errno", None)
    if not remedy and code in _NO_SPACE:
        remedy = "free some space and try again"
    elif not remedy and code in _NO_RIGHT:
        remedy = "choose another folder, or change its permissions"
    remedy = remedy or "check the disk, or choose another folder"
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return EnvariantError(f"{path}: cannot be written ({reason}); {remedy}", retryable=True)


def as_path(path: object, what: str) -> Path:
    """Convert a string or path object to a `Path`.

    Args:
        path: Path of a file or folder.
        what: Name of the argument, for the error message.

    Raises:
        EnvariantError: If `path` is neither a path nor a string, is empty, or is not a valid name.
    """
    if not isinstance(path, str | os.PathLike) or not path:
        raise EnvariantError(f"{what} must be the path of a folder; got {shown(path)}")
    check_name(path)
    return Path(path)


@contextmanager
def writing(path: Path, remedy: str = "") -> Generator[None]:
    """Convert operating-system errors in a `with` block to one-line errors about `path`.

    Args:
        path: File or folder that is written in the block.
        remedy: Advice for the user. Default: advice that fits the cause of the error.

    Raises:
        EnvariantError: If the block raises an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error, remedy) from None


@contextmanager
def replacing(path: Path, remedy: str = "") -> Generator[Path]:
    """Yield a temporary path; after the `with` block, the file at this path atomically replaces `path`.

    The folder is created if necessary. Other processes may read or write `path` at the same time. If the
    block fails, `path` is unchanged and the temporary file is removed; if the process is killed, the next
    process that writes `path` removes the temporary file.

    Args:
        path: File to write.
        remedy: Advice for the user if `path` cannot be written. Default: advice that fits the cause of the
            error.

    Raises:
        EnvariantError: If the file cannot be written.
    """
    check_name(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
    with writing(path, remedy):
        if not path.name or path.is_dir():
            raise EnvariantError(f"{path}: is a folder; give the name of a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_partial(path.parent, glob.escape(path.name))
        try:
            # Some libraries create files that only their owner can read; this one has the usual permissions.
            part.touch()
            permissions = part.stat().st_mode
            yield part
            part.chmod(permissions)
            with part.open("rb+") as file:
                # Some file systems report a full disk only here.
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def remove_partial(folder: Path, names: str = "*") -> None:
    """Remove the temporary files of killed processes.

    Args:
        folder: Folder of the files.
        names: Glob pattern of the names of the files that the processes were writing. Temporary files of
            other names are kept.

    Raises:
        OSError: If the folder cannot be written.
    """
    for part in folder.glob(f".{names}.*.partial"):
        if not _is_running(part.name.split(".")[-3]):
            part.unlink(missing_ok=True)


def write_text(text: str, path: Path) -> None:
    """Write a text file completely or not at all.

    Raises:
        EnvariantError: If the file cannot be written.
    """
    write_bytes(text.encode("utf-8"), path)


def write_bytes(content: bytes, path: Path) -> None:
    """Write a file completely or not at all.

    Raises:
        EnvariantError: If the file cannot be written.
    """
    with replacing(path) as part:
        part.write_bytes(content)


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], texts: Mapping[str, str]) -> None:
    """Write tensors to a safetensors file with a checksum of all bytes, completely or not at all.

    Args:
        path: File to write.
        tensors: Tensors to write, by name.
        texts: Metadata strings by name, stored in the header of the file.

    Raises:
        EnvariantError: If the file cannot be written.
    """
    from safetensors.torch import save

    texts = {**texts, "checksum": _UNSEALED.decode()}
    data = memoryview(save({name: value.contiguous() for name, value in tensors.items()}, texts))
    start = _seal_of(data)
    assert start is not None
    with replacing(path) as part, part.open("wb") as file:
        for piece in (data[:start], _digest(data, start), data[start + len(_UNSEALED) :]):
            file.write(piece)


def read_tensors(path: Path, remedy: str) -> tuple[dict[str, str], dict[str, "Tensor"]]:
    """Read the metadata strings and the tensors from a file written by `write_tensors`.

    Args:
        path: File to read.
        remedy: Advice in the error message if the file is damaged.

    Raises:
        EnvariantError: If the file cannot be read, contains no checksum, or does not match its checksum.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    check_file(path)
    try:
        size, free = path.stat().st_size, memory()
        if free is not None and size > free:
            raise EnvariantError(
                f"{path}: has {size:,} bytes, more than the available memory", retryable=True
            )
        data = path.read_bytes()
    except OSError as error:
        raise EnvariantError(f"{path}: cannot be read ({error.strerror or error})", retryable=True) from None
    view = memoryview(data)
    start = _seal_of(view)
    if start is None:
        raise EnvariantError(
            f"{path}: is damaged, or was not written by envariant (it has no checksum); {remedy}"
        )
    if bytes(view[start : start + len(_UNSEALED)]) != _digest(view, start):
        raise EnvariantError(f"{path}: is damaged (its content differs from its checksum); {remedy}")
    try:
        return json.loads(data[8 : _header_end(view)])["__metadata__"], load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise EnvariantError(
            f"{path}: cannot be read as a tensor file ({type(error).__name__}); {remedy}"
        ) from None


def _header_end(data: memoryview) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def _seal_of(data: memoryview) -> int | None:
    """Return the position of the checksum in a safetensors file; None if the file has no checksum."""
    found = _SEAL.search(data[: _header_end(data)])
    return None if found is None else found.start(1)


def _digest(data: memoryview, start: int) -> bytes:
    digest = hashlib.blake2b(data[:start], digest_size=len(_UNSEALED) // 2)
    digest.update(_UNSEALED)
    digest.update(data[start + len(_UNSEALED) :])
    return digest.hexdigest().encode()


def _is_running(process: str) -> bool:
    if os.name != "posix" or not process.isdecimal():
        # Elsewhere, the signal 0 would end the process.
        return True
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
