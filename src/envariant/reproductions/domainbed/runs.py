"""Train one method, with one set of environments left out, in all draws and trials of a protocol."""

from collections.abc import Sequence
from pathlib import Path

from envariant import data as sources
from envariant.data.domainbed_split import both_parts
from envariant.reproductions.domainbed.draws import draw_of
from envariant.reproductions.domainbed.selection import curves_of
from envariant.training.train import train


def train_all(
    data: str,
    method: str,
    left_out: Sequence[str],
    draws: int,
    trials: int,
    steps: int,
    every: int,
    rows: int | None,
    most_rows: int | None,
    single: bool,
    *,
    mnist: Path | None = None,
) -> list[list[dict[str, dict[int, float]] | None]]:
    """Train a method with every hyperparameter draw in every trial, and return the accuracies of every run.

    Args:
        data: Specification of the data set as text, without its division into 80 % and 20 % parts.
        method: Name of the method in the published tables.
        left_out: Environments that are not trained on.
        draws: Number of hyperparameter draws.
        trials: Number of trials.
        steps: Number of updates.
        every: Number of updates between measurements.
        rows: Number of rows of each environment; None for all.
        most_rows: Largest batch size; None for no limit.
        single: Whether only one environment is trained on.
        mnist: Folder of the MNIST files. Default: the cache or a download.

    Returns:
        For each trial, a list with one entry per draw: the accuracies by environment part (80 % or 20 % of
        the rows) and step, or None if the run diverged.
    """
    accuracies: list[list[dict[str, dict[int, float]] | None]] = []
    for trial in range(trials):
        text = f"domainbed-split('{data}', trial={trial}" + ("" if rows is None else f", rows={rows}") + ")"
        source = sources.source(text, folder=mnist)
        accuracies.append([])
        for number in range(draws):
            draw = draw_of(method, number, trial, steps=steps, most_rows=most_rows, single=single)
            result = train(
                source,
                draw.algorithm,
                model="mnist-cnn",
                learning_rate=draw.learning_rate,
                batch_size=draw.batch_size,
                optimizer=draw.optimizer,
                steps=steps,
                evaluate_every=every,
                test_environments=both_parts(*left_out),
                seed=trial,
                execution="sequential",
                progress=False,
            )
            accuracies[-1].append(None if result.failures else curves_of(result))
    return accuracies
