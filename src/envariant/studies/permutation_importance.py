"""What is measured of the runs of a study beside what training measures: other metrics, and columns' worth.

Whatever trained them, models are asked the same way: for their answers on rows of an environment, as they are
or with a column changed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envariant.core.environments import EnvironmentSet
from envariant.core.metrics import Metric
from envariant.training.history import HistoryRow
from envariant.training.replica_stack import Change

AS_IT_IS, SHUFFLED, ELSEWHERE = "some rows", "without ", "from elsewhere: "
"""What the metric is called on some rows as they are; and how it begins where a column's values are shuffled
within the environment, or taken from training environments."""

_KEPT = 1_000
_TRIED = 500


class Ask(Protocol):
    """Models that train together, asked what they say of an environment."""

    def __call__(
        self, name: str, rows: Tensor | None = None, change: Change | None = None, /
    ) -> tuple[Tensor, Tensor]:
        """Logits and targets of each model, `[models, rows, …]`, at some rows and with inputs changed."""
        ...


@final
@dataclass(frozen=True, eq=False)
class Answers:
    """What one run says of some rows of an environment.

    Attributes:
        environment: whose.
        of: how many rows it has in all.
        logits: `[rows]` or `[rows, classes]`.
        targets: `[rows]`.
    """

    environment: str
    of: int
    logits: NDArray[np.float32]
    targets: NDArray[np.float32]


@final
@dataclass(frozen=True, eq=False)
class Measures:
    """How runs on these environments are measured where a choice or a verdict looks: not where they trained.

    Attributes:
        drawn: the environments of the first of them; names, sizes and task are the same for all.
        roles: by environment.
        metric: in which runs are compared.
        columns: where each column's numbers lie among the inputs; empty where inputs are no table.
        details: whether what columns are worth and runs' answers are wanted as well.
    """

    drawn: EnvironmentSet
    roles: Mapping[str, str]
    metric: Metric
    columns: Mapping[str, slice]
    store_predictions: bool

    @property
    def places(self) -> list[str]:
        """Environments that were not trained on."""
        return [name for name, role in self.roles.items() if role != "train"]

    def at(self, ask: Ask, runs: Sequence[int], step: int) -> list[HistoryRow]:
        """The metric in those places, if it is not the task's own, which is measured anyhow."""
        if self.metric.name == self.drawn.task.metric:
            return []
        wanted = self.metric.name
        return [row for name in self.places for row in self._rows(ask, runs, step, name, wanted)]

    def reliance(self, ask: Ask, runs: Sequence[int], step: int) -> list[HistoryRow]:
        """The metric without each column, and where it holds values from elsewhere.

        Shuffled within an environment, a column tells nothing of a row; where environments are held out,
        values of the training environments tell besides nothing of the place.
        """
        generator = torch.Generator().manual_seed(0)
        found: list[HistoryRow] = []
        for name in self.places if self.store_predictions else []:
            some = _spread(len(self.drawn[name]), _TRIED)
            found += self._rows(ask, runs, step, name, AS_IT_IS, some)
            order = torch.randperm(len(some), generator=generator)
            for column, place in self.columns.items():
                found += self._rows(ask, runs, step, name, SHUFFLED + column, some, _shuffled(place, order))
                if self.roles[name] == "test":
                    other = self._elsewhere(place, len(some), generator)
                    found += self._rows(ask, runs, step, name, ELSEWHERE + column, some, _given(place, other))
        return found

    def answers(self, ask: Ask, runs: Sequence[int]) -> dict[int, tuple[Answers, ...]]:
        """What each run says of at most 1,000 rows of every place, the same rows in all runs."""
        found: dict[int, list[Answers]] = {run: [] for run in runs}
        for name in self.places if self.store_predictions else []:
            size = len(self.drawn[name])
            logits, targets = (part.float().cpu().numpy() for part in ask(name, _spread(size, _KEPT)))
            for run, z, y in zip(runs, logits, targets, strict=True):
                found[run].append(Answers(name, size, z, y))
        return {run: tuple(each) for run, each in found.items()}

    def _rows(
        self,
        ask: Ask,
        runs: Sequence[int],
        step: int,
        name: str,
        label: str,
        rows: Tensor | None = None,
        change: Change | None = None,
    ) -> list[HistoryRow]:
        logits, targets = (part.cpu().numpy() for part in ask(name, rows, change))
        worth = (self.metric.compute(self.drawn.task, z, y) for z, y in zip(logits, targets, strict=True))
        return [
            HistoryRow(run, step, name, self.roles[name], label, value)
            for run, value in zip(runs, worth, strict=True)
            if np.isfinite(value)
        ]

    def _elsewhere(self, place: slice, count: int, generator: torch.Generator) -> Tensor:
        training = [e for e in self.drawn.environments if self.roles[e.name] == "train"]
        owners = torch.randint(len(training), (count,), generator=generator)
        out = torch.empty(count, place.stop - place.start)
        for k, environment in enumerate(training):
            own = owners == k
            index = torch.randint(len(environment), (int(own.sum()),), generator=generator)
            out[own] = environment.inputs[index, place]
        return out


def _spread(size: int, most: int) -> Tensor:
    """Numbers of at most so many rows, evenly through all of them."""
    return torch.linspace(0, size - 1, min(size, most)).round().long()


def _shuffled(place: slice, order: Tensor) -> Change:
    def change(inputs: Tensor) -> Tensor:
        changed = inputs.clone()
        changed[..., place] = inputs[..., order.to(inputs.device), place]
        return changed

    return change


def _given(place: slice, values: Tensor) -> Change:
    def change(inputs: Tensor) -> Tensor:
        changed = inputs.clone()
        changed[..., place] = values.to(inputs.device)
        return changed

    return change
