"""Settings, runs and tables shared by the sections on spirals of the AND-mask reproduction."""

from collections.abc import Iterator, Mapping
from typing import Any

from envariant import published
from envariant.reporting import charts
from envariant.reporting.tables import TextTable
from envariant.reproductions.base import CaptionedFigure, CaptionedTable, Finding
from envariant.reproductions.runner import Run
from envariant.reproductions.summaries import id_score, mean_and_sd, mean_curve, only_test_environment
from envariant.training.result import TrainingResult

PAPER = published.claims("and_mask")
MODEL = "mlp(hidden=256, depth=3, activation='leaky-relu', init='kaiming-normal')"
EPOCH = 4
"""Updates per epoch at the README's settings: 1,024 rows in batches of 256."""
STEPS, EVERY = 150 * EPOCH, 10 * EPOCH
SHORT = 50 * EPOCH
"""Updates of the other methods in the quick profile: they learn the shortcut within 10 epochs."""
README: dict[str, Any] = {
    "model": MODEL, "steps": STEPS, "batch_size": 256, "weight_decay": 1e-3, "evaluate_every": EVERY,
    "learning_rate": f"step(1e-2, 1e-3, at={112 * EPOCH})",
}  # fmt: skip
CHANCE, NEARLY = 0.6, 0.95
"""Bounds of test accuracy: below the first, a method is at chance; a run at or above the second is solved."""


def spirals_run(algorithm: str, replicas: int, data: str = "spirals", **settings: Any) -> Run:
    """Return a run on spirals at the settings of the README.

    Args:
        algorithm: Name of the algorithm with its hyperparameters.
        replicas: Number of replicas.
        data: Name of the data set.
        **settings: Other arguments of `train`, which replace those of the README.
    """
    return Run(data, algorithm, {**README, "replicas": replicas, **settings})


def accuracies(results: Mapping[str, TrainingResult], caption: str, prefix: str = "") -> Iterator[Finding]:
    """Yield a figure of the test accuracy during training, and a table of final accuracies.

    Args:
        results: Results of runs, by label.
        caption: Second sentence of the figure's caption.
        prefix: Prefix of the names of figure and table, for a section with several of them.
    """
    series = {
        name: mean_curve(result, [only_test_environment(result)], "accuracy")
        for name, result in results.items()
    }
    chart = charts.lines(series, "update", "test accuracy", marks={"chance": 0.5})
    yield CaptionedFigure(f"{prefix}curves", chart, f"Test accuracy during training. {caption}")
    rows: list[tuple[str, ...]] = []
    for name, result in results.items():
        tests, train = result.final(only_test_environment(result), "accuracy").values, id_score(result)
        updates = f"{result.record.spec.steps:,}"
        rows.append((name, mean_and_sd(tests), f"{train.mean:.3f}", str(len(tests)), updates))
    header = ("method", "test accuracy", "training accuracy", "runs", "updates")
    table = TextTable(header, tuple(rows))
    yield CaptionedTable(f"{prefix}scores", table, "Final accuracy: mean ± sd over runs")
