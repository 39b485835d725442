"""Replace text columns of a table with the features of a text encoder."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from envariant.core.errors import EnvariantError, EnvariantWarning, unknown_name
from envariant.data.cache import CACHE_VARIABLE, cache_folder
from envariant.data.tables.columns import Column
from envariant.data.tables.table import LogEntry, Table
from envariant.features.backbones import TextEncoder
from envariant.features.feature_file import features_in
from envariant.features.images import content_key
from envariant.features.on_ray import Cluster, Extractable

# Texts encoded and stored together.
_BATCH = 256


def embedded(
    table: Table,
    names: Sequence[str],
    encoder: TextEncoder,
    cache: str | Path | None = None,
    cluster: Cluster | None = None,
) -> Table:
    """Return a table in which each text column is replaced by numeric columns, one per feature.

    Args:
        table: Table with text columns.
        names: Names of the columns to embed. If empty, all columns of free text are embedded.
        encoder: Text encoder.
        cache: Cache folder. Default: `ENVARIANT_CACHE` (environment variable), else the system's cache
            folder.
        cluster: Ray cluster on which texts are encoded. Default: this process.

    Raises:
        EnvariantError: If a column is unknown or not text, or there is no column of free text.

    Warns:
        EnvariantWarning: If columns of free text are not embedded.
    """
    available = {column.name: column for column in (*table.columns, *table.texts) if column.type.categorical}
    selected = tuple(names) or tuple(column.name for column in table.texts)
    if not selected:
        raise EnvariantError(
            "features: no column of the table is free text; set the option 'text' to the names of the "
            "columns to encode"
        )
    if unknown := [name for name in selected if name not in available]:
        raise unknown_name("text column", unknown[0], available, where="features")
    if left := [column.name for column in table.texts if column.name not in selected]:
        warnings.warn(
            f"features: columns of free text that are not used: {', '.join(left)}",
            EnvariantWarning,
            stacklevel=3,
        )
    columns = tuple(column for column in table.columns if column.name not in selected)
    log: list[LogEntry] = []
    for name in selected:
        values = encoded(available[name], encoder, cache, cluster)
        columns += text_columns(name, values)
        log.append(LogEntry(name, f"replaced by {values.shape[1]} features of {encoder}"))
    return replace(
        table,
        columns=columns,
        texts=tuple(column for column in table.texts if column.name not in selected),
        preprocessing_log=(*(e for e in table.preprocessing_log if e.column not in selected), *log),
        embedded=(*table.embedded, *((name, str(encoder)) for name in selected)),
    )


def text_columns(name: str, values: NDArray[np.float32]) -> tuple[Column, ...]:
    """Return the numeric columns that replace a text column, one per feature.

    Args:
        name: Name of the text column.
        values: Features, `[rows, width]`.
    """
    matrix = np.asarray(values, dtype=np.float64)
    return tuple(Column(feature_name(name, k), "number", matrix[:, k]) for k in range(matrix.shape[1]))


def feature_name(name: str, k: int) -> str:
    """Return the name of feature `k` = 0, 1, … of a column: the column's name, a space, and `k` + 1."""
    return f"{name} {k + 1}"


def own_columns(table: Table) -> tuple[Column, ...]:
    """Return the input columns of a table, without the features extracted from texts or images."""
    names = [name for name, _ in table.embedded]
    return tuple(column for column in table.columns if not is_feature(column.name, names))


def is_feature(name: str, columns: Sequence[str]) -> bool:
    """Return whether a column contains a feature extracted from one of the given columns."""
    column, _, number = name.rpartition(" ")
    return column in columns and number.isdecimal()


def encoded(
    column: Column,
    encoder: TextEncoder,
    cache: str | Path | None = None,
    cluster: Cluster | None = None,
) -> NDArray[np.float32]:
    """Return the features of a text column, `[rows, width]`, from the cache if they are stored there.

    Every distinct text is encoded once. Missing values are encoded as empty strings.

    Args:
        column: Text column.
        encoder: Text encoder.
        cache: Cache folder. Default: `ENVARIANT_CACHE` (environment variable), else the system's cache
            folder.
        cluster: Ray cluster on which texts are encoded. Default: this process.
    """
    texts = [text or "" for text in column.texts()]
    values, rows = np.unique(np.array(texts, dtype=object), return_inverse=True)
    distinct, identity = values.tolist(), encoder.identity()
    key = content_key(encoder, identity, *distinct)
    path = cache_folder(cache) / "features" / f"{key}.npy"
    remedy = f"set the environment variable {CACHE_VARIABLE} to a folder with free space"

    def blocks(first: int) -> Iterator[Tensor]:
        if cluster is not None:
            work = Texts(encoder, identity, distinct)
            yield from cluster.blocks(work, (len(distinct),), _BATCH)(0, first)
            return
        for start in range(first, len(distinct), _BATCH):
            yield encoder.embed(distinct[start : start + _BATCH])

    return features_in(path, (len(distinct), encoder.width), "float32", blocks, remedy).numpy()[rows]


@final
@dataclass(frozen=True, eq=False)
class Texts(Extractable):
    """Texts that the workers of a cluster encode, with the same weights as the calling process.

    Attributes:
        encoder: Text encoder.
        identity: Identity of the encoder's weights in the calling process.
        texts: Distinct texts.
    """

    encoder: TextEncoder
    identity: str
    texts: Sequence[str]

    def features(self, environment: int, first: int, last: int) -> Tensor:
        del environment
        if self.encoder.identity() != self.identity:
            raise EnvariantError(
                f"features: {self.encoder} has other weights in a worker of the Ray cluster; install the "
                f"same weights on every node"
            )
        return self.encoder.embed(self.texts[first:last])
