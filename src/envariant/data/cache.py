"""Cache folder for downloaded and decoded data."""

import os
from pathlib import Path

CACHE_VARIABLE = "ENVARIANT_CACHE"
"""Environment variable that sets the cache folder."""


def cache_folder(folder: Path | str | None = None) -> Path:
    """Return the cache folder.

    Args:
        folder: Cache folder. Default: the folder in the environment variable `ENVARIANT_CACHE`, else the
            system's cache folder.
    """
    selected = folder or os.environ.get(CACHE_VARIABLE)
    if not selected:
        import pooch

        selected = pooch.os_cache("envariant")
    return Path(selected).expanduser()
