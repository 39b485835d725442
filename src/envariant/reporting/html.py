"""Pages: a template and values in, one offline HTML file out, whole or not at all."""

from pathlib import Path
from typing import Any

import jinja2

from envariant.core.errors import EnvariantError


def render(template: str, **values: Any) -> str:
    """The page as text; every value is escaped, and nothing in it is fetched from anywhere."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("envariant.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def write(text: str, path: Path) -> None:
    """Writes a page; the file is whole, or as it was.

    Raises:
        EnvariantError: it cannot be written there.
    """
    if not path.name or path.is_dir():
        raise EnvariantError(f"{path}: is a folder; give the page a name, as in report.html")
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise EnvariantError(f"{path}: cannot be written ({error.strerror or error})") from None
