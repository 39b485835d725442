"""Published figures that may stand beside a run: those of a run with exactly the paper's settings."""

from dataclasses import dataclass
from typing import final

from envariant import published
from envariant.training.record import Record

# The published table and its row, by data set and algorithm.
ROWS = {
    ("colored-mnist:irm", "erm"): ("irm_colored_mnist", "ERM"),
    ("colored-mnist:irm", "irm"): ("irm_colored_mnist", "IRM"),
    ("colored-mnist:irm", "vrex"): ("rex_colored_mnist", "V-REx"),
    ("colored-mnist:irm", "mm-rex"): ("rex_colored_mnist", "MM-REx"),
    ("colored-mnist-grayscale:irm", "erm"): ("irm_colored_mnist", "ERM, grayscale model (oracle)"),
}


@final
@dataclass(frozen=True)
class PublishedScores:
    """One row of a published table, as fractions of 1.

    Attributes:
        train: Mean over training environments, and its spread where one is published.
        test: The same in the test environment.
        source: The publication.
        spread: Kind of the spread, and the number of runs.
    """

    train: tuple[float, float | None]
    test: tuple[float, float | None]
    source: published.Source
    spread: str


def comparable(record: Record) -> PublishedScores | None:
    """Return the published scores of a run in the paper's settings; None if a setting differs or none exist.

    Every page and table that shows a published figure beside a run takes it from here.
    """
    entry = ROWS.get((record.spec.data, record.spec.algorithm))
    if record.changed or entry is None:
        return None
    table = published.table(entry[0])
    return PublishedScores(
        table.fraction(entry[1], "train"),
        table.fraction(entry[1], "test"),
        published.source(table.source),
        f"{table.spread_kind}, {table.n_runs} runs",
    )
