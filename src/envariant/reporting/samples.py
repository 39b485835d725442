"""Pictures of data: sample images of every environment, or the distribution of every column."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from envariant.core.environments import Environment, EnvironmentSet, EnvironmentSource
from envariant.core.printable import number_of
from envariant.data import ColoredSource
from envariant.reporting import figures
from envariant.reporting.charts.distributions import distributions
from envariant.reporting.figures import plain_text
from envariant.reporting.labels import without_folders
from envariant.reporting.picture import Picture
from envariant.reporting.theme import INK, MUTED

_MOST_ENVIRONMENTS: Final = 12
_MOST_ROWS: Final = 5_000
_LONGEST_LABEL: Final = 14
_MOST_CHANNELS, _SMALLEST_IMAGE = 4, 8
# A column of text with more distinct values, in more than half of the rows, is free text.
_MOST_DISTINCT: Final = 30


def plot(source: EnvironmentSource, seed: int, most: int) -> Any:
    """Draw sample images (a `Picture`) or column distributions (an Altair chart) for each environment.

    Args:
        source: Data source to draw.
        seed: Seed of the data draw, and of the choice of rows.
        most: Maximum number of images per environment, or of columns.
    """
    sample = source.sample(seed)
    if isinstance(source, ColoredSource):
        facts = source.facts(sample)
        name = without_folders(source.name)
        text = f"Digits of {name}: one row per environment, with the label below each digit."
        return Picture(figures.overview(sample, facts, most), text)
    if _are_images(sample.input_shape):
        return _sheet(sample, seed, most)
    return _columns(sample, seed, most)


def _are_images(shape: Sequence[int]) -> bool:
    """Return whether a shape is that of images: `[1 to 4 channels, height, width]` or a large matrix."""
    with_channels = len(shape) == 3 and shape[0] <= _MOST_CHANNELS
    return with_channels or (len(shape) == 2 and min(shape) >= _SMALLEST_IMAGE)


def _sheet(sample: EnvironmentSet, seed: int, most: int) -> Picture:
    """Draw random images, one row of images per environment, with the target below each image."""
    shown, roles = sample.environments[:_MOST_ENVIRONMENTS], sample.roles()
    figure = Figure(figsize=(0.85 * most + 1.9, 1.1 * len(shown) + 0.2), layout="constrained")
    grid: Any = figure.subplots(len(shown), most + 1, width_ratios=[1.9] + [1] * most, squeeze=False)
    for panels, environment in zip(grid, shown, strict=True):
        for axes in panels:
            axes.set_axis_off()
        place = {"transform": panels[0].transAxes, "va": "center", "ha": "left"}
        name = plain_text(environment.name)
        panels[0].text(0, 0.65, name, fontsize=11, fontweight="bold", color=INK, wrap=True, **place)
        facts = f"{roles[environment.name]}, {len(environment):,} rows"
        panels[0].text(0, 0.3, facts, fontsize=9, color=MUTED, **place)
        index = _chosen(len(environment), most, seed)
        images = _images(environment, index)
        for axes, image, target in zip(panels[1:], images, environment.targets[index].tolist(), strict=False):
            axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(plain_text(_target(sample, target)), fontsize=8, color=MUTED, y=-0.3)
    hidden = len(sample.environments) - len(shown)
    more = f" Not drawn: {number_of(hidden, 'environment')}." if hidden else ""
    names = ", ".join(environment.name for environment in shown)
    return Picture(
        figure, f"Images of {without_folders(sample.label)} in {names}, with the target below each.{more}"
    )


def _images(environment: Environment, index: torch.Tensor) -> list[NDArray[np.float64]]:
    """Return images as arrays `[height, width]` or `[height, width, 3]` with values between 0 and 1."""
    inputs = environment.rows(index)[0].double().cpu()
    low, high = float(inputs.min()), float(inputs.max())
    scaled = ((inputs - low) / ((high - low) or 1.0)).numpy()
    if scaled.ndim == 3:
        return list(scaled)
    channels = scaled.shape[1]
    if channels == 1:
        return list(scaled[:, 0])
    if channels == 2:
        # Two channels are drawn in red and green.
        scaled = np.concatenate([scaled, np.zeros_like(scaled[:, :1])], axis=1)
    return list(scaled[:, :3].transpose(0, 2, 3, 1))


def _target(sample: EnvironmentSet, target: Any) -> str:
    if isinstance(target, list):
        return ""
    is_class = sample.task.chance is not None
    named = is_class and sample.classes
    text = sample.classes[int(target)] if named else str(int(target)) if is_class else f"{target:.3g}"
    return text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…"


def _columns(sample: EnvironmentSet, seed: int, most: int) -> Any:
    """Draw the distributions of the target and of the first `most` columns."""
    shown = sample.environments[:_MOST_ENVIRONMENTS]
    chosen = {environment.name: _chosen(len(environment), _MOST_ROWS, seed) for environment in shown}
    raws = {environment.name: _raw(environment, chosen[environment.name]) for environment in shown}
    texts = {name for raw in raws.values() for name in raw.columns if _is_free_text(raw[name])}
    columns = [name for name in next(iter(raws.values())).columns if name not in texts]
    frames = {
        each.name: pd.concat(
            [_targets(sample, each, chosen[each.name]), raws[each.name][columns[:most]]], axis=1
        )
        for each in shown
    }
    remarks: Sequence[tuple[int, str]] = (
        (len(columns) - most, "column"),
        (len(sample.environments) - len(frames), "environment"),
    )
    more = [f"Not drawn: {number_of(count, what)}." for count, what in remarks if count > 0]
    largest = max(map(len, sample.environments))
    more += [f"At most {_MOST_ROWS:,} random rows per environment."] if largest > _MOST_ROWS else []
    return distributions(frames, without_folders(sample.label), more)


def _raw(environment: Environment, index: torch.Tensor) -> pd.DataFrame:
    """Return some rows of the original table; without a table, return the inputs of the rows as columns."""
    raw = environment.input_store.frame(index)
    if raw is not None:
        return raw.reset_index(drop=True)
    inputs = environment.rows(index)[0].flatten(1).cpu().numpy()
    return pd.DataFrame(inputs, columns=[f"input {k}" for k in range(inputs.shape[1])])


def _is_free_text(column: "pd.Series[Any]") -> bool:
    is_text = pd.api.types.is_object_dtype(column) or pd.api.types.is_string_dtype(column)
    return is_text and column.nunique() > max(_MOST_DISTINCT, len(column) // 2)


def _targets(sample: EnvironmentSet, environment: Environment, index: torch.Tensor) -> "pd.DataFrame":
    """Return the targets as a column; classes are given by their names."""
    targets = environment.targets[index].cpu()
    if targets.dim() > 1:
        return pd.DataFrame(index=range(len(targets)))
    values = targets.tolist()
    is_class = sample.task.chance is not None
    return pd.DataFrame({"target": [_target(sample, value) for value in values] if is_class else values})


def _chosen(rows: int, most: int, seed: int) -> torch.Tensor:
    """Return the sorted indices of at most `most` random rows."""
    generator = np.random.default_rng(seed)
    chosen = generator.choice(rows, size=min(rows, most), replace=False)
    return torch.from_numpy(np.sort(chosen))
