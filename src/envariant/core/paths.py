"""Check paths, files and folders before they are used."""

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from envariant.core.errors import EnvariantError, first_line
from envariant.core.printable import one_line

# Names of devices on Windows.
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{k}" for port in ("com", "lpt") for k in range(1, 10))}
_LONGEST_NAME = 200
# Bytes at the beginning and at the end of a file in which its origin is searched.
_HEAD, _TAIL = 1 << 12, 1 << 16


def check_file(path: Path, missing: str = "", kinds: str = "") -> None:
    """Check that a path is a regular file before it is opened; opening a pipe could block forever.

    Args:
        path: File to be opened.
        missing: Error message if the file does not exist.
        kinds: Supported file types, such as " (.csv)", for the error message if the path is a folder.

    Raises:
        EnvariantError: If the path is missing, a folder, a pipe, a socket or a device.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise EnvariantError(missing or f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise EnvariantError(f"{path}: cannot be opened ({os_reason(error)})") from None
    if stat.S_ISDIR(mode):
        raise EnvariantError(f"{path}: is a folder; name a file{kinds}")
    if not stat.S_ISREG(mode):
        raise EnvariantError(f"{path}: is a pipe, a socket or a device; save its content to a file first")


def check_name(path: object) -> None:
    """Check that the operating system accepts `path` as the name of a file or folder.

    Raises:
        EnvariantError: If the name contains NUL or an incomplete Unicode character.
    """
    try:
        possible = b"\0" not in os.fsencode(str(path))
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise EnvariantError(
            f"{path}: cannot be the name of a file or folder, because it contains a NUL or an incomplete "
            f"character; choose another name"
        )


def os_reason(error: Exception) -> str:
    """Return the reason for an operating-system error as a string, without the path of the file."""
    return getattr(error, "strerror", None) or first_line(error)


def folder_name(name: str, where: str) -> str:
    """Check that a folder can have this name on every operating system, and return the name.

    Args:
        name: Name chosen by a user or read from a file.
        where: Description of the name, for the error message.

    Raises:
        EnvariantError: If the name is empty, too long or reserved, or contains a path separator or control
            character.
    """
    if (
        not name.strip(". ")
        or set(name) & set("/\\")
        or name != one_line(name)
        or name.partition(".")[0].strip().lower() in _RESERVED
        or len(name.encode()) > _LONGEST_NAME
    ):
        raise EnvariantError(
            f"{where} '{name}' cannot be the name of a folder; use letters and digits, or choose a folder"
        )
    return name


def check_overwrite(path: Path, ours: str, inputs: Iterable[Path] = ()) -> None:
    """Check that writing a file overwrites only an empty file or an earlier output of the same kind.

    Args:
        path: File to be written.
        ours: Regular expression that matches the beginning or the end of an earlier output.
        inputs: Input files, which must not be overwritten.

    Raises:
        EnvariantError: If the file is an input, or is neither empty nor an earlier output.
    """
    try:
        if any(each.exists() and path.samefile(each) for each in inputs if path.exists()):
            raise EnvariantError(f"{path}: is the input and would be overwritten; choose another file")
        mode = path.stat().st_mode
        if not stat.S_ISDIR(mode):
            if not stat.S_ISREG(mode):
                raise EnvariantError(f"{path}: is a pipe, a socket or a device; give the name of a file")
            with path.open("rb") as file:
                content = file.read(_HEAD)
                file.seek(max(file.tell(), path.stat().st_size - _TAIL), os.SEEK_SET)
                content += file.read(_TAIL)
            if content and not re.search(ours.encode(), content):
                raise not_ours(path)
    except EnvariantError:
        raise
    except (OSError, ValueError):
        # The file does not exist, or the attempt to write it gives the reason.
        return


def not_ours(path: Path) -> EnvariantError:
    """Return the error for an existing file that must not be overwritten."""
    return EnvariantError(
        f"{path}: already exists with other content; move it, or choose another file or folder"
    )
