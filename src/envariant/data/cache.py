"""The folder in which downloaded and decoded data are cached."""

import os
from pathlib import Path

CACHE_VARIABLE = "ENVARIANT_CACHE"
"""Environment variable that sets the cache folder."""


def cache_folder(folder: Path | str | None = None) -> Path:
    """Return the given folder, else that of `ENVARIANT_CACHE`, else the system's cache folder."""
    selected = folder or os.environ.get(CACHE_VARIABLE)
    if not selected:
        import pooch

        selected = pooch.os_cache("envariant")
    return Path(selected).expanduser()
