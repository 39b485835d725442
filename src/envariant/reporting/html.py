"""Render Jinja templates as self-contained HTML pages."""

from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
    """Return a self-contained HTML page; all values are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("envariant.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
