"""Published scores for runs that use exactly the settings of a paper."""

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
    """Published scores of one method, as fractions between 0 and 1 instead of percentages.

    Attributes:
        train: Mean score in training environments and its spread; the spread is None if it was not published.
        test: Mean score in the test environment and its spread; the spread is None if it was not published.
        source: Paper in which the scores were published.
        spread: Kind of spread, such as standard deviation, and the number of runs over which it was computed.
    """

    train: tuple[float, float | None]
    test: tuple[float, float | None]
    source: published.Source
    spread: str


def comparable(record: Record) -> PublishedScores | None:
    """Return the published scores for a run with a paper's settings; None if there are none.

    Every page or table with published scores obtains them from this function.
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
