"""Render Jinja templates as self-contained HTML pages."""

from pathlib import Path
from typing import Any

import jinja2

from envariant.core.paths import check_overwrite
from envariant.core.printable import printable


def render(template: str, **values: Any) -> str:
    """Render a template as a self-contained HTML page; escape all values and control characters.

    Args:
        template: File name of the Jinja template.
        values: Values of the template's variables.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("envariant.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return printable(environment.get_template(template).render(**values))


def check_page(path: Path, kind: str) -> None:
    """Check that writing an HTML page overwrites no file, except an earlier page of the same kind.

    Args:
        path: HTML file to be written.
        kind: Kind of page: "runs", "study", "comparison", "evaluation", "reproduction" or "data".

    Raises:
        EnvariantError: If the file exists and is not a page of this kind.
    """
    check_overwrite(path, f'name="generator" content="envariant {kind}"')
