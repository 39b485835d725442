"""SelfReg: make predictions for rows of the same class similar, within and across environments."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor, nn

from envariant.algorithms.base import Penalty, State, TrainContext
from envariant.core.environments import PredictedBatch
from envariant.core.schedules import Constant, Schedule
from envariant.core.search_space import LogUniform

_PROJECTION = "selfreg-projection"


@final
@dataclass(frozen=True)
class SelfReg(Penalty):
    """Penalty min(1, R)·{λ[d(o, o_ρ) + 0.3·d(h, q_ρ)] + (1 − λ)[d(o, mix o) + 0.3·d(h, mix q)]}.

    Kim et al. 2021. R is the risk, o are logits, h are features, q = P(h) is a learned projection, and d is
    the mean squared difference. For each row, ρ and ρ' are two random rows of the same class. The mixtures
    are mix v = λ·v_ρ + (1 − λ)·v_ρ', where λ ~ Beta(½, ½) is sampled once per step. P is trained with the
    model; the released code never trains P. In regression, ρ and ρ' must have the same target as the row.
    They are therefore usually the row itself, and the penalty reduces to 0.3·min(1, R)·d(h, P(h)).

    Attributes:
        coefficient: Weight of the penalty; 1 in the paper.
    """

    name: ClassVar[str] = "selfreg"
    paper: ClassVar[str] = "Kim et al. 2021, arXiv 2104.09841"
    needs_features: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True
    depends_on_sizes: ClassVar[bool] = True
    coefficient: Annotated[Schedule, LogUniform(1e-2, 1e1)] = Constant(1.0)

    def auxiliary_networks(self, context: TrainContext) -> Mapping[str, nn.Module]:
        width = context.features
        hidden = width if width == 2048 else 2 * width
        layers: list[nn.Module] = []
        for wide, narrow in ((width, hidden), (hidden, hidden), (hidden, width)):
            # Batch norm removes any bias before it, and is used in training only.
            normalized = nn.BatchNorm1d(narrow, track_running_stats=False)
            layers += [nn.Linear(wide, narrow, bias=False), normalized, nn.ReLU()]
        return {_PROJECTION: nn.Sequential(*layers[:-1])}

    def penalty(self, predicted: PredictedBatch, state: State) -> tuple[Tensor, State]:
        context, like, targets = predicted.context, predicted.losses, predicted.batch.targets
        projected = predicted.auxiliary_networks[_PROJECTION](predicted.features)
        share = context.symmetric_beta(0.5, draw=2, like=like)
        partners = [
            partner_of_same(targets, context.permutation(len(like), draw=d, like=like)) for d in (0, 1)
        ]
        return self.at(predicted, projected, share, partners[0], partners[1]), state

    def at(
        self, predicted: PredictedBatch, projected: Tensor, share: Tensor, first: Tensor, second: Tensor
    ) -> Tensor:
        """Compute the penalty with partner rows `first[i]` and `second[i]` for row i.

        Args:
            predicted: Batch with its predictions.
            projected: Learned projection q of the features, `[rows, width]`.
            share: Mixing weight λ.
            first: Index of the partner ρ of each row, `[rows]`.
            second: Index of the partner ρ' of each row, `[rows]`.
        """
        logits, features, mean = predicted.logits, predicted.features, predicted.batch.mean

        def distance(partners: Tensor, q: Tensor) -> Tensor:
            return mean((logits - partners).square()) + 0.3 * mean((features - q).square())

        def mixed(values: Tensor) -> Tensor:
            return share * values[first] + (1 - share) * values[second]

        single = distance(logits[first], projected[first])
        mixture = distance(mixed(logits), mixed(projected))
        scale = mean(predicted.losses).detach().clamp(max=1)
        return scale * (share * single + (1 - share) * mixture)


def partner_of_same(targets: Tensor, order: Tensor) -> Tensor:
    """Return, for each row, the index of a random row with the same target (a permutation within classes).

    Args:
        targets: Targets, `[rows]`.
        order: Random permutation of the rows, `[rows]`.
    """
    # Sort rows and shuffled rows by target, and pair them position by position.
    rows = targets.argsort(stable=True)
    partners = order[targets[order].argsort(stable=True)]
    return torch.zeros_like(rows).scatter(0, rows, partners)
