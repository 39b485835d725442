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
    Finding,
    Reproduction,
    Section,
)
from envariant.reproductions.computations import Computation
from envariant.reproductions.runner import Profile, Runner, RunNotStoredError
from envariant.reproductions.verdicts import VERDICTS, Claim
from envariant.training.result import TrainingResult

_MOST_BULLETS = 4
_COMPUTED = "All other computations of this page; each file contains inputs, result, hardware and versions"
_METHOD = (
    "Verdicts are computed from the numbers below each claim. Reproduced: the published numbers and ours "
    "agree, that is, their means differ by at most two standard errors of the difference. Holds: the "
    "statement is true of our results, although numbers may differ. Not reproduced: our results contradict "
    "it. Undecided: our results are compatible with both the claim and its opposite. In the quick "
    "profile, only deterministic results can be reproduced or not reproduced. [a, b] is a 95 % interval "
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
        """Numbers of claims by verdict, as text such as "1 reproduced, 2 undecided"."""
        return _counts(self.claims) if self.done else "not run"


def _counts(claims: Sequence[Claim]) -> str:
    counts = {verdict: sum(claim.verdict == verdict for claim in claims) for verdict in VERDICTS}
    named = {v: "hold" if v == "holds" and n != 1 else v for v, n in counts.items()}
    return ", ".join(f"{n} {named[v]}" for v, n in counts.items() if n) or "no claims"


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
        results[section.name] = result = _found(section, runner)
        rendered[section.name] = _render(result, out)
        runs = {**archive.runs, **runner.runs}
        computed = {**archive.computations, **runner.computations}
        found = [(each, rendered[name]) for name, each in results.items()]
        page = _page(reproduction, profile, found, runs, computed)
        write_text(render_page(page), out / "report.html")
        provenance = _provenance(runs, computed)
        text = _markdown(reproduction, list(results.values()), profile, provenance)
        write_text(text, out / "report.md")
        yield result


def _page(
    reproduction: Reproduction,
    profile: Profile,
    sections: Sequence[tuple[SectionResult, Sequence[Block]]],
    runs: Mapping[str, TrainingResult],
    computations: Mapping[str, Computation],
) -> Page:
    """Return the HTML page with the number of claims per verdict and the findings of every section."""
    claims = [claim for result, _ in sections for claim in result.claims]
    supported, done = sum(claim.supported for claim in claims), sum(result.done for result, _ in sections)
    # Claims that are not reproduced come before undecided ones.
    rest = sorted((c for c in claims if not c.supported), key=lambda c: VERDICTS.index(c.verdict))
    bullets = [f"{c.verdict.capitalize()}: {c.text} ({c.numbers})" for c in rest]
    more = len(bullets) - _MOST_BULLETS
    last = [f"{more + 1} more claims are not reproduced or undecided; see below"] if more > 0 else []
    table = "All runs of this page; each folder contains settings, history, seeds and trained weights"
    return Page(
        "reproduction",
        reproduction.title,
        reproduction.lead,
        f"{supported} of {len(claims)} claims reproduced or hold" if claims else "No claim tested yet",
        numbers=(
            BigNumber("claims reproduced or hold", f"{supported} of {len(claims)}", _counts(claims)),
            BigNumber("sections run", f"{done} of {len(sections)}", f"profile {profile}"),
        ),
        bullets=[*bullets[: _MOST_BULLETS - len(last)], *last],
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
                *([Block.table(_runs(runs), table)] if runs else []),
                *([Block.table(_computed(computations), _COMPUTED)] if computations else []),
                *(Block("note", line) for line in _provenance(runs, computations)),
            )),
        ],
    )  # fmt: skip


def _missing(reproduction: Reproduction, result: SectionResult) -> list[Block]:
    if result.done:
        return []
    command = f"envariant reproduce {reproduction.name} --only {result.section.name}"
    return [Block("note", "Not run yet:"), Block("command", command)]


def _stored(section: Section, archive: Runner) -> SectionResult:
    """Return a section's result from stored runs and computations, without findings if any is missing."""
    try:
        return _found(section, archive)
    except RunNotStoredError:
        return SectionResult(section, (), done=False)


def _found(section: Section, runner: Runner) -> SectionResult:
    """Run a section and return its findings, with only those verdicts that the runner's profile permits."""
    findings = tuple(
        each.in_profile(runner.profile) if isinstance(each, Claim) else each for each in section.find(runner)
    )
    return SectionResult(section, findings, done=True)


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


def _markdown(
    reproduction: Reproduction, results: Sequence[SectionResult], profile: Profile, provenance: Sequence[str]
) -> str:
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
    if provenance:
        lines += ["## Machine and versions", "", *(text for line in provenance for text in (line, ""))]
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
        rate = s.learning_rate
        optimizer = (s.optimizer, f"{rate:.4g}" if isinstance(rate, float | int) else str(rate), s.precision)
        data = without_folders(s.data)
        rows.append((name, data, s.algorithm, hyperparameters, s.model, *numbers, *optimizer))
    header = (
        "folder", "data", "algorithm", "hyperparameters", "model", "steps", "replicas", "seed", "optimizer",
        "learning rate", "precision",
    )  # fmt: skip
    return TextTable(header, tuple(rows))


def _computed(computations: Mapping[str, Computation]) -> TextTable:
    """Return a table of stored computations, with one row each: file, inputs and computing time."""
    rows = tuple(
        (file, ", ".join(f"{key}={value}" for key, value in c.inputs.items()), f"{c.seconds:,.1f} s")
        for file, c in sorted(computations.items())
    )
    return TextTable(("file", "inputs", "computing time"), rows)


def _provenance(runs: Mapping[str, TrainingResult], computations: Mapping[str, Computation]) -> list[str]:
    """Return one line per combination of hardware and package versions, with the number of results."""
    counts: dict[str, int] = {}
    machines = [{**r.record.hardware, **r.record.versions} for r in runs.values()]
    for machine in (*machines, *(c.machine for c in computations.values())):
        line = ", ".join(f"{key} {value}" for key, value in machine.items())
        counts[line] = counts.get(line, 0) + 1
    return [f"{line}: {number_of(count, 'result')}." for line, count in counts.items()]
