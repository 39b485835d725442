"""Data source that holds out a share of each training environment's rows for training-domain validation."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from envariant.core import specs
from envariant.core.environments import (
    ROW_GROUP,
    Environment,
    EnvironmentSet,
)
from envariant.core.errors import EnvariantError
from envariant.data.derived_source import DerivedSource

SUFFIX = " (held-out rows)"
"""Suffix of the names of validation environments."""


@final
@dataclass(frozen=True)
class ValidationSplit(DerivedSource):
    """Data source in which every training environment is split into training and validation rows.

    The validation rows become validation environments. The seed of a data draw determines the split.

    Attributes:
        source: Data source to split.
        share: Share of each training environment's rows to hold out, between 0 and 1 (exclusive).
        test: Names of the test environments, which are not split. Default: default test environments of the
            data source.
    """

    share: float
    test: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise EnvariantError(f"holdout_fraction must lie above 0 and below 1; got {self.share:g}")

    def identity(self) -> str:
        settings = {"share": self.share} | ({} if self.test is None else {"test": self.test})
        return str(specs.Spec("validation-split", (self.source.identity(),), settings))

    def sample(self, seed: int) -> EnvironmentSet:
        environments = self.source.sample(seed)
        roles = environments.roles(self.test)
        sizes = {e.name: len(e) for e in environments.environments if roles[e.name] == "train"}
        groups = {name: environments[name].attributes.get(ROW_GROUP) for name in sizes}
        held_out = held_out_rows(sizes, self.share, seed, groups)
        parts: list[Environment] = []
        for environment in environments.environments:
            rows = held_out.get(environment.name)
            parts += [environment] if rows is None else self._split(environment, rows)
        return EnvironmentSet(
            environments.label,
            tuple(parts),
            environments.task,
            test=tuple(name for name, role in roles.items() if role == "test"),
            # New parts, and the validation environments of the data itself.
            validation=tuple(p.name for p in parts if roles.get(p.name, "validation") == "validation"),
            known=environments.known,
            classes=environments.classes,
        )

    def _split(self, environment: Environment, held_out: Tensor) -> Iterator[Environment]:
        rows = len(environment)
        if not 0 < len(held_out) < rows:
            part = f"{self.share:g} of the {rows} rows of '{environment.name}'"
            few = "; its rows belong to too few groups" if ROW_GROUP in environment.attributes else ""
            raise EnvariantError(
                f"holdout_fraction: {part} leaves no rows for training or for validation{few}"
            )
        kept = torch.ones(rows, dtype=torch.bool)
        kept[held_out] = False
        name = environment.name
        # Rows keep their order.
        yield environment.select(kept.nonzero().flatten(), name=name, origin="")
        yield environment.select(held_out, name=name + SUFFIX, origin=name)


def held_out_rows(
    sizes: Mapping[str, int], share: float, seed: int, groups: Mapping[str, Tensor | None] | None = None
) -> dict[str, Tensor]:
    """Select rows to hold out from each training environment; return their indices in ascending order.

    If groups are given, whole groups are held out from all environments, and the share is approximate.

    Args:
        sizes: Number of rows of each training environment, in the order of the data.
        share: Share of each environment's rows to hold out.
        seed: Seed of the data draw.
        groups: Group number of each row, by environment. None: hold out individual rows.
    """
    # The random stream differs from that of the data, which starts with the seed itself.
    generator = torch.Generator().manual_seed(seed ^ 0x5EED)
    known = {name: numbers for name, numbers in (groups or {}).items() if numbers is not None}
    if len(known) == len(sizes):
        return _held_out_groups(known, share, generator)
    return {
        name: torch.randperm(rows, generator=generator)[: round(rows * share)].sort().values
        for name, rows in sizes.items()
    }


def _held_out_groups(
    groups: Mapping[str, Tensor], share: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Select random groups that contain about the given share of each environment's rows; return the rows."""
    numbers, row_group = torch.cat([*groups.values()]).unique(return_inverse=True)
    sizes = [len(each) for each in groups.values()]
    environment = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    # Rows of each group in each environment.
    table = torch.zeros(len(numbers), len(sizes), dtype=torch.int64)
    table.index_put_((row_group, environment), torch.ones_like(row_group), accumulate=True)
    quota, count = torch.tensor(sizes) * share, torch.zeros(len(sizes), dtype=torch.int64)
    held_out = torch.zeros(len(numbers), dtype=torch.bool)
    for group in torch.randperm(len(numbers), generator=generator).tolist():
        own = table[group]
        # Every environment needs held-out rows, even if its groups are large.
        if bool(((count + own <= quota + 0.5) | (count == 0) | (own == 0)).all()):
            held_out[group] = True
            count += own
    return {
        name: held_out[part].nonzero().flatten()
        for name, part in zip(groups, row_group.split(sizes), strict=True)
    }
