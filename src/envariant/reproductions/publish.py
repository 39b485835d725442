"""A reproduction carried out and written down: one HTML page, the same as Markdown, CSV tables, PNG and SVG.

The page is written anew after each part, so a run that is stopped leaves what it has found, and parts that
were not asked for are filled in from what earlier calls stored.
"""

import base64
import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from envariant.core.errors import EnvariantError, unknown_name
from envariant.reporting import figures, html
from envariant.reporting.tables import TextTable
from envariant.reproductions.base import Claim, Finding, Listing, Part, Picture, Reproduction
from envariant.reproductions.runner import Lab, NotRunError, Profile
from envariant.training.result import TrainingResult


@final
@dataclass(frozen=True)
class Section:
    """One part and what it found.

    Attributes:
        part: the part.
        findings: in order.
        done: whether the part came to its end.
    """

    part: Part
    findings: tuple[Finding, ...] = field(repr=False)
    done: bool

    @property
    def claims(self) -> tuple[Claim, ...]:
        """The claims among the findings."""
        return tuple(finding for finding in self.findings if isinstance(finding, Claim))

    @property
    def count(self) -> str:
        """How many claims were confirmed, in words."""
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
) -> Iterator[Section]:
    """Carries out the parts that are asked for, in order, writing the page after each.

    Args:
        reproduction: what to reproduce.
        out: a folder for runs, page, tables and figures; what it holds already is gone on with.
        profile: "quick" or "full"; each keeps its runs apart.
        only: names of parts; none is all.
        mnist: where the MNIST files are, if not to be fetched.
        report: is given a line before each part and each run.

    Yields:
        Each part that was asked for, when it is done.

    Raises:
        EnvariantError: a name is unknown, or something cannot be written.
    """
    names = [part.name for part in reproduction.parts]
    for name in only:
        if name not in names:
            raise unknown_name("part", name, names, where=reproduction.name)
    wanted = [part for part in reproduction.parts if not only or part.name in only]
    lab = Lab(out / "runs", profile, mnist=mnist, report=report)
    archive = Lab(out / "runs", profile, mnist=mnist, stored_only=True)
    sections = {part.name: Section(part, (), done=False) for part in reproduction.parts}
    sections |= {part.name: _stored(part, archive) for part in reproduction.parts if part not in wanted}
    # Drawing takes longer than anything else here, so each section is drawn once.
    drawn = {name: _drawn(section, out) for name, section in sections.items()}
    for i, part in enumerate(wanted):
        report(f"part {i + 1} of {len(wanted)}: {part.name}")
        sections[part.name] = section = Section(part, tuple(part.find(lab)), done=True)
        drawn[part.name] = _drawn(section, out)
        runs = {**archive.runs, **lab.runs}
        page = html.render(
            "reproduction.html.j2",
            reproduction=reproduction,
            profile=profile,
            sections=[(each, drawn[name]) for name, each in sections.items()],
            runs=_runs(runs),
            provenance=_provenance(runs),
        )
        html.write(page, out / "report.html")
        html.write(_markdown(reproduction, list(sections.values()), profile), out / "report.md")
        yield section


def _stored(part: Part, archive: Lab) -> Section:
    """What earlier calls found of a part; nothing where a run is missing."""
    try:
        return Section(part, tuple(part.find(archive)), done=True)
    except NotRunError:
        return Section(part, (), done=False)


def _drawn(section: Section, out: Path) -> list[dict[str, Any]]:
    """A section's findings as the page wants them; its figures and tables are written to files as well.

    Raises:
        EnvariantError: they cannot be written.
    """
    found: list[dict[str, Any]] = []
    try:
        for finding in section.findings:
            match finding:
                case Claim():
                    found.append({"kind": "claim", "claim": finding})
                case Listing():
                    path = _place(out / "tables", section, finding.name, ".csv")
                    path.write_text(_csv(finding.table), encoding="utf-8")
                    found.append({"kind": "table", "listing": finding})
                case Picture():
                    vector, pixels = figures.svg(finding.figure), figures.png(finding.figure, 130)
                    stem = _place(out / "figures", section, finding.name, "")
                    stem.with_suffix(".svg").write_text(vector, encoding="utf-8")
                    stem.with_suffix(".png").write_bytes(pixels)
                    data = f"data:image/png;base64,{base64.b64encode(pixels).decode('ascii')}"
                    drawing = {"drawing": data if finding.pixels else vector, "caption": finding.caption}
                    found.append({"kind": "png" if finding.pixels else "svg", **drawing})
                case str():
                    found.append({"kind": "text", "text": finding})
    except OSError as error:
        raise EnvariantError(f"{out}: cannot be written ({error.strerror or error})") from None
    return found


def _place(folder: Path, section: Section, name: str, ending: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{section.part.name}-{name}{ending}"


def _markdown(reproduction: Reproduction, sections: Sequence[Section], profile: Profile) -> str:
    lines = [f"# {reproduction.title}", "", reproduction.lead, "",
             f"Profile **{profile}**: {reproduction.conditions[profile]}", ""]  # fmt: skip
    for section in sections:
        lines += [
            f"## {section.part.title}",
            "",
            f'<a id="{section.part.name}"></a>',
            "",
            f"> {section.part.says}",
            "",
        ]
        for finding in section.findings:
            match finding:
                case Claim():
                    lines += [f"- **{finding.verdict}**: {finding.text} ({finding.numbers})", ""]
                case Listing():
                    lines += [f"*{finding.caption}*", "", *_grid(finding.table), ""]
                    lines += [line for note in finding.table.notes for line in (f"<sub>{note}</sub>", "")]
                case Picture():
                    lines += [f"![{finding.caption}](figures/{section.part.name}-{finding.name}.png)", "",
                              f"*{finding.caption}*", ""]  # fmt: skip
                case str():
                    lines += [finding, ""]
        if not section.done:
            lines += ["Not run yet.", ""]
    return "\n".join(lines)


def _grid(table: TextTable) -> Iterator[str]:
    for i, line in enumerate((table.header, *table.lines)):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
        if i == 0:
            yield "|" + " --- |" * len(line)


def _csv(table: TextTable) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.header, *table.lines])
    return text.getvalue()


def _runs(runs: Mapping[str, TrainingResult]) -> TextTable:
    shown = {
        name: {
            "data": result.record.spec.data,
            "algorithm": result.record.spec.algorithm,
            "settings": ", ".join(f"{k}={v}" for k, v in result.record.spec.hyperparameters.items()),
            "model": result.record.spec.model,
            "steps": f"{result.record.spec.steps:,}",
            "replicas": str(result.record.spec.replicas),
            "seed": str(result.record.spec.seed),
            "optimizer": result.record.spec.optimizer,
            "rate": f"{result.record.spec.learning_rate:.4g}",
            "precision": result.record.spec.precision,
        }
        for name, result in sorted(runs.items())
    }
    names = dict.fromkeys(key for line in shown.values() for key in line)
    lines = tuple((name, *line.values()) for name, line in shown.items())
    return TextTable(("folder", *names), lines)


def _provenance(runs: Mapping[str, TrainingResult]) -> list[str]:
    """Where the numbers were made: a line for each combination of machine and versions there is."""
    lines: dict[str, int] = {}
    for result in runs.values():
        record = result.record
        parts = [f"{key} {value}" for key, value in (*record.hardware.items(), *record.versions.items())]
        lines[", ".join(parts)] = lines.get(", ".join(parts), 0) + 1
    return [f"{line}: {count} run{'s' if count > 1 else ''}." for line, count in lines.items()]
