"""Linear unit tests for invariance discovery (Aubin et al. 2021, arXiv 2102.10867): six linear problems.

An invariant block of inputs determines the target; a spurious block is correlated with it in training. In
test environments, the spurious block is permuted over the rows. The names of scrambled problems end in s:
their inputs are multiplied by a random orthogonal matrix.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, final

import torch
from pydantic import Field
from torch import Tensor

from envariant.core import specs
from envariant.core.environments import DefaultSettings, Environment, EnvironmentSet, ReferenceScores
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary, Regression
from envariant.data.base import SpecSource

Problem = Literal["example1", "example1s", "example2", "example2s", "example3", "example3s"]
PROBLEMS: tuple[Problem, ...] = ("example1", "example1s", "example2", "example2s", "example3", "example3s")
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Rows = tuple[Tensor, Tensor, Tensor]
"""Invariant inputs, spurious inputs and targets of one environment."""

_NOISE = (0.1, 1.5, 2.0)
_BACKGROUND = ((0.95, 0.3), (0.97, 0.5), (0.99, 0.7))


@final
@dataclass(frozen=True)
class _Drawn:
    """Problem whose parameters have been drawn.

    Attributes:
        rows: Function that draws the rows of the environment with a given index.
        known: Theoretical scores of the problem.
    """

    rows: Callable[[int], Rows]
    known: ReferenceScores


@final
@dataclass(frozen=True)
class LinearUnitTests(SpecSource):
    """Data source for the linear unit tests, with training, validation and test rows in every environment.

    Training environments are `E0`, `E1`, …; `E0 validation`, … are validation environments, and `E0 test`,
    … are test environments, whose spurious inputs are permuted over the rows. Rows are those of the released
    program with the same data seed.

    Attributes:
        problem: Problem: `example1` (regression with noise that differs between environments), `example2`
            (cows and camels), `example3` (small invariant margin), or one of these names followed by s, for
            scrambled inputs.
        environments: Number of training environments.
        dim_inv: Number of invariant inputs.
        dim_spu: Number of spurious inputs.
        rows: Number of rows per environment and split.
        oracle: Whether spurious inputs are permuted in every split, so that no model can use them.
    """

    base: ClassVar[str] = "linear-unit-tests"
    positional: ClassVar[tuple[str, ...]] = ("problem",)
    problem: Problem = "example1"
    environments: Annotated[int, Field(ge=2)] = 3
    dim_inv: Annotated[int, Field(ge=1)] = 5
    dim_spu: Annotated[int, Field(ge=0)] = 5
    rows: Annotated[int, Field(ge=2)] = 10_000
    oracle: bool = False

    def __post_init__(self) -> None:
        specs.validate(self, self.base)
        if self.problem.startswith("example3") and self.rows % 2:
            raise EnvariantError(f"{self.base}: rows must be even in {self.problem}; got {self.rows}")

    def draw(self, seed: int) -> Iterator[tuple[Split, list[tuple[Tensor, Tensor]]]]:
        """Draw the inputs and targets of all environments, one split after another.

        Args:
            seed: Seed of the data draw.

        Yields:
            Name of a split, and a list with one pair per environment: inputs `[rows, dim_inv + dim_spu]` and
            targets `[rows]`.
        """
        generator = torch.Generator().manual_seed(seed)
        drawn, scramble = self._problem(generator)
        yield from self._splits(drawn, scramble, generator)

    def sample(self, seed: int) -> EnvironmentSet:
        generator = torch.Generator().manual_seed(seed)
        drawn, scramble = self._problem(generator)
        environments: dict[Split, list[Environment]] = {}
        for split, parts in self._splits(drawn, scramble, generator):
            suffix = "" if split == "train" else f" {split}"
            environments[split] = [Environment(f"E{e}{suffix}", *part) for e, part in enumerate(parts)]
        return EnvironmentSet(
            self.name,
            tuple(each for split in SPLITS for each in environments[split]),
            Regression() if self.problem.startswith("example1") else Binary(),
            test=tuple(each.name for each in environments["test"]),
            known=drawn.known,
            validation=tuple(each.name for each in environments["validation"]),
        )

    def default_settings(self, algorithm: str) -> DefaultSettings:
        source = "defaults of Aubin et al. 2021"
        return DefaultSettings(model="linear", steps=10_000, learning_rate=1e-3, source=source)

    def _problem(self, generator: torch.Generator) -> tuple[_Drawn, Tensor | None]:
        """Draw the parameters of the problem, and then the matrix that scrambles the inputs, if any."""
        build = {"1": self._example1, "2": self._example2, "3": self._example3}[self.problem[7]]
        drawn, width = build(generator), self.dim_inv + self.dim_spu
        if not self.problem.endswith("s"):
            return drawn, None
        return drawn, torch.linalg.qr(torch.randn(width, width, generator=generator)).Q

    def _splits(
        self, drawn: _Drawn, scramble: Tensor | None, generator: torch.Generator
    ) -> Iterator[tuple[Split, list[tuple[Tensor, Tensor]]]]:
        for split in SPLITS:
            parts: list[tuple[Tensor, Tensor]] = []
            for e in range(self.environments):
                x, z, y = drawn.rows(e)
                if split == "test" or self.oracle:
                    z = z[torch.randperm(self.rows, generator=generator)]
                inputs = torch.cat((x, z), dim=1)
                parts.append((inputs if scramble is None else inputs @ scramble, y))
            yield split, parts

    def _example1(self, generator: torch.Generator) -> _Drawn:
        """Draw the parameters of Example1: x = σ N, u = x W + σ N, y = Σ u and z = u V + N.

        x are the invariant inputs, z the spurious inputs, and y is the target. W and V are random matrices.
        N is standard normal noise, drawn separately for each equation; σ is the environment's noise level.
        """
        later = range(len(_NOISE), self.environments)
        noise = [*_NOISE[: self.environments], *(10 ** _uniform(-2, 1, generator) for _ in later)]
        w = torch.randn(self.dim_inv, self.dim_inv, generator=generator) / self.dim_inv
        v = torch.randn(self.dim_inv, self.dim_spu, generator=generator) / (self.dim_spu or 1)

        def rows(e: int) -> Rows:
            x = torch.randn(self.rows, self.dim_inv, generator=generator) * noise[e]
            u = x @ w + torch.randn(self.rows, self.dim_inv, generator=generator) * noise[e]
            z = u @ v + torch.randn(self.rows, self.dim_spu, generator=generator)
            return x, z, u.sum(dim=1)

        # The noise of u is all that x leaves unexplained.
        optimum = self.dim_inv * sum(sigma**2 for sigma in noise) / len(noise)
        return _Drawn(rows, ReferenceScores(optimum=optimum))

    def _example2(self, generator: torch.Generator) -> _Drawn:
        """Draw the parameters of Example2: an animal on a background that usually fits it.

        The animal, with noise, determines the invariant inputs, and these determine the target. The
        background, with noise, determines the spurious inputs, which are 100 times larger.
        """
        later = range(len(_BACKGROUND), self.environments)
        fits = [
            *_BACKGROUND[: self.environments],
            *((_uniform(0.9, 1, generator), _uniform(0.3, 0.7, generator)) for _ in later),
        ]
        # Cow on grass, cow on sand, camel on sand, camel on grass.
        animal, background = torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.tensor([1.0, -1.0, -1.0, 1.0])

        def block(width: int, signs: Tensor, scale: float) -> Tensor:
            noise = torch.randn(self.rows, width, generator=generator) / math.sqrt(10)
            return (noise + signs[:, None]) * scale

        def rows(e: int) -> Rows:
            p, cows = fits[e]
            weights = torch.tensor([p, 1 - p, p, 1 - p])
            weights[:2] *= cows
            weights[2:] *= 1 - cows
            kind = torch.multinomial(weights, self.rows, replacement=True, generator=generator)
            x, z = block(self.dim_inv, animal[kind], 1e-2), block(self.dim_spu, background[kind], 1.0)
            return x, z, (x.sum(dim=1) > 0).float()

        return _Drawn(rows, ReferenceScores(chance=0.5, optimum=1.0))

    def _example3(self, generator: torch.Generator) -> _Drawn:
        """Draw the parameters of Example3: classes with a small margin in the invariant inputs.

        Their margin in the spurious inputs is large, and has a separate direction in each environment.
        """
        shortcuts = [torch.randn(1, self.dim_spu, generator=generator) for _ in range(self.environments)]
        half = self.rows // 2

        def block(center: Tensor) -> Tensor:
            width = center.shape[1]
            first, second = (torch.randn(half, width, generator=generator) * 0.1 for _ in range(2))
            return torch.cat((first + center, second - center))

        def rows(e: int) -> Rows:
            x, z = block(torch.full((1, self.dim_inv), 0.1)), block(shortcuts[e])
            return x, z, torch.cat((torch.zeros(half), torch.ones(half)))

        optimum = 0.5 * math.erfc(-math.sqrt(self.dim_inv / 2))
        return _Drawn(rows, ReferenceScores(chance=0.5, optimum=optimum))


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return torch.zeros(1).uniform_(low, high, generator=generator).item()
