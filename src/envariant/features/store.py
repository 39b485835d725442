"""Input store of features, which reads memory-mapped rows and standardizes them in `decode`."""

import hashlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from envariant.core.errors import EnvariantError
from envariant.core.input_store import InputStore

# Rows that are processed together.
_ROWS_AT_ONCE = 8192


@final
@dataclass(frozen=True, eq=False)
class Standardization:
    """Center and scale of each feature, fitted on the training environments.

    Attributes:
        center: Mean of each feature, `[width]`.
        scale: Standard deviation of each feature, `[width]`; 1 for constant features.
        key: Digest of center and scale.
        basis: Principal components, each divided by its standard deviation, `[width, components]`; None to
            keep all features.
    """

    center: Tensor
    scale: Tensor
    key: str
    basis: Tensor | None = None

    def __call__(self, features: Tensor) -> Tensor:
        """Return standardized features, or their principal components."""
        inputs = (features.float() - self.center.to(features.device)) / self.scale.to(features.device)
        return inputs if self.basis is None else inputs @ self.basis.to(features.device)

    @classmethod
    def of(cls, stores: "Sequence[FeatureStore]", components: int | None = None) -> "Standardization":
        """Fit the standardization to all rows of the stores, block by block.

        Args:
            stores: Features of the training environments.
            components: Number of principal components to keep; None to keep all features.
        """
        count = sum(map(len, stores))
        blocks = [block for store in stores for block in store.gather().split(_ROWS_AT_ONCE)]
        center = sum((b.double().sum(dim=0) for b in blocks), torch.zeros(())) / count
        squares = sum(((b.double() - center).square().sum(dim=0) for b in blocks), torch.zeros(()))
        deviation = (squares / count).sqrt().float()
        center = center.float()
        scale = torch.where(deviation > 1e-6 * (1 + center.abs()), deviation, 1.0)
        key = hashlib.blake2b(torch.stack([center, scale]).numpy().tobytes(), digest_size=16).hexdigest()
        fitted = cls(center, scale, key)
        if components is None:
            return fitted
        second = torch.zeros(len(center), len(center), dtype=torch.float64)
        for block in blocks:
            inputs = fitted(block)
            second += (inputs.T @ inputs).double()
        variances, directions = torch.linalg.eigh(second / count)
        # Rows of other environments would be divided by about 0 along directions without variance.
        most = int((variances > 1e-6 * variances.max()).sum())
        if components > most:
            raise EnvariantError(
                f"features: components must be at most {most}, because {count:,} training rows of "
                f"{len(center):,} features vary in {most} directions; got {components}"
            )
        largest = slice(-components, None)
        deviations = variances[largest].sqrt()
        return replace(fitted, basis=(directions[:, largest] / deviations).flip(1).float().contiguous())

    def applied(self, store: "FeatureStore") -> "FeatureStore":
        """Return a store with standardized rows.

        If principal components are used, they are computed immediately. Otherwise, `decode` standardizes the
        rows when they are used.

        Args:
            store: Raw features.
        """
        if self.basis is None:
            return FeatureStore(store.values, self, store.rows)
        return FeatureStore(torch.cat([self(block) for block in store.gather().split(_ROWS_AT_ONCE)]))


@final
@dataclass(frozen=True, eq=False)
class FeatureStore(InputStore):
    """Store of one environment's features, in memory or memory-mapped, as float32 or bfloat16.

    Attributes:
        values: Features `[stored rows, width]`.
        standardization: Center and scale that `decode` applies; None for raw features.
        rows: Indices of this store's rows in `values`; None if the store contains all rows.
    """

    shares_batches: ClassVar[bool] = True
    values: Tensor
    standardization: Standardization | None = None
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values if self.rows is None else self.rows)

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
        if self.rows is not None:
            index = self.rows if index is None else self.rows[index]
        return self.values if index is None else self.values[index]

    def select(self, index: Tensor) -> "FeatureStore":
        # Rows are not copied, because every replica has a different validation split.
        return FeatureStore(
            self.values, self.standardization, index if self.rows is None else self.rows[index]
        )

    def decode(self, rows: Tensor) -> Tensor:
        return rows.float() if self.standardization is None else self.standardization(rows)

    def with_rows(self, rows: Tensor) -> "FeatureStore":
        return FeatureStore(rows, self.standardization)

    def chunks(self) -> Iterator[bytes]:
        yield repr(self.encoding).encode()
        # NumPy has no bfloat16.
        values = self.gather().cpu().contiguous()
        yield (values.view(torch.int16) if self.dtype == torch.bfloat16 else values).numpy().tobytes()
