"""What came out of a run: its history, a summary by environment, and the trained models."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

import pandas as pd
import torch
from torch import nn

from envariant.algorithms import TrainContext, recipe
from envariant.core.counter_rng import private_random_numbers
from envariant.core.errors import EnvariantError, unknown_name
from envariant.core.tasks import Task, task_named
from envariant.models import model_config
from envariant.training import history, run_folder
from envariant.training.checkpoint import ReplicaState
from envariant.training.diagnostics import Diagnosis, diagnose
from envariant.training.history import BATCH, LOSS, OUTPUT_SD, HistoryRow
from envariant.training.record import Record

WORST = "worst"
"""The summary's last line: in each replica, the environment with the worst score."""


@final
@dataclass(frozen=True)
class Spread:
    """One number measured in every replica.

    Attributes:
        values: one a replica that finished.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean; NaN where there is none."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def sd(self) -> float | None:
        """Standard deviation with divisor n − 1; None with fewer than two replicas."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON wants them."""
        return {"mean": self.mean, "sd": self.sd, "values": list(self.values)}


@final
@dataclass(frozen=True)
class TrainingResult:
    """A finished run.

    Attributes:
        record: what the run was, and where its numbers were made.
        rows: everything measured.
        checkpoints: each replica's last state.
    """

    record: Record
    rows: Sequence[HistoryRow] = field(repr=False)
    checkpoints: Mapping[int, ReplicaState] = field(repr=False)

    @classmethod
    def load(cls, folder: Path | str) -> "TrainingResult":
        """A run stored by `train(…, out=folder)`, as far as it has come.

        Raises:
            EnvariantError: the folder holds no run, or a damaged one.
        """
        record, rows, saved = run_folder.load(Path(folder))
        return cls(record, rows, {k: state for group in saved for k, state in group.states().items()})

    @property
    def history(self) -> pd.DataFrame:
        """Everything measured: columns replica, step, environment, split, metric, value."""
        return history.frame(self.rows)

    @property
    def failures(self) -> dict[int, str]:
        """Why a replica stopped early, by its number."""
        return {k: c.failure for k, c in sorted(self.checkpoints.items()) if c.failure is not None}

    @property
    def finished(self) -> tuple[int, ...]:
        """The replicas that made all their steps; only they enter a summary."""
        steps = self.record.settings.steps
        return tuple(k for k, c in sorted(self.checkpoints.items()) if c.step == steps and c.failure is None)

    @property
    def diagnoses(self) -> tuple[Diagnosis, ...]:
        """What looks wrong in the run, with its likely cause and the usual remedy."""
        return diagnose(self.record, self.rows)

    @property
    def seconds(self) -> float:
        """Time spent training and measuring, all replicas together."""
        return sum(c.seconds for c in self.checkpoints.values())

    def final(self, environment: str, metric: str) -> Spread:
        """The last value of a metric in an environment, over the finished replicas.

        Raises:
            EnvariantError: there is no such environment or metric.
        """
        if environment not in self.record.roles:
            raise unknown_name("environment", environment, self.record.roles)
        if metric not in (known := (self.record.metric, LOSS, OUTPUT_SD)):
            raise unknown_name("metric", metric, known)
        last = {
            row.replica: row.value
            for row in self.rows
            if (row.step, row.environment, row.metric) == (self.record.settings.steps, environment, metric)
            and row.split != BATCH
        }
        return Spread(tuple(last[replica] for replica in self.finished))

    def worst(self) -> tuple[Spread, tuple[str, ...]]:
        """In each finished replica the worst environment's score, and which one it was."""
        metric, worst = self.record.metric, min if self.record.higher_is_better else max
        scores = {name: self.final(name, metric).values for name in self.record.roles}
        places = tuple(
            worst(scores, key=lambda name, k=k: scores[name][k]) for k in range(len(self.finished))
        )
        return Spread(tuple(scores[name][k] for k, name in enumerate(places))), places

    def model(self, replica: int = 0) -> nn.Module:
        """The trained network of one replica, in evaluation mode.

        Raises:
            EnvariantError: there is no such replica, or the network was the user's own and has no name by
                which it could be built again.
        """
        saved = self.checkpoints.get(replica)
        if saved is None:
            raise EnvariantError(f"replica {replica}: is not in this run; it has {len(self.checkpoints)}")
        record, settings = self.record, self.record.settings
        try:
            model_config(settings.model)
        except EnvariantError:
            raise EnvariantError(
                f"model '{settings.model}': is not one of the library's; load "
                f"result.checkpoints[{replica}].params and .buffers into a module of your own"
            ) from None
        module = rebuilt(
            settings.model,
            settings.algorithm,
            settings.hyperparameters,
            task_named(record.task, record.outputs),
            record.input_shape,
            [name for name, role in record.roles.items() if role == "train"],
        )
        held = {**saved.params, **saved.buffers}
        # Networks of the algorithm's own have done their work.
        module.load_state_dict({name: held[name] for name in module.state_dict()})
        return module.eval()

    def summary(self) -> pd.DataFrame:
        """A line an environment and one for the worst: mean and standard deviation (n − 1) over replicas."""
        metric = self.record.metric
        lines: dict[str, dict[str, Any]] = {}
        for name, role in self.record.roles.items():
            score, loss = self.final(name, metric), self.final(name, "loss")
            lines[name] = {
                "role": role,
                metric: score.mean,
                f"{metric} sd": score.sd,
                "loss": loss.mean,
                "loss sd": loss.sd,
                "replicas": len(score.values),
            }
        worst, places = self.worst()
        lines[WORST] = {
            "role": "/".join(dict.fromkeys(places)),
            metric: worst.mean,
            f"{metric} sd": worst.sd,
            "replicas": len(worst.values),
        }
        frame = pd.DataFrame.from_dict(lines, orient="index")
        frame.index.name = "environment"
        return frame

    def to_dict(self) -> dict[str, Any]:
        """One object for `--json`: scores by environment, the worst, settings, versions, seconds."""
        record, metric = self.record, self.record.metric
        worst, places = self.worst()
        return {
            "algorithm": record.settings.algorithm,
            "data": record.settings.data,
            "replicas": record.settings.replicas,
            "finished": list(self.finished),
            "environments": {
                name: {
                    "role": role,
                    metric: self.final(name, metric).to_dict(),
                    "loss": self.final(name, "loss").to_dict(),
                }
                for name, role in record.roles.items()
            },
            "worst": {metric: worst.to_dict(), "environments": list(places)},
            "failures": {str(k): reason for k, reason in self.failures.items()},
            "diagnoses": [asdict(diagnosis) for diagnosis in self.diagnoses],
            "settings": asdict(record.settings),
            "execution": asdict(record.execution),
            "seeds": [asdict(seeds) for seeds in record.seeds],
            "versions": dict(record.versions),
            "hardware": dict(record.hardware),
            "command": record.command,
            "seconds": round(self.seconds, 2),
        }


def rebuilt(
    model: str,
    algorithm: str,
    hyperparameters: Mapping[str, Any],
    task: Task,
    input_shape: Sequence[int],
    environments: Sequence[str],
) -> nn.Module:
    """A network as an algorithm trained it, with weights of its own, for trained ones to be loaded into.

    Args:
        model: the family, as written on the command line.
        algorithm: a recipe's name; under any other, the model is taken to be as its family builds it.
        hyperparameters: of the algorithm.
        task: which says how many outputs there are.
        input_shape: of one row.
        environments: Names of the training environments.

    Raises:
        EnvariantError: the library has no such model.
    """
    family = model_config(model)
    with private_random_numbers(0, torch.device("cpu")):
        module = family.build(input_shape, task.outputs)
        try:
            known = recipe(algorithm)
        except EnvariantError:
            # An algorithm of the user's own; if it changed the model, the weights will not fit.
            return module
        setting = TrainContext(
            tuple(environments),
            (),
            task,
            input_shape=input_shape,
            linear_head=isinstance(getattr(module, "head", None), nn.Linear),
            build=lambda shape: family.build(shape, task.outputs),
        )
        return known.build(hyperparameters).wrap_model(module, setting)
