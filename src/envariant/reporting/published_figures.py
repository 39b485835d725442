"""Published scores of runs that use exactly the settings of a paper."""

from dataclasses import dataclass
from typing import final

from envariant import published
from envariant.training.record import Record

# Published table and row, by data set and algorithm.
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
    """Published scores of one method, as fractions instead of percentages.

    Attributes:
        train: Mean and spread of the score in training environments; the spread is None if not published.
        test: Mean and spread of the score in the test environment; the spread is None if not published.
        source: Paper in which the scores were published.
        spread: Kind of spread, such as standard deviation, and the number of runs.
    """

    train: tuple[float, float | None]
    test: tuple[float, float | None]
    source: published.Source
    spread: str


def comparable(record: Record) -> PublishedScores | None:
    """Return published scores for a run with the paper's settings; None if there are no such scores.

    All pages and tables with published scores use this function.
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
