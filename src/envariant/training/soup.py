"""Model soups: average the weights of networks that were trained from the same initial weights.

Sources: DiWA (Ramé et al. 2022, arXiv 2205.09739) and model soups (Wortsman et al. 2022, arXiv 2203.05482).
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from envariant.core.counter_rng import private_random_numbers
from envariant.core.display import Displayed, Summary, named
from envariant.core.environments import Environment, EnvironmentSet, EnvironmentSource
from envariant.core.errors import EnvariantError, unknown_name
from envariant.data.validation_split import ValidationSplit
from envariant.data.with_loss import named_loss, with_loss
from envariant.training.averaging.averaged_weights import MOST_BATCHES
from envariant.training.checkpoint import ReplicaState
from envariant.training.evaluator import Evaluator, Weights
from envariant.training.history import LOSS, OUTPUT_SD, HistoryRow
from envariant.training.network import BATCH_NORMS, TOGETHER
from envariant.training.record import Record
from envariant.training.result import TrainingResult

RULES = ("uniform", "greedy")
"""Ways to choose the members of a soup."""
# Rows of a batch from which BatchNorm statistics are computed, and of a block that is predicted at once.
_BATCH_ROWS, _BLOCK_ROWS = 512, 4096


@final
@dataclass(frozen=True, repr=False)
class Soup(Displayed):
    """Network with the averaged weights of several networks, and the scores of all these networks.

    Attributes:
        rule: Rule by which networks were selected: "uniform" or "greedy".
        members: Labels of all candidate networks, in order of decreasing validation score, averaged over
            environments. Without validation rows, scores are averaged over all environments instead.
        selected: Labels of the networks whose weights were averaged.
        scores: For each environment label, a pair: score of the soup, and scores of all candidate networks in
            the order of `members`.
        result: Result with the soup as its only replica, for example for `SavedModel.of`.
    """

    rule: str
    members: tuple[str, ...]
    selected: tuple[str, ...]
    scores: Mapping[str, tuple[float, tuple[float, ...]]]
    result: TrainingResult = field(repr=False)

    def model(self) -> nn.Module:
        """Return the network with the averaged weights, in evaluation mode."""
        return self.result.model(0)

    @property
    def gain(self) -> float:
        """Improvement of the soup's score over the mean score of the averaged networks.

        The improvement is a mean over environments, and positive if the soup is better. It is computed on
        validation rows, or on training rows if there are no validation rows. A negative gain means that the
        weights of the networks lie too far apart to be averaged.
        """
        roles, sign = self.result.record.roles, 1 if self.result.record.higher_is_better else -1
        role = "validation" if "validation" in roles.values() else "train"
        places = [self.members.index(label) for label in self.selected]
        differences = [
            score - statistics.fmean(members[place] for place in places)
            for name, (score, members) in self.scores.items()
            if roles[name] == role
        ]
        return sign * statistics.fmean(differences)

    def to_dict(self) -> dict[str, Any]:
        """Return rule, members and scores as a JSON-compatible dictionary."""
        return {
            "rule": self.rule,
            "members": list(self.members),
            "selected": list(self.selected),
            "metric": self.result.record.metric,
            "gain": self.gain,
            "environments": {
                name: {"soup": score, "members_mean": statistics.fmean(each), "members": list(each)}
                for name, (score, each) in self.scores.items()
            },
        }

    def _display(self) -> Summary:
        record = self.result.record
        far = "" if self.gain >= 0 else ": their weights lie too far apart to be averaged"
        best = max if record.higher_is_better else min
        brief = (
            f"{name} {score:.3f} (members {statistics.fmean(each):.3f})"
            for name, (score, each) in self.scores.items()
        )
        return Summary(
            f"Soup ({self.rule}): {record.spec.algorithm} on {record.spec.data}",
            {
                "averaged": f"{len(self.selected)} of {len(self.members)} networks",
                "members": named(self.selected),
                "gain over their mean": f"{self.gain:+.3f}{far}",
            },
            {record.metric: named(brief)},
            header=("environment", "role", f"{record.metric} of the soup", "mean of members", "best member"),
            rows=tuple(
                (
                    name,
                    record.roles[name],
                    f"{score:.3f}",
                    f"{statistics.fmean(each):.3f}",
                    f"{best(each):.3f}",
                )
                for name, (score, each) in self.scores.items()
            ),
        )


def soup_of(
    result: TrainingResult,
    rule: Literal["uniform", "greedy"] = "uniform",
    sample: EnvironmentSet | None = None,
    labels: Mapping[int, str] | None = None,
) -> Soup:
    """Average the weights of the finished replicas of a run.

    Args:
        result: Result of a run with `shared_init=True`.
        rule: "uniform" averages all replicas. "greedy" considers replicas in order of decreasing mean
            validation score, and adds each replica that does not worsen the soup's score on the pooled
            validation rows of all environments.
        sample: Environments of the run. Default: the environments in `result`.
        labels: Name of each replica. Default: the replica's number.

    Raises:
        EnvariantError: If the replicas cannot be averaged, or the greedy rule has no validation rows.
    """
    record, sample = result.record, sample or result.sample
    finished = result.finished
    _check(record, rule, finished)
    if sample is None:
        raise EnvariantError("soup: the run was loaded from disk; pass its data as well")
    if sample is not result.sample:
        if record.fingerprints["data"] != sample.fingerprint():
            raise EnvariantError(f"soup: the data are not those of the run ({record.spec.data})")
        # A loss without a name is not stored; the scores do not depend on it.
        if loss := named_loss(sample.task, record.spec.loss, record.fingerprints.get("loss")):
            sample = replace(sample, task=with_loss(sample.task, loss))
    scorer = _Scorer(result, sample)
    scores = {k: scorer.scores(scorer.of_replica(k)) for k in finished}
    roles = sample.roles(record.spec.test_environments)
    validation = [name for name, role in roles.items() if role == "validation"]
    sign = 1 if record.higher_is_better else -1
    ranked = {k: sign * statistics.fmean(scores[k][n][1] for n in validation or roles) for k in finished}
    order = sorted(finished, key=lambda k: -ranked[k])
    weights = [result.checkpoints[k].params for k in order]
    chosen = range(len(order))
    if rule == "greedy":
        chosen = greedy(weights, lambda mean: sign * scorer.pooled(scorer.of_weights(mean), validation))
    state = scorer.of_weights(mean_of([weights[place] for place in chosen]))
    ours = scorer.scores(state)
    labels = labels or {k: str(k) for k in finished}
    rows = [
        HistoryRow(0, state.step, each.origin or each.name, roles[each.name], metric, value)
        for each in sample.environments
        for metric, value in zip((LOSS, record.metric, OUTPUT_SD), ours[each.name], strict=True)
    ]
    names = [
        (each.label, part.name) for each, part in zip(record.environments, sample.environments, strict=True)
    ]
    return Soup(
        rule,
        tuple(labels[k] for k in order),
        tuple(labels[order[place]] for place in chosen),
        {label: (ours[name][1], tuple(scores[k][name][1] for k in order)) for label, name in names},
        TrainingResult(
            replace(record, spec=record.spec.but(replicas=1), seeds=record.seeds[:1]),
            rows,
            {0: state},
            result.build_model,
            sample=sample,
        ),
    )


def mean_of(weights: Sequence[Weights]) -> dict[str, Tensor]:
    """Return the mean of each parameter over several networks, by name; it is computed as a running mean."""
    mean = {name: value.clone() for name, value in weights[0].items()}
    for count, each in enumerate(weights[1:], 1):
        mean = {name: value + (each[name] - value) / (count + 1) for name, value in mean.items()}
    return mean


def greedy(weights: Sequence[Weights], score: Callable[[Weights], float]) -> tuple[int, ...]:
    """Select networks for a greedy soup; return their indices in `weights`.

    The first network is always selected. Each later network is selected if adding it to the selected networks
    does not decrease the score of their averaged parameters.

    Args:
        weights: Parameters of all networks, in order of decreasing score.
        score: Function that maps averaged parameters to a score; higher is better.
    """
    selected: tuple[int, ...] = (0,)
    best = score(weights[0])
    for place in range(1, len(weights)):
        tried = (*selected, place)
        if (reached := score(mean_of([weights[k] for k in tried]))) >= best:
            selected, best = tried, reached
    return selected


def sample_of(record: Record, source: EnvironmentSource) -> EnvironmentSet:
    """Return the environments of a run's first replica, including its validation rows.

    Args:
        record: Record of the run.
        source: Data source of the run.
    """
    spec = record.spec
    source = source.with_test_environments(spec.test_environments)
    split = ValidationSplit(source, spec.holdout_fraction) if spec.holdout_fraction else source
    return split.sample(record.seeds[0].data)


def _check(record: Record, rule: str, finished: Sequence[int]) -> None:
    if rule not in RULES:
        raise unknown_name("rule", rule, RULES, where="soup")
    if len(finished) < 2:
        raise EnvariantError(f"soup: needs at least two finished runs; got {len(finished)}")
    if "model" not in record.fingerprints:
        raise EnvariantError(
            f"soup: {record.spec.algorithm} is not a network, so it has no weights to average"
        )
    if not record.spec.shared_init:
        raise EnvariantError(
            "soup: the runs started from different initial weights, so their mean predicts nothing; train "
            "them with shared_init=True"
        )
    if rule == "greedy" and "validation" not in record.roles.values():
        raise EnvariantError(
            "soup: the greedy rule needs validation rows; set holdout_fraction, for example to 0.2"
        )


@final
class _Scorer:
    """Scores of networks of one run."""

    def __init__(self, result: TrainingResult, sample: EnvironmentSet) -> None:
        self._result, self._sample, self._task = result, sample, sample.task
        self._roles = sample.roles(result.record.spec.test_environments)
        self._first = result.finished[0]

    def of_replica(self, replica: int) -> ReplicaState:
        return self._result.checkpoints[replica]

    def of_weights(self, params: Weights) -> ReplicaState:
        """Return a state with averaged parameters and with BatchNorm statistics computed for them."""
        first = self._result.checkpoints[self._first]
        steps = self._result.record.spec.steps or 0
        state = ReplicaState(steps, params, first.buffers, None, self._result.seconds)
        module = self._module(state)
        frozen = "batch-norm" in (self._result.record.spec.freeze or "")
        if frozen or not any(isinstance(part, BATCH_NORMS) for part in module.modules()):
            return state
        with private_random_numbers(0, torch.device("cpu")):
            update_bn(self._training_batches(), module)
        return replace(state, buffers={**first.buffers, **dict(module.named_buffers())})

    def _training_batches(self) -> Iterator[Tensor]:
        """Return batches of the training rows of all environments, in random order, for one pass."""
        stores = [e.input_store for e in self._sample.environments if self._roles[e.name] == "train"]
        count = math.ceil(sum(map(len, stores)) / _BATCH_ROWS)
        generator = torch.Generator().manual_seed(0)
        orders = [torch.randperm(len(store), generator=generator).tensor_split(count) for store in stores]
        for parts in islice(zip(*orders, strict=True), MOST_BATCHES):
            rows = zip(stores, parts, strict=True)
            yield torch.cat([store.decode(store.gather(part.sort().values)) for store, part in rows])

    def scores(self, state: ReplicaState) -> dict[str, tuple[float, ...]]:
        """Return loss, score and standard deviation of the outputs by environment."""
        found: dict[str, tuple[float, ...]] = {}
        module = self._module(state)
        for environment in self._sample.environments:
            logits, targets = self._logits(module, environment), environment.targets
            values = self._task.losses(logits, targets), self._task.scores(logits, targets)
            flat = logits.double().reshape(len(logits), -1)
            spread = flat.var(dim=0, correction=0).mean().sqrt()
            found[environment.name] = (*(float(each.double().mean()) for each in values), float(spread))
        return found

    def pooled(self, state: ReplicaState, names: Sequence[str]) -> float:
        """Return the score on the rows of several environments together."""
        parts, module = [self._sample[name] for name in names], self._module(state)
        logits = torch.cat([self._logits(module, each) for each in parts])
        return float(self._task.scores(logits, torch.cat([each.targets for each in parts])).double().mean())

    def _logits(self, module: nn.Module, environment: Environment) -> Tensor:
        """Return the logits of all rows, a block at a time, because rows may lie on disk."""
        predict, store = Evaluator.of_module(module, self._task).logits, environment.input_store
        together = max(getattr(part, TOGETHER, 1) for part in module.modules())
        blocks = torch.arange(len(store)).split(max(together, _BLOCK_ROWS - _BLOCK_ROWS % together))
        return torch.cat([predict(store.gather(rows), decode=store.decode) for rows in blocks])

    def _module(self, state: ReplicaState) -> nn.Module:
        return replace(self._result, checkpoints={0: state}).model(0)
