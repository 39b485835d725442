"""HTML page about a data set before training: rows by environment and class, pictures, preprocessing."""

from pathlib import Path

from envariant.core.environments import EnvironmentSource
from envariant.core.errors import listed
from envariant.core.files import write_text
from envariant.data import ColoredSource
from envariant.reporting import figures, html, samples, tables
from envariant.reporting.coverage import Coverage
from envariant.reporting.labels import without_folders
from envariant.reporting.page import BigNumber, Block, Page, Section
from envariant.reporting.page import render as render_page
from envariant.reporting.picture import Picture

_MOST_BULLETS = 4
_MOST_PANELS = 12


def render(source: EnvironmentSource, seed: int = 0, coverage: Coverage | None = None) -> str:
    """Return an HTML page about a data set, as text.

    Args:
        source: Data source that the page describes.
        seed: Seed of the data draw.
        coverage: Row counts of the data source. Default: the rows are counted by this function.
    """
    coverage = coverage or Coverage.of(source, seed)
    rows = coverage.counts.sum(axis=1)
    sizes = {name: int(count) for name, count in zip(coverage.environments, rows, strict=True)}
    smallest = min(sizes, key=lambda name: sizes[name])
    total = sum(sizes.values())
    numbers = [
        BigNumber("environments", str(len(sizes))),
        BigNumber("rows", f"{total:,}", f"fewest: {sizes[smallest]:,} in {smallest}"),
    ]
    if coverage.classes:
        numbers.append(BigNumber("classes", str(len(coverage.classes))))
    absent = [
        f"{name} has no rows of {listed(classes)}" for name, classes in coverage.absent.items() if classes
    ]
    more = len(absent) - _MOST_BULLETS
    bullets = (
        absent if more <= 0 else [*absent[: _MOST_BULLETS - 1], f"{more + 1} more environments lack classes"]
    )
    log = [Block("definitions", [(str(k), without_folders(line)) for k, line in enumerate(coverage.log, 1)])]
    sections = [
        *_pictures(source, seed),
        Section("rows", "Rows by environment", (Block.table(coverage.table(), "Rows"),), is_open=True),
        Section(
            "preprocessing", "Preprocessing log", log if coverage.log else (), f"{len(coverage.log)} entries"
        ),
    ]
    name = without_folders(coverage.name)
    kind = "classes in every environment" if coverage.classes else "environments"
    return render_page(
        Page(
            "data",
            f"Data: {name}",
            "The rows for training and evaluation, inspected before any model is trained.",
            "Some environments lack classes"
            if absent
            else f"{len(sizes)} environments, {sum(sizes.values()):,} rows",
            numbers=numbers,
            bullets=bullets,
            figure=Block.chart(coverage.chart(), f"Number of rows of the {kind}."),
            sections=[section for section in sections if section.blocks],
        )
    )


def write(source: EnvironmentSource, path: Path, seed: int = 0, coverage: Coverage | None = None) -> None:
    """Write an HTML page about a data set to a file atomically; see `render` for the arguments.

    Raises:
        EnvariantError: If the file cannot be written, or a file that is not such a page exists at the path.
    """
    html.check_page(path, "data")
    write_text(render(source, seed, coverage), path)


def _pictures(source: EnvironmentSource, seed: int) -> list[Section]:
    """Return a section with sample images or column distributions; colored digits also have a facts table."""
    drawn = samples.plot(source, seed, _MOST_PANELS)
    if not isinstance(drawn, Picture):
        caption = "Click an environment to highlight it. Missing values are not drawn."
        return [Section("columns", "Columns by environment", (Block.chart(drawn, caption),), is_open=True)]
    blocks = [Block.image(figures.png(drawn.figure, 110), drawn.description)]
    if isinstance(source, ColoredSource):
        facts = tables.facts(source.facts(source.sample(seed)))
        blocks.append(Block.table(facts, "Accuracies of simple rules"))
    return [Section("pictures", "Pictures", blocks, is_open=True)]
