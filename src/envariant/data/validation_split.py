"""Some rows of every training environment kept back, to measure on them what was not trained on.

They become environments of their own beside those they come from, in the role "validation".
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

import torch

from envariant.core import specs
from envariant.core.environments import DefaultSettings, Environment, EnvironmentSet, EnvironmentSource
from envariant.core.errors import EnvariantError

SUFFIX = " (held-out rows)"
"""What the name of such an environment ends in."""


@final
@dataclass(frozen=True)
class ValidationSplit(EnvironmentSource):
    """A source of which a share of the training rows is kept back, drawn anew with every data seed.

    Attributes:
        source: of the data.
        share: of the rows of every training environment, above 0 and below 1.
        test: names of the environments held out whole; None is what the data suggest.
    """

    source: EnvironmentSource
    share: float
    test: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise EnvariantError(f"hold-out must lie above 0 and below 1; got {self.share:g}")

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
        drawn = self.source.sample(seed)
        roles = drawn.roles(self.test)
        # Another stream than the data's own draws, which begin from the seed itself.
        generator = torch.Generator().manual_seed(seed ^ 0x5EED)
        parts = [
            part
            for environment in drawn.environments
            for part in (
                self._parted(environment, generator) if roles[environment.name] == "train" else [environment]
            )
        ]
        return EnvironmentSet(
            drawn.label,
            tuple(parts),
            drawn.task,
            test=tuple(name for name, role in roles.items() if role == "test"),
            validation=tuple(part.name for part in parts if part.name not in drawn.names),
            known=drawn.known,
            classes=drawn.classes,
        )

    def _parted(self, environment: Environment, generator: torch.Generator) -> Iterator[Environment]:
        rows = len(environment)
        kept = round(rows * self.share)
        if not 0 < kept < rows:
            raise EnvariantError(
                f"hold-out: {self.share:g} of the {rows} rows of '{environment.name}' leaves none on one side"
            )
        order = torch.randperm(rows, generator=generator)
        for name, origin, index in (
            (environment.name, "", order[kept:]),
            (environment.name + SUFFIX, environment.name, order[:kept]),
        ):
            # In the order in which they came, so that what is beside one another stays so.
            chosen = index.sort().values
            attributes = {key: values[chosen] for key, values in environment.attributes.items()}
            yield Environment(name, *environment.rows(chosen), attributes, origin)
