"""CLOvE: penalize miscalibration in every environment (maximum mean calibration error)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from envariant.algorithms.base import Penalty, State
from envariant.algorithms.penalties import distances
from envariant.core.environments import PredictedBatch
from envariant.core.schedules import Schedule, Step
from envariant.core.search_space import LogUniform


@final
@dataclass(frozen=True)
class CLOvE(Penalty):
    """Squared calibration error (1/E) Σ_e (1/N²) Σ_ij (c_i − f_i)(c_j − f_j)·exp(−|f_i − f_j|/width).

    Wald et al. 2021. E is the number of environments; i and j run over the N rows of environment e in the
    batch. f_i is the probability of the predicted class of row i; c_i is 1 if that class is correct, else 0,
    and has no gradient. The paper uses the square root of this error, whose slope is infinite at 0.

    Attributes:
        coefficient: Weight of the penalty (λ in the paper).
        width: Width of the kernel, as a difference of two probabilities; positive.
        max_rows: Maximum number of rows compared per environment; larger environments are subsampled at
            random at each step.
    """

    name: ClassVar[str] = "clove"
    paper: ClassVar[str] = "Wald, Feder, Greenfeld, Shalit 2021, arXiv 2102.10395"
    stochastic: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = True
    coefficient: Annotated[Schedule, LogUniform(1e0, 1e5)] = Step(1.0, 1e4, at=100)
    width: PositiveFloat = 0.4
    max_rows: PositiveInt = 512

    def penalty(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        index, sizes = distances.subsample(predicted, self.max_rows)
        batch = predicted.batch
        confidences, correct = batch.task.confidence(predicted.logits[index], batch.targets[index])
        errors = [
            (c - f) @ torch.exp(-(f[:, None] - f[None]).abs() / self.width) @ (c - f) / len(f) ** 2
            for c, f in zip(correct.split(sizes), confidences.split(sizes), strict=True)
        ]
        return torch.stack(errors).mean(), state
