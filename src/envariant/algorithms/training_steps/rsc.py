"""RSC: the features that a prediction leans on most are muted, so that others must learn to carry it."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, final

import torch
from torch import Tensor
from torch.func import grad, grad_and_value

from envariant.algorithms.base import Metrics, Model, Parameters, State, TrainingStep
from envariant.core.environments import EnvironmentBatch
from envariant.core.errors import EnvariantError
from envariant.core.search_space import Uniform
from envariant.core.step_context import StepContext
from envariant.core.tasks import Task


@final
@dataclass(frozen=True)
class RSC(TrainingStep):
    """Mean loss of head(h ∘ mask): representation self-challenging. Huang et al. 2020, algorithm 1.

    u_i is the slope of the true class's logit in the features of row i. Its largest entries, a share
    `features` of them, are muted; but only in those rows, a share `rows` of all, whose confidence in the
    true class falls most by it. Masks are constants. Vectors only: the paper also mutes in space.

    Attributes:
        features: the share of features muted.
        rows: the share of rows in which they stay muted.
    """

    name: ClassVar[str] = "rsc"
    paper: ClassVar[str] = "Huang, Wang, Xing, Huang 2020, arXiv 2007.02454"
    needs_features: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = True
    features: Annotated[float, Uniform(0.0, 0.5)] = 1 / 3
    rows: Annotated[float, Uniform(0.0, 0.5)] = 1 / 3

    def __post_init__(self) -> None:
        if not (0 <= self.features <= 1 and 0 <= self.rows <= 1):
            raise EnvariantError(
                f"RSC: features and rows must lie in [0, 1]; got {self.features:g} and {self.rows:g}"
            )

    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        def challenged(params: Parameters) -> Tensor:
            features, logits = model(params, batch.inputs)
            mask = self.mask(model, params, features.detach(), logits.detach(), batch)
            return batch.task.losses(model.head(params, features * mask), batch.targets).mean()

        found, risk = grad_and_value(challenged)(params)
        return found, state, {"risk": risk.detach()}

    def mask(
        self, model: Model, params: Parameters, features: Tensor, logits: Tensor, batch: EnvironmentBatch
    ) -> Tensor:
        """0 at the features that are muted, `[rows, width]`."""
        muted = self.feature_mask(model, params, features, batch)
        without = model.head(params, features * muted)
        # The probability of the true class is e to the minus of its loss.
        before, after = (torch.exp(-batch.task.losses(z, batch.targets)) for z in (logits, without))
        lost = before - after
        kept = lost < _quantile(lost, 1 - self.rows)
        return torch.maximum(muted, kept[:, None].to(muted.dtype)).detach()

    def feature_mask(
        self, model: Model, params: Parameters, features: Tensor, batch: EnvironmentBatch
    ) -> Tensor:
        """0 at the features that the true class's logit leans on most, before rows are chosen."""

        def of_truth(h: Tensor) -> Tensor:
            return _of_truth(batch.task, model.head(params, h), batch.targets).sum()

        slopes = grad(of_truth)(features)
        return (slopes < _quantile(slopes, 1 - self.features)[:, None]).to(features.dtype)


def _of_truth(task: Task, logits: Tensor, targets: Tensor) -> Tensor:
    """Every row's logit of its true class; of a single logit its half, with the sign of the class."""
    if task.outputs == 1:
        return (targets - 0.5) * logits
    return logits.gather(1, targets[:, None])[:, 0]


def _quantile(values: Tensor, share: Any) -> Tensor:
    """Along the last axis, linear between order statistics; the share may be a replica's own.

    PyTorch's own refuses more than 16 million numbers, which a full batch of features has.
    """
    ordered = values.sort(dim=-1).values
    count = values.shape[-1]
    place = torch.as_tensor(share, dtype=values.dtype, device=values.device) * (count - 1)
    low = place.floor().clamp(0, count - 1)
    at = torch.stack([low, (low + 1).clamp(max=count - 1)]).long()
    below, above = ordered.index_select(-1, at).unbind(-1)
    return below + (place - low) * (above - below)
