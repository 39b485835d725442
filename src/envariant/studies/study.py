"""Studies: all combinations of data, test environments, algorithms, trials and replicas.

All runs are planned before training. Each run depends only on its data, test environments, algorithm, trial
and replica number, so algorithms and trials can be added without changing existing runs.
"""

import itertools
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast, final

from envariant.algorithms import Algorithm
from envariant.core import metrics
from envariant.core.display import Displayed, Summary, named
from envariant.core.environments import EnvironmentSource
from envariant.core.errors import EnvariantError, first_line, listed, shown, unknown_name
from envariant.core.paths import check_file
from envariant.predictors import predictor
from envariant.studies.option_types import check_types, splits
from envariant.studies.study_results import StudyResults
from envariant.studies.trials import SEARCHABLE, SearchSpace, recipe_of
from envariant.training.content_hash import content_hash
from envariant.training.option_text import text_of
from envariant.training.replicas import Seeds
from envariant.training.resolution import (
    algorithm_identity,
    check_objects,
    remarks,
    resolve,
    resolve_algorithm,
    source_of,
)
from envariant.training.run_config import network
from envariant.training.run_spec import SHARED, RunSpec
from envariant.training.store import PlannedRun, Store, Trial

MAX_RUNS = 1_000_000
"""Largest number of runs in a study, because all runs are planned in memory."""


@final
@dataclass(frozen=True, repr=False)
class Study(Displayed):
    """Declaration of a study: data, algorithms, trials, replicas, test environments and options.

    Attributes:
        data: Data sets: names, data sources or environment sets.
        algorithms: Strings such as `irm` or `vrex + coral(1.0)`, or Python objects: algorithms, recipes,
            parts or predictors. Hyperparameters that are set in parentheses are fixed, not searched.
        name: Name of the study.
        n_trials: Number of trials (hyperparameter configurations) per algorithm; the first has the default
            settings of the data set.
        replicas: Number of replicas of each trial.
        test_environments: "suggested" for the default test environments of the data set, "each" for each
            environment in turn, "each-and-pairs" for each environment and each pair (needed for
            leave-one-domain-out selection), or lists of names.
        holdout_fraction: Share of every training environment's rows kept for validation, in (0, 1).
        lr_range: Factor r ≥ 1. Learning rates are sampled log-uniformly from [η/r, η·r], where η is the
            setting `learning_rate`, or the default of the data set. With r = 1, the learning rate is always
            η. In a schedule or in parameter groups, all values are multiplied by the same factor from [1/r,
            r].
        ranges: Search ranges by algorithm: for each algorithm, a mapping whose keys are hyperparameters or
            training options, such as `learning_rate` or `clip`, and whose values are ranges. A range is a
            list of values, or a string such as `loguniform(1e2, 1e6)` or `cosine(loguniform(1e-4, 1e-2))`. A
            range given here replaces the default range of that hyperparameter; all others keep their
            defaults.
        seed: Base random seed of trials and replicas.
        settings: Training options of all runs, by name; `run_spec.SHARED` lists the allowed names.
        metric: Metric used to compare runs, such as AUROC; "" for the default metric of the task.
        store_predictions: Whether to store predictions for up to 1,000 rows of every validation and test
            environment, and to measure permutation importance.
        importance_columns: Table columns whose permutation importance is measured; empty for all columns.

    Raises:
        EnvariantError: If a name is unknown or a value is not allowed.
    """

    data: tuple[Any, ...]
    algorithms: tuple[Any, ...]
    name: str = "study"
    n_trials: int = 1
    replicas: int = 3
    test_environments: Any = "suggested"
    holdout_fraction: float = 0.2
    lr_range: float = 10**0.5
    ranges: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    metric: str = ""
    store_predictions: bool = False
    importance_columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key in ("data", "algorithms"):
            object.__setattr__(self, key, _several(getattr(self, key)))
            if not getattr(self, key):
                raise EnvariantError(f"study: {key} is empty; give at least one")
        object.__setattr__(self, "test_environments", splits(self.test_environments))
        check_types(self)
        object.__setattr__(self, "importance_columns", tuple(self.importance_columns))
        for key in self.settings:
            if key not in SHARED:
                raise unknown_name("setting", key, SHARED, where="study")
        plain = RunSpec(data="", **self.settings).to_dict()
        # A mapping, such as weight decays by parameter group, is stored as its text.
        kept = {k: plain[k] if isinstance(v, Mapping) else v for k, v in self.settings.items()}
        object.__setattr__(self, "settings", kept)
        check_objects(self.settings)
        self._labeled("data")
        algorithms = self._labeled("algorithms")
        for label in self.ranges:
            if label not in algorithms:
                raise unknown_name("algorithm", label, algorithms, where="study: ranges")
        for label, algorithm in algorithms.items():
            if predictor(algorithm) is None:
                recipe_of(algorithm)
            SearchSpace(label, algorithm, self.ranges.get(label, {})).ranges()
        if self.metric and self.metric not in metrics.METRICS:
            raise unknown_name("metric", self.metric, metrics.METRICS, where="study")
        count = len(self.data) * len(algorithms) * self.n_trials * self.replicas
        if count > MAX_RUNS:
            raise EnvariantError(
                f"study: {len(self.data)} data sets × {len(algorithms)} algorithms × {self.n_trials:,} "
                f"trials × {self.replicas:,} replicas are {count:,} runs; at most {MAX_RUNS:,} can be planned"
            )

    def run(
        self,
        out: Path | str | None = None,
        *,
        workers: int = 1,
        executor: Literal["local", "ray", "slurm"] = "local",
        address: str | None = None,
        execution: object = "auto",
        memory: str | float | None = None,
        progress: bool | None = None,
        callbacks: Any = None,
    ) -> StudyResults:
        """Train all runs of the study and return the results; call again with the same folder to resume.

        With several processes, a script must call this method below `if __name__ == "__main__":`. Classes and
        functions of a script or notebook are sent to the other processes.

        Args:
            out: Folder for the runs. Default: a temporary folder.
            workers: Number of processes, among which the CPU threads are divided, or of Slurm tasks at a
                time.
            executor: "local", "ray" for a Ray cluster, or "slurm" for a Slurm cluster. With Slurm, the call
                submits a job array and returns at once; call it again to read the results, or to resume.
            address: Address of the Ray cluster.
            execution: Execution mode of each job; see the option `execution` of `RunSpec`.
            memory: Memory limit of each replica stack, per process, such as "8GB". Default: half of the free
                memory.
            progress: Whether to show progress. Default: a bar on a terminal or in a notebook, otherwise lines
                of text.
            callbacks: Objects whose methods are called during training; see `envariant.train`.

        Raises:
            EnvariantError: If an option is invalid, the folder cannot be written, or it contains other runs.
        """
        # The executors import this module, so they are imported by name when they are used.
        running: Any = import_module("envariant.studies.running")
        return running.run_study(
            self, out, progress, workers=workers, executor=executor, address=address, execution=execution,
            memory=memory, callbacks=callbacks,
        )  # fmt: skip

    def _display(self) -> Summary:
        plain = self.to_dict()
        settings = ", ".join(f"{key}={value}" for key, value in plain["settings"].items())
        splits = plain["test_environments"]
        return Summary(
            f"Study '{self.name}'",
            {
                "data": named(plain["data"]),
                "algorithms": named(plain["algorithms"], 12),
                "runs of each": f"{self.n_trials} trials × {self.replicas} replicas",
                "test environments": splits if isinstance(splits, str) else named(map(", ".join, splits)),
                "metric": self.metric,
                "settings": settings,
            },
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the declaration as a dictionary for JSON or TOML, with objects converted to strings."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain |= {key: [text_of(each) for each in plain[key]] for key in ("data", "algorithms")}
        plain["settings"] = {key: _text(value) for key, value in self.settings.items()}
        plain["ranges"] = {key: {n: _text(v) for n, v in own.items()} for key, own in self.ranges.items()}
        return json.loads(json.dumps(plain))

    @property
    def objects(self) -> tuple[str, ...]:
        """Names of the Python objects in the declaration, which a stored study cannot restore."""
        declared = (*self.data, *self.algorithms, *self.settings.values())
        return tuple(text_of(each) for each in declared if not isinstance(each, _PLAIN))

    @cached_property
    def sources(self) -> Mapping[str, EnvironmentSource]:
        """Return the data sources by label."""
        return {label: source_of(data) for label, data in self._labeled("data").items()}

    def runs(self) -> tuple[PlannedRun, ...]:
        """Return all runs in the order of the declaration.

        Raises:
            EnvariantError: If a name is unknown, or an algorithm does not accept the values of a trial.
        """
        runs: list[PlannedRun] = []
        hashes = {k: content_hash(v) for k, v in self.settings.items() if not isinstance(v, _PLAIN)}
        for label, source in self.sources.items():
            data_identity = source.identity()
            splits = self._splits_of(source)
            for name, algorithm in self._labeled("algorithms").items():
                trials = self.trials_of(name, source)
                hashes |= {"data": data_identity, "algorithm": algorithm_identity(algorithm)}
                for names, trial in itertools.product(splits, trials):
                    run = PlannedRun(label, names, name, trial, 0, data_identity)
                    shared = self.spec_of(run).identity(hashes)
                    runs += [
                        PlannedRun(label, names, name, trial, replica, data_identity, f"{shared}-{replica}")
                        for replica in range(self.replicas)
                    ]
        return tuple(runs)

    def declares(self, data: str, algorithm: str) -> bool:
        """Return whether the study includes a data set and an algorithm, given by their labels."""
        return data in self.sources and algorithm in self._labeled("algorithms")

    def spec_of(self, run: PlannedRun) -> RunSpec:
        """Return the training options of a run.

        Raises:
            EnvariantError: If the study does not contain the data set or algorithm of the run.
        """
        algorithms = self._labeled("algorithms")
        if not self.declares(run.data, run.algorithm):
            raise EnvariantError(
                f"study: contains no run of {run.algorithm} on {run.data}; pass the study of this run"
            )
        known = predictor(algorithms[run.algorithm])
        searched, own = self.searched_options, run.trial.hyperparameters
        settings = {**self.settings, **{key: value for key, value in own.items() if key in searched}}
        return RunSpec(
            data=self.sources[run.data],
            algorithm=algorithms[run.algorithm],
            hyperparameters={key: value for key, value in own.items() if key not in searched},
            learning_rate=None if known is not None else run.trial.learning_rate,
            test_environments=run.test_environments,
            holdout_fraction=self.holdout_fraction,
            seed=self.seed,
            **{key: value for key, value in settings.items() if key != "learning_rate"},
        )

    @property
    def searched_options(self) -> tuple[str, ...]:
        """Training options other than the learning rate that have a search range, in a fixed order."""
        declared = {name for ranges in self.ranges.values() for name in ranges}
        return tuple(name for name in SEARCHABLE if name in declared)

    def remarks(self) -> tuple[str, ...]:
        """Return a message for each schedule that is scaled to the run length, or that has no effect.

        A further message is returned if the study uses a user-defined model whose outputs cannot be logits.
        """
        collected: dict[tuple[str, str], str] = {}
        own_model = not isinstance(self.settings.get("model", ""), str)
        for (label, source), (name, algorithm) in itertools.product(
            self.sources.items(), self._labeled("algorithms").items()
        ):
            trials = self.trials_of(name, source)
            try:
                first = PlannedRun(label, self._splits_of(source)[0], name, trials[0], 0)
                resolved = resolve(self.spec_of(first), source)
                config = resolved.config
                if own_model and isinstance(resolved.algorithm.trained, Algorithm):
                    seeds = Seeds.of(self.seed, 0)
                    net, _ = network(resolved.source.sample(seeds.data), resolved.replica(0, seeds), config)
                    own_model = False
                    collected |= {("", "model"): net.remark} if net.remark else {}
            except EnvariantError:
                # Runs that cannot be trained fail later, with their reason.
                continue
            for trial in trials:
                own = {k: v for k, v in trial.hyperparameters.items() if k not in self.searched_options}
                tried = resolve_algorithm(algorithm, own, source, config.steps)
                own_remarks = remarks(tried, trial.learning_rate, config.steps, config.optimizer)
                for remark in (*resolved.algorithm.scaled, *own_remarks):
                    collected.setdefault((name, remark.partition(":")[0]), f"{name}: {remark}")
        return tuple(collected.values())

    def trials_of(self, algorithm: str, source: EnvironmentSource) -> tuple[Trial, ...]:
        """Return the trials of an algorithm, without duplicates.

        Args:
            algorithm: Label of the algorithm.
            source: Data source that suggests default settings.
        """
        declared = self._labeled("algorithms").get(algorithm, algorithm)
        space = SearchSpace(algorithm, declared, self.ranges.get(algorithm, {}))
        shared = RunSpec(data="", **self.settings)
        return space.trials(
            source, self.seed, self.n_trials, self.lr_range, shared.steps, shared.learning_rate
        )

    def _labeled(self, key: str) -> dict[str, Any]:
        """Return the values of a field, "data" or "algorithms", by label; check that labels are unique."""
        labeled: dict[str, Any] = {}
        for each in getattr(self, key):
            label = text_of(each)
            if label in labeled:
                remedy = "name it once" if isinstance(each, str) else "give objects different names"
                raise EnvariantError(f"study: '{label}' occurs twice in {key}; {remedy}")
            labeled[label] = each
        return labeled

    def _splits_of(self, source: EnvironmentSource) -> list[tuple[str, ...]]:
        """Return all sets of test environments for a data set."""
        sample = source.sample(0)
        if self.metric:
            metrics.metric(self.metric, sample.task)
        if self.test_environments == "suggested":
            return [sample.test]
        if isinstance(self.test_environments, tuple):
            splits = cast("tuple[tuple[str, ...], ...]", self.test_environments)
            for names in splits:
                sample.roles(names)
            return list(splits)
        each = [(name,) for name in sample.names]
        with_pairs = self.test_environments == "each-and-pairs"
        pairs = list(itertools.combinations(sample.names, 2)) if with_pairs else []
        return each + [pair for pair in pairs if len(pair) < len(sample.names)]


def begin(folder: Path, study: Study) -> Store:
    """Open or create the folder of a study, and plan new runs.

    Args:
        folder: Folder of the study.
        study: Declaration of the study.

    Raises:
        EnvariantError: If the folder cannot be written, or contains runs with other settings or other data.
    """
    runs = study.runs()
    store = Store.create(folder)
    stored = store.fact("study")
    declared = study.to_dict()
    if stored is not None:
        for key in ("settings", "seed", "holdout_fraction", "metric", "store_predictions"):
            there = store.declaration().get(key)
            if there != declared[key]:
                raise EnvariantError(
                    f"{folder}: holds runs made with {key} {there!r}, not {declared[key]!r}; choose another "
                    f"folder"
                )
    elif any(count for state, count in store.counts().items() if state != "planned"):
        raise EnvariantError(f"{folder}: holds a single run, not a study; choose another folder")
    identities = store.parse(store.fact("data") or "{}", dict)
    for label, source in study.sources.items():
        if identities.setdefault(label, source.identity()) != source.identity():
            raise EnvariantError(f"{folder}: has runs on different data named '{label}'; use another folder")
    store.plan(runs)
    store.set_fact("data", json.dumps(identities))
    store.set_fact("study", json.dumps(declared))
    store.set_fact("objects", json.dumps(study.objects))
    return store


def stored_study(store: Store) -> Study:
    """Return the study most recently defined in a store.

    Raises:
        EnvariantError: If the store has no study, or the study was defined with Python objects, which are not
            stored.
    """
    declared, objects = store.declaration(), store.parse(store.fact("objects") or "[]", list)
    if objects:
        raise EnvariantError(
            f"{store.folder}: the study contains Python objects ({listed(objects)}), which are not stored; "
            f"pass the Study"
        )
    return of(declared, str(store.path))


def read(path: Path) -> Study:
    """Read the declaration of a study from a TOML file.

    Raises:
        EnvariantError: If the file cannot be read or is not valid TOML, or a key or value is not allowed.
    """
    check_file(path)
    try:
        if path.stat().st_size > 10**6:
            raise EnvariantError(f"{path}: is larger than 1 MB, so it is not a study file")
        declared = tomllib.loads(path.read_text(encoding="utf-8"))
    except EnvariantError:
        raise
    except OSError as error:
        raise EnvariantError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        # A TOMLDecodeError and a UnicodeDecodeError are ValueErrors; deep nesting exhausts the stack.
        raise EnvariantError(f"{path}: is not valid TOML: {first_line(error)}") from None
    return of(declared, str(path))


def of(declared: Mapping[str, Any], where: str) -> Study:
    """Create a study from a mapping of field names to values.

    Args:
        declared: Values of the fields of `Study`, by name; `data` and `algorithms` are required.
        where: Origin of the mapping, such as a file name, used in error messages.

    Raises:
        EnvariantError: If a required key is missing, a key is unknown, or a value is not allowed.
    """
    known = [f.name for f in fields(Study)]
    for key in declared:
        if key not in known:
            raise unknown_name("key", key, known, where=where)
    for key in ("data", "algorithms"):
        if key not in declared:
            raise EnvariantError(f"{where}: {key} is missing; give at least one")
        if not all(isinstance(name, str) for name in _several(declared[key])):
            raise EnvariantError(f"{where}: {key} must be names; got {shown(declared[key])}")
    settings = declared.get("settings", {})
    for key, value in settings.items() if isinstance(settings, Mapping) else ():
        if not all(isinstance(each, _PLAIN) for each in _several(value)):
            raise EnvariantError(f"{where}: {key} must be text or a number; got {shown(value)}")
    return Study(**declared)


_PLAIN = (str, bool, int, float, type(None))


def _several(declared: Any) -> tuple[Any, ...]:
    """Convert a single value or a list of values to a tuple."""
    return tuple(declared) if isinstance(declared, list | tuple) else (declared,)


def _text(value: Any) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_text(each) for each in cast("Sequence[Any]", value)]
    return value if isinstance(value, _PLAIN) else text_of(value)
