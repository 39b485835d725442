"""Split of every environment as in DomainBed: 80 % for training or testing, and 20 % for model selection.

Gulrajani & Lopez-Paz 2020 (arXiv 2007.01434). Test environments are split too: a test score is computed on
the 80 % part, and oracle selection uses the 20 % part.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, final

import numpy as np
import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from envariant.core.environments import EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.data.wrapped_source import WrappedSource

OUT = " out"
"""Suffix of the names of the 20 % parts."""


@final
@dataclass(frozen=True)
class DomainBedSplit(WrappedSource):
    """Data source whose environments are split as in DomainBed, such as `domainbed-split(rotated-mnist)`.

    The 80 % part of environment `0` keeps its name, and the 20 % part is named `0 out`. The 20 % parts are
    validation environments. For a test environment, both parts must be named as test environments, which
    `both_parts` does.

    Attributes:
        source: Data source to split, or its name with settings.
        trial: Number of the trial. It determines the split of an environment, together with the environment's
            index.
        fraction: Share of an environment's rows in its smaller part; the number of rows is rounded down.
        rows: Number of rows to use from each environment; the first rows are used. Default: all rows, as in
            DomainBed.
    """

    base: ClassVar[str] = "domainbed-split"
    trial: int = 0
    fraction: float = 0.2
    rows: Annotated[int, Field(ge=1)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.fraction < 1:
            raise EnvariantError(f"{self.base}: fraction must lie above 0 and below 1; got {self.fraction:g}")

    def with_test_environments(self, test: Sequence[str] | None) -> "DomainBedSplit":
        names = None if test is None else tuple(dict.fromkeys(name.removesuffix(OUT) for name in test))
        return replace(self, source=self.source.with_test_environments(names))

    def sample(self, seed: int) -> EnvironmentSet:
        whole = self.source.sample(seed)
        parts = []
        for index, environment in enumerate(whole.environments):
            count = min(self.rows or len(environment), len(environment))
            rows, out_rows = split(count, self.trial, index, self.fraction)
            if not len(out_rows):
                raise EnvariantError(
                    f"{self.base}: {self.fraction:g} of the {count} rows of '{environment.name}' "
                    f"are less than one row"
                )
            parts.append(environment.select(rows, name=environment.name, origin=""))
            parts.append(environment.select(out_rows, name=environment.name + OUT, origin=""))
        return replace(
            whole,
            label=self.name,
            environments=tuple(parts),
            test=both_parts(*whole.test),
            validation=tuple(name + OUT for name in whole.names),
        )


def both_parts(*names: str) -> tuple[str, ...]:
    """Return the names of both parts of the given environments, for the option `test_environments`."""
    return tuple(part for name in names for part in (name, name + OUT))


def split(
    rows: int, trial: int, environment: int, fraction: float = 0.2
) -> tuple[Int[Tensor, " rows"], Int[Tensor, " out_rows"]]:
    """Return the row numbers of the large and of the small part of an environment, in DomainBed's order.

    Args:
        rows: Number of rows of the environment.
        trial: Number of the trial.
        environment: Index of the environment.
        fraction: Share of the rows in the small part; the number of these rows is rounded down.
    """
    order = np.random.RandomState(seed_hash(trial, environment)).permutation(rows)
    shuffled = torch.from_numpy(order.astype(np.int64))
    count = int(rows * fraction)
    return shuffled[count:], shuffled[:count]


def seed_hash(*values: object) -> int:
    """Return DomainBed's random seed for the given values: the MD5 digest of `str(values)`, modulo 2³¹."""
    # Not used for security.
    digest = hashlib.md5(str(values).encode(), usedforsecurity=False).hexdigest()
    return int(digest, 16) % 2**31
