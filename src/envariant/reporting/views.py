"""Plots of data sources and results, and pages of studies.

The classes of data sources, results and studies do not import plotting packages. `core.display.views` imports
this module when a plot or page is requested.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envariant.core.environments import EnvironmentSource
from envariant.core.score_table import ScoreTable
from envariant.reporting import samples, study_page
from envariant.reporting.charts.runs import curves
from envariant.reporting.charts.studies import RankingRow, ranking
from envariant.training.result import TrainingResult
from envariant.training.store import Store


def plot_data(source: EnvironmentSource, seed: int, most: int) -> Any:
    """Draw sample images or distributions of columns; see `samples.plot`."""
    return samples.plot(source, seed, most)


def plot_runs(results: Sequence[TrainingResult]) -> Any:
    """Draw the scores of runs during training."""
    return curves(results)


def plot_scores(table: ScoreTable) -> Any:
    """Draw the average scores of a table, one row per method.

    A dot is one replica's average over the environments that `table` averages.
    """
    rows = [RankingRow(method, table.averages(method), {}) for method in table.values]
    return ranking(rows, f"{table.metric} in the test environments", {})


def write_study_page(store: Store, path: Path) -> None:
    """Write the HTML page of a study; see `study_page.write`."""
    study_page.write(store, path)
