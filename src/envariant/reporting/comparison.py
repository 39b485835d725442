"""Published figures beside ours, where the protocol is the same: looked up, never typed."""

from dataclasses import dataclass
from typing import final

from envariant import published
from envariant.training.result import TrainingResult

# By data set and algorithm: the published table and its row.
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
        train: mean over training environments, on the rows trained on, with its spread.
        test: the same for the held-out environment.
        source: the paper's title and address.
        spread: what the spread is, and over how many runs.
    """

    train: tuple[float, float | None]
    test: tuple[float, float | None]
    source: published.Source
    spread: str


def published_for(result: TrainingResult) -> Published | None:
    """The published row for a run in the paper's own settings, or None where there is none."""
    settings = result.record.spec
    if settings.changed:
        # Another model, another number of steps, other environments held out: not what was published.
        return None
    place = _PUBLISHED.get((settings.data, settings.algorithm))
    if place is None:
        return None
    table = published.table(place[0])
    return Published(
        table.fraction(place[1], "train"),
        table.fraction(place[1], "test"),
        published.source(table.source),
        f"{table.spread_kind}, {table.n_runs} runs",
    )
