"""Save the altair charts of an example as pictures, next to those of matplotlib."""

from pathlib import Path
from typing import Any

import altair as alt
from sphinx_gallery.scrapers import figure_rst

from envariant.reporting import charts


def save_charts(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Save every chart that is a new global variable of the example and return the reStructuredText for it.

    Args:
        block: Code block that has just run: label, text and line.
        block_vars: What the gallery knows of the example, with its global variables.
        gallery_conf: Settings of the gallery.
    """
    variables = block_vars["example_globals"]
    saved = variables.setdefault("_saved_charts", set())
    paths: list[str] = []
    for value in list(variables.values()):
        if isinstance(value, alt.TopLevelMixin) and id(value) not in saved:
            saved.add(id(value))
            path = next(block_vars["image_path_iterator"])
            charts.save(value, Path(path))
            paths.append(path)
    return figure_rst(paths, gallery_conf["src_dir"])
