"""What was seen during training: one typed row a number, in the order in which it was seen."""

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import IO, final

import pandas as pd

BATCH = "batch"
"""The split of numbers that the algorithm reports of its own batch, such as a penalty."""

LOSS, OUTPUT_SD, GRADIENT_RMS = "loss", "output sd", "gradient rms"
"""Metrics that every run has, beside its task's own."""


@final
@dataclass(frozen=True)
class HistoryRow:
    """One measured number.

    Attributes:
        replica: the run it belongs to.
        step: updates made before it was measured.
        environment: whose rows were measured; "*" where it is all training environments together.
        split: "train" for environments trained on, "validation" for rows of them kept back, "test" for
            held-out ones, "batch" for the algorithm's
            own report of its last step.
        metric: "loss" (mean, nats or squared units), the task's metric, "output sd" (how much what the
            model gives differs from row to row: the standard deviation, over a model's outputs the root of
            the mean square); in the split "batch", "gradient rms" (root mean square over all trained
            numbers) and what the algorithm reports, such as a penalty.
        value: the number; accuracies are fractions of 1.
    """

    replica: int
    step: int
    environment: str
    split: str
    metric: str
    value: float


COLUMNS = tuple(f.name for f in fields(HistoryRow))


def frame(rows: Iterable[HistoryRow]) -> pd.DataFrame:
    """The rows as a DataFrame with the columns of `HistoryRow`."""
    return pd.DataFrame([asdict(row) for row in rows], columns=list(COLUMNS))


def append(file: IO[str], rows: Iterable[HistoryRow]) -> None:
    """Writes rows to an open CSV file and flushes them; `repr` keeps every bit of a float."""
    csv.writer(file).writerows(astuple(row) for row in rows)
    file.flush()


def read(path: Path) -> list[HistoryRow]:
    """The complete rows of a CSV file; a last line cut short by a kill is left out."""
    rows: list[HistoryRow] = []
    text = path.read_bytes().decode("utf-8")
    complete = text[: text.rfind("\n") + 1]
    for line in list(csv.reader(io.StringIO(complete, newline="")))[1:]:
        replica, step, environment, split, metric, value = line
        rows.append(HistoryRow(int(replica), int(step), environment, split, metric, float(value)))
    return rows


def write(path: Path, rows: Iterable[HistoryRow]) -> None:
    """A new CSV file with a header and the rows; the file is whole, or as it was."""
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerow(COLUMNS)
        append(file, rows)
    partial.replace(path)
