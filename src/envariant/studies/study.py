"""A study: data × held-out environments × algorithms × hyperparameter draws × replicas, declared once.

It is planned in full before anything trains. What a run is follows from its place in the study alone, so
that more algorithms or more draws leave the runs that are there as they are.
"""

import hashlib
import itertools
import json
import tomllib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from pydantic import TypeAdapter, ValidationError

from envariant import data as sources
from envariant.algorithms import composing
from envariant.core import metrics
from envariant.core.environments import EnvironmentSource
from envariant.core.errors import EnvariantError, unknown_name
from envariant.core.schedules import Schedule, reaching, schedule
from envariant.core.search_space import LogUniform, Range, search_range
from envariant.studies.baselines import boosted_trees
from envariant.training.run_spec import Chosen

SETTINGS = (
    "model",
    "steps",
    "batch_size",
    "weight_decay",
    "optimizer",
    "precision",
    "evaluate_every",
    "augmentation",
    "init",
    "freeze",
    "device",
    "compile",
)
"""What may be set for all runs alike, by the names that `envariant.train` gives its arguments."""

RATE = "learning_rate"
"""What a range of learning rates is called among an algorithm's ranges."""

ValidationSplit = Literal["suggested", "each", "each-and-pairs"] | tuple[tuple[str, ...], ...]


@final
@dataclass(frozen=True)
class Trial:
    """One choice of hyperparameters of an algorithm; the same for every replica.

    Attributes:
        number: 0 is what the data suggest.
        hyperparameters: changes to what is suggested.
        learning_rate: of the optimizer.
    """

    number: int
    hyperparameters: Mapping[str, Any]
    learning_rate: float


@final
@dataclass(frozen=True)
class Run:
    """One replica of one draw of one algorithm, with some environments held out.

    Attributes:
        data: the name of a data set.
        test_environments: names of the environments that are not trained on.
        algorithm: as typed.
        draw: its hyperparameters.
        replica: whose data draw, weights and batches it has.
    """

    data: str
    test_environments: tuple[str, ...]
    algorithm: str
    trial: Trial
    replica: int

    @property
    def key(self) -> str:
        """What names it in a study, as text."""
        return json.dumps(
            [self.data, self.test_environments, self.algorithm, self.trial.number, self.replica]
        )


@final
@dataclass(frozen=True)
class Study:
    """What is to be compared.

    Attributes:
        data: names of data sets.
        algorithms: such as `irm` or `vrex + coral(1.0)`; what is set in brackets is not drawn.
        name: of the study.
        n_trials: of hyperparameters of each algorithm; the first is what the data suggest.
        replicas: of each draw.
        test_environments: "suggested" by the data; "each" environment in turn; "each-and-pairs", which
            leave-one-domain-out selection needs; or lists of names.
        holdout_fraction: share of every training environment's rows that selection looks at.
        lr_range: learning rates are drawn from the suggested one divided by this to the same times this;
            1 keeps it.
        ranges: for each algorithm, as typed, where its draws look instead of where it declares: the name of a
            hyperparameter, or `learning_rate`, and a list or text such as `loguniform(1e2, 1e6)`.
        seed: from which draws and replicas follow.
        settings: for all runs alike; see `SETTINGS`.
        metric: in which runs are compared, such as AUROC; "" is the task's own.
        details: whether each run's answers on some rows are kept, and what each column is worth is measured.

    Raises:
        EnvariantError: a name is unknown or a number makes no sense.
    """

    data: tuple[str, ...]
    algorithms: tuple[str, ...]
    name: str = "study"
    n_trials: int = 1
    replicas: int = 3
    test_environments: ValidationSplit = "suggested"
    holdout_fraction: float = 0.2
    lr_range: float = 10**0.5
    ranges: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    metric: str = ""
    store_predictions: bool = False

    def __post_init__(self) -> None:
        for key in ("n_trials", "replicas"):
            if getattr(self, key) < 1:
                raise EnvariantError(f"study: {key} must be at least 1; got {getattr(self, key)}")
        for key in ("data", "algorithms"):
            if not getattr(self, key):
                raise EnvariantError(f"study: {key} names nothing; give at least one")
        if not 0 < self.holdout_fraction < 1:
            raise EnvariantError(
                f"study: holdout_fraction must lie above 0 and below 1; got {self.holdout_fraction:g}"
            )
        if not self.lr_range >= 1:
            raise EnvariantError(f"study: lr_range must be at least 1; got {self.lr_range:g}")
        if not 0 <= self.seed < 2**32:
            raise EnvariantError(f"study: seed must lie in [0, 2³²); got {self.seed}")
        for key in self.settings:
            if key not in SETTINGS:
                raise unknown_name("setting", key, SETTINGS, where="study")
        for text in self.algorithms:
            if text != boosted_trees.NAME:
                composing.recipe(text)
        for text in self.ranges:
            if text not in self.algorithms:
                raise unknown_name("algorithm", text, self.algorithms, where="study: ranges")
            self._ranges_of(text)
        if self.metric and self.metric not in metrics.METRICS:
            raise unknown_name("metric", self.metric, metrics.METRICS, where="study")

    def to_dict(self) -> dict[str, Any]:
        """As JSON or TOML would hold it."""
        return json.loads(json.dumps(asdict(self)))

    def runs(self) -> tuple[Run, ...]:
        """Every run, in the order of the declaration; the same each time.

        Raises:
            EnvariantError: a name is unknown, or an algorithm does not accept a draw.
        """
        found: list[Run] = []
        for data in self.data:
            source = sources.source(data)
            places = self._places(source)
            for algorithm in self.algorithms:
                n_trials = self.trials_of(algorithm, source)
                found += [
                    Run(data, place, algorithm, trial, replica)
                    for place, trial, replica in itertools.product(places, n_trials, range(self.replicas))
                ]
        return tuple(found)

    def trials_of(self, algorithm: str, source: EnvironmentSource) -> tuple[Trial, ...]:
        """The draws of one algorithm; fewer than asked for where it has nothing to draw."""
        if algorithm == boosted_trees.NAME:
            return (Trial(0, {}, boosted_trees.RATE),)
        suggested = Chosen.of(algorithm, {}, source)
        rate, span, own = suggested.suggestion.learning_rate, self.lr_range, self._ranges_of(algorithm)
        rates = own.pop(RATE, LogUniform(rate / span, rate * span) if span > 1 else None)
        found = [Trial(0, {}, rate)]
        for number in range(1, self.n_trials):
            by_chance = _generator(self.seed, algorithm, number, "rate")
            mine = rate if rates is None else rates.sample(by_chance)
            with _saying_where(algorithm in self.ranges, algorithm):
                drawn = drawn_hyperparameters(algorithm, suggested, self.seed, number, own)
                if algorithm in self.ranges:
                    Chosen.of(algorithm, drawn, source)
                    _check_rate(mine)
            found.append(Trial(number, drawn, mine))
        return tuple({(json.dumps(d.hyperparameters), d.learning_rate): d for d in reversed(found)}.values())[
            ::-1
        ]

    def _ranges_of(self, algorithm: str) -> dict[str, Range]:
        """What this study says of where an algorithm's draws look, learning rates among it."""
        declared = self.ranges.get(algorithm, {})
        if algorithm == boosted_trees.NAME and declared:
            raise EnvariantError(f"study: ranges: {boosted_trees.NAME} have nothing to draw")
        found: dict[str, Range] = {}
        for name, value in declared.items():
            settable = [h for h in composing.recipe(algorithm).hyperparameters if h.name == name]
            if name != RATE and not settable:
                known = [RATE, *(h.name for h in composing.recipe(algorithm).hyperparameters)]
                raise unknown_name("hyperparameter", name, known, where=f"study: ranges of {algorithm}")
            if any((h.part, h.field) in _fixed(algorithm) for h in settable):
                raise EnvariantError(f"study: ranges of {algorithm}: {name} is set in its brackets; drop one")
            with _saying_where(True, f"{algorithm}: {name}"):
                found[name] = search_range(value)
        return found

    def _places(self, source: EnvironmentSource) -> list[tuple[str, ...]]:
        drawn = source.sample(0)
        if self.test_environments == "suggested":
            return [drawn.test]
        if isinstance(self.test_environments, tuple):
            for names in self.test_environments:
                drawn.roles(names)
            return list(self.test_environments)
        each = [(name,) for name in drawn.names]
        pairs = (
            list(itertools.combinations(drawn.names, 2)) if self.test_environments == "each-and-pairs" else []
        )
        return each + [pair for pair in pairs if len(pair) < len(drawn.names)]


def drawn_hyperparameters(
    algorithm: str, suggested: Chosen, seed: int, number: int, own: Mapping[str, Range]
) -> dict[str, Any]:
    """Draw `number` of an algorithm: a value from the range of every hyperparameter that has one.

    Each follows from the seed, the algorithm, the number and its own name. Of a schedule the last value is
    drawn. What the text sets in brackets stays, and so does what belongs to the loss as a whole, unless the
    study has a range of its `own` for it.
    """
    fixed = _fixed(algorithm)
    found: dict[str, Any] = {}
    for h in composing.recipe(algorithm).hyperparameters:
        declared = None if h.part == "loss" or (h.part, h.field) in fixed else h.range
        where = own.get(h.name, declared)
        if where is None:
            continue
        drawn = where.sample(_generator(seed, algorithm, number, h.name))
        if not isinstance(h.default, Schedule):
            found[h.name] = drawn
        elif (course := reaching(schedule(suggested.hyperparameters[h.name]), drawn)) is not None:
            found[h.name] = str(course)
    return found


@contextmanager
def _saying_where(own: bool, what: str) -> Generator[None]:
    """Begins errors with the place in the study, if it is the study's own words that are wrong."""
    try:
        yield
    except EnvariantError as error:
        raise EnvariantError(f"study: ranges of {what}: {error}") if own else error from None


# Nothing trains at such a rate, and float32 ends not far above.
_HIGHEST_RATE = 1e30


def _check_rate(rate: object) -> None:
    if isinstance(rate, bool) or not isinstance(rate, float | int) or not 0 < rate < _HIGHEST_RATE:
        raise EnvariantError(f"{RATE} must be a positive number; got {rate!r}")


def _fixed(algorithm: str) -> set[tuple[str, str]]:
    """Part and field of what an algorithm's text sets in brackets."""
    return {
        (h.part, h.field)
        for known, given in composing.terms(algorithm)
        for h in known.hyperparameters
        if h.name in given
    }


def read(path: Path) -> Study:
    """The study that a TOML file declares.

    Raises:
        EnvariantError: there is no such file, it is no TOML, or a key or value is not one of a study's.
    """
    try:
        with path.open("rb") as file:
            return of(tomllib.load(file), str(path))
    except OSError as error:
        raise EnvariantError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise EnvariantError(f"{path}: is no TOML: {error}") from None


def of(declared: Mapping[str, Any], where: str) -> Study:
    """The study that a mapping declares, as a TOML file or a store holds it.

    Raises:
        EnvariantError: a key or value is not one of a study's.
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


def _generator(*names: object) -> np.random.Generator:
    """Random numbers that follow from these names alone."""
    digest = hashlib.blake2b(json.dumps(names).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


_STUDY = TypeAdapter(Study)
