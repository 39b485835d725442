"""Page of a comparison: one offline HTML file with several sections.

To add a section, define a `PageSection` subclass and list it in `SECTIONS`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envariant.comparison.formatting import method_name
from envariant.comparison.narrative import Recommendation
from envariant.comparison.page.base import Block, PageSection
from envariant.comparison.page.causes import Causes, Remedies
from envariant.comparison.page.columns import Columns
from envariant.comparison.page.data_check import DataCheck
from envariant.comparison.page.provenance import PreprocessingLog, Settings
from envariant.comparison.page.scores import Drops, Methods, methods_table
from envariant.comparison.page.shifts import Shifts
from envariant.comparison.results import ComparisonResults
from envariant.core.files import write_text
from envariant.core.paths import check_overwrite
from envariant.reporting import html
from envariant.reporting.tables import finite

__all__ = ["SECTIONS", "Block", "PageSection", "methods_table", "render", "to_dict", "write"]

SECTIONS: tuple[type[PageSection], ...] = (
    DataCheck, Drops, Causes, Remedies, Methods, Columns, Shifts, PreprocessingLog, Settings,
)  # fmt: skip
"""Sections of the page in display order."""

# Largest number of environments listed by name at the top.
_MOST_NAMES = 8


def sections(results: ComparisonResults, recommended: str) -> list[PageSection]:
    """Return the sections that apply to the results of a comparison."""
    return [section(results, recommended) for section in SECTIONS if section.applies(results)]


def to_dict(results: ComparisonResults, recommended: str) -> dict[str, Any]:
    """Return the numbers of all applicable sections as a JSON-compatible dictionary."""
    return {key: value for each in sections(results, recommended) for key, value in each.to_dict().items()}


def render(results: ComparisonResults, recommendation: Recommendation, folder: Path) -> str:
    """Return the page as HTML without external resources."""
    data = results.data
    return html.render(
        "comparison.html.j2",
        heading=f"Predict {data.target} in a new {data.environment_column}",
        extent=_extent(results),
        recommendation=recommendation,
        sections=[(s.anchor, s.title, s.render()) for s in sections(results, recommendation.algorithm)],
        method=method_name(recommendation.algorithm),
        folder=str(folder),
    )


def write(
    numbers: Mapping[str, Any], results: ComparisonResults, recommendation: Recommendation, folder: Path
) -> None:
    """Write the page (report.html) and the numbers (comparison.json) to a folder.

    Raises:
        EnvariantError: If a file cannot be written.
    """
    check(folder)
    write_text(render(results, recommendation, folder), folder / "report.html")
    text = json.dumps(finite(dict(numbers)), indent=1, allow_nan=False)
    write_text(text, folder / "comparison.json")


def check(folder: Path) -> None:
    """Check that writing the page and the numbers overwrites only those of an earlier comparison.

    Raises:
        EnvariantError: If a file with one of these names exists and was not written by a comparison.
    """
    html.check_page(folder / "report.html", "comparison")
    check_overwrite(folder / "comparison.json", r'\A\{\s*"verdict":')


def _extent(results: ComparisonResults) -> str:
    rows = results.data.n_rows
    names = ", ".join(f"{name} ({count:,})" for name, count in list(rows.items())[:_MOST_NAMES])
    more = ", …" if len(rows) > _MOST_NAMES else ""
    return (
        f"{sum(rows.values()):,} rows, {len(results.data.columns)} columns, {len(rows)} environments by "
        f"{results.data.environment_column}: {names}{more}"
    )
