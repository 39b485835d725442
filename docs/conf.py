"""Sphinx configuration: guides in Markdown, an executed gallery, an API reference from `__all__`."""

import os
import re
import shutil
import sys
import warnings
from importlib import metadata
from itertools import chain, zip_longest
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from _api import write_api_pages  # noqa: E402
from _charts import save_charts  # noqa: E402

# Examples show what a warning says, not the path of the file that issued it.
warnings.formatwarning = lambda message, *_, **__: f"{message}\n"

project = "Envariant"
author = "The Envariant developers"
copyright = "2026, the Envariant developers"
release = metadata.version("envariant")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "auto_examples/*.ipynb", "auto_examples/README.rst"]
nitpicky = False
default_role = "code"
suppress_warnings = ["ref.python", "config.cache"]  # attributes of the same name in several classes

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True, "no-value": True}
autosummary_generate = True
autosummary_ignore_module_all = False
templates_path = ["_templates"]
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_attr_annotations = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"/plot_",
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("matplotlib", save_charts),
    "capture_repr": ("_repr_html_", "__repr__"),
    "ignore_repr_types": r"matplotlib|altair",
    "remove_config_comments": True,
    "show_memory": False,
    "download_all_examples": True,
    "abort_on_example_error": True,
    "matplotlib_animations": False,
    "show_signature": False,
    "min_reported_time": 5,
    "first_notebook_cell": "%pip install envariant",
}

html_theme = "pydata_sphinx_theme"
html_title = "Envariant"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "navbar_align": "left",
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars = {"index": []}
html_show_sourcelink = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

_LITERAL = re.compile(r"(`+)(.+?)\1", re.DOTALL)
_SPECIAL = re.compile(r"([*|]|(?<=\w)_(?!\w))")


def _as_rst(text: str) -> str:
    """Turn plain text with `code` in backticks into reStructuredText."""
    parts = _LITERAL.split(text)
    # split() yields text, ticks, code, text, ticks, code, …, text.
    texts = [_SPECIAL.sub(r"\\\1", part) for part in parts[0::3]]
    codes = [f"``{code}``" for code in parts[2::3]]
    return "".join(chain.from_iterable(zip_longest(texts, codes, fillvalue="")))


def _docstring_to_rst(app, what, name, obj, options, lines):
    """Convert a docstring before napoleon reads it, paragraph by paragraph; examples stay as they are."""
    paragraphs = "\n".join(lines).split("\n\n")
    converted = [part if part.lstrip().startswith(">>>") else _as_rst(part) for part in paragraphs]
    lines[:] = "\n\n".join(converted).split("\n")


def _copy_benchmarks():
    """Copy the Markdown files of `benchmarks/` into the site, because Sphinx reads one folder only."""
    target = HERE / "benchmarks"
    target.mkdir(exist_ok=True)
    for picture in (HERE.parent / "benchmarks").glob("*.svg"):
        shutil.copy(picture, target)
    names = sorted(page.stem for page in (HERE.parent / "benchmarks").glob("[!R]*.md"))
    for name in ("README", *names):
        text = (HERE.parent / "benchmarks" / f"{name}.md").read_text(encoding="utf-8")
        text = re.sub(r"\[([^]]+)\]\(\w+\.(?:json|py)\)", r"`\1`", text.replace("](../docs/", "](../"))
        if name == "README":
            text += "\n```{toctree}\n:hidden:\n\n" + "\n".join(names) + "\n```\n"
        (target / f"{name.replace('README', 'index')}.md").write_text(text, encoding="utf-8")


def _link_benchmarks(app, docname, source):
    """Let links of the guides to `benchmarks/` lead to the copies in the site."""
    source[0] = re.sub(r"\]\(((?:\.\./)*)\.\./benchmarks/", r"](\1benchmarks/", source[0])


def setup(app):
    _copy_benchmarks()
    write_api_pages(HERE / "api")
    app.connect("source-read", _link_benchmarks)
    app.connect("autodoc-process-docstring", _docstring_to_rst, priority=400)
