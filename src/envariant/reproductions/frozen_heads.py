"""Training of linear heads on frozen features by full-batch Adam, for several penalties and penalty weights.

All heads of a method share the matrix product with the features, which is the largest cost of a step.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from envariant.core.environments import Environment, EnvironmentSet, EnvironmentSource
from envariant.models import model_config
from envariant.models.base import FeaturizerAndHead, ModelConfig
from envariant.training.pretraining import prepared
from envariant.training.replicas import Seeds
from envariant.training.resolution import resolve
from envariant.training.run_spec import RunSpec

CLOVE_ROWS, CLOVE_WIDTH = 512, 0.4
_ROWS_AT_ONCE = 10_000


@final
@dataclass(frozen=True, eq=False)
class Rows:
    """Features and labels of environments with equally many rows.

    Attributes:
        features: Features, and a last column of ones, `[environments, rows, features + 1]`.
        targets: Labels 0 or 1, `[environments, rows]`.
    """

    features: Tensor
    targets: Tensor

    def logits(self, heads: Tensor) -> Tensor:
        """Return the logits `[environments, rows, heads]` of heads `[features + 1, heads]`."""
        # With few heads, products whose long axis comes last are several times as fast, also in the gradient.
        flat = heads.T.contiguous() @ self.features.flatten(0, 1).T
        return flat.T.unflatten(0, self.targets.shape)

    def accuracy(self, heads: Tensor) -> Tensor:
        """Return the accuracy of each head in each environment, `[environments, heads]`."""
        right = (self.logits(heads) > 0) == (self.targets[..., None] > 0.5)
        return right.float().mean(dim=1)

    def sample(self, size: int, generator: torch.Generator) -> "Rows":
        """Sample rows of each environment with replacement."""
        environments, rows = self.targets.shape
        index = torch.randint(rows, (environments, size), generator=generator).to(self.targets.device)
        which = torch.arange(environments, device=index.device)[:, None]
        return Rows(self.features[which, index], self.targets[which, index])


@final
@dataclass(frozen=True, eq=False)
class RichFeatures:
    """Pretrained network of one replica, with its data.

    Attributes:
        sample: Environments of the replica.
        network: Network with the pretrained weights.
        roles: Role of each environment, by name: "train" or "test".
    """

    sample: EnvironmentSet
    network: FeaturizerAndHead
    roles: Mapping[str, str]

    @property
    def head(self) -> Tensor:
        """Weights and bias of the pretrained head, `[features + 1]`."""
        head = self.network.head
        assert isinstance(head, torch.nn.Linear)
        return torch.cat([head.weight[0], head.bias]).detach()

    def rows(self, role: str) -> Rows:
        """Return the features and labels of all environments that have a given role.

        Args:
            role: "train" or "test".
        """
        return self.rows_of([name for name, own in self.roles.items() if own == role])

    def rows_of(self, names: Sequence[str]) -> Rows:
        """Return the features and labels of some environments.

        Args:
            names: Names of environments with equal numbers of rows.
        """
        own = [self.sample[name] for name in names]
        targets = torch.stack([e.targets for e in own]).float()
        return Rows(torch.stack([self._features(e) for e in own]), targets.to(self.head.device))

    def _features(self, environment: Environment) -> Tensor:
        inputs = environment.input_store.gather()
        with torch.no_grad():
            parts = [
                self.network.featurizer(part.to(self.head.device)).float()
                for part in inputs.split(_ROWS_AT_ONCE)
            ]
        features = torch.cat(parts)
        return torch.cat([features, features.new_ones(len(features), 1)], dim=1)


def rich_features(
    source: EnvironmentSource,
    replica: int,
    *,
    model: str,
    init: str,
    learning_rate: float,
    data_seed: int | None = None,
) -> RichFeatures:
    """Pretrain the network of one replica, with the seeds that `envariant.train` uses.

    Args:
        source: Data source.
        replica: Index of the replica.
        model: Model, such as "mlp(hidden=390)".
        init: Pretraining, such as "rfc".
        learning_rate: Learning rate of the pretraining.
        data_seed: Seed of the data draw. Default: the one that `envariant.train` uses.
    """
    spec = RunSpec(
        data=source,
        model=model,
        init=init,
        learning_rate=learning_rate,
        steps=1,
        batch_size="full",
    )
    run = resolve(spec)
    seeds = Seeds.of(0, replica)
    seeds = seeds if data_seed is None else replace(seeds, data=data_seed)
    started = prepared(run.replica(replica, seeds), run.source, run.config, run.pretraining, _silent).start
    sample = run.source.sample(seeds.data)
    config: ModelConfig = model_config(model)
    network = config.build(sample.input_shape, sample.task.outputs)
    assert isinstance(network, FeaturizerAndHead)
    network.load_state_dict(dict(started.params))
    return RichFeatures(sample, network.eval().to(run.config.device), sample.roles(None))


def _silent(replica: int, step: int, steps: int) -> None:
    """Report no progress."""
    del replica, step, steps


def train_heads(
    rows: Rows,
    start: Tensor,
    method: str,
    weights: Sequence[float],
    *,
    l2: Sequence[float],
    steps: int,
    every: int,
    learning_rate: float,
    seed: int = 0,
) -> Iterator[tuple[int, Tensor]]:
    """Train heads from the same initial values, one for each penalty weight.

    The loss of a head is [Σ_e R_e + l2·‖θ‖² + λ·P] / max(1, λ), with the risks R_e, the penalty P, its weight
    λ, and the head's weights and bias θ. CLOvE uses 512 rows of each environment per step.

    Args:
        rows: Training rows.
        start: Initial weights and bias, `[features + 1]`.
        method: Name of a penalty in `PENALTIES`.
        weights: Penalty weight λ of each head.
        l2: L2 coefficient of each head.
        steps: Number of updates.
        every: Number of updates between yielded values; the last update is always included.
        learning_rate: Learning rate of Adam.
        seed: Seed of the rows that CLOvE samples.

    Yields:
        Number of updates, and the heads `[features + 1, heads]`.
    """
    penalty = PENALTIES[method]
    coefficients, decay = (torch.tensor(list(each), device=start.device) for each in (weights, l2))
    heads = start[:, None].repeat(1, len(weights)).requires_grad_()
    optimizer = torch.optim.Adam([heads], lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    squares = rows.features.square() if method == "Fishr" else rows.features
    for step in range(1, steps + 1):
        batch = rows.sample(CLOVE_ROWS, generator) if method == "CLOvE" else rows
        logits = batch.logits(heads)
        targets = batch.targets[..., None].expand_as(logits)
        risks = binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)
        inside = _Predicted(batch.features, squares, logits, batch.targets[..., None], risks)
        loss = risks.sum(dim=0) + decay * heads.square().sum(dim=0) + coefficients * penalty(inside)
        (gradient,) = torch.autograd.grad((loss / coefficients.clamp(min=1)).sum(), heads)
        heads.grad = gradient
        optimizer.step()
        if step % every == 0 or step == steps:
            yield step, heads.detach().clone()


@final
@dataclass(frozen=True, eq=False)
class _Predicted:
    """Values from which penalties are computed; a penalty has one value per head.

    Attributes:
        features: Features `[environments, rows, features + 1]`.
        squares: Squared features; used by Fishr only.
        logits: Logits `[environments, rows, heads]`.
        targets: Labels `[environments, rows, 1]`.
        risks: Risks `[environments, heads]`.
    """

    features: Tensor
    squares: Tensor
    logits: Tensor
    targets: Tensor
    risks: Tensor

    @property
    def residuals(self) -> Tensor:
        """Derivatives of the losses with respect to the logits."""
        return self.logits.sigmoid() - self.targets


def _none(inside: _Predicted) -> Tensor:
    return torch.zeros_like(inside.risks[0])


def _irm(inside: _Predicted) -> Tensor:
    return (inside.residuals * inside.logits).mean(dim=1).square().mean(dim=0)


def _vrex(inside: _Predicted) -> Tensor:
    return inside.risks.var(dim=0)


def _sd(inside: _Predicted) -> Tensor:
    return inside.logits.square().mean(dim=1).sum(dim=0)


def _iga(inside: _Predicted) -> Tensor:
    return _spread(_moments(inside.features, inside.residuals))


def _fishr(inside: _Predicted) -> Tensor:
    # Second moments of the gradients of rows; the code does not subtract the means.
    return _spread(_moments(inside.squares, inside.residuals.square()))


def _moments(features: Tensor, factors: Tensor) -> Tensor:
    """Return the mean over rows of feature times factor, `[environments, features + 1, heads]`."""
    return (factors.mT @ features).mT / factors.shape[1]


def _spread(values: Tensor) -> Tensor:
    return (values - values.mean(dim=0)).square().sum(dim=(0, 1))


def _clove(inside: _Predicted) -> Tensor:
    """Return Σ_e (1/N²) Σ_ij (c_i − f_i)(c_j − f_j)·exp(−|f_i − f_j|/width), CLOvE's penalty.

    For row i of the N rows of environment e, f_i is the confidence, and c_i is 1 if the prediction is right,
    else 0.
    """
    p = inside.logits.sigmoid()
    confidence = torch.maximum(p, 1 - p)
    error = ((p > 0.5) == (inside.targets > 0.5)).float() - confidence
    apart = (confidence[:, :, None] - confidence[:, None]).abs()
    pairs = torch.exp(-apart / CLOVE_WIDTH) * error[:, :, None] * error[:, None]
    return pairs.mean(dim=(1, 2)).sum(dim=0)


def _eqrm(inside: _Predicted) -> Tensor:
    """Return E·b for E environments and the bandwidth b of EQRM's kernel density estimate of the risks.

    With penalty weight √(−2a), where a = log(1 − α), the sum of the risks and the weighted penalty is E times
    EQRM's α-quantile of the risks.
    """
    environments = len(inside.risks)
    return 1.06 * environments**0.8 * inside.risks.std(dim=0)


PENALTIES: Mapping[str, Callable[[_Predicted], Tensor]] = {
    "ERM": _none,
    "IRMv1": _irm,
    "vREx": _vrex,
    "SD": _sd,
    "IGA": _iga,
    "Fishr": _fishr,
    "CLOvE": _clove,
    "EQRM": _eqrm,
}
"""Penalties by their names in the RFC code; the penalty of EQRM is added here."""
