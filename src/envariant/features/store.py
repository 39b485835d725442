"""Input store of features: memory-mapped rows, standardized when they are decoded."""

import hashlib
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from envariant.core.input_store import InputStore


@final
@dataclass(frozen=True, eq=False)
class Standardization:
    """Center and scale of each feature, fitted on the training environments.

    Attributes:
        center: Mean of each feature, `[width]`.
        scale: Standard deviation of each feature, 1 for constant features, `[width]`.
        key: Digest of both.
    """

    center: Tensor
    scale: Tensor
    key: str

    @classmethod
    def of(cls, stores: "list[FeatureStore]", rows_at_once: int = 8192) -> "Standardization":
        """Fit center and scale to all rows of some stores, block by block, in float64.

        Args:
            stores: Features of the training environments.
            rows_at_once: Rows that are decoded together.
        """
        count = sum(map(len, stores))
        blocks = [block for store in stores for block in store.values.split(rows_at_once)]
        center = sum((b.double().sum(dim=0) for b in blocks), torch.zeros(())) / count
        squares = sum(((b.double() - center).square().sum(dim=0) for b in blocks), torch.zeros(()))
        deviation = (squares / count).sqrt().float()
        center = center.float()
        scale = torch.where(deviation > 1e-6 * (1 + center.abs()), deviation, 1.0)
        key = hashlib.blake2b(torch.stack([center, scale]).numpy().tobytes(), digest_size=16).hexdigest()
        return cls(center, scale, key)


@final
@dataclass(frozen=True, eq=False)
class FeatureStore(InputStore):
    """Features of the rows of one environment, in memory or memory-mapped, as float32 or bfloat16.

    Attributes:
        values: Features `[rows, width]`.
        standardization: Center and scale that are applied when rows are decoded; None for raw features.
    """

    values: Tensor
    standardization: Standardization | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> torch.Size:
        return self.values.shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def encoding(self) -> Hashable:
        return "features", self.dtype, self.standardization and self.standardization.key

    def gather(self, index: Tensor | None = None) -> Tensor:
        return self.values if index is None else self.values[index]

    def decode(self, rows: Tensor) -> Tensor:
        inputs, own = rows.float(), self.standardization
        return inputs if own is None else (inputs - own.center.to(rows.device)) / own.scale.to(rows.device)

    def with_rows(self, rows: Tensor) -> "FeatureStore":
        return FeatureStore(rows, self.standardization)

    def chunks(self) -> Iterator[bytes]:
        yield repr(self.encoding).encode()
        # NumPy has no bfloat16.
        values = self.values.cpu().contiguous()
        yield (values.view(torch.int16) if self.dtype == torch.bfloat16 else values).numpy().tobytes()
