"""Data source for training-domain validation: a share of the rows of each training environment is held out.

The held-out rows become validation environments.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

import torch

from envariant.core import specs
from envariant.core.environments import DefaultSettings, Environment, EnvironmentSet, EnvironmentSource
from envariant.core.errors import EnvariantError

SUFFIX = " (held-out rows)"
"""Suffix of the names of validation environments."""


@final
@dataclass(frozen=True)
class ValidationSplit(EnvironmentSource):
    """Data source with a validation split of every training environment; the seed determines the split.

    Attributes:
        source: Data source to split.
        share: Share of the rows of every training environment to hold out, between 0 and 1 (exclusive).
        test: Names of the test environments, which are not split. Default: the default test environments of
            the data source.
    """

    source: EnvironmentSource
    share: float
    test: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise EnvariantError(f"holdout_fraction must lie above 0 and below 1; got {self.share:g}")

    @property
    def name(self) -> str:
        return self.source.name

    def identity(self) -> str:
        settings = {"share": self.share} | ({} if self.test is None else {"test": self.test})
        return str(specs.Spec("validation-split", (self.source.identity(),), settings))

    def default_settings(self, algorithm: str) -> DefaultSettings:
        return self.source.default_settings(algorithm)

    @property
    def columns(self) -> Mapping[str, slice]:
        return self.source.columns

    def sample(self, seed: int) -> EnvironmentSet:
        environments = self.source.sample(seed)
        roles = environments.roles(self.test)
        # The random stream differs from that of the data, which starts with the seed itself.
        generator = torch.Generator().manual_seed(seed ^ 0x5EED)
        parts: list[Environment] = []
        for environment in environments.environments:
            is_split = roles[environment.name] == "train"
            parts += self._split(environment, generator) if is_split else [environment]
        return EnvironmentSet(
            environments.label,
            tuple(parts),
            environments.task,
            test=tuple(name for name, role in roles.items() if role == "test"),
            validation=tuple(part.name for part in parts if part.name not in environments.names),
            known=environments.known,
            classes=environments.classes,
        )

    def _split(self, environment: Environment, generator: torch.Generator) -> Iterator[Environment]:
        rows = len(environment)
        held_out = round(rows * self.share)
        if not 0 < held_out < rows:
            part = f"{self.share:g} of the {rows} rows of '{environment.name}'"
            raise EnvariantError(f"holdout_fraction: {part} leaves one part empty")
        name, order = environment.name, torch.randperm(rows, generator=generator)
        # Rows keep their order.
        yield environment.select(order[held_out:].sort().values, name=name, origin="")
        yield environment.select(order[:held_out].sort().values, name=name + SUFFIX, origin=name)
