"""What a comparison found, as numbers: each method at each new place, what it lost there, and what is noise.

The noise has two sources, and both are counted: replicas differ in weights, batches and held-out rows, and a
place is known by the rows it happens to have.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from envariant.analysis import statistics
from envariant.analysis.statistics import Interval
from envariant.core.errors import EnvariantError
from envariant.core.metrics import Metric
from envariant.core.tasks import Task
from envariant.data.validation_split import SUFFIX
from envariant.studies.permutation_importance import AS_IT_IS, ELSEWHERE, SHUFFLED, Answers
from envariant.studies.selection import Invariance, SelectedRun, select
from envariant.studies.significance import BASELINE
from envariant.studies.study import Study
from envariant.training.store import Store

LEVEL = 0.05
_RESAMPLES = 100
# Smaller ones are not told apart.
_LEAST_P = 1e-12
# Replicas whose rows are resampled where that is dear; the noise of rows is the same for all.
_RESAMPLED = 2


@final
@dataclass(frozen=True)
class Cell:
    """One method at one place that its models never saw.

    Attributes:
        score: in the metric, mean over replicas; its interval counts both sources of noise.
        inside: the same place's rows held out where it was trained on, by the same method.
        gain: over ERM, in the direction that is better; None for ERM itself, or where either is missing.
        p_value: of there being none, corrected by Holm for all methods and places.
    """

    score: Interval
    inside: Interval
    gain: Interval | None = None
    p_value: float | None = None

    @property
    def beyond(self) -> bool:
        """Whether the gain, or loss, is beyond noise."""
        return self.p_value is not None and self.p_value < LEVEL


@final
@dataclass(frozen=True)
class Reliance:
    """What a column is worth to a method's models.

    Attributes:
        within: how much worse they are on held-out rows of places they know when it is shuffled there.
        new: the same at places they never saw.
        elsewhere: how much worse they are at those when it holds values from the places they know; below 0
            where its own values mislead them.
    """

    within: float
    new: float
    elsewhere: float


@final
@dataclass(frozen=True, eq=False)
class Evidence:
    """All that was found.

    Attributes:
        metric: what scores are in.
        places: environments, in order.
        cells: by method, by place; only what could be measured is there.
        reliance: by method, by column.
        n_trials: of each method, the draw of hyperparameters chosen most often, over all places and replicas.
        missing: why something is not there, in words.
        replicas: of each.
        rows: of each place, that are compared on.
        guess: at each place, of always saying what is usual at the places that are not held out with it.
        only: by place, classes of the target that occur at none of those.
        giving_away: columns that by themselves say nearly all of the target.
        environment: the name of the column of places.
    """

    metric: Metric
    places: tuple[str, ...]
    cells: Mapping[str, Mapping[str, Cell]]
    reliance: Mapping[str, Mapping[str, Reliance]]
    n_trials: Mapping[str, int]
    missing: tuple[str, ...]
    replicas: int
    rows: Mapping[str, int] = field(default_factory=dict[str, int])
    guess: Mapping[str, float] = field(default_factory=dict[str, float])
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    giving_away: tuple[str, ...] = ()
    environment: str = ""

    @property
    def sign(self) -> float:
        """1 where more is better, else −1."""
        return 1.0 if self.metric.higher_is_better else -1.0

    def worst(self, method: str) -> tuple[str, Cell]:
        """The place where a method is worst, and how it does there."""
        return min(self.cells[method].items(), key=lambda item: self.sign * item[1].score.mean)

    def mean(self, method: str) -> float:
        """Of its scores over all places."""
        return float(np.mean([cell.score.mean for cell in self.cells[method].values()]))

    def whole(self, method: str) -> bool:
        """Whether it was measured at every place."""
        return len(self.cells.get(method, {})) == len(self.places)

    @cached_property
    def helping(self) -> tuple[str, ...]:
        """Methods that are better than ERM where ERM is worst, beyond noise, and whose own worst is better.

        The best first. Trees are not among them: they are another baseline.
        """
        if not self.whole(BASELINE):
            return ()
        place, usual = self.worst(BASELINE)
        found = [
            method
            for method in self.cells
            if method != BASELINE
            and self.whole(method)
            and (cell := self.cells[method][place]).beyond
            and cell.gain is not None
            and cell.gain.mean > 0
            and self.sign * (self.worst(method)[1].score.mean - usual.score.mean) > 0
        ]
        return tuple(sorted(found, key=lambda m: -self.sign * self.worst(m)[1].score.mean))


@final
@dataclass(frozen=True)
class _Models:
    """One method's chosen models and one place, by replica, filled in as they are read.

    Attributes:
        scores: where it was held out.
        answers: likewise, on the same rows for all.
        inside: on its held-out rows, of the models that were trained on the rest of it.
    """

    scores: dict[int, float]
    answers: dict[int, Answers]
    inside: dict[int, list[float]]


def gather(store: Store, study: Study, tasks: Mapping[str, Task], metric: Metric, n_trials: int) -> Evidence:
    """What the runs that are done say.

    Args:
        store: of the study, and perhaps of more that was asked for before.
        study: what was asked for.
        tasks: by place, of the models that have not seen it.
        metric: in which runs are compared.
        n_trials: how many of each algorithm's are complete; others are left aside, so that none has more.

    Raises:
        EnvariantError: no run of ERM is done.
    """
    table = store.table()
    asked = table["data"].isin(study.data) & table["algorithm"].isin(study.algorithms)
    table = table[asked & (table["trial"] < n_trials) & (table["replica"] < study.replicas)]
    places = tuple(tasks)
    selected = select(table, Invariance())
    reasons: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for each in selected:
        if not isinstance(each.choice, SelectedRun):
            reasons.setdefault((each.algorithm, each.choice.reason), []).append(each.test_environments)
    missing = tuple(
        f"{algorithm}, held out {_listed(list(dict.fromkeys(test_environments)))}: {reason}"
        for (algorithm, reason), test_environments in reasons.items()
    )
    chosen = [(each, each.choice) for each in selected if isinstance(each.choice, SelectedRun)]
    if not any(each.algorithm == BASELINE for each, _ in chosen):
        raise EnvariantError(
            f"compare: no run of ERM came to its end ({missing[0]}); give it more time: the same command "
            f"goes on where it was"
        )
    measured = _by_run(store.history(sorted({choice.run for _, choice in chosen})))
    answered = {choice.run: store.answers(choice.run) for _, choice in chosen}
    models: dict[tuple[str, str], _Models] = {}
    for each, choice in chosen:
        test_environments = each.test_environments
        for place in places:
            name = place if place in test_environments else place + SUFFIX
            value = measured.get((choice.run, choice.step, name, metric.name))
            if value is None:
                continue
            of = models.setdefault((each.algorithm, place), _Models({}, {}, {}))
            if place not in test_environments:
                of.inside.setdefault(each.replica, []).append(value)
                continue
            of.scores[each.replica] = value
            if place in answered[choice.run]:
                of.answers[each.replica] = answered[choice.run][place]
    methods = list(dict.fromkeys(each.algorithm for each, _ in chosen))
    return Evidence(
        metric,
        places,
        _cells(models, methods, tasks, metric),
        _reliance(chosen, measured, metric),
        {method: _most_often(c.trial for e, c in chosen if e.algorithm == method) for method in methods},
        missing,
        max(len(of.scores) for of in models.values()),
    )


def _listed(test_environments: Sequence[tuple[str, ...]]) -> str:
    """Places that were held out together, each by commas; of many the first."""
    texts = [", ".join(names) for names in test_environments[:3]]
    return "; ".join(texts) + (
        f" and {len(test_environments) - 3} more times" if len(test_environments) > 3 else ""
    )


def _most_often(n_trials: Iterable[int]) -> int:
    """Of equally frequent ones the first."""
    counts = Counter(n_trials)
    return min(counts, key=lambda trial: (-counts[trial], trial))


def _by_run(history: pd.DataFrame) -> dict[tuple[int, int, str, str], float]:
    rows = history.dropna(subset=["value"])
    keys = zip(rows["run"], rows["step"], rows["environment"], rows["metric"], strict=True)
    return dict(zip(keys, rows["value"].astype(float), strict=True))


def _cells(
    models: Mapping[tuple[str, str], _Models],
    methods: Sequence[str],
    tasks: Mapping[str, Task],
    metric: Metric,
) -> dict[str, dict[str, Cell]]:
    sign = 1.0 if metric.higher_is_better else -1.0
    found: dict[str, dict[str, Cell]] = {}
    raw: list[tuple[str, str, float]] = []
    for method in methods:
        for place, task in tasks.items():
            own = models.get((method, place))
            if own is None or not own.scores:
                continue
            score = _interval(list(own.scores.values()), _noise(task, metric, own, None))
            inside = statistics.interval([float(np.mean(values)) for values in own.inside.values()])
            gain = None
            usual = models.get((BASELINE, place))
            common = [] if usual is None or method == BASELINE else sorted(own.scores.keys() & usual.scores)
            if usual is not None and common:
                differences = [sign * (own.scores[k] - usual.scores[k]) for k in common]
                noise = _noise(task, metric, own, usual)
                gain = _interval(differences, noise)
                raw.append((method, place, _p_value(differences, noise)))
            found.setdefault(method, {})[place] = Cell(score, inside, gain)
    corrected = statistics.holm([p for *_, p in raw])
    for (method, place, _), p in zip(raw, corrected, strict=True):
        cell = found[method][place]
        found[method][place] = Cell(cell.score, cell.inside, cell.gain, p)
    return found


def _interval(values: Sequence[float], noise: float) -> Interval:
    """Of the mean, at 95 %."""
    mean, half = float(np.mean(values)), _half(values, noise, 0.05)
    return Interval(mean, mean - half, mean + half, len(values))


def _half(values: Sequence[float], noise: float, level: float) -> float:
    """Half the width of an interval of a mean over replicas, with what the rows add.

    Replicas are few and their spread hardly known: Student's quantile. The noise of the rows is known from
    many resamples, and has a quantile of its own; with the replicas' it would be far too wide. The root of
    the sum of squares of the two is at its level or below. One replica tells nothing of its spread.
    """
    n = len(values)
    few = float(stats.t.ppf(1 - level / 2, max(1, n - 1)))
    many = float(stats.t.ppf(1 - level / 2, _RESAMPLES - 1)) if n > 1 else few
    between = float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return math.hypot(few * between, many * noise)


def _p_value(differences: Sequence[float], noise: float) -> float:
    """The level at which the interval ends at 0."""
    mean = abs(float(np.mean(differences)))
    if mean == 0 or _half(differences, noise, _LEAST_P) < mean:
        return 1.0 if mean == 0 else _LEAST_P

    low, high = math.log(_LEAST_P), 0.0
    while high - low > 1e-5:
        middle = (low + high) / 2
        if _half(differences, noise, math.exp(middle)) < mean:
            high = middle
        else:
            low = middle
    return math.exp(high)


def _noise(task: Task, metric: Metric, own: _Models, usual: _Models | None) -> float:
    """The standard error that a place's rows bring to a mean score, or to a mean gain on the same rows."""
    common = sorted(own.answers.keys() & (own.answers if usual is None else usual.answers).keys())
    if not common:
        return 0.0
    generator = np.random.default_rng(0)
    first = own.answers[common[0]]
    rows = len(first.targets)
    estimates: list[float] = []
    for k in common[:_RESAMPLED]:
        pair = [own.answers[k]] + ([] if usual is None else [usual.answers[k]])
        n_trials = generator.integers(rows, size=(_RESAMPLES, rows))
        worth = np.array([[_worth(task, metric, each, trial) for each in pair] for trial in n_trials])
        values = worth[:, 0] - worth[:, 1] if usual is not None else worth[:, 0]
        values = values[np.isfinite(values)]
        estimates.append(float(values.std(ddof=1)) if len(values) > 1 else 0.0)
    # Of a thousand rows the noise is known; the whole place has less.
    return float(np.mean(estimates)) * math.sqrt(rows / first.of)


def _worth(task: Task, metric: Metric, said: Answers, rows: NDArray[np.int64]) -> float:
    targets = said.targets[rows]
    if said.logits.ndim == 2:
        return metric.of(task, said.logits[rows], targets.astype(np.int64))
    return metric.of(task, said.logits[rows], targets)


def _reliance(
    chosen: Sequence[tuple[Any, SelectedRun]],
    measured: Mapping[tuple[int, int, str, str], float],
    metric: Metric,
) -> dict[str, dict[str, Reliance]]:
    """Over all chosen models of a method, what each column is worth to them."""
    sign = 1.0 if metric.higher_is_better else -1.0
    kinds = {SHUFFLED: 0, ELSEWHERE: 1}
    method_of = {(choice.run, choice.step): each.algorithm for each, choice in chosen}
    found: dict[tuple[str, str], list[list[float]]] = {}
    for (run, step, name, label), value in measured.items():
        method = method_of.get((run, step))
        prefix = next((p for p in kinds if label.startswith(p)), None)
        usual = measured.get((run, step, name, AS_IT_IS))
        if method is None or prefix is None or usual is None:
            continue
        within, new, elsewhere = found.setdefault((method, label.removeprefix(prefix)), [[], [], []])
        lost = sign * (usual - value)
        if prefix == ELSEWHERE:
            elsewhere.append(lost)
        else:
            (within if name.endswith(SUFFIX) else new).append(lost)
    result: dict[str, dict[str, Reliance]] = {}
    for (method, column), parts in found.items():
        means = [float(np.mean(part)) if part else math.nan for part in parts]
        result.setdefault(method, {})[column] = Reliance(*means)
    return result
