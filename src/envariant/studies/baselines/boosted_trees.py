"""Gradient-boosted trees beside the networks of a study, because people will compare with them anyway.

They are trained on all training environments' rows together, know nothing of environments, and are measured
in the same places on the same rows.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from torch import Tensor

from envariant.core.environments import WEIGHT, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Binary, Regression
from envariant.training.history import LOSS, HistoryRow
from envariant.training.replica_stack import Change

NAME = "boosted-trees"
"""As written among the algorithms of a study."""

RATE = 0.1
"""How much each tree takes back of what is left."""

# Beyond this, a probability of 1 is no number in a loss.
_SURE = 15.0


@final
@dataclass(frozen=True, eq=False)
class Trees:
    """One fitted model, asked as networks are.

    Attributes:
        drawn: its environments.
        fitted: scikit-learn's.
        seconds: that fitting took.
    """

    drawn: EnvironmentSet
    fitted: Any
    seconds: float

    @property
    def rounds(self) -> int:
        """Trees it has, by class if there are more than two."""
        return int(self.fitted.n_iter_)

    def answers(
        self, name: str, rows: Tensor | None = None, change: Change | None = None, /
    ) -> tuple[Tensor, Tensor]:
        """As of a group of one replica: logits and targets, `[1, rows, …]`."""
        inputs, targets = self.drawn[name].rows(rows)
        inputs = inputs if change is None else change(inputs)
        return self._logits(inputs)[None], targets[None]

    def history(self, run: int, roles: dict[str, str]) -> Iterator[HistoryRow]:
        """Loss and metric in every environment."""
        task = self.drawn.task
        for name, role in roles.items():
            logits, targets = (part[0] for part in self.answers(name))
            for metric, values in (
                (LOSS, task.losses(logits, targets)),
                (task.metric, task.scores(logits, targets)),
            ):
                yield HistoryRow(run, self.rounds, name, role, metric, float(values.double().mean()))

    def _logits(self, inputs: Tensor) -> Tensor:
        task, rows = self.drawn.task, inputs.flatten(1).numpy()
        if isinstance(task, Regression):
            return torch.from_numpy(self.fitted.predict(rows)).float()
        classes = self.fitted.classes_.astype(int)
        # A class that no training row has gets nothing.
        logits = np.full((len(rows), task.outputs), -_SURE)
        if len(classes) == 1:
            binary = isinstance(task, Binary)
            logits[:, 0 if binary else classes[0]] = -_SURE if binary and not classes[0] else _SURE
            return task.logits(torch.from_numpy(logits).float())
        known = np.clip(self.fitted.decision_function(rows), -_SURE, _SURE)
        if isinstance(task, Binary):
            return torch.from_numpy(known).float()
        if len(classes) == 2:
            logits[:, classes[0]], logits[:, classes[1]] = -known / 2, known / 2
        else:
            logits[:, classes] = known
        return torch.from_numpy(logits).float()


def fit(drawn: EnvironmentSet, roles: dict[str, str], seed: int) -> Trees:
    """Trees for the training environments' rows.

    Args:
        drawn: all environments.
        roles: of them.
        seed: of what is drawn at random.
    """
    training = [drawn[name] for name, role in roles.items() if role == "train"]
    inputs = torch.cat([e.inputs for e in training]).flatten(1).numpy()
    targets = torch.cat([e.targets for e in training]).numpy()
    real = isinstance(drawn.task, Regression)
    kind: Any = HistGradientBoostingRegressor if real else HistGradientBoostingClassifier
    started = time.perf_counter()
    # As scikit-learn has them: people compare with what they would get.
    fitted = kind(learning_rate=RATE, random_state=seed)
    some = WEIGHT in training[0].attributes
    weights = torch.cat([e.attributes[WEIGHT] for e in training]).numpy() if some else None
    try:
        fitted.fit(inputs, targets, sample_weight=weights)
    except ValueError as error:
        # A class of a single row cannot be parted, which is how scikit-learn finds where to stop.
        raise EnvariantError(f"{NAME}: {str(error).splitlines()[0]}") from None
    return Trees(drawn, fitted, time.perf_counter() - started)
