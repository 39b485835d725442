"""Result of a run: its history, a summary by environment, and the trained models."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

import pandas as pd
import torch
from torch import nn

from envariant.algorithms import TrainContext, composing
from envariant.core.counter_rng import private_random_numbers
from envariant.core.errors import EnvariantError, unknown_name
from envariant.core.tasks import Task, task_named
from envariant.models import model_config
from envariant.training import history
from envariant.training.checkpoint import ReplicaState
from envariant.training.diagnostics import Diagnosis, diagnose
from envariant.training.history import FULL, LOSS, OUTPUT_SD, HistoryRow
from envariant.training.record import Record
from envariant.training.store.single_run import load_run

WORST = "worst"
"""Last row of a summary: in each replica, the environment with the worst score."""


@final
@dataclass(frozen=True)
class Spread:
    """One number over replicas.

    Attributes:
        values: One value per finished replica.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean; NaN without values."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def sd(self) -> float | None:
        """Standard deviation with divisor n − 1; None with fewer than two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Return mean, standard deviation and values as JSON can hold them."""
        return {"mean": self.mean, "sd": self.sd, "values": list(self.values)}


@final
@dataclass(frozen=True)
class TrainingResult:
    """Result of a run.

    Attributes:
        record: What the run was, and where its numbers were made.
        rows: Every measured number.
        checkpoints: Last state of each replica, by number.
        build_model: Builds the first replica's network, untrained; None if it has to be built from its name.
    """

    record: Record
    rows: Sequence[HistoryRow] = field(repr=False)
    checkpoints: Mapping[int, ReplicaState] = field(repr=False)
    build_model: Callable[[], nn.Module] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def load(cls, folder: Path | str) -> "TrainingResult":
        """Load a run that `train(…, out=folder)` stored, as far as it has come.

        Args:
            folder: Folder of the run.

        Raises:
            EnvariantError: If the folder holds no run, or a damaged one.
        """
        return cls(*load_run(Path(folder)))

    @property
    def history(self) -> pd.DataFrame:
        """Every measured number, with the columns of `HistoryRow`."""
        return history.frame(self.rows)

    @property
    def failures(self) -> dict[int, str]:
        """Why replicas stopped early, by number."""
        return {k: c.failure for k, c in sorted(self.checkpoints.items()) if c.failure is not None}

    @property
    def finished(self) -> tuple[int, ...]:
        """Numbers of the replicas that made all their steps; only they enter a summary."""
        steps = self.record.spec.steps or 1
        return tuple(k for k, c in sorted(self.checkpoints.items()) if c.step >= steps and c.failure is None)

    @property
    def diagnoses(self) -> tuple[Diagnosis, ...]:
        """What looks wrong in the run, with its likely cause and the usual remedy."""
        return diagnose(self.record, self.rows)

    @property
    def seconds(self) -> float:
        """Time spent on training and evaluation, all replicas together."""
        return sum(c.seconds for c in self.checkpoints.values())

    def final(self, environment: str, metric: str) -> Spread:
        """Return the last value of a metric in an environment, over the finished replicas.

        Args:
            environment: Label of the environment, as in `record.roles`.
            metric: The task's metric, "loss" or "output sd".

        Raises:
            EnvariantError: If there is no such environment or metric.
        """
        labels = {each.label: each for each in self.record.environments}
        if environment not in labels:
            raise unknown_name("environment", environment, labels)
        if metric not in (known := (self.record.metric, LOSS, OUTPUT_SD)):
            raise unknown_name("metric", metric, known)
        requested = labels[environment]
        last = {
            row.replica: row.value
            for row in self.rows
            if (row.environment, row.role, row.metric, row.kind)
            == (requested.name, requested.role, metric, FULL)
            and row.step == self.checkpoints[row.replica].step
        }
        return Spread(tuple(last[replica] for replica in self.finished))

    def worst(self) -> tuple[Spread, tuple[str, ...]]:
        """Return the worst environment's score in each finished replica, and which environment it was."""
        metric, worst = self.record.metric, min if self.record.higher_is_better else max
        scores = {name: self.final(name, metric).values for name in self.record.roles}
        names = tuple(worst(scores, key=lambda name, k=k: scores[name][k]) for k in range(len(self.finished)))
        return Spread(tuple(scores[name][k] for k, name in enumerate(names))), names

    def model(self, replica: int = 0) -> nn.Module:
        """Return the trained network of one replica, in evaluation mode.

        Args:
            replica: Number of the replica.

        Raises:
            EnvariantError: If there is no such replica, it is no network, or the network was an object and
                the run was loaded from disk.
        """
        saved = self.checkpoints.get(replica)
        if saved is None:
            raise EnvariantError(f"replica {replica}: is not in this run; it has {len(self.checkpoints)}")
        record, spec = self.record, self.record.spec
        if not saved.params:
            raise EnvariantError(f"{spec.algorithm}: is no network; it cannot be taken out of the run")
        if self.build_model is not None:
            module = self.build_model()
        else:
            try:
                model_config(spec.model)
            except EnvariantError:
                raise EnvariantError(
                    f"model '{spec.model}': is not one of the library's; load "
                    f"result.checkpoints[{replica}].params and .buffers into your own module"
                ) from None
            module = rebuilt(
                spec.model,
                spec.algorithm,
                spec.hyperparameters,
                task_named(record.task, record.outputs),
                record.input_shape,
                record.training_environments,
            )
        tensors = {**saved.params, **saved.buffers}
        # The algorithm's auxiliary networks are not part of the model.
        try:
            module.load_state_dict({name: tensors[name] for name in module.state_dict()})
        except (KeyError, RuntimeError):
            raise EnvariantError(
                f"model '{spec.model}': does not fit the weights, because {spec.algorithm} changed it; "
                f"load result.checkpoints[{replica}].params and .buffers into your own module"
            ) from None
        return module.eval()

    def summary(self) -> pd.DataFrame:
        """Return one row per environment and one for the worst: mean and standard deviation over replicas."""
        metric = self.record.metric
        rows: dict[str, dict[str, Any]] = {}
        for name, role in self.record.roles.items():
            score, loss = self.final(name, metric), self.final(name, LOSS)
            rows[name] = {
                "role": role,
                metric: score.mean,
                f"{metric} sd": score.sd,
                "loss": loss.mean,
                "loss sd": loss.sd,
                "replicas": len(score.values),
            }
        worst, names = self.worst()
        rows[WORST] = {
            "role": "/".join(dict.fromkeys(names)),
            metric: worst.mean,
            f"{metric} sd": worst.sd,
            "replicas": len(worst.values),
        }
        frame = pd.DataFrame.from_dict(rows, orient="index")
        frame.index.name = "environment"
        return frame

    def to_dict(self) -> dict[str, Any]:
        """Return scores by environment, the worst, options, versions and seconds as JSON can hold them."""
        record, metric = self.record, self.record.metric
        worst, names = self.worst()
        return {
            "algorithm": record.spec.algorithm,
            "data": record.spec.data,
            "replicas": record.spec.replicas,
            "finished": list(self.finished),
            "environments": {
                name: {
                    "role": role,
                    metric: self.final(name, metric).to_dict(),
                    "loss": self.final(name, LOSS).to_dict(),
                }
                for name, role in record.roles.items()
            },
            "worst": {metric: worst.to_dict(), "environments": list(names)},
            "failures": {str(k): reason for k, reason in self.failures.items()},
            "diagnoses": [asdict(diagnosis) for diagnosis in self.diagnoses],
            "remarks": list(record.remarks),
            "options": record.spec.to_dict(),
            "changed": list(record.changed),
            "execution": asdict(record.execution),
            "seeds": [asdict(seeds) for seeds in record.seeds],
            "threads": record.threads,
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
    """Build the network that an algorithm trained, untrained, to load weights into.

    Args:
        model: Text of the model, such as "mlp(hidden=390)".
        algorithm: Name of the algorithm; one that is not in the library leaves the model unchanged.
        hyperparameters: Hyperparameters of the algorithm.
        task: Task, which fixes the number of outputs.
        input_shape: Shape of one row of inputs.
        environments: Names of the training environments.

    Raises:
        EnvariantError: If the library has no such model.
    """
    family = model_config(model)
    with private_random_numbers(0, torch.device("cpu")):
        module = family.build(input_shape, task.outputs)
        try:
            known = composing.recipe(algorithm).build(hyperparameters)
        except EnvariantError:
            # An algorithm object: if it changed the model, the weights do not fit.
            return module
        context = TrainContext(
            tuple(environments),
            (),
            task,
            input_shape=input_shape,
            linear_head=isinstance(getattr(module, "head", None), nn.Linear),
            build=lambda shape: family.build(shape, task.outputs),
        )
        return known.wrap_model(module, context)
