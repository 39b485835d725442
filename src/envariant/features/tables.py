"""Tables of features that are extracted from images or texts.

For `compare`, images are converted to tables. For saved models, new images and texts are converted to
features.
"""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envariant.core import specs
from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.core.input_store import ByteStore
from envariant.core.tasks import Regression
from envariant.data.images import decoding, reading
from envariant.data.images.base import ImageSource
from envariant.data.tables.columns import Column
from envariant.data.tables.table import LogEntry, Table
from envariant.features.backbones import TextEncoder, extractor, name_of
from envariant.features.columns import encoded, feature_name, text_columns
from envariant.features.images import Preprocessing
from envariant.features.lookup import backbone_of
from envariant.features.source import Features

IMAGE = "image"
"""Column with the paths of images, in tables for a model of image features."""
# Images of one forward pass.
_BATCH = 64


@final
@dataclass(frozen=True)
class ImageEncoder:
    """Encoder that reads image files, preprocesses them, and computes their features with a backbone.

    Attributes:
        backbone: Name and settings of the backbone.
        image_size: Side in pixels of the squares to which image files are decoded.
        normalize: Whether pixels are standardized with ImageNet's mean and standard deviation.
        size: Side in pixels to which images are resized before the backbone. Default: no resizing.
        resize: Method of converting images to squares, as in `ImageSource`.
        exif: Whether to apply the EXIF orientation.
        bits: Bit depth of grayscale images with more than 8 bits per pixel, as in training.
    """

    name: ClassVar[str] = "images"
    backbone: Any
    image_size: int
    normalize: bool = True
    size: int | None = None
    resize: Literal["square", "center-crop"] = "square"
    exif: bool = False
    bits: int = 16

    def __str__(self) -> str:
        return specs.describe(self.name, self, positional=("backbone", "image_size"))

    def embed(self, paths: Sequence[str]) -> Tensor:
        """Return the features of image files, float32 `[files, width]`.

        Args:
            paths: Paths of the files.

        Warns:
            EnvariantWarning: If images lose information when they are decoded.
        """
        try:
            backbone = cast("Any", backbone_of(str(self.backbone)))
        except EnvariantError:
            raise EnvariantError(
                f"features: the network {self.backbone} is not saved with the model; to predict, replace "
                f"the column '{IMAGE}' by the features of the network, in columns "
                f"'{feature_name(IMAGE, 0)}' and so on"
            ) from None
        side = self.size or self.image_size
        network = extractor(backbone, (3, side, side))
        mean, deviation = (reading.MEAN, reading.DEVIATION) if self.normalize else (None, None)
        given = None if mean is None or deviation is None else (mean, deviation)
        expected = None if network.mean is None else (network.mean, network.deviation)
        before = Preprocessing(None, self.size, given, cast("Any", expected))
        parts: list[Tensor] = []
        counts: Counter[str] = Counter()
        for start in range(0, len(paths), _BATCH):
            files = [Path(path) for path in paths[start : start + _BATCH]]
            square = decoding.Preprocessing(self.image_size, self.resize, self.exif)
            decoded = [decoding.decode(file, square, self.bits) for file in files]
            counts.update(key for _, keys in decoded for key in keys)
            pixels = torch.from_numpy(np.stack([image for image, _ in decoded]))
            with torch.inference_mode():
                inputs = before(ByteStore(pixels, mean, deviation).decode(pixels))
                parts.append(network.module(inputs).flatten(1).float().clone())
        for key, count in counts.items():
            message = f"{count:,} of {len(paths):,} images {decoding.NOTES[key]}"
            warnings.warn(message, EnvariantWarning, stacklevel=2)
        return torch.cat(parts)


def image_table(features: Features) -> Table:
    """Return the features of images as a table, with one column per feature.

    Args:
        features: Features of images or of other arrays.

    Raises:
        EnvariantError: If the features are principal components.

    Warns:
        EnvariantWarning: If the backbone is a module, which cannot be saved with a model.
    """
    if features.components is not None:
        raise EnvariantError(
            "compare: the option 'components' depends on the test environments, which change in a "
            "comparison; remove it"
        )
    sample, source = replace(features, standardize=False).sample(0), features.source
    parts = [environment.inputs.numpy() for environment in sample.environments]
    sizes = [len(part) for part in parts]
    columns = text_columns(IMAGE, np.concatenate(parts))
    targets = torch.cat([environment.targets for environment in sample.environments]).numpy()
    codes = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    if isinstance(sample.task, Regression):
        target = Column(
            "target", "number", targets.astype(np.float64) * sample.task.scale + sample.task.center
        )
    else:
        labels = sample.classes or tuple(str(k) for k in range(max(2, sample.task.outputs)))
        target = Column("class", "category", targets.astype(np.int32), labels)
    encoder = ""
    if isinstance(source, ImageSource):
        if isinstance(features.backbone, torch.nn.Module):
            warnings.warn(
                f"features: the network {name_of(features.backbone)} is not saved with the model; to "
                f"predict, give the features of the network as columns '{feature_name(IMAGE, 0)}' and so on",
                EnvariantWarning,
                stacklevel=3,
            )
        files = [file for group in source.listing().groups for file in group.files]
        encoder = str(
            ImageEncoder(
                name_of(features.backbone),
                source.size,
                source.normalize,
                features.size,
                source.resize,
                source.exif,
                reading.gray_depth(Path(source.root), files, source.workers)[1],
            )
        )
    log = LogEntry("", f"inputs: {len(columns):,} features of {name_of(features.backbone)}")
    return Table(
        columns,
        target,
        Column("environment", "category", codes, sample.names),
        sample.task.name if sample.task.name in ("binary", "regression") else "multiclass",
        (log,),
        embedded=((IMAGE, encoder),) if encoder else (),
    )


def expanded(columns: Mapping[str, Column], embedded: Sequence[tuple[str, str]]) -> dict[str, Column]:
    """Replace columns of texts or image paths by the columns of their features.

    Args:
        columns: Columns by name.
        embedded: Name of each column to replace, paired with its encoder as a string.
    """
    result = dict(columns)
    for name, text in embedded:
        column = result.pop(name)
        result |= {each.name: each for each in text_columns(name, _values(column, text))}
    return result


def _values(column: Column, text: str) -> NDArray[np.float32]:
    spec = specs.parse(text)
    if spec.name != ImageEncoder.name:
        return encoded(column, cast("TextEncoder", backbone_of(text)))
    paths = column.texts()
    if None in paths:
        raise EnvariantError(f"column '{column.name}': row {paths.index(None) + 1} holds no path of an image")
    return ImageEncoder(**specs.fill(ImageEncoder, spec)).embed(cast("list[str]", paths)).numpy()
