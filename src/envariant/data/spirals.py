"""Spirals with signatures: the synthetic data of the AND-mask paper (Parascandolo et al. 2020)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import numpy as np
import torch
from pydantic import Field

from envariant.core import specs
from envariant.core.environments import DefaultSettings, Environment, EnvironmentSet, ReferenceScores
from envariant.core.tasks import Binary
from envariant.data.base import SpecSource

_REVOLUTIONS = 3
_TEST_SEED = 2**32 - 1


@final
@dataclass(frozen=True)
class Spirals(SpecSource):
    """Two interlocked spirals, with a signature that identifies the class within a training environment.

    A row consists of a point on a spiral (two inputs) and a signature (`signature` inputs). The spiral
    determines the class in every environment. Within a training environment, the signature is a fixed random
    vector for one class and its negative for the other; in the test environment it is noise. The numbers are
    bit-identical to those of the authors' program; environment k uses NumPy's generator with seed + k.

    Attributes:
        environments: Number of training environments.
        signature: Number of inputs of the signature: 16 in the README of the authors' program, 8 in the
            program's defaults, 32 in the paper.
        deviation: Standard deviation of the entries of a signature, 1 in the program; the paper writes
            N(0, 0.1).
        rows: Rows of each training environment; the paper has 1,280.
        test_rows: Rows of the test environment.
    """

    base: ClassVar[str] = "spirals"
    environments: Annotated[int, Field(ge=1, le=2**16)] = 16
    signature: Annotated[int, Field(ge=1, le=2**16)] = 16
    deviation: Annotated[float, Field(ge=0)] = 1.0
    rows: Annotated[int, Field(ge=2)] = 1024
    test_rows: Annotated[int, Field(ge=2)] = 2000

    def __post_init__(self) -> None:
        specs.validate(self, self.base)

    def sample(self, seed: int) -> EnvironmentSet:
        training = [self._environment(k, (seed + k) % 2**32) for k in range(self.environments)]
        test = self._environment(None, _TEST_SEED)
        known = ReferenceScores(chance=0.5, optimum=1.0)
        return EnvironmentSet(self.name, (*training, test), Binary(), ("test",), known)

    def _environment(self, index: int | None, seed: int) -> Environment:
        """Return a training environment, or the test environment if `index` is None."""
        count = self.test_rows if index is None else self.rows
        generator = np.random.RandomState(seed)
        signatures = generator.randn(self.environments, self.signature)
        radius = generator.uniform(0.08, 1, count)
        angle = 2 * np.pi * _REVOLUTIONS * radius
        label = generator.randint(0, 2, count)
        angle = angle + np.pi * label
        radius = radius + generator.uniform(-0.02, 0.02, count)
        point = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        point /= point.std(axis=0)
        block = (
            generator.randn(count, self.signature)
            if index is None
            else (2 * label[:, None] - 1) * signatures[index]
        )
        inputs = np.concatenate([point, self.deviation * block], axis=1)
        name = "test" if index is None else f"environment {index}"
        return Environment(name, torch.from_numpy(inputs).float(), torch.from_numpy(label).float())

    def default_settings(self, algorithm: str) -> DefaultSettings:
        own = {"threshold": 1.0, "inverse_sparsity": True} if algorithm == "and-mask" else {}
        return DefaultSettings(
            own,
            model="mlp(hidden=256, depth=3, activation='leaky-relu', init='kaiming-normal')",
            steps=600,
            learning_rate=1e-2,
            batch_size=256,
            source=(
                "the README of the authors' program, without its weight decay of 1e-3 and its reduction of "
                "the learning rate"
            ),
        )
