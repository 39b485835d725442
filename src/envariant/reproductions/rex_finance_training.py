"""Data and training for the stock prices of the REx paper: files, environments, losses and early stopping.

The networks of one method and one choice of training years are trained in one stack.
"""

import hashlib
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from envariant.core.errors import EnvariantError
from envariant.reproductions.stacked_mlp import initial, logits

if TYPE_CHECKING:
    from pandas import DataFrame

FOLDER_VARIABLE = "ENVARIANT_FINANCE"
"""Environment variable that sets the folder of the five files."""

HIDDEN, L2, RATE, SWITCH, WEIGHT, BLOCK = 128, 1e-3, 1e-3, 1000, 1e4, 50
# Penalty of each row. The program's runs named "ERM" pass the settings of REx; a true ERM has no penalty.
METHODS: Mapping[str, str] = {"ERM, as run": "vrex", "REx": "vrex", "IRM": "irm", "ERM": ""}


@final
@dataclass(frozen=True)
class ReleasedFile:
    """Known properties of one file of the released code.

    Attributes:
        rows: Number of rows, one per stock.
        columns: Number of columns after the symbol of the stock.
        classes: Number of rows of class 0 and of class 1.
        digest: First 16 digits of the SHA-256 digest.
    """

    rows: int
    columns: int
    classes: tuple[int, int]
    digest: str


FILES: dict[int, ReleasedFile] = {
    2014: ReleasedFile(3788, 64, (2174, 1614), "0395ad0e3aec41cb"),
    2015: ReleasedFile(4112, 57, (1229, 2883), "98e65b2bc0d18588"),
    2016: ReleasedFile(4783, 60, (1579, 3204), "ae316e4beca4c7ff"),
    2017: ReleasedFile(4958, 62, (3590, 1368), "628d5eda85df9023"),
    2018: ReleasedFile(4390, 64, (1346, 3044), "a97dda8776f93c84"),
}


@final
@dataclass(frozen=True)
class Size:
    """Size of the experiment.

    Attributes:
        steps: Number of updates.
        restarts: Number of networks for each choice of training years.
        choices: Number of choices of training years.
        every: Number of updates from one measurement of test accuracy to the next; a divisor of 50.
    """

    steps: int
    restarts: int
    choices: int
    every: int


SIZES: dict[str, Size] = {
    "quick": Size(steps=1201, restarts=1, choices=2, every=10),
    "reduced": Size(steps=2001, restarts=2, choices=5, every=5),
    "full": Size(steps=9001, restarts=3, choices=10, every=1),
}


@final
class FolderNotSetError(Exception):
    """Error raised if the environment variable with the folder of the files is not set."""


@lru_cache(maxsize=1)
def load(folder: Path) -> dict[int, "DataFrame"]:
    """Load the table of each year, and verify the number of rows, columns and classes, and the digest.

    Args:
        folder: Folder with the files `2014_clean.csv` to `2018_clean.csv` of the code of the REx paper.

    Returns:
        Tables by year. The index is the symbol of the stock.

    Raises:
        EnvariantError: If a file is missing, or is not the released one.
    """
    # Imported here because pandas is slow to import and stored results do not need it.
    import pandas as pd

    tables: dict[int, DataFrame] = {}
    for year, known in FILES.items():
        path = folder / f"{year}_clean.csv"
        try:
            content = path.read_bytes()
            table = pd.read_csv(io.BytesIO(content), index_col=0)
        except (OSError, ValueError) as error:
            reason = f"cannot be read ({getattr(error, 'strerror', None) or error})"
            raise EnvariantError(
                f"{path}: {reason}; {FOLDER_VARIABLE} must be the folder of the five files"
            ) from error
        labels = list(table.get("Class", ()))
        counts = (labels.count(0), labels.count(1))
        properties = {
            "number of rows": (len(table), known.rows),
            "number of columns": (table.shape[1], known.columns),
            "rows by class": (counts, known.classes),
            "SHA-256": (hashlib.sha256(content).hexdigest()[: len(known.digest)], known.digest),
        }
        for name, (value, expected) in properties.items():
            if value != expected:
                raise EnvariantError(
                    f"{path}: is not the file of the released code: {name} is {value}, expected {expected}"
                )
        tables[year] = table
    return tables


def environments(tables: Mapping[int, "DataFrame"]) -> dict[int, tuple[Tensor, Tensor]]:
    """Convert tables to inputs and labels, with balanced classes and standardized columns.

    Inputs are the numeric columns that all tables have. Each table also has the price change of the next
    year, whose sign is the label; this column is dropped. The first n rows of each class are kept, where n is
    the size of the smaller class. Each year, also for testing, is standardized by its own mean and standard
    deviation (divisor n − 1) over the kept rows.

    Args:
        tables: Table of each year, with the label in the column "Class".

    Returns:
        For each year, inputs `[rows, columns]` and labels `[rows]`.
    """
    columns = [set(predictors(table, year)) for year, table in tables.items()]
    first = next(iter(tables.values()))
    shared = [column for column in first.columns if all(column in own for own in columns)]
    converted: dict[int, tuple[Tensor, Tensor]] = {}
    for year, table in tables.items():
        kept = table.groupby("Class").head(int(table["Class"].value_counts().min()))
        values = kept[shared].to_numpy(np.float64)
        values = (values - values.mean(axis=0)) / values.std(axis=0, ddof=1)
        if not np.isfinite(values).all():
            raise EnvariantError(f"stock prices of {year}: a column is constant or has missing values")
        labels = torch.tensor(kept["Class"].to_numpy(np.float32))
        converted[year] = (torch.from_numpy(values.astype(np.float32)), labels)
    return converted


def predictors(table: "DataFrame", year: int) -> list[str]:
    """Return the numeric columns of a table, without the label and the price change of the next year.

    Args:
        table: Table of one year.
        year: Year of the table. A column is the price change of the next year if its name contains that year.
    """
    numeric = table.select_dtypes("number").columns
    return [column for column in numeric if column != "Class" and str(year + 1) not in column]


def choices() -> list[list[int]]:
    """Return the ten choices of three training years; in the first five, every year is a test year twice."""
    years = list(FILES)
    tests = [{years[k], years[(k + distance) % 5]} for distance in (1, 2) for k in range(5)]
    return [[year for year in years if year not in test] for test in tests]


def objective(
    z: Tensor, targets: Tensor, sizes: Sequence[int], params: Sequence[Tensor], penalty: str, step: int
) -> Tensor:
    """Return the loss of each network, as in the released program.

    The mean risk plus 0.001 times the squared norm of all parameters is divided by 10,000 from step 1,000 on.
    The penalty is added with weight 1 in all steps. Without a penalty, nothing is divided.

    Args:
        z: Logits `[networks, rows]`, with the rows of one environment after those of another.
        targets: Labels `[rows]`.
        sizes: Number of rows of each environment.
        params: Parameters of all networks; the first dimension is the network.
        penalty: "vrex" for the variance of the risks (divisor n − 1), "irm" for the penalty IRMv1, or "".
        step: Number of updates before this one.
    """
    rows = targets.expand_as(z)
    losses = cross_entropy(z, rows, reduction="none")
    risks = torch.stack([part.mean(dim=1) for part in losses.split(list(sizes), dim=1)], dim=1)
    loss = risks.mean(dim=1) + L2 * torch.stack([p.square().sum(dim=(1, 2)) for p in params]).sum(dim=0)
    if not penalty:
        return loss
    scaled = loss / (WEIGHT if step >= SWITCH else 1.0)
    if penalty == "vrex":
        return scaled + risks.var(dim=1)
    # The derivative of a row's loss with respect to a factor of its logit, at factor 1.
    derivatives = (z.sigmoid() - rows) * z
    slopes = torch.stack([part.mean(dim=1) for part in derivatives.split(list(sizes), dim=1)], dim=1)
    return scaled + slopes.square().mean(dim=1)


def train(
    data: Mapping[int, tuple[Tensor, Tensor]],
    training_years: Sequence[int],
    penalty: str,
    size: Size,
    seed: Sequence[int],
) -> dict[str, Any]:
    """Train several networks on three years, and return their accuracy in the other two years.

    The networks have two hidden layers of 128 units, each followed by tanh and dropout of 0.5. Every update
    uses all rows. Accuracy is measured before the update and averaged over blocks of 50 steps; an incomplete
    last block is omitted.

    Args:
        data: Inputs and labels by year.
        training_years: Years of the training environments.
        penalty: Penalty, as in `objective`.
        size: Number of updates and networks, and interval of measurements.
        seed: Seed of initial weights and dropout.

    Returns:
        Accuracies `[networks][test years][blocks]`, measured with dropout ("on") and without ("off").
    """
    inputs, targets = (torch.cat(each) for each in zip(*(data[y] for y in training_years), strict=True))
    tests = [data[year] for year in data if year not in training_years]
    sizes = [len(data[year][1]) for year in training_years]
    training, evaluation = np.random.default_rng(list(seed)).spawn(2)
    params = initial((inputs.shape[1], HIDDEN, HIDDEN, 1), size.restarts, training)
    optimizer = torch.optim.Adam(params, lr=RATE)
    measured: dict[str, list[Tensor]] = {"on": [], "off": []}
    for step in range(size.steps):
        if step % size.every == 0:
            with torch.no_grad():
                for name, dropout in (("on", evaluation), ("off", None)):
                    each = [_accuracy(logits(params, x, torch.tanh, dropout), y) for x, y in tests]
                    measured[name].append(torch.stack(each, dim=1))
        loss = objective(logits(params, inputs, torch.tanh, training), targets, sizes, params, penalty, step)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    return {
        name: _block_means(torch.stack(each, dim=2), BLOCK // size.every) for name, each in measured.items()
    }


def _accuracy(z: Tensor, targets: Tensor) -> Tensor:
    return ((z > 0) == (targets > 0.5)).double().mean(dim=1)


def _block_means(curves: Tensor, length: int) -> list[Any]:
    """Return the means of consecutive blocks of the last dimension; an incomplete last block is omitted."""
    count = curves.shape[-1] // length
    return curves[..., : count * length].unflatten(-1, (count, length)).mean(dim=-1).tolist()


def stopped(curves: Sequence[Sequence[Sequence[float]]]) -> list[float]:
    """Return the accuracy in each of two test years, in the block of steps that the other test year selects.

    Accuracies are averaged over networks first. The block with the highest accuracy in one test year,
    except the first block, is the stopping point for the other test year. Test years therefore serve as
    each other's validation data.

    Args:
        curves: Accuracies `[networks][2 test years][blocks]`.
    """
    first, second = (
        [statistics.fmean(at) for at in zip(*own, strict=True)] for own in zip(*curves, strict=True)
    )
    return [own[_best(other)] for own, other in ((first, second), (second, first))]


def _best(curve: Sequence[float]) -> int:
    return max(range(1, len(curve)), key=curve.__getitem__)


def trained(
    folder: Path | None,
    digests: list[str],
    training_years: list[int],
    method: str,
    steps: int,
    restarts: int,
    every: int,
) -> dict[str, Any]:
    """Train the networks of one method for one choice of training years.

    Args:
        folder: Folder of the files; None if the user has not set it.
        digests: Beginnings of the digests of the files.
        training_years: Years of the training environments.
        method: Name of the method in `METHODS`.
        steps: Number of updates.
        restarts: Number of networks.
        every: Number of updates from one measurement to the next.

    Returns:
        Accuracies as in `train`.

    Raises:
        FolderNotSetError: If `folder` is None.
    """
    del digests
    if folder is None:
        raise FolderNotSetError
    seed = [*training_years, list(METHODS).index(method)]
    size = Size(steps, restarts, 1, every)
    return train(environments(load(folder)), training_years, METHODS[method], size, seed)
