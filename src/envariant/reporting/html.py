"""Render Jinja templates as self-contained HTML pages."""

from pathlib import Path
from typing import Any

import jinja2

from envariant.core.paths import check_overwrite
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


def check_page(path: Path, kind: str) -> None:
    """Check that writing a page overwrites nothing but an earlier page of its kind.

    Args:
        path: HTML file to be written.
        kind: "runs", "study", "comparison" or "reproduction".

    Raises:
        EnvariantError: If the file exists and is another one.
    """
    check_overwrite(path, f'name="generator" content="envariant {kind}"')
