"""HTML report of a comparison: one offline file with several sections.

To add a section, define a `PageSection` subclass and list it in `SECTIONS`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from envariant.comparison.formatting import capitalized, ci, environment_name, method_name, score
from envariant.comparison.narrative import Recommendation
from envariant.comparison.page.base import Block, PageSection
from envariant.comparison.page.causes import Causes, Remedies
from envariant.comparison.page.columns import Columns
from envariant.comparison.page.data_check import DataCheck
from envariant.comparison.page.over_time import OverTime
from envariant.comparison.page.provenance import PreprocessingLog, Settings
from envariant.comparison.page.scores import Drops, Methods, methods_table
from envariant.comparison.page.shifts import Shifts
from envariant.comparison.page.subgroups import Subgroups
from envariant.comparison.results import ComparisonResults
from envariant.core.files import write_text
from envariant.core.paths import check_overwrite
from envariant.core.printable import finite
from envariant.reporting import html
from envariant.reporting.page import BigNumber, Page, Section
from envariant.reporting.page import render as render_page

__all__ = ["SECTIONS", "Block", "PageSection", "methods_table", "render", "to_dict", "write"]

SECTIONS: tuple[type[PageSection], ...] = (
    DataCheck, Drops, OverTime, Causes, Remedies, Methods, Subgroups, Columns, Shifts, PreprocessingLog,
    Settings,
)  # fmt: skip
"""Sections of the page in display order."""

# Largest number of environments listed by name at the top.
_MOST_NAMES = 8


def sections(results: ComparisonResults, recommended: str) -> list[PageSection]:
    """Return all sections for which the results of a comparison have content."""
    return [section(results, recommended) for section in SECTIONS if section.applies(results)]


def to_dict(results: ComparisonResults, recommended: str) -> dict[str, Any]:
    """Return the numbers of all applicable sections as a JSON-serializable dictionary."""
    return {key: value for each in sections(results, recommended) for key, value in each.to_dict().items()}


def render(results: ComparisonResults, recommendation: Recommendation) -> str:
    """Return the report as HTML without external resources."""
    data, method = results.data, recommendation.algorithm
    use = (
        Block(
            "text",
            f"The {method_name(method)} model, trained on all environments, is saved next to this page:",
        ),
        Block("command", "envariant predict model new.csv"),
        Block("text", "To list all runs:"),
        Block("command", "envariant runs list ."),
        Block("note", "Run both commands in the folder of this page."),
    )
    own = [
        Section(s.anchor, s.title, s.render(), s.hint, s.anchor == Methods.anchor)
        for s in sections(results, method)
    ]
    steps, findings = recommendation.next_steps, recommendation.further_findings
    texts = [
        Section("next-steps", "Next steps", (Block("list", steps),), f"{len(steps)}", is_open=True),
        Section("findings", "Further findings", (Block("list", findings),), f"{len(findings)}"),
    ]
    return render_page(
        Page(
            "comparison",
            f"Predict {data.target} in {data.new_environment}",
            _extent(results),
            recommendation.headline,
            numbers=_numbers(results, method),
            bullets=recommendation.bullets,
            figure=Drops(results, method).chart() if results.baseline else None,
            sections=[
                *(s for s in texts if s.blocks[0].content),
                *own,
                Section("model", "Use the model", use),
            ],
            methods=[method_name(name) for name in results.cells],
        )
    )


def _numbers(results: ComparisonResults, method: str) -> list[BigNumber]:
    """Return the headline numbers: the recommended method's scores in its worst environment."""
    if not results.cells.get(method):
        return []
    name, cell = results.worst(method)
    where = environment_name(results, name)
    title = capitalized(method_name(method))
    numbers = [
        BigNumber(
            f"{title}, {results.metric.name} out-of-domain in {where}",
            score(results, cell.ood_score.mean),
            f"worst environment; 95 % CI {ci(results, cell.ood_score)}",
        )
    ]
    if cell.id_score.count:
        inside = BigNumber(
            f"{title}, {results.metric.name} in-domain in {where}",
            score(results, cell.id_score.mean),
            "the environment's other rows in training",
        )
        numbers.insert(0, inside)
    return numbers


def write(
    numbers: Mapping[str, Any], results: ComparisonResults, recommendation: Recommendation, folder: Path
) -> None:
    """Write the report (report.html) and the numbers (comparison.json) to a folder.

    Raises:
        EnvariantError: If a file cannot be written.
    """
    check(folder)
    write_text(render(results, recommendation), folder / "report.html")
    text = json.dumps(finite(dict(numbers)), indent=1, allow_nan=False)
    write_text(text, folder / "comparison.json")


def check(folder: Path) -> None:
    """Check that writing the report would overwrite only files of an earlier comparison.

    Raises:
        EnvariantError: If report.html or comparison.json exists and was not written by a comparison.
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
