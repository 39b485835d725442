"""Row counts by environment and class, to inspect a data set before training."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from envariant.core.conversion import in_order
from envariant.core.environments import EnvironmentSource
from envariant.core.errors import listed
from envariant.data.images.base import ImageSource
from envariant.data.tables.source import TableSource
from envariant.reporting import charts
from envariant.reporting.labels import without_folders
from envariant.reporting.tables import NONE, TextTable

# Largest number of classes with a column of their own.
_MOST_COLUMNS = 12


@final
@dataclass(frozen=True, eq=False)
class Coverage:
    """Number of rows of a data set by environment and class.

    Attributes:
        name: Name of the data set.
        environments: Names of the environments.
        classes: Names of the classes; empty for regression.
        counts: Number of rows, `[environments, classes]`; `[environments, 1]` for regression.
        log: Preprocessing log of the data set.
    """

    name: str
    environments: tuple[str, ...]
    classes: tuple[str, ...]
    counts: NDArray[np.int64]
    log: tuple[str, ...] = ()

    @classmethod
    def of(cls, source: EnvironmentSource, seed: int) -> "Coverage":
        """Count the rows of a data source; image files are counted without being read.

        Args:
            source: Data source whose rows are counted.
            seed: Seed of the data draw.
        """
        if isinstance(source, ImageSource):
            listing = source.listing()
            counts = [np.bincount(g.targets, minlength=len(listing.classes)) for g in listing.groups]
            names = tuple(group.name for group in listing.groups)
            return cls(
                source.name, names, listing.classes, np.stack(counts), tuple(source.preprocessing_log())
            )
        sample = source.sample(seed)
        lines: Any = getattr(source, "preprocessing_log", tuple)
        entries = source.table.preprocessing_log if isinstance(source, TableSource) else lines()
        sizes = np.array([[len(each)] for each in sample.environments])
        log = tuple(map(str, entries))
        if sample.task.chance is None or sample.task.target_shape:
            return cls(source.name, sample.names, (), sizes, log)
        targets = [each.targets.long().numpy() for each in sample.environments]
        classes = sample.classes or in_order(str(k) for part in targets for k in np.unique(part))
        counts = [np.bincount(part, minlength=len(classes)) for part in targets]
        return cls(source.name, sample.names, classes, np.stack(counts), log)

    @property
    def absent(self) -> dict[str, tuple[str, ...]]:
        """Classes without rows in an environment, by name of the environment."""
        none = [tuple(self.classes[k] for k in np.flatnonzero(row == 0)) for row in self.counts]
        return {name: classes for name, classes in zip(self.environments, none, strict=True) if self.classes}

    def table(self) -> TextTable:
        """Return a table of row counts, with one row per environment."""
        are_few = len(self.classes) <= _MOST_COLUMNS
        columns = self.classes if are_few else ("classes",)
        some_absent = any(self.absent.values())
        header = ("environment", "rows", *columns, *(("absent classes",) if some_absent else ()))
        rows: list[tuple[str, ...]] = []
        for name, counts in zip(self.environments, self.counts, strict=True):
            cells = [f"{count:,}" for count in counts] if are_few else [str(int((counts > 0).sum()))]
            cells = cells if self.classes else []
            absent = (listed(self.absent[name]) or NONE,) if some_absent else ()
            rows.append((name, f"{counts.sum():,}", *cells, *absent))
        return TextTable(header, tuple(rows))

    def chart(self) -> charts.Chart:
        """Draw the number of rows in every environment, by class if there are classes."""
        name = without_folders(self.name)
        return charts.counts(self.environments, self.classes, self.counts, name)

    def to_dict(self) -> dict[str, Any]:
        """Return row counts and preprocessing log as a JSON-compatible dictionary."""
        rows = zip(self.environments, self.counts.tolist(), strict=True)
        counts = {name: dict(zip(self.classes or ("rows",), row, strict=True)) for name, row in rows}
        return {"data": self.name, "environments": counts, "preprocessing_log": list(self.log)}
