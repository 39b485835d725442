"""Fit predictors, which have no networks, and yield `Evaluated` events as the engine does for networks."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from envariant.core.environments import Environment, EnvironmentSet, EnvironmentSource
from envariant.predictors import FittedPredictor, Predictor
from envariant.training.checkpoint import Checkpoint
from envariant.training.column_change import ColumnChange
from envariant.training.engine import Evaluated, is_done
from envariant.training.history import LOSS, HistoryRow
from envariant.training.replica_stack import Change
from envariant.training.replicas import Seeds
from envariant.training.run_config import RunConfig


@final
@dataclass(frozen=True, eq=False)
class _Fitted:
    """Fitted predictor of one replica, with the replica's data."""

    sample: EnvironmentSet
    model: FittedPredictor

    def predictions(
        self, name: str, rows: Tensor | None = None, change: Change | None = None, /
    ) -> tuple[Tensor, Tensor]:
        """Return logits and targets `[1, rows, …]` of an environment; see `ReplicaStack.answers`."""
        environment = self.sample[name]
        # The same predictions are used for scores, tests and stored predictions.
        if change is None and (rows is None or torch.equal(rows, torch.arange(len(environment)))):
            if name not in self._unchanged:
                self._unchanged[name] = self._predicted(environment, None, None)
            return self._unchanged[name]
        return self._predicted(environment, rows, change)

    @cached_property
    def _unchanged(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Predictions for all rows by environment."""
        return {}

    def _predicted(
        self, environment: Environment, rows: Tensor | None, change: Change | None
    ) -> tuple[Tensor, Tensor]:
        inputs, targets = environment.rows(rows)
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
        replicas: Number, seeds and unfitted predictor of each replica.
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
