"""Checks of paths, files and folders before they are used."""

import stat
from pathlib import Path

from envariant.core.errors import EnvariantError, first_line
from envariant.core.printable import one_line

# Names of devices on Windows.
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{k}" for port in ("com", "lpt") for k in range(1, 10))}
_LONGEST_NAME = 200


def check_file(path: Path, missing: str = "", kinds: str = "") -> None:
    """Check that a path is a regular file before it is opened; opening a pipe could wait forever.

    Args:
        path: File to be opened.
        missing: Message if there is no such file.
        kinds: Examples of file names, such as " (.csv)", for the message about a folder.

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


def os_reason(error: Exception) -> str:
    """Return the reason of an error of the operating system, without the path."""
    return getattr(error, "strerror", None) or first_line(error)


def folder_name(name: str, where: str) -> str:
    """Return the name if a folder can be given it on every system.

    Args:
        name: Name chosen by a user or read from a file.
        where: Description of the name, for the error message.

    Raises:
        EnvariantError: If the name is empty, too long or reserved, or leaves the parent folder.
    """
    if (
        not name.strip(". ")
        or set(name) & set("/\\")
        or name != one_line(name)
        or name.partition(".")[0].strip().lower() in _RESERVED
        or len(name.encode()) > _LONGEST_NAME
    ):
        raise EnvariantError(
            f"{where} '{name}' cannot be the name of a folder; use letters and digits, or name a folder"
        )
    return name
