"""Run a reproduction and write a report as HTML and Markdown pages, CSV tables, and PNG and SVG figures.

Both pages are rewritten after each section, so that an interruption loses no findings. Sections that were not
requested are included if all their runs are stored.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from matplotlib.figure import Figure

from envariant.core.errors import unknown_name
from envariant.core.files import write_bytes, write_text
from envariant.core.paths import check_overwrite
from envariant.core.printable import number_of
from envariant.reporting import charts, figures, html
from envariant.reporting.labels import without_folders
from envariant.reporting.page import BigNumber, Block, Page
from envariant.reporting.page import Section as PageSection
from envariant.reporting.page import render as render_page
from envariant.reporting.tables import TextTable
from envariant.reproductions.base import (
    CaptionedFigure,
    CaptionedTable,
    Claim,
    Finding,
    Reproduction,
    Section,
)
from envariant.reproductions.runner import Profile, Runner, RunNotStoredError
from envariant.training.result import TrainingResult

_MOST_BULLETS = 4
_METHOD = (
    "Whether a claim is confirmed is computed from the numbers below it. [a, b] is a 95 % interval "
    "(Student's t) over replicas; differences are paired between replicas of the same number, which "
    "have the same data. In tables of runs, ± is the standard deviation over replicas (divisor n − 1), "
    "and “worst” is the score in the worst environment of each replica, averaged over replicas. All "
    "settings of the papers come from oracle selection, that is, they were chosen by test accuracy. "
    "Where a setting is chosen here, the section states how."
)


@final
@dataclass(frozen=True)
class SectionResult:
    """Findings in one section of a reproduction.

    Attributes:
        section: Section of the reproduction.
        findings: Figures, tables, paragraphs and claims in reading order; empty if `done` is False.
        done: Whether all runs of the section are finished.
    """

    section: Section
    findings: tuple[Finding, ...] = field(repr=False)
    done: bool

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Claims contained in `findings`."""
        return tuple(finding for finding in self.findings if isinstance(finding, Claim))

    @property
    def count(self) -> str:
        """Number of confirmed claims as text, for example "2 of 3 confirmed"."""
        if not self.done:
            return "not run"
        return f"{sum(claim.holds for claim in self.claims)} of {len(self.claims)} confirmed"


def perform(
    reproduction: Reproduction,
    out: Path,
    profile: Profile,
    *,
    only: Sequence[str] = (),
    mnist: Path | None = None,
    report: Callable[[str], None] = lambda _line: None,
) -> Iterator[SectionResult]:
    """Run the requested sections in order, and write the pages after each section.

    Args:
        reproduction: Reproduction to run.
        out: Folder for runs, pages, tables and figures; stored runs in it are reused or resumed.
        profile: Size of the experiments: "quick" or "full".
        only: Names of the requested sections. Default: all sections.
        mnist: Folder of the MNIST files. Default: download to the cache.
        report: Function called with a line of text before each section and each run, to report progress.

    Yields:
        Result of each requested section, as soon as all runs of the section are finished.

    Raises:
        EnvariantError: If a section is unknown, or a file cannot be written.
    """
    names = [section.name for section in reproduction.sections]
    for name in only:
        if name not in names:
            raise unknown_name("section", name, names, where=reproduction.name)
    html.check_page(out / "report.html", "reproduction")
    check_overwrite(out / "report.md", rf"\A# {re.escape(reproduction.title)}\n")
    requested = [section for section in reproduction.sections if not only or section.name in only]
    runner = Runner(out / "runs", profile, mnist=mnist, report=report)
    archive = Runner(out / "runs", profile, mnist=mnist, stored_only=True)
    results = {
        section.name: SectionResult(section, (), done=False)
        if section in requested
        else _stored(section, archive)
        for section in reproduction.sections
    }
    # Drawing is the slowest part of rendering, so each section is rendered only once.
    rendered = {name: _render(result, out) for name, result in results.items()}
    for i, section in enumerate(requested):
        report(f"section {i + 1} of {len(requested)}: {section.name}")
        results[section.name] = result = SectionResult(section, tuple(section.find(runner)), done=True)
        rendered[section.name] = _render(result, out)
        runs = {**archive.runs, **runner.runs}
        page = _page(reproduction, profile, [(each, rendered[name]) for name, each in results.items()], runs)
        write_text(render_page(page), out / "report.html")
        write_text(_markdown(reproduction, list(results.values()), profile), out / "report.md")
        yield result


def _page(
    reproduction: Reproduction,
    profile: Profile,
    sections: Sequence[tuple[SectionResult, Sequence[Block]]],
    runs: Mapping[str, TrainingResult],
) -> Page:
    """Return the HTML page with the number of confirmed claims and the findings of every section."""
    claims = [claim for result, _ in sections for claim in result.claims]
    confirmed, done = sum(claim.holds for claim in claims), sum(result.done for result, _ in sections)
    failed = [f"Not confirmed: {claim.text} ({claim.numbers})" for claim in claims if not claim.holds]
    more = len(failed) - _MOST_BULLETS
    last = [f"{more + 1} more claims are not confirmed; see below"] if more > 0 else []
    table = "All runs of this page; each folder contains settings, history, seeds and trained weights"
    return Page(
        "reproduction",
        reproduction.title,
        reproduction.lead,
        f"{confirmed} of {len(claims)} claims confirmed" if claims else "No claim tested yet",
        numbers=(
            BigNumber("claims confirmed", f"{confirmed} of {len(claims)}", "computed from the runs"),
            BigNumber("sections run", f"{done} of {len(sections)}", f"profile {profile}"),
        ),
        bullets=[*failed[: _MOST_BULLETS - len(last)], *last],
        sections=[
            *(
                PageSection(
                    result.section.name,
                    result.section.title,
                    (Block("quote", result.section.statement), *blocks, *_missing(reproduction, result)),
                    result.count,
                )
                for result, blocks in sections
            ),
            PageSection("method", "How claims are tested", (
                Block("text", f"Profile {profile}: {reproduction.conditions[profile]}"),
                Block("note", _METHOD),
            )),
            PageSection("machine", "Runs, machine and versions", (
                Block.table(_runs(runs), table), *(Block("note", line) for line in _provenance(runs))
            )),
        ],
    )  # fmt: skip


def _missing(reproduction: Reproduction, result: SectionResult) -> list[Block]:
    if result.done:
        return []
    command = f"envariant reproduce {reproduction.name} --only {result.section.name}"
    return [Block("note", "Not run yet:"), Block("command", command)]


def _stored(section: Section, archive: Runner) -> SectionResult:
    """Return the result of a section from stored runs; without findings if any of its runs is missing."""
    try:
        return SectionResult(section, tuple(section.find(archive)), done=True)
    except RunNotStoredError:
        return SectionResult(section, (), done=False)


def _render(result: SectionResult, out: Path) -> list[Block]:
    """Return a section's findings for the page, and write its figures and tables to files.

    Raises:
        EnvariantError: If a file cannot be written.
    """
    blocks: list[Block] = []
    section = result.section.name
    for finding in result.findings:
        match finding:
            case Claim():
                blocks.append(Block("claim", finding))
            case CaptionedTable():
                write_text(_csv(finding.table), out / "tables" / f"{section}-{finding.name}.csv")
                blocks.append(Block.table(finding.table, finding.caption))
            case CaptionedFigure():
                stem = out / "figures" / f"{section}-{finding.name}"
                if isinstance(finding.figure, Figure):
                    write_text(figures.svg(finding.figure), stem.with_suffix(".svg"))
                    pixels = figures.png(finding.figure, 130)
                    write_bytes(pixels, stem.with_suffix(".png"))
                    blocks.append(Block.image(pixels, finding.caption))
                else:
                    write_text(charts.svg(finding.figure), stem.with_suffix(".svg"))
                    charts.save(finding.figure, stem.with_suffix(".png"))
                    blocks.append(Block.chart(finding.figure, finding.caption))
            case str():
                blocks.append(Block("text", finding))
    return blocks


def _markdown(reproduction: Reproduction, results: Sequence[SectionResult], profile: Profile) -> str:
    """Return the report as Markdown."""
    lines = [f"# {reproduction.title}", "", reproduction.lead, "",
             f"Profile **{profile}**: {reproduction.conditions[profile]}", ""]  # fmt: skip
    for result in results:
        section = result.section
        lines += [f"## {section.title}", "", f'<a id="{section.name}"></a>', "", f"> {section.statement}", ""]
        for finding in result.findings:
            match finding:
                case Claim():
                    lines += [f"- **{finding.verdict}**: {finding.text} ({finding.numbers})", ""]
                case CaptionedTable():
                    lines += [f"*{finding.caption}*", "", *_grid(finding.table), ""]
                    lines += [line for note in finding.table.notes for line in (f"<sub>{note}</sub>", "")]
                case CaptionedFigure():
                    lines += [f"![{finding.caption}](figures/{section.name}-{finding.name}.png)", "",
                              f"*{finding.caption}*", ""]  # fmt: skip
                case str():
                    lines += [finding, ""]
        if not result.done:
            lines += ["Not run yet.", ""]
    return "\n".join(lines)


def _grid(table: TextTable) -> Iterator[str]:
    """Yield the lines of a table in Markdown."""
    for i, row in enumerate((table.header, *table.rows)):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
        if i == 0:
            yield "|" + " --- |" * len(row)


def _csv(table: TextTable) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.header, *table.rows])
    return text.getvalue()


def _runs(runs: Mapping[str, TrainingResult]) -> TextTable:
    """Return a table of runs, with one row per run: folder and settings."""
    rows: list[tuple[str, ...]] = []
    for name, result in sorted(runs.items()):
        s = result.record.spec
        hyperparameters = ", ".join(f"{key}={value}" for key, value in s.hyperparameters.items())
        numbers = (f"{s.steps:,}", str(s.replicas), str(s.seed))
        optimizer = (s.optimizer, f"{s.learning_rate:.4g}", s.precision)
        data = without_folders(s.data)
        rows.append((name, data, s.algorithm, hyperparameters, s.model, *numbers, *optimizer))
    header = (
        "folder", "data", "algorithm", "hyperparameters", "model", "steps", "replicas", "seed", "optimizer",
        "learning rate", "precision",
    )  # fmt: skip
    return TextTable(header, tuple(rows))


def _provenance(runs: Mapping[str, TrainingResult]) -> list[str]:
    """Return one line per combination of hardware and package versions, with the number of runs."""
    counts: dict[str, int] = {}
    for result in runs.values():
        record = result.record
        line = ", ".join(
            f"{key} {value}" for key, value in (*record.hardware.items(), *record.versions.items())
        )
        counts[line] = counts.get(line, 0) + 1
    return [f"{line}: {number_of(count, 'run')}." for line, count in counts.items()]
