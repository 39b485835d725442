"""RSC: mask the most predictive features during training."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, final

import torch
from pydantic import Field
from torch import Tensor
from torch.func import grad, grad_and_value

from envariant.algorithms.base import Metrics, Model, Parameters, State, TrainingStep
from envariant.core.environments import EnvironmentBatch
from envariant.core.search_space import Uniform
from envariant.core.step_context import StepContext
from envariant.core.tasks import Binary, Multiclass, Task


@final
@dataclass(frozen=True)
class RSC(TrainingStep):
    """Risk of head(h ∘ mask), called representation self-challenging. Huang et al. 2020, algorithm 1.

    h are the features, and ∘ is the elementwise product. u_i is the gradient of the true class's logit with
    respect to the features of row i. The mask sets the features with the largest entries of u_i to 0. It is
    applied only to the rows whose predicted probability of the true class decreases most under the mask. The
    mask is treated as a constant in the gradient. Only feature vectors are masked; the paper also masks
    spatial positions.

    Attributes:
        features: Share of features to mask in a masked row, in [0, 1].
        rows: Share of masked rows, in [0, 1].
    """

    name: ClassVar[str] = "rsc"
    paper: ClassVar[str] = "Huang, Wang, Xing, Huang 2020, arXiv 2007.02454"
    needs_features: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = True
    depends_on_sizes: ClassVar[bool] = True
    aggregates_risk: ClassVar[bool] = True
    features: Annotated[float, Uniform(0.0, 0.5), Field(ge=0, le=1)] = 1 / 3
    rows: Annotated[float, Uniform(0.0, 0.5), Field(ge=0, le=1)] = 1 / 3

    def gradients(
        self, model: Model, params: Parameters, batch: EnvironmentBatch, state: State, context: StepContext
    ) -> tuple[dict[str, Tensor], State, Metrics]:
        def challenged(params: Parameters) -> Tensor:
            features, logits = model(params, batch.inputs)
            mask = self.mask(model, params, features.detach(), logits.detach(), batch)
            return batch.risk(batch.task.losses(model.head(params, features * mask), batch.targets))

        gradient, risk = grad_and_value(challenged)(params)
        return gradient, state, {"risk": risk.detach()}

    def mask(
        self, model: Model, params: Parameters, features: Tensor, logits: Tensor, batch: EnvironmentBatch
    ) -> Tensor:
        """Return the final mask, `[rows, width]`: 0 for masked features of masked rows, 1 for all others."""
        feature_mask = self.feature_mask(model, params, features, batch)
        without = model.head(params, features * feature_mask)
        before, after = (_true_probability(batch.task, z, batch.targets) for z in (logits, without))
        decrease = before - after
        unmasked = decrease < _quantile(decrease, 1 - self.rows)
        return torch.maximum(feature_mask, unmasked[:, None].to(feature_mask.dtype)).detach()

    def feature_mask(
        self, model: Model, params: Parameters, features: Tensor, batch: EnvironmentBatch
    ) -> Tensor:
        """Return a mask, `[rows, width]`, that is 0 at the largest entries of u_i in every row; see `RSC`."""

        def true_logits(h: Tensor) -> Tensor:
            return _true_logits(batch.task, model.head(params, h), batch.targets).sum()

        slopes = grad(true_logits)(features)
        return (slopes < _quantile(slopes, 1 - self.features)[:, None]).to(features.dtype)


def _true_logits(task: Task, logits: Tensor, targets: Tensor) -> Tensor:
    """Return the logit of each row's true class; for a single logit z, z/2 (class 1) or −z/2 (class 0)."""
    if task.outputs == 1:
        return (targets - 0.5) * logits
    return logits.gather(1, targets[:, None])[:, 0]


def _true_probability(task: Task, logits: Tensor, targets: Tensor) -> Tensor:
    """Return the predicted probability of each row's true class, for a task with any loss."""
    likelihood = Binary() if task.outputs == 1 else Multiclass(task.outputs)
    return torch.exp(-likelihood.losses(logits, targets))


def _quantile(values: Tensor, share: Any) -> Tensor:
    """Return the quantile at `share` along the last axis, with linear interpolation.

    `torch.quantile` cannot be used: it rejects more than 16 million numbers, and a full batch may have more.
    """
    ordered = values.sort(dim=-1).values
    count = values.shape[-1]
    position = torch.as_tensor(share, dtype=values.dtype, device=values.device) * (count - 1)
    low = position.floor().clamp(0, count - 1)
    at = torch.stack([low, (low + 1).clamp(max=count - 1)]).long()
    below, above = ordered.index_select(-1, at).unbind(-1)
    return below + (position - low) * (above - below)
