"""A study: data × test environments × algorithms × trials × replicas, declared once.

It is planned in full before anything trains. A run follows from its place in the study alone, so that more
algorithms or trials leave the runs that are there as they are.
"""

import hashlib
import itertools
import json
import tomllib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, cast, final

import numpy as np
from pydantic import TypeAdapter, ValidationError

from envariant.algorithms import Composition, Recipe, as_algorithm, composing
from envariant.algorithms import identity as identity_of_algorithm
from envariant.core import metrics
from envariant.core.environments import EnvironmentSource
from envariant.core.errors import EnvariantError, unknown_name
from envariant.core.schedules import Schedule, schedule
from envariant.core.search_space import LogUniform, Range, search_range
from envariant.predictors import predictor
from envariant.training.resolution import ResolvedAlgorithm, content_hash, resolve_algorithm, source_of
from envariant.training.run_spec import SHARED, RunSpec, text_of
from envariant.training.store import PlannedRun, Store, Trial

RATE = "learning_rate"
"""Name of the learning rate among an algorithm's search ranges."""

SPLITS = ("suggested", "each", "each-and-pairs")
"""Ways to choose test environments without naming them."""

# No network trains at such a rate, and float32 ends not far above.
_HIGHEST_RATE = 1e30


@final
@dataclass(frozen=True)
class Study:
    """Declaration of a study.

    Attributes:
        data: Data sources: names, sources or environment sets.
        algorithms: Algorithms such as `irm` or `vrex + coral(1.0)`, whose bracketed settings are not searched,
            or algorithm, recipe, part and predictor objects.
        name: Name of the study.
        n_trials: Number of hyperparameter configurations per algorithm; the first is what the data suggest.
        replicas: Number of replicas of each trial.
        test_environments: "suggested" by the data; "each" environment in turn; "each-and-pairs", which
            leave-one-domain-out selection needs; or lists of names.
        holdout_fraction: Share of every training environment's rows kept for selection, in (0, 1).
        lr_range: Learning rates are sampled log-uniformly from the suggested one divided by this factor to
            the suggested one times it; 1 keeps the suggested one.
        ranges: Search ranges by algorithm and hyperparameter (or `learning_rate`) that replace the declared
            ones: a list of values, or text such as `loguniform(1e2, 1e6)`.
        seed: Base random seed of trials and replicas.
        settings: Options of `RunSpec` that all runs share (`run_spec.SHARED`), by name.
        metric: Metric in which runs are compared, such as AUROC; "" is the task's own.
        store_predictions: Whether to store predictions for some rows, and to measure column importance.

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

    def __post_init__(self) -> None:
        for key in ("data", "algorithms"):
            object.__setattr__(self, key, _several(getattr(self, key)))
            if not getattr(self, key):
                raise EnvariantError(f"study: {key} names nothing; give at least one")
        object.__setattr__(self, "test_environments", _splits(self.test_environments))
        for key in ("n_trials", "replicas"):
            count: object = getattr(self, key)
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise EnvariantError(f"study: {key} must be at least 1; got {count!r}")
        if not 0 < self.holdout_fraction < 1:
            raise EnvariantError(
                f"study: holdout_fraction must lie above 0 and below 1; got {self.holdout_fraction:g}"
            )
        if not self.lr_range >= 1:
            raise EnvariantError(f"study: lr_range must be at least 1; got {self.lr_range:g}")
        if not 0 <= self.seed < 2**32:
            raise EnvariantError(f"study: seed must lie in [0, 2³²); got {self.seed}")
        for key in self.settings:
            if key not in SHARED:
                raise unknown_name("setting", key, SHARED, where="study")
        RunSpec(data="", **self.settings)
        for label, algorithm in self._labeled("algorithms").items():
            if predictor(algorithm) is None:
                recipe_of(algorithm)
            self._ranges_of(label)
        for label in self.ranges:
            if label not in self._labeled("algorithms"):
                raise unknown_name("algorithm", label, self._labeled("algorithms"), where="study: ranges")
        if self.metric and self.metric not in metrics.METRICS:
            raise unknown_name("metric", self.metric, metrics.METRICS, where="study")

    def to_dict(self) -> dict[str, Any]:
        """Return the declaration as JSON or TOML would hold it; objects become their text."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain |= {key: [text_of(each) for each in plain[key]] for key in ("data", "algorithms")}
        plain["settings"] = {key: _text(value) for key, value in self.settings.items()}
        plain["ranges"] = {key: {n: _text(v) for n, v in own.items()} for key, own in self.ranges.items()}
        return json.loads(json.dumps(plain))

    @property
    def objects(self) -> tuple[str, ...]:
        """Texts of what is declared as an object, and cannot be declared again from its text."""
        declared = (*self.data, *self.algorithms, *self.settings.values())
        return tuple(text_of(each) for each in declared if not isinstance(each, _PLAIN))

    @cached_property
    def sources(self) -> Mapping[str, EnvironmentSource]:
        """Data sources by label."""
        return {label: source_of(data) for label, data in self._labeled("data").items()}

    def runs(self) -> tuple[PlannedRun, ...]:
        """Return every run, in the order of the declaration; the same each time.

        Raises:
            EnvariantError: If a name is unknown, or an algorithm does not accept a trial.
        """
        runs: list[PlannedRun] = []
        hashes = {k: content_hash(v) for k, v in self.settings.items() if not isinstance(v, _PLAIN)}
        for label, source in self.sources.items():
            data_identity = source.identity()
            splits = self._splits_of(source)
            for name, algorithm in self._labeled("algorithms").items():
                trials = self.trials_of(name, source)
                known = predictor(algorithm)
                own = repr(known) if known is not None else identity_of_algorithm(as_algorithm(algorithm))
                hashes |= {"data": data_identity, "algorithm": own}
                for names, trial in itertools.product(splits, trials):
                    run = PlannedRun(label, names, name, trial, 0, data_identity)
                    shared = self.spec_of(run).identity(hashes)
                    runs += [
                        PlannedRun(label, names, name, trial, replica, data_identity, f"{shared}-{replica}")
                        for replica in range(self.replicas)
                    ]
        return tuple(runs)

    def spec_of(self, run: PlannedRun) -> RunSpec:
        """Return the training options of a run.

        Raises:
            EnvariantError: If the run is of data or algorithms that this study does not declare.
        """
        algorithms = self._labeled("algorithms")
        if run.algorithm not in algorithms or run.data not in self.sources:
            raise EnvariantError(
                f"study: declares no {run.algorithm} on {run.data}; pass the study that does"
            )
        known = predictor(algorithms[run.algorithm])
        return RunSpec(
            data=self.sources[run.data],
            algorithm=algorithms[run.algorithm],
            hyperparameters=run.trial.hyperparameters,
            learning_rate=None if known is not None else run.trial.learning_rate,
            test_environments=run.test_environments,
            holdout_fraction=self.holdout_fraction,
            seed=self.seed,
            **self.settings,
        )

    def trials_of(self, algorithm: str, source: EnvironmentSource) -> tuple[Trial, ...]:
        """Return the trials of an algorithm; fewer than requested where it has nothing to search.

        Args:
            algorithm: Label of the algorithm.
            source: Data whose suggestions apply.
        """
        declared = self._labeled("algorithms").get(algorithm, algorithm)
        if predictor(declared) is not None:
            return (Trial(0, {}, 0.0),)
        suggested = resolve_algorithm(declared, {}, source)
        rate, factor, own = suggested.defaults.learning_rate, self.lr_range, self._ranges_of(algorithm)
        rates = own.pop(RATE, LogUniform(rate / factor, rate * factor) if factor > 1 else None)
        trials = [Trial(0, {}, rate)]
        for number in range(1, self.n_trials):
            generator = _generator(self.seed, algorithm, number, "rate")
            sampled_rate = rate if rates is None else rates.sample(generator)
            with _located(algorithm in self.ranges, algorithm):
                sampled = sample_hyperparameters(algorithm, declared, suggested, self.seed, number, own)
                if algorithm in self.ranges:
                    resolve_algorithm(declared, sampled, source)
                    _check_rate(sampled_rate)
            trials.append(Trial(number, sampled, sampled_rate))
        distinct = {(json.dumps(t.hyperparameters), t.learning_rate): t for t in reversed(trials)}
        return tuple(distinct.values())[::-1]

    def _labeled(self, key: str) -> dict[str, Any]:
        """Return what is declared by its text, which has to be unique."""
        labeled: dict[str, Any] = {}
        for each in getattr(self, key):
            label = text_of(each)
            if label in labeled and not isinstance(each, str):
                raise EnvariantError(f"study: {key} hold '{label}' twice; give objects different names")
            labeled[label] = each
        return labeled

    def _ranges_of(self, algorithm: str) -> dict[str, Range]:
        """Return the study's own search ranges of an algorithm, the learning rate's among them."""
        declared = self.ranges.get(algorithm, {})
        requested = self._labeled("algorithms").get(algorithm, algorithm)
        if not declared:
            return {}
        if predictor(requested) is not None:
            raise EnvariantError(f"study: ranges: {algorithm} has no hyperparameters to search")
        hyperparameters = recipe_of(requested).hyperparameters
        ranges: dict[str, Range] = {}
        for name, value in declared.items():
            settable = [h for h in hyperparameters if h.name == name]
            if name != RATE and not settable:
                known = [RATE, *(h.name for h in hyperparameters)]
                raise unknown_name("hyperparameter", name, known, where=f"study: ranges of {algorithm}")
            if any((h.part, h.field) in _fixed(requested) for h in settable):
                raise EnvariantError(
                    f"study: ranges of {algorithm}: {name} is set in its brackets; remove one of them"
                )
            with _located(True, f"{algorithm}: {name}"):
                ranges[name] = search_range(value)
        return ranges

    def _splits_of(self, source: EnvironmentSource) -> list[tuple[str, ...]]:
        """Return the sets of test environments on some data."""
        sample = source.sample(0)
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


def sample_hyperparameters(
    label: str,
    algorithm: Any,
    suggested: ResolvedAlgorithm,
    seed: int,
    number: int,
    ranges: Mapping[str, Range],
) -> dict[str, Any]:
    """Sample one trial: a value for every hyperparameter that has a search range.

    Each value follows from the seed, the algorithm, the number and the hyperparameter's name. Of a schedule,
    the last value is sampled. Settings in brackets stay, and so do those of the loss as a whole unless the
    study has a range for them.

    Args:
        label: Label of the algorithm.
        algorithm: Name or object.
        suggested: The algorithm under the suggested hyperparameters.
        seed: Base random seed.
        number: Number of the trial.
        ranges: The study's own search ranges.
    """
    if not isinstance(suggested.trained, Composition):
        return {}
    fixed = _fixed(algorithm)
    sampled: dict[str, Any] = {}
    for h in recipe_of(algorithm).hyperparameters:
        declared = None if h.part == "loss" or (h.part, h.field) in fixed else h.range
        within = ranges.get(h.name, declared)
        if within is None:
            continue
        value = within.sample(_generator(seed, label, number, h.name))
        if not isinstance(h.default, Schedule):
            sampled[h.name] = value
            continue
        usual = schedule(suggested.hyperparameters.get(h.name, h.default))
        if (course := usual.with_final_value(value)) is not None:
            sampled[h.name] = str(course)
    return sampled


def recipe_of(algorithm: object) -> Recipe:
    """Return the recipe of a name or an object, which lists its hyperparameters.

    Raises:
        EnvariantError: If there is no such algorithm.
    """
    if isinstance(algorithm, str):
        return composing.recipe(algorithm)
    if isinstance(algorithm, Recipe):
        return algorithm
    built = as_algorithm(cast("Any", algorithm))
    return Recipe(built.name, "", built if isinstance(built, Composition) else Composition())


def begin(folder: Path, study: Study) -> Store:
    """Open the study in a folder, and create it where there is none; runs that are new are planned.

    Args:
        folder: Folder of the study.
        study: Its declaration.

    Raises:
        EnvariantError: If the folder cannot be written, or holds runs made under other settings.
    """
    runs = study.runs()
    store = Store.create(folder)
    stored = store.fact("study")
    declared = study.to_dict()
    if stored is not None:
        for key in ("settings", "seed", "holdout_fraction", "metric", "store_predictions"):
            there = json.loads(stored).get(key)
            if there != declared[key]:
                raise EnvariantError(
                    f"{folder}: holds runs made with {key} {there!r}, not {declared[key]!r}; choose another "
                    f"folder"
                )
    identities = json.loads(store.fact("data") or "{}")
    for label, source in study.sources.items():
        if identities.setdefault(label, source.identity()) != source.identity():
            raise EnvariantError(f"{folder}: holds runs on other data named '{label}'; choose another folder")
    store.plan(runs)
    store.set_fact("data", json.dumps(identities))
    store.set_fact("study", json.dumps(declared))
    store.set_fact("objects", json.dumps(study.objects))
    return store


def stored_study(store: Store) -> Study:
    """Return the study that a store holds, as it was declared last.

    Raises:
        EnvariantError: If it holds none, or one that was declared with objects.
    """
    stored, objects = store.fact("study"), json.loads(store.fact("objects") or "[]")
    if stored is None:
        raise EnvariantError(f"{store.folder}: holds a single run and no study")
    if objects:
        raise EnvariantError(
            f"{store.folder}: was declared with objects ({', '.join(objects)}); pass the study itself"
        )
    return of(json.loads(stored), str(store.path))


def read(path: Path) -> Study:
    """Read the study that a TOML file declares.

    Raises:
        EnvariantError: If there is no such file, it is no TOML, or a key or value is not allowed.
    """
    try:
        with path.open("rb") as file:
            return of(tomllib.load(file), str(path))
    except OSError as error:
        raise EnvariantError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise EnvariantError(f"{path}: is no TOML: {error}") from None


def of(declared: Mapping[str, Any], where: str) -> Study:
    """Return the study that a mapping declares, as a TOML file or a store holds it.

    Args:
        declared: Fields of `Study` by name.
        where: Where the mapping comes from, for errors.

    Raises:
        EnvariantError: If a key or value is not allowed.
    """
    known = [f.name for f in fields(Study)]
    for key in declared:
        if key not in known:
            raise unknown_name("key", key, known, where=where)
    try:
        return _STUDY.validate_python(declared)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][:1])
        raise EnvariantError(f"{where}: {place}: {first['msg'].lower()}; got {first['input']!r}") from None


_PLAIN = (str, bool, int, float, type(None))


def _several(declared: Any) -> tuple[Any, ...]:
    """Return one or several declared things as a tuple."""
    return tuple(declared) if isinstance(declared, list | tuple) else (declared,)


def _splits(declared: object) -> object:
    """Return declared test environments as one of `SPLITS`, or as a tuple of tuples of names.

    Raises:
        EnvariantError: If it is neither.
    """
    if isinstance(declared, str):
        if declared not in SPLITS:
            raise unknown_name("test_environments", declared, SPLITS, where="study")
        return declared
    if isinstance(declared, Sequence):
        sets = [(each,) if isinstance(each, str) else each for each in cast("Sequence[Any]", declared)]
        if all(isinstance(each, Sequence) and all(isinstance(name, str) for name in each) for each in sets):
            return tuple(tuple(each) for each in sets)
    raise EnvariantError(
        f"study: test_environments must be {', '.join(SPLITS)} or lists of names; got {declared!r}"
    )


def _text(value: Any) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_text(each) for each in cast("Sequence[Any]", value)]
    return value if isinstance(value, _PLAIN) else text_of(value)


@contextmanager
def _located(own: bool, what: str) -> Generator[None]:
    """Begin errors with their place in the study, if the study's own ranges are wrong."""
    try:
        yield
    except EnvariantError as error:
        raise EnvariantError(f"study: ranges of {what}: {error}") if own else error from None


def _check_rate(rate: object) -> None:
    if isinstance(rate, bool) or not isinstance(rate, float | int) or not 0 < rate < _HIGHEST_RATE:
        raise EnvariantError(f"{RATE} must be a positive number; got {rate!r}")


def _fixed(algorithm: object) -> set[tuple[str, str]]:
    """Return part and field of the hyperparameters that an algorithm's text sets in brackets."""
    if not isinstance(algorithm, str):
        return set()
    return {
        (h.part, h.field)
        for known, given in composing.terms(algorithm)
        for h in known.hyperparameters
        if h.name in given
    }


def _generator(*names: object) -> np.random.Generator:
    """Return random numbers that follow from these names alone."""
    digest = hashlib.blake2b(json.dumps(names).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


_STUDY = TypeAdapter(Study)
