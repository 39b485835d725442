"""Track the validation metrics of a replica stack, to keep the best weights and to stop early."""

import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import torch

from envariant.core.tasks import Task
from envariant.training.averaging import averaging
from envariant.training.early_stopping import Patience
from envariant.training.evaluator import Weights
from envariant.training.history import LOSS, HistoryRow
from envariant.training.keep_rules import KeepBest, KeepRule, keep_rule


def uses_validation(options: Mapping[str, Any]) -> bool:
    """Return whether any training option uses validation scores: early stopping, `keep="best"`, or SWAD.

    Args:
        options: Training options by name.
    """
    average = averaging(options.get("average"))
    return (
        (average is not None and average.needs_validation)
        or isinstance(keep_rule(options.get("keep", "last")), KeepBest)
        or options.get("stop_early") is not None
    )


@final
class ValidationWatch:
    """Record of the best validation scores of all replicas, and of the weights with the best score.

    Args:
        keep: Rule that selects the steps at which weights are saved.
        patience: Rule for early stopping, or None.
        task: Task of the run.
        replicas: Number of replicas.

    Attributes:
        state: Tensors by name, for checkpoints. "kept" contains, for each replica, the best score and its
            step. "patience" contains the best value of the stopping metric, its step, and the number of
            evaluations since then. "params" and "buffers" contain the kept weights.
    """

    def __init__(self, keep: KeepRule, patience: Patience | None, task: Task, replicas: int) -> None:
        self._keeps_best, self._patience, self._task = isinstance(keep, KeepBest), patience, task
        self._metric = keep.metric if isinstance(keep, KeepBest) else ""
        never = torch.tensor([-torch.inf, -1.0, 0.0], dtype=torch.float64).expand(replicas, 3)
        self.state: dict[str, Any] = {"params": {}, "buffers": {}}
        self.state |= {"kept": never[:, :2].clone()} if self._keeps_best else {}
        self.state |= {"patience": never.clone()} if patience is not None else {}

    @property
    def weights(self) -> tuple[Weights, Weights]:
        """Parameters and buffers of each replica at its best evaluation."""
        return self.state["params"], self.state["buffers"]

    def observe(
        self, k: int, step: int, rows: Iterable[HistoryRow], weights: Callable[[], tuple[Weights, Weights]]
    ) -> str | None:
        """Record an evaluation of a replica; return the reason if the replica must stop, else None.

        Args:
            k: Index of the replica in the stack.
            step: Number of completed updates.
            rows: Metric values of the replica from this evaluation.
            weights: Function that returns all replicas' parameters and buffers used for prediction.
        """
        rows = list(rows)
        if self._keeps_best:
            score = self._score(rows, self._metric or self._task.metric)
            if score > self.state["kept"][k, 0]:
                self.state["kept"][k] = torch.tensor([score, step], dtype=torch.float64)
                for group, values in zip(("params", "buffers"), weights(), strict=True):
                    held = self.state[group]
                    for name, value in values.items():
                        if name not in held:
                            held[name] = value.detach().clone()
                        held[name][k] = value[k]
        if self._patience is None:
            return None
        best, at, since = self.state["patience"][k].tolist()
        score = self._score(rows, self._patience.metric)
        best, at, since = (score, step, 0) if score > best else (best, at, since + 1)
        self.state["patience"][k] = torch.tensor([best, at, since], dtype=torch.float64)
        if since < self._patience.evaluations:
            return None
        return (
            f"no better validation {self._patience.metric} in {int(since)} evaluations since step {int(at)}"
        )

    def load(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Restore the state from a checkpoint.

        Args:
            saved: State from the checkpoint, which omits empty mappings.
            device: Device of the weights.

        Raises:
            KeyError: If the checkpoint was written with different `keep` or early-stopping rules.
        """
        for name, value in self.state.items():
            if isinstance(value, dict):
                self.state[name] = {key: each.to(device) for key, each in saved.get(name, {}).items()}
            else:
                self.state[name] = saved[name].clone()

    def _score(self, rows: Iterable[HistoryRow], metric: str) -> float:
        """Return the mean of a validation metric over environments, negated if lower values are better."""
        values = [row.value for row in rows if row.role == "validation" and row.metric == metric]
        better = metric != LOSS and self._task.higher_is_better
        return statistics.fmean(values) * (1 if better else -1)
