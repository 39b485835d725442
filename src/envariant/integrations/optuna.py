"""Search the hyperparameters of a study with Optuna, whose samplers use the results of earlier trials."""

from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, final

from envariant.core import metrics
from envariant.core.errors import EnvariantError, listed
from envariant.core.search_space import Choice, LogUniform, Nested, Range, Uniform, UniformInteger
from envariant.integrations.requirement import required
from envariant.studies import Study
from envariant.studies.trials import SearchSpace
from envariant.training.result import TrainingResult
from envariant.training.run_spec import RunSpec
from envariant.training.store import PlannedRun, Trial
from envariant.training.train import train


@final
@dataclass(frozen=True)
class StudyObjective:
    """Objective of an Optuna study whose search space is that of a `Study`, to be maximized.

    Each call trains all replicas of one trial, for every set of test environments. It returns the score of
    training-domain validation: the mean over replicas of the best score on validation rows at any step,
    multiplied by −1 if lower is better. Test scores are not used.

    Attributes:
        study: Study with one data set and one algorithm. Its `n_trials` is not used.

    Raises:
        EnvariantError: If the study has several data sets or algorithms, or Optuna is not installed.

    Example:
        >>> import optuna  # doctest: +SKIP
        >>> study = envariant.Study("colored-digits", "vrex", replicas=2)  # doctest: +SKIP
        >>> objective = StudyObjective(study)  # doctest: +SKIP
        >>> search = optuna.create_study(direction="maximize")  # doctest: +SKIP
        >>> search.optimize(objective, n_trials=20)  # doctest: +SKIP
        >>> objective.options(search.best_trial)  # doctest: +SKIP
    """

    study: Study

    def __post_init__(self) -> None:
        required("optuna", "optuna")
        for kind in ("data", "algorithms"):
            if len(several := getattr(self.study, kind)) > 1:
                raise EnvariantError(
                    f"StudyObjective: needs a study with one entry in {kind}; got {listed(several)}"
                )

    def __call__(self, trial: Any) -> float:
        """Train a trial and return its validation score.

        Args:
            trial: Trial of Optuna.

        Raises:
            EnvariantError: If the trial cannot be trained, or the metric is not measured during training.
            optuna.TrialPruned: If a replica diverges.
        """
        own = self._trial(trial)
        splits = dict.fromkeys(run.test_environments for run in self.study.runs())
        scores = [self._score(train(**self._spec(own, split))) for split in splits]
        return fmean(scores)

    def options(self, trial: Any) -> dict[str, Any]:
        """Return the options of `envariant.train` that a trial stands for.

        Args:
            trial: Trial of Optuna, for example `best_trial`.
        """
        own = self._trial(trial)
        searched = {k: v for k, v in own.hyperparameters.items() if k in self.study.searched_options}
        values = {k: v for k, v in own.hyperparameters.items() if k not in searched}
        return {"hyperparameters": values, "learning_rate": own.learning_rate, **searched}

    def _trial(self, trial: Any) -> Trial:
        study, first = self.study, self.study.runs()[0]
        space = SearchSpace(first.algorithm, study.algorithms[0], study.ranges.get(first.algorithm, {}))
        shared = RunSpec(data="", **study.settings)
        source, draw = study.sources[first.data], partial(suggest, trial)
        return space.sample(
            source, draw, study.lr_range, shared.steps, shared.learning_rate, getattr(trial, "number", 0)
        )

    def _spec(self, trial: Trial, test_environments: tuple[str, ...]) -> dict[str, Any]:
        first = self.study.runs()[0]
        run = PlannedRun(first.data, test_environments, first.algorithm, trial, 0)
        spec = self.study.spec_of(run).but(replicas=self.study.replicas)
        return {**{name: getattr(spec, name) for name in RunSpec.model_fields}, "progress": False}

    def _score(self, result: TrainingResult) -> float:
        if result.failures:
            reason = next(iter(result.failures.values()))
            raise required("optuna", "optuna").TrialPruned(f"a replica diverged: {reason}")
        metric = metrics.METRICS[self.study.metric or result.record.metric]
        history = result.history
        rows = history[(history["role"] == "validation") & (history["metric"] == metric.name)]
        if rows.empty:
            raise EnvariantError(
                f"StudyObjective: {metric.name} is not measured during training; leave the metric of the "
                f"study out"
            )
        means = rows.groupby(["replica", "step"])["value"].mean()
        sign = 1 if metric.higher_is_better else -1
        return float((sign * means).groupby("replica").max().mean())


def suggest(trial: Any, name: str, within: Range) -> Any:
    """Let an Optuna trial suggest a value from a search range.

    Args:
        trial: Trial of Optuna.
        name: Name of the hyperparameter.
        within: Search range.
    """
    match within:
        case Uniform(low, high):
            return trial.suggest_float(name, low, high)
        case LogUniform(low, high):
            return trial.suggest_float(name, low, high, log=True)
        case UniformInteger(low, high):
            return trial.suggest_int(name, low, high)
        case Choice(values):
            return trial.suggest_categorical(name, values)
        case Nested():
            return within.filled(lambda inner, number: suggest(trial, f"{name} [{number}]", inner))
        case _:
            raise EnvariantError(f"{name}: Optuna cannot sample from a {type(within).__name__}")
