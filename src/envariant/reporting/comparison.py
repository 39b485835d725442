"""Published figures for runs in the setting of a paper; they are loaded, never typed."""

from dataclasses import dataclass
from typing import final

from envariant import published
from envariant.training import TrainingResult

# Published table and row by data set and algorithm.
_PUBLISHED = {
    ("colored-mnist:irm", "erm"): ("irm_colored_mnist", "ERM"),
    ("colored-mnist:irm", "irm"): ("irm_colored_mnist", "IRM"),
    ("colored-mnist:irm", "vrex"): ("rex_colored_mnist", "V-REx"),
    ("colored-mnist:irm", "mm-rex"): ("rex_colored_mnist", "MM-REx"),
    ("colored-mnist-grayscale:irm", "erm"): ("irm_colored_mnist", "ERM, grayscale model (oracle)"),
}


@final
@dataclass(frozen=True)
class Published:
    """One published row, as fractions of 1.

    Attributes:
        train: Mean over training environments, on training rows, and its spread.
        test: Score in the test environment, and its spread.
        source: Title and address of the paper.
        spread: Kind of spread and number of runs.
    """

    train: tuple[float, float | None]
    test: tuple[float, float | None]
    source: published.Source
    spread: str


def published_for(result: TrainingResult) -> Published | None:
    """Return the published row for a run with the paper's settings, or None if there is none."""
    settings = result.record.settings
    if settings.changed:
        # Another model, number of steps or test environment: not the published experiment.
        return None
    entry = _PUBLISHED.get((settings.data, settings.algorithm))
    if entry is None:
        return None
    table = published.table(entry[0])
    return Published(
        table.fraction(entry[1], "train"),
        table.fraction(entry[1], "test"),
        published.source(table.source),
        f"{table.spread_kind}, {table.n_runs} runs",
    )
