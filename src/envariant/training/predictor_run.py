"""Fit predictors, which are not networks, and yield `Evaluated` events as the engine does for networks."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from envariant.core.environments import EnvironmentSet, EnvironmentSource
from envariant.predictors import FittedPredictor, Predictor
from envariant.training.checkpoint import Checkpoint
from envariant.training.column_change import ColumnChange
from envariant.training.engine import Evaluated, is_done
from envariant.training.history import LOSS, HistoryRow
from envariant.training.replica_stack import Change
from envariant.training.replicas import Seeds
from envariant.training.run_config import RunConfig

# Largest number of input values, or of logits, for which all environments are predicted in one call.
_MOST_NUMBERS = 4_000_000


@final
@dataclass(frozen=True, eq=False)
class _Fitted:
    """Fitted predictor of one replica, with the replica's data."""

    sample: EnvironmentSet
    model: FittedPredictor

    @cached_property
    def _logits(self) -> Mapping[str, Tensor]:
        """Logits of all rows by environment; empty if there are too many rows, or rows affect one another.

        Hundreds of small environments are predicted in one call, because a call takes milliseconds.
        """
        parts = self.sample.environments
        width = max(math.prod(self.sample.input_shape), self.sample.task.outputs)
        if not self.model.rows_are_independent or sum(map(len, parts)) * width > _MOST_NUMBERS:
            return {}
        logits = self.model.logits(torch.cat([each.rows()[0] for each in parts]))
        pieces = logits.split([len(each) for each in parts])
        return {each.name: own for each, own in zip(parts, pieces, strict=True)}

    def predictions(
        self, name: str, rows: Tensor | None = None, change: Change | None = None, /
    ) -> tuple[Tensor, Tensor]:
        """Return logits and targets `[1, rows, …]` of an environment; see `ReplicaStack.answers`."""
        environment = self.sample[name]
        inputs, targets = environment.rows(rows)
        if change is None and name in self._logits:
            logits = self._logits[name]
            return (logits if rows is None else logits[rows])[None], targets[None]
        changed = inputs if change is None else change(inputs)
        if not self.model.columns:
            return self.model.logits(changed)[None], targets[None]
        frame = environment.input_store.frame(rows)
        if frame is not None and isinstance(change, ColumnChange):
            frame = change.of_frame(frame)
        return self.model.logits(changed, frame)[None], targets[None]


def run(
    source: EnvironmentSource,
    replicas: Sequence[tuple[int, Seeds, Predictor]],
    config: RunConfig,
    resume: Sequence[Checkpoint] = (),
) -> Iterator[Evaluated]:
    """Fit one predictor per replica and evaluate it in every environment.

    Args:
        source: Data source of all replicas.
        replicas: Index, seeds and unfitted predictor of each replica.
        config: Settings shared by all replicas.
        resume: Checkpoints of the stored run. Finished replicas are not fitted again.

    Raises:
        EnvariantError: If a predictor does not support the data.
    """
    done = {checkpoint.replicas for checkpoint in resume if is_done(checkpoint, config.steps)}
    for index, seeds, predictor in replicas:
        if (index,) in done:
            continue
        sample = source.sample(seeds.data)
        roles = sample.roles(config.test)
        trained = tuple(e for e in sample.environments if roles[e.name] == "train")
        started = time.perf_counter()
        model = predictor.fit(EnvironmentSet(sample.label, trained, sample.task), seeds.initialization)
        seconds = time.perf_counter() - started
        fitted, step = _Fitted(sample, model), model.iterations
        checkpoint = Checkpoint(
            (index,), step, step, {}, {}, {}, {}, {"failed_at": torch.tensor([-1])}, (), {}, seconds
        )
        rows = tuple(_rows(fitted, index, step, roles))
        yield Evaluated((index,), step, rows, lambda saved=checkpoint: saved, True, fitted.predictions)


def _rows(fitted: _Fitted, index: int, step: int, roles: dict[str, str]) -> Iterator[HistoryRow]:
    """Measure loss and metric in every environment."""
    task = fitted.sample.task
    for name, role in roles.items():
        logits, targets = (part[0] for part in fitted.predictions(name))
        for metric, values in (
            (LOSS, task.losses(logits, targets)),
            (task.metric, task.scores(logits, targets)),
        ):
            environment = fitted.sample[name]
            value = float(values.double().mean())
            yield HistoryRow(index, step, environment.origin or name, role, metric, value)
