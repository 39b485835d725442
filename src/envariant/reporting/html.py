"""Render Jinja templates as self-contained HTML pages."""

from typing import Any

import jinja2

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
