"""Result of a run: its history, a summary by environment, and the trained models."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import nn

from envariant.algorithms import TrainContext, composing
from envariant.core.counter_rng import private_random_numbers
from envariant.core.display import NONE, Displayed, Summary, named, views
from envariant.core.environments import EnvironmentSet
from envariant.core.errors import EnvariantError, listed, unknown_name
from envariant.core.files import as_path
from envariant.core.multi_target import task_named
from envariant.core.score_table import ScoreTable
from envariant.core.tasks import Task
from envariant.models import model_config
from envariant.training import history
from envariant.training.checkpoint import ReplicaState
from envariant.training.diagnostics import Diagnosis, diagnose
from envariant.training.history import FULL, LOSS, OUTPUT_SD, HistoryRow
from envariant.training.model_builder import model_builder
from envariant.training.record import Record
from envariant.training.run_config import built
from envariant.training.store.single_run import load_run

if TYPE_CHECKING:
    import pandas as pd

WORST = "worst"
"""Label of the last row of a summary: the worst environment of each replica."""


@final
@dataclass(frozen=True)
class Spread:
    """Values of one metric, one for each finished replica, with their mean and standard deviation.

    Attributes:
        values: One value per finished replica.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean of the values; NaN if there are none."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def sd(self) -> float | None:
        """Standard deviation, with divisor n − 1; None for fewer than two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        if not self.values:
            return NONE
        return f"{self.mean:.3f}" + ("" if self.sd is None else f" ± {self.sd:.3f}")

    def to_dict(self) -> dict[str, Any]:
        """Return mean, standard deviation and values as a JSON-compatible dictionary."""
        return {"mean": self.mean, "sd": self.sd, "values": list(self.values)}


@final
@dataclass(frozen=True, repr=False)
class TrainingResult(Displayed):
    """Result of a run: measurements, trained models and provenance.

    Attributes:
        record: Options, data and provenance of the run.
        rows: All measured values.
        checkpoints: State of each replica, by index, at the last step or at the step selected by `keep`.
        build_model: Function that builds the first replica's network with initial weights. Default: build the
            network from its name.
        kept: States of the replicas at the steps kept by `keep="every(…)"`, by step.
        sample: Environments of the first replica; None if the run was loaded from disk.
    """

    record: Record
    rows: Sequence[HistoryRow] = field(repr=False)
    checkpoints: Mapping[int, ReplicaState] = field(repr=False)
    build_model: Callable[[], nn.Module] | None = field(default=None, repr=False, compare=False)
    kept: Mapping[int, Mapping[int, ReplicaState]] = field(
        default_factory=dict[int, Mapping[int, ReplicaState]], repr=False
    )
    sample: EnvironmentSet | None = field(default=None, repr=False, compare=False)

    @classmethod
    def load(cls, folder: Path | str) -> "TrainingResult":
        """Load a finished or unfinished run stored by `train(…, out=folder)`.

        Args:
            folder: Folder of the run.

        Raises:
            EnvariantError: If the folder contains no run, or its files are damaged.
        """
        record, rows, states, kept = load_run(as_path(folder, "folder"))
        return cls(record, rows, states, kept=kept)

    @property
    def history(self) -> "pd.DataFrame":
        """All measured values, with the columns of `HistoryRow`."""
        return history.frame(self.rows)

    @property
    def failures(self) -> dict[int, str]:
        """Reasons for divergence, by index of the diverged replica."""
        return {k: c.failure for k, c in sorted(self.checkpoints.items()) if c.failure is not None}

    @property
    def stopped(self) -> dict[int, str]:
        """Sentence on why and at which step training stopped early, by index of the replica."""
        return {k: c.stopped for k, c in sorted(self.checkpoints.items()) if c.stopped is not None}

    @property
    def kept_steps(self) -> str:
        """Description of the steps from which weights were taken; "" if all are from the last step."""
        chosen = {k: c.step for k, c in sorted(self.checkpoints.items()) if c.step != (c.trained or c.step)}
        return named(f"{k} from step {step}" for k, step in chosen.items())

    @property
    def finished(self) -> tuple[int, ...]:
        """Indices of the replicas that completed all steps or were stopped early by a rule.

        Summaries use only these replicas. The rule is an early-stopping rule or an averaging rule.
        """
        steps = self.record.spec.steps or 1
        return tuple(k for k, c in sorted(self.checkpoints.items()) if c.completed(steps))

    @property
    def diagnoses(self) -> tuple[Diagnosis, ...]:
        """Possible problems of the run, with likely causes and remedies."""
        return diagnose(self.record, self.rows)

    @property
    def seconds(self) -> float:
        """Training and evaluation time of all replicas together, in seconds."""
        return sum(c.seconds for c in self.checkpoints.values())

    @property
    def waited(self) -> float:
        """Part of `seconds` that was spent waiting for rows on disk; 0 if the rows are in memory."""
        return sum(c.waited for c in self.checkpoints.values())

    def final(self, environment: str, metric: str) -> Spread:
        """Return the final value of a metric for each finished replica.

        The value was measured at the last step, or at the step that the option `keep` selected.

        Args:
            environment: Label of the environment, one of the keys of `record.roles`.
            metric: Metric of the task, "loss" or "output sd".

        Raises:
            EnvariantError: If the environment or the metric is unknown.
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
        if missing := [replica for replica in self.finished if replica not in last]:
            raise EnvariantError(
                f"replica {missing[0]}: has no {metric} of '{environment}' at its last step; the stored run "
                "is damaged, choose a new folder"
            )
        return Spread(tuple(last[replica] for replica in self.finished))

    def worst(self) -> tuple[Spread, tuple[str, ...]]:
        """Return each finished replica's worst score over all environments, and the environment that has it.

        All environments include the training environments and the validation rows.
        """
        metric, worst = self.record.metric, min if self.record.higher_is_better else max
        scores = {name: self.final(name, metric).values for name in self.record.roles}
        names = tuple(worst(scores, key=lambda name, k=k: scores[name][k]) for k in range(len(self.finished)))
        return Spread(tuple(scores[name][k] for k, name in enumerate(names))), names

    def at_step(self, step: int) -> "TrainingResult":
        """Return a copy of the result with the weights and scores at a step kept by `keep="every(…)"`.

        Args:
            step: Step, one of the keys of `kept`.

        Raises:
            EnvariantError: If the weights of this step were not kept.
        """
        last = {k: state for k, state in self.checkpoints.items() if state.step == step}
        if step not in self.kept and not last:
            steps = sorted({*self.kept, *(state.step for state in self.checkpoints.values())})
            raise EnvariantError(
                f"step {step}: its weights were not kept; weights are available for steps {listed(steps)}. "
                f"To keep more, set the option 'keep', for example to every(100)"
            )
        states = {
            k: replace(state, trained=self.checkpoints[k].trained, stopped=self.checkpoints[k].stopped)
            for k, state in {**last, **self.kept.get(step, {})}.items()
        }
        return replace(self, checkpoints=states, kept={})

    def model(self, replica: int = 0, module: nn.Module | Callable[[], nn.Module] | None = None) -> nn.Module:
        """Return the trained network of one replica, in evaluation mode.

        Args:
            replica: Index of the replica.
            module: Module of the same class as the trained model, or a class or function that returns one.
                The weights are loaded into a copy of it. Default: the network is built as it was for
                training, which is impossible if the model was an object and the run was loaded from disk.

        Raises:
            EnvariantError: If the replica does not exist, the run has a predictor instead of a network, the
                network cannot be built (see `module`), or the weights do not fit the network.
        """
        saved = self.checkpoints.get(replica)
        if saved is None:
            raise EnvariantError(
                f"replica {replica}: is not in this run, which has {len(self.checkpoints)} replicas"
            )
        record, spec = self.record, self.record.spec
        if not saved.params:
            raise EnvariantError(f"{spec.algorithm}: is not a network, so it has no module to return")
        own = module
        if own is not None:
            module = built(model_builder(own), record.input_shape, record.outputs)
        elif self.build_model is not None:
            module = self.build_model()
        else:
            try:
                model_config(spec.model)
            except EnvariantError:
                raise EnvariantError(
                    f"model '{spec.model}': is not a built-in model; pass your own module, as in "
                    f"result.model({replica}, module)"
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
        # Shared weights have several names in the state, but are saved once, under the first.
        names = {**dict(module.named_parameters()), **dict(module.named_buffers())}.keys()
        # The algorithm's auxiliary networks are not part of the model.
        try:
            state = {name: tensors[name] for name in module.state_dict() if name in names}
            module.load_state_dict(state, strict=False)
        except (KeyError, RuntimeError):
            changed = f"{spec.algorithm} changed the network"
            reason = changed if own is None else "the given module is a different one"
            raise EnvariantError(
                f"model '{spec.model}': cannot load the trained weights, because {reason}; "
                f"load result.checkpoints[{replica}].params and .buffers into your own module"
            ) from None
        return module.eval()

    def summary(self) -> "pd.DataFrame":
        """Return a table with the mean and standard deviation of score and loss over replicas.

        There is one row per environment. The row "worst" summarizes each replica's worst score over all these
        environments, including training environments and validation rows.
        """
        import pandas as pd

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

    def table(self) -> ScoreTable:
        """Return a table of the final scores by environment, for a paper.

        If there are several test environments, an additional column contains their average. For several runs,
        use `envariant.score_table`.
        """
        record = self.record
        scores = {name: self.final(name, record.metric).values for name in record.roles}
        values = {
            f"{name} ({record.roles[name]})": dict(zip(self.finished, each, strict=True))
            for name, each in scores.items()
        }
        return ScoreTable(
            record.metric,
            record.higher_is_better,
            {record.spec.algorithm: values},
            tuple(values),
            "Scores by environment",
            tuple(f"{name} (test)" for name in record.test_environments),
        )

    def plot(self, *others: "TrainingResult") -> Any:
        """Return an Altair chart of the score during training, one panel per environment.

        Args:
            others: Results of other runs, drawn in the same panels.
        """
        return views().plot_runs([self, *others])

    def _display(self) -> Summary:
        record, metric = self.record, self.record.metric
        finals = {name: (role, self.final(name, metric)) for name, role in record.roles.items()}
        scores = (f"{name} {score} ({role})" for name, (role, score) in finals.items())
        failed = "; ".join(f"{k}: {reason}" for k, reason in self.failures.items())
        n_diagnoses = len(self.diagnoses)
        return Summary(
            f"TrainingResult: {record.spec.algorithm} on {record.spec.data}",
            {
                "replicas": f"{len(self.finished)} of {record.spec.replicas} finished, {record.spec.steps} "
                f"steps, {self.seconds:.1f} s",
                "diverged replicas": failed,
                "stopped early": "; ".join(f"{k}: {reason}" for k, reason in self.stopped.items()),
                "weights": self.kept_steps,
                "diagnoses": f"{n_diagnoses}, see .diagnoses" if n_diagnoses else "",
            },
            {metric: named(scores)},
            header=("environment", "role", metric, "loss"),
            rows=tuple(
                (name, role, str(score), str(self.final(name, LOSS)))
                for name, (role, score) in finals.items()
            ),
            notes=("Mean ± standard deviation over replicas (divisor n − 1).", *map(str, self.diagnoses)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return scores, options, provenance and time as a JSON-compatible dictionary."""
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
            "stopped": {str(k): reason for k, reason in self.stopped.items()},
            "weights_of_step": {str(k): state.step for k, state in sorted(self.checkpoints.items())},
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
            "waited": round(self.waited, 2),
        }


def rebuilt(
    model: str,
    algorithm: str,
    hyperparameters: Mapping[str, Any],
    task: Task,
    input_shape: Sequence[int],
    environments: Sequence[str],
) -> nn.Module:
    """Build the network of a run with initial weights, so that trained weights can be loaded into it.

    Args:
        model: Model as a string, such as "mlp(hidden=390)".
        algorithm: Name of the algorithm, whose `wrap_model` is applied to the network. If the library has no
            algorithm of this name, the network is returned without this change.
        hyperparameters: Hyperparameters of the algorithm.
        task: Task of the data; it determines the number of outputs.
        input_shape: Shape of one row of inputs.
        environments: Names of the training environments.

    Raises:
        EnvariantError: If the model is not in the library.
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
