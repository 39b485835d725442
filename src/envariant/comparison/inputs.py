"""Inputs of a comparison: a table, a table with text columns, or the features of images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envariant.core.conversion import several
from envariant.core.environments import EnvironmentSource
from envariant.core.errors import EnvariantError
from envariant.data import source
from envariant.data.images.folders import ImageFolders
from envariant.data.tables import table as tables
from envariant.data.tables.table import Table
from envariant.features import Features, TextEncoder, backbone_of
from envariant.features.columns import embedded
from envariant.features.tables import image_table


def read(
    data: Any, target: Any, environment: Any, features: Any, text: Sequence[Any], **settings: Any
) -> Table:
    """Read a table, embed its text columns, or compute the features of images as a table.

    Args:
        data: Table, as a path or a data frame. Images, as a folder, a data source or the name of one.
        target: Name of the column to predict; None for images.
        environment: Name of the environment column; None for images.
        features: Frozen backbone that computes the features of images, or encoder of the text columns.
            None: text columns, if any, are embedded by the default encoder.
        text: Names of the text columns to embed.
        settings: Other arguments of `tables.read`.

    Raises:
        EnvariantError: If arguments are missing or do not fit the data.
    """
    columns = tuple(map(str, several(text, "compare: text")))
    if (
        features is not None
        and not columns
        and not isinstance(backbone := backbone_of(features), TextEncoder)
    ):
        return image_table(Features(_images(data, target, environment, settings), backbone))
    if isinstance(data, Features):
        return image_table(data)
    if isinstance(data, str | Path) and Path(data).is_dir():
        what = "name a file (.csv or .parquet), or, for images, set the option 'features' to a network"
        if features is not None:
            what = f"{features} needs a table with texts; for images, set the option 'features' to a network"
        raise EnvariantError(
            f"compare: {data} is a folder; {what}, such as efficientnet-lite0 or "
            f"timm(resnet18, pretrained=true)"
        )
    if target is None or environment is None:
        raise EnvariantError(
            "compare: for a table, set the options 'target' and 'environment' to the names of two columns"
        )
    if features is None and not columns:
        return tables.read(data, target, environment, **settings)
    table = tables.read_with_texts(data, target, environment, **settings)
    encoder = backbone_of("minilm" if features is None else features)
    if not isinstance(encoder, TextEncoder):
        raise EnvariantError(f"compare: {encoder} is not a text encoder; use minilm or sentence-transformers")
    return embedded(table, columns, encoder)


def _images(data: Any, target: Any, environment: Any, settings: Any) -> EnvironmentSource:
    """Return the data source of images; raise an error if options are given that apply to tables only."""
    given = {"target": target, "environment": environment} | {
        name: settings.get(name) for name in ("exclude", "sample_weight", "group", "subgroups", "ordered")
    }
    if named := [name for name, value in given.items() if value]:
        raise EnvariantError(
            f"compare: the option '{named[0]}' refers to columns of a table; remove it for images"
        )
    if isinstance(data, EnvironmentSource):
        return data
    if Path(str(data)).is_dir():
        return ImageFolders(data)
    try:
        return source(str(data))
    except EnvariantError as error:
        if str(error).startswith("unknown data set"):
            raise EnvariantError(
                f"compare: there is no folder '{data}', and no data set of this name"
            ) from None
        raise
