"""Remedies for the drop in each new environment, with gains measured on rows of the same environment.

The possible remedies are recalibration with a few labels, another method, fewer columns, corrected class
shares, and collection of missing columns.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from envariant.analysis.few_labels import LabelGain, gain_from_labels, recalibrate
from envariant.analysis.label_shift import (
    adjust_probabilities,
    assess_conditional_shift,
    assess_label_shift,
    estimate_prior_em,
)
from envariant.analysis.statistics import LEVEL, Interval
from envariant.comparison.baselines import Folds
from envariant.comparison.causes import LEVEL_OF_TESTS, Cause, number
from envariant.comparison.formatting import method_name
from envariant.comparison.results import ComparisonResults
from envariant.comparison.stored_rows import Scores, StoredRows
from envariant.comparison.uncertainty import standard_error
from envariant.core.errors import listed
from envariant.core.metrics import probabilities
from envariant.data.tables.source import TableSource

Array = NDArray[np.float64]
Kind = Literal["labels", "method", "columns", "class shares", "collect"]
ScoreName = Literal["accuracy", "log loss", "RMSE"]

STABLE_COLUMNS = "stable-columns"
"""Name of the method that omits columns whose relation with the target changes."""

# Share of the rarer of two classes below which accuracy hardly changes, so that log loss is reported.
_RARE = 0.2
# Share of the largest gain that suffices: more labels are then not worthwhile.
_ENOUGH = 0.9
# A column counts as missing from the first share of missing values on, and as present up to the second.
_MISSING, _PRESENT = 0.8, 0.5
_RESAMPLES = 100
_FEWEST_ROWS = 20
_UNKNOWN = Interval(math.nan, math.nan, math.nan, 0)


@final
@dataclass(frozen=True)
class Remedy:
    """Remedy for the drop of the baseline in one environment, and its measured gain.

    Attributes:
        environment: Name of the environment.
        label: Name of the environment as used in sentences.
        kind: "labels" (recalibration with a few labels), "method" (another method), "columns" (omission of
            unstable columns), "class shares" (correction of class shares without labels) or "collect"
            (collection of a missing column).
        action: Description in a few words, such as "20 labels".
        score: Name of the score: "accuracy", "log loss" or "RMSE".
        before: Score of the baseline in the environment; NaN if the gain is not measured.
        after: Score with the remedy, on the same rows.
        gain: Improvement (positive if better) with its interval, which is Bonferroni-corrected over
            environments and methods.
        method: Method to use instead of the baseline; "" for other kinds of remedies.
        columns: Columns to collect; empty for other kinds of remedies.
        curve: Gain from recalibration for each number of labels. The labels are used to refit the intercept
            of the predictions, or intercept and slope if the loss is then lower.
    """

    environment: str
    label: str
    kind: Kind
    action: str
    score: ScoreName
    before: float = math.nan
    after: float = math.nan
    gain: Interval = _UNKNOWN
    method: str = ""
    columns: tuple[str, ...] = ()
    curve: tuple[LabelGain, ...] = ()

    @property
    def significant(self) -> bool:
        """Whether the gain is significantly positive."""
        return self.gain.low > 0

    @property
    def sentence(self) -> str:
        """Sentence with the remedy and its measured gain; "" if the gain is not significant."""
        if self.kind == "collect":
            return f"{self.action}."
        if not self.significant:
            return ""
        verb = "bring" if self.kind == "labels" or self.action.endswith("trees") else "brings"
        before, after = (score_text(self.score, value) for value in (self.before, self.after))
        action = self.action[:1].upper() + self.action[1:]
        return f"{action} {verb} {self.label} from {before} to {after} {self.score}."


def score_text(score: ScoreName, value: float) -> str:
    """Format a score with two decimals; RMSE with three significant digits."""
    return number(value) if score == "RMSE" else f"{value:.2f}"


def ranked(remedies: Iterable[Remedy]) -> tuple[Remedy, ...]:
    """Sort remedies: significant gains before all others, and otherwise larger gains before smaller gains.

    Gains that are not measured come last; remedies whose measured gain is not positive are omitted.
    """
    improving = [each for each in remedies if not each.gain.mean <= 0]
    # Gains that are not measured are NaN.
    return tuple(sorted(improving, key=lambda each: (not each.significant, -np.nan_to_num(each.gain.mean))))


def remedies_by_environment(
    source: TableSource,
    results: ComparisonResults,
    causes: Mapping[str, Cause],
    folds: Folds,
    holdout_fraction: float,
    seeds: Sequence[int],
    *,
    seed: int = 0,
) -> Iterator[list[Remedy]]:
    """Measure the gain of each remedy, one environment after another.

    Args:
        source: Table of the study.
        results: Results of a study, with stored predictions.
        causes: Reasons for drops by environment, from `find_causes`; only these environments are examined.
        folds: Groups of environments; the environments of a group are held out together.
        holdout_fraction: Share of rows used for validation in each training environment.
        seeds: Seed of each replica's data draw.
        seed: Seed of resampling.

    Yields:
        Unsorted remedies of each environment. The gain of collecting a column is not measured.
    """
    stored = StoredRows(source, folds, holdout_fraction, seeds)
    name = _score_name(source)
    for environment, cause in causes.items():
        rows = results.rows[results.baseline_method, environment]
        own = stored.out_of_domain(environment, rows.out_of_domain)
        (groups,), (weights,) = stored.groups_of(own) or (None,), stored.weights_of(own) or (None,)
        tests = _Tests(cause, name, own, groups, weights)
        remedies: list[Remedy] = []
        if len(own.targets) >= _FEWEST_ROWS:
            remedies += tests.labels(seed)
            remedies += _other_methods(tests, results, stored)
            remedies += _class_shares(tests, stored, stored.training(environment, rows.others), seed)
        yield remedies + _collect(tests, source)


@final
@dataclass(frozen=True, eq=False)
class _Tests:
    """Measurement of gains on the rows of one environment.

    Attributes:
        cause: Reasons for the drop in the environment.
        score: Name of the score.
        own: Predictions of the baseline for the rows.
        groups: Group of each row, such as the patient; None: rows are independent.
        weights: Case weight of each row, used to compare two sets of predictions; the gain from
            labels is unweighted. None: equal weights.
    """

    cause: Cause
    score: ScoreName
    own: Scores
    groups: NDArray[np.int64] | None = None
    weights: Array | None = None

    def labels(self, seed: int) -> list[Remedy]:
        """Measure the gain for the smallest number of labels with at least 90 % of the largest gain."""
        regression = self.score == "RMSE"
        gains = gain_from_labels(
            *self.own.pair, n_resamples=_RESAMPLES, regression=regression, seed=seed, groups=self.groups
        )
        sizes = dict.fromkeys(each.n_labels for each in gains)
        curve = tuple(
            min((e for e in gains if e.n_labels == size), key=lambda e: e.loss.after) for size in sizes
        )
        measured = [(each, *label_scores(each, self.score)) for each in curve]
        if not measured:
            return []
        sign = 1 if self.score == "accuracy" else -1
        most = max(sign * (after - before) for _, before, after, _ in measured)
        chosen, before, after, sd = next(
            each for each in measured if sign * (each[2] - each[1]) >= _ENOUGH * most or most <= 0
        )
        gain, losses = sign * (after - before), _row_losses(self.own, self.score)
        # Spread over the choice of labeled rows, and over the rows on which the gain is measured.
        variance = abs(gain) if self.score == "accuracy" else float(losses.var())
        scale = before + after if regression else 1.0
        if self.groups is not None and (independent := standard_error(losses)) > 0:
            variance *= (standard_error(losses, self.groups) / independent) ** 2
        error = math.hypot(sd, math.sqrt(variance / len(losses)) / max(scale, 1e-12))
        action, interval = f"{chosen.n_labels} labels", self.interval(gain, error)
        return [self.remedy("labels", action, before, after, interval, curve=curve)]

    def paired(self, other: Scores, n_methods: int = 1) -> tuple[float, float, Interval]:
        """Return the scores of the baseline and of `other` on the same rows, and the gain."""
        first, second = (_row_losses(each, self.score) for each in (self.own, other))
        if self.weights is not None and self.weights.any():
            # The standard error is that of a ratio of sums (linearized).
            share = self.weights / self.weights.mean()
            before, after = float((share * first).mean()), float((share * second).mean())
            error = standard_error(share * (first - second - before + after), self.groups)
        else:
            before, after = float(first.mean()), float(second.mean())
            error = standard_error(first - second, self.groups)
        if self.score == "accuracy":
            return 1 - before, 1 - after, self.interval(before - after, error, n_methods)
        if self.score == "log loss":
            return before, after, self.interval(before - after, error, n_methods)
        roots = math.sqrt(before), math.sqrt(after)
        return *roots, self.interval(roots[0] - roots[1], error / max(sum(roots), 1e-12), n_methods)

    def interval(self, gain: float, error: float, n_methods: int = 1) -> Interval:
        """Return a gain with its interval, Bonferroni-corrected over environments and methods."""
        half = error * float(stats.norm.isf((1 - LEVEL) / 2 / (self.cause.n_compared * n_methods)))
        return Interval(gain, gain - half, gain + half, len(self.own.targets))

    def remedy(
        self, kind: Kind, action: str, before: float, after: float, gain: Interval, **more: Any
    ) -> Remedy:
        """Build a remedy for the environment from its kind, scores and gain."""
        cause = self.cause
        return Remedy(cause.environment, cause.label, kind, action, self.score, before, after, gain, **more)


def label_scores(gain: LabelGain, score: ScoreName) -> tuple[float, float, float]:
    """Return the score before recalibration with labels, the score after it, and a standard deviation.

    The standard deviation is that of the score after recalibration, over random choices of the labeled rows.
    """
    if score == "accuracy" and gain.accuracy is not None:
        return gain.accuracy.before, gain.accuracy.after, gain.accuracy.sd
    before, after, sd = gain.loss.before, gain.loss.after, gain.loss.sd
    if score == "RMSE":
        before, after = math.sqrt(before), math.sqrt(after)
        sd /= max(2 * after, 1e-12)
    return before, after, sd


def _score_name(source: TableSource) -> ScoreName:
    table = source.table
    if table.task == "regression":
        return "RMSE"
    shares = np.bincount(table.targets().astype(int)) / len(table)
    return "log loss" if table.task == "binary" and shares.min() < _RARE else "accuracy"


def _row_losses(scores: Scores, score: ScoreName) -> Array:
    """Return the 0/1 error (accuracy), log loss or squared error (RMSE) of each row."""
    if score != "accuracy":
        return scores.losses(regression=score == "RMSE")
    z = scores.values
    predicted = z > 0 if z.ndim == 1 else z.argmax(axis=1)
    return (predicted != scores.targets).astype(np.float64)


def _other_methods(tests: _Tests, results: ComparisonResults, stored: StoredRows) -> list[Remedy]:
    """Measure the gain of the best other method, and of omitting unstable columns."""
    environment = tests.cause.environment
    others = [
        method
        for method in results.cells
        if method != results.baseline_method
        and (method, environment) in results.rows
        and results.rows[method, environment].out_of_domain
    ]
    measured = {
        method: tests.paired(
            stored.out_of_domain(environment, results.rows[method, environment].out_of_domain), len(others)
        )
        for method in others
    }
    remedies: list[Remedy] = []
    if (own := measured.pop(STABLE_COLUMNS, None)) is not None:
        action = "leaving out the unstable columns"
        remedies.append(tests.remedy("columns", action, *own, method=STABLE_COLUMNS))
    if measured:
        best = max(measured, key=lambda method: measured[method][2].mean)
        remedies.append(tests.remedy("method", method_name(best), *measured[best], method=best))
    return remedies


def _class_shares(tests: _Tests, stored: StoredRows, training: Scores | None, seed: int) -> list[Remedy]:
    """Measure the gain of correcting class shares without labels, if only P(Y) changes, not P(X | Y)."""
    cause, own = tests.cause, tests.own
    if stored.regression or training is None or training.rows is None or own.rows is None:
        return []
    rows = np.concatenate([training.rows, own.rows])
    side = np.repeat([0, 1], [len(training.rows), len(own.rows)])
    labels = stored.source.table.targets()[rows]
    if assess_label_shift(labels, side, seed=seed).p_value > LEVEL_OF_TESTS / cause.n_compared:
        return []
    inputs = stored.inputs(stored.fold_of(cause.environment))[rows]
    if assess_conditional_shift(inputs, labels, side, seed=seed).p_value <= LEVEL_OF_TESTS:
        return []
    # Estimates need calibrated probabilities.
    calibrated = recalibrate(*training.pair, refit="intercept and slope")
    known, new = (probabilities(calibrated.apply(each.values)) for each in (training, own))
    estimate = estimate_prior_em(new, known.mean(axis=0))
    with np.errstate(divide="ignore"):
        logits = np.log(np.maximum(adjust_probabilities(new, estimate.weights), 1e-12))
    adjusted = Scores(logits[:, 1] - logits[:, 0] if own.values.ndim == 1 else logits, own.targets, own.rows)
    action = "correcting the class shares without labels"
    return [tests.remedy("class shares", action, *tests.paired(adjusted))]


def _collect(tests: _Tests, source: TableSource) -> list[Remedy]:
    """Suggest collecting columns that are missing either in the environment or elsewhere, but not both."""
    table = source.table
    name = tests.cause.environment
    here, there = table.environment.values == table.environments.index(name), table.training_rows((name,))
    shares = {c.name: tuple(float(c.missing[rows].mean()) for rows in (here, there)) for c in table.columns}
    absent = tuple(c for c, (own, other) in shares.items() if own >= _MISSING and other <= _PRESENT)
    unknown = tuple(c for c, (own, other) in shares.items() if other >= _MISSING and own <= _PRESENT)
    remedies: list[Remedy] = []
    for columns, place, other, k in (
        (absent, tests.cause.label, tests.cause.elsewhere, 0),
        (unknown, "the training environments", f"in {tests.cause.label}", 1),
    ):
        if columns:
            most, least = (np.mean([shares[c][side] for c in columns]) for side in (k, 1 - k))
            missing = f"missing in {most:.0%} of rows there, {least:.0%} {other}".replace("%", " %")
            action = f"Collect {listed(list(columns))} in {place}: {missing}"
            cause = tests.cause
            remedies.append(
                Remedy(cause.environment, cause.label, "collect", action, tests.score, columns=columns)
            )
    return remedies
