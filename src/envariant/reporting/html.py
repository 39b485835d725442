"""Render Jinja templates as self-contained HTML pages, and write pages to files."""

from pathlib import Path
from typing import Any

import jinja2

from envariant.core.errors import EnvariantError
from envariant.core.printable import printable


def render(template: str, **values: Any) -> str:
    """Return a self-contained HTML page; all values are escaped, and so are control characters."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("envariant.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return printable(environment.get_template(template).render(**values))


def write(text: str, path: Path) -> None:
    """Write a page atomically: if writing fails, an existing file is unchanged.

    Raises:
        EnvariantError: If the file cannot be written.
    """
    if not path.name or path.is_dir():
        raise EnvariantError(f"{path}: is a folder; give a file name, such as report.html")
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise EnvariantError(f"{path}: cannot be written ({error.strerror or error})") from None
