"""Atomic writing of files."""

import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yield a temporary path; at the end of the block, its file atomically replaces `path`.

    Other processes may read or write `path` at the same time. If the block fails, `path` is unchanged.
    """
    # Files of `tempfile` are readable by their owner only.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
