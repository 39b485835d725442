"""Find the reasons for the drop of the baseline's score in each new environment.

Each drop is split in two ways. The first split separates what recalibration would remove (level and
calibration slope) from what it would not (ranking). The second separates changed inputs from a changed
relation between inputs and target. The shift is classified as label, covariate or concept shift.
"""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from envariant.analysis.calibration import Calibration, DropParts, DropSplit, measure_calibration, split_drop
from envariant.analysis.disde import DropDecomposition, measure_disde
from envariant.analysis.shift_kind import EnvironmentShift, name_shifts
from envariant.analysis.statistics import LEVEL, Interval
from envariant.comparison.baselines import Folds
from envariant.comparison.results import ComparisonResults
from envariant.comparison.stored_rows import Scores, StoredRows
from envariant.core.errors import EnvariantError
from envariant.data.tables.source import TableSource
from envariant.data.tables.table import Table

Array = NDArray[np.float64]
Part = Literal["level", "slope", "ranking"]

PARTS: tuple[Part, ...] = ("level", "slope", "ranking")
"""Parts of a drop: removed by a new intercept, by a new slope, or by neither."""

MOST_ENVIRONMENTS = 12
"""Maximum number of environments whose drop is explained: those with the worst scores."""

# Smallest share of a drop, and smallest bias of a probability, that is named.
_MAIN_SHARE, _SMALL_SHARE, _SMALL_BIAS = 0.6, 0.25, 0.02
# Smallest difference in the share of a class that is named as the reason for a changed level.
_PREVALENCE = 0.05
_FEWEST_ROWS = 10
_RESAMPLES = 300


@final
@dataclass(frozen=True)
class Cause:
    """Reasons for the drop of the baseline's score in one environment.

    Properties that hold a sentence, such as `cause`, are "" if there is nothing to report.

    Attributes:
        environment: Name of the environment.
        label: Name of the environment as used in sentences.
        target: Name of the target column.
        classes: Names of the classes; empty for regression.
        levels: Share of each class in the environment; for regression, the mean target.
        levels_elsewhere: Share of each class, or mean target, in all other environments; only in earlier ones
            if environments are ordered.
        n_compared: Number of environments, for Bonferroni correction.
        split: Drop in log loss (regression: squared error) and error rate, each split into parts such as
            level, slope and ranking; None without in-domain predictions.
        calibration: Calibration of the out-of-domain predictions. Standard errors of the bias account for
            the sampling of training rows. None with fewer than 10 predictions.
        decomposition: Increase in loss relative to validation rows of the training environments, split into
            harder inputs, new inputs and a changed relation (DISDE); None if unknown.
        shift: Kinds of shift relative to the other environments; None if unknown.
        elsewhere: Word that refers to the other environments in sentences: "elsewhere", or "before" if
            environments are ordered.
    """

    environment: str
    label: str
    target: str
    classes: tuple[str, ...]
    levels: tuple[float, ...]
    levels_elsewhere: tuple[float, ...]
    n_compared: int
    split: DropSplit | None
    calibration: Calibration | None
    decomposition: DropDecomposition | None
    shift: EnvironmentShift | None
    elsewhere: str = "elsewhere"

    @property
    def regression(self) -> bool:
        """Whether targets are real-valued."""
        return not self.classes

    @property
    def loss_name(self) -> str:
        """Name of the loss that is split into parts: "log loss" or "squared error"."""
        return "squared error" if self.regression else "log loss"

    @property
    def drop(self) -> tuple[str, DropParts] | None:
        """Name of the first loss with a significant increase, and the decomposition of that increase.

        None if no loss increases significantly. The log loss (squared error for regression) is tested first,
        then the error rate, with Bonferroni correction over environments.
        """
        if self.split is None:
            return None
        for name, parts in ((self.loss_name, self.split.loss), ("error rate", self.split.error_rate)):
            if parts is not None and _exceeds_zero(parts.total, self.n_compared):
                return name, parts
        return None

    @property
    def shares(self) -> Mapping[Part, float]:
        """Shares of a significant drop that are due to level, slope and ranking; empty without such a drop.

        Shares are relative to the sum of the positive ones of these three parts; negative parts count as 0.
        If the calibration slope is negative, the ranking is reversed; the slope part is then added to the
        ranking part.
        """
        if self.drop is None:
            return {}
        means: dict[Part, float] = {part: getattr(self.drop[1], part).mean for part in PARTS}
        if self.is_reversed:
            means["ranking"] += means["slope"]
            means["slope"] = 0.0
        total = sum(max(0.0, mean) for mean in means.values())
        return {part: max(0.0, mean) / total for part, mean in means.items()} if total > 0 else {}

    @property
    def is_reversed(self) -> bool:
        """Whether the calibration slope is negative, so that higher predictions mean lower targets."""
        return self.calibration is not None and self.calibration.slope < 0

    @property
    def main_part(self) -> Part | None:
        """Part that causes at least 60 % of a significant drop ("level", "slope" or "ranking"), or None."""
        shares = self.shares
        part = max(shares, key=lambda each: shares[each], default=None)
        return part if part is not None and shares[part] >= _MAIN_SHARE else None

    @property
    def is_prevalence(self) -> bool:
        """Whether predictions are biased because class shares differ from those of other environments."""
        if self.calibration is None or self.regression:
            return False
        moved = self.levels[self._level_class] - self.levels_elsewhere[self._level_class]
        tested = self.shift is None or self.shift.label_p <= LEVEL_OF_TESTS
        biases = (-sum(self.calibration.bias), *self.calibration.bias)
        return tested and abs(moved) >= _PREVALENCE and biases[self._level_class] * moved < 0

    @property
    def cause(self) -> str:
        """Main reason for a significant drop, as a sentence."""
        if self.drop is None or not (shares := self.shares):
            return ""
        name, main = self.drop[0], self.main_part
        names = {**_PART_NAMES, **({"level": "prevalence"} if self.is_prevalence else {})}
        if main is None:
            parts = [f"{share:.0%} from {names[p]}" for p, share in shares.items() if share >= 0.05]
            return f"In {self.label}, the drop ({name}) comes {' and '.join(parts).replace('%', ' %')}."
        share = f"{shares[main]:.0%} of the drop".replace("%", " %") if shares[main] < 0.995 else "the drop"
        return f"In {self.label}, {share} ({name}) comes from {names[main]}{self._detail(main)}."

    @property
    def bias(self) -> str:
        """Direction and size of a significant bias of the predictions, as a sentence."""
        if self.calibration is None:
            return ""
        bias, error = self._worst_bias
        tests = self.n_compared * len(self.calibration.bias)
        if abs(bias) <= error * float(stats.norm.isf((1 - LEVEL) / 2 / tests)):
            return ""
        if not self.regression and abs(bias) < _SMALL_BIAS:
            return ""
        what = "Predictions" if self.regression else "Predicted probabilities"
        of = "" if self.regression else f" of {self.target} = {self.classes[self._bias_class]}"
        return f"{what}{of} are {self._too()} in {self.label}."

    @property
    def relation(self) -> str:
        """Sentence on the changes in loss due to a changed relation and to different inputs (DISDE)."""
        if (parts := self.decomposition) is None:
            return ""
        if not parts.has_overlap:
            return (
                f"In {self.label}, inputs hardly overlap with the training environments (AUROC "
                f"{parts.auc:.2f}): the drop cannot be split into parts due to the inputs and due to their "
                f"relation to the target."
            )
        total, relation = parts.target_loss - parts.source_loss, parts.changed_relation
        side = "higher" if total > 0 else "lower"
        ends = f"[{_signed(relation.low)}, {_signed(relation.high)}]"
        return (
            f"In {self.label}, {self.loss_name} is {number(abs(total), 2)} {side} than in the training "
            f"environments: {_signed(relation.mean)} {ends} due to a changed relation between inputs and "
            f"target, {_signed(total - relation.mean)} due to different inputs."
        )

    @property
    def kinds(self) -> str:
        """Kinds of shift in the environment, as a sentence."""
        if self.shift is None:
            return ""
        if not self.shift.kinds:
            return f"No shift of inputs or target was found in {self.label}."
        return f"In {self.label}, there is {' and '.join(_KINDS[kind] for kind in self.shift.kinds)}."

    @property
    def _level_class(self) -> int:
        """Index of the class whose share differs most from its share elsewhere; 1 for two classes."""
        moved = np.abs(np.subtract(self.levels, self.levels_elsewhere))
        return 1 if len(self.classes) == 2 else int(moved.argmax())

    @property
    def _bias_class(self) -> int:
        """Index of the class with the largest bias; the first class is excluded."""
        return 1 + (0 if self.calibration is None else int(np.abs(self.calibration.bias).argmax()))

    @property
    def _worst_bias(self) -> tuple[float, float]:
        """Largest bias of the predictions, and its standard error."""
        assert self.calibration is not None
        k = self._bias_class - 1
        return self.calibration.bias[k], self.calibration.bias_errors[k]

    def _detail(self, main: Part) -> str:
        """Return the evidence for the main part as text; add a remark if the ranking is unchanged."""
        assert self.drop is not None
        assert self.calibration is not None
        if main == "ranking":
            return self._ranking_detail()
        if main == "level":
            text = self._levels() if self.is_prevalence else f"predictions are {self._too()}"
        else:
            how = "extreme" if self.calibration.slope < 1 else "cautious"
            text = f"predictions are too {how} (calibration slope {self.calibration.slope:.2g})"
        ranking = self.drop[1].ranking
        holds = not _exceeds_zero(ranking, self.n_compared) and self.shares["ranking"] < _SMALL_SHARE
        return f": {text}{'; ranking holds' if holds else ''}"

    def _ranking_detail(self) -> str:
        if self.is_reversed:
            return ": predictions are reversed, because the relation between inputs and target differs"
        parts = self.decomposition
        kinds = self.shift.kinds if self.shift is not None else ()
        relation = inputs = False
        if parts is not None and parts.has_overlap:
            relation = parts.changed_relation.low > 0
            inputs = parts.changed_relation.mean < parts.harder_inputs.mean + parts.new_inputs.mean
        if "concept" in kinds or (relation and not inputs):
            return ", which no recalibration repairs: the relation between inputs and target differs"
        if inputs or kinds == ("covariate",):
            return ", which no recalibration repairs: the inputs differ, not their relation to the target"
        return ", which no recalibration repairs"

    def _too(self) -> str:
        bias = self._worst_bias[0]
        size = number(abs(bias)) if self.regression else f"{abs(bias):.2f}"
        return f"{size} too {'high' if bias > 0 else 'low'}"

    def _levels(self) -> str:
        k = self._level_class
        shares = f"{self.levels[k]:.0%} of rows, {self.levels_elsewhere[k]:.0%} {self.elsewhere}"
        shares = shares.replace("%", " %")
        return f"{self.target} is {self.classes[k]} in {shares}"


LEVEL_OF_TESTS = 0.05
"""Significance level of the tests of shift."""

_PART_NAMES: Mapping[Part, str] = {
    "level": "the level of the predictions",
    "slope": "the calibration slope",
    "ranking": "the ranking",
}
_KINDS = {
    "label": "label shift (P(Y) differs, the slopes of P(Y | X) do not)",
    "covariate": "covariate shift (P(X) differs)",
    "concept": "concept shift (P(Y | X) differs)",
}


def find_causes(
    source: TableSource,
    results: ComparisonResults,
    folds: Folds,
    holdout_fraction: float,
    seeds: Sequence[int],
    *,
    seed: int = 0,
    until: float = math.inf,
) -> dict[str, Cause]:
    """Find why the baseline's score drops in each environment; those with the worst scores come first.

    Args:
        source: Table of the study.
        results: Results of a study, with stored predictions.
        folds: Groups of environments; the environments of a group are held out together.
        holdout_fraction: Share of each training environment's rows that are used for validation.
        seeds: Seed of the data draw of each replica (`Seeds.of(study.seed, replica).data`).
        seed: Seed of resampling.
        until: Deadline, as a value of `time.monotonic`; the first environment is always examined.

    Returns:
        Reasons by environment; with more than 12 environments, only for the 12 with the worst scores.
    """
    stored, method = StoredRows(source, folds, holdout_fraction, seeds), results.baseline_method
    names = [name for name in results.hardest_first() if results.rows.get((method, name)) is not None]
    names = [name for name in names if results.rows[method, name].out_of_domain][:MOST_ENVIRONMENTS]
    shifts, n_compared = _shifts(stored, seed), len(results.baseline)
    inputs: dict[tuple[str, ...], Array] = {}
    causes: dict[str, Cause] = {}
    for name in names:
        if causes and time.monotonic() > until:
            break
        rows = results.rows[method, name]
        outside, inside = (
            stored.out_of_domain(name, rows.out_of_domain),
            stored.in_domain(name, rows.in_domain),
        )
        fold = stored.fold_of(name)
        if fold not in inputs:
            inputs[fold] = stored.inputs(fold)
        training = stored.training(name, rows.others)
        calibration, split = _calibration(stored, inside, outside, seed)
        own = stored.by_environment[name]
        others = np.flatnonzero(source.table.training_rows(fold if source.table.ordered else (name,)))
        causes[name] = Cause(
            name,
            label_of(source.table, name),
            source.table.target.name,
            source.table.classes,
            _levels(source.table, own),
            _levels(source.table, others),
            n_compared,
            split,
            None
            if calibration is None
            else _with_training_noise(calibration, len(own), (1 - holdout_fraction) * len(others)),
            _decomposition(inputs[fold], training, outside, n_compared, stored, seed),
            shifts.get(name),
            "before" if source.table.ordered else "elsewhere",
        )
    return causes


def label_of(table: Table, environment: str) -> str:
    """Return an environment's name for use in a sentence, such as "hospital 3" for the name 3."""
    is_number = environment.replace(".", "", 1).lstrip("-").isdigit()
    return f"{table.environment.name} {environment}" if is_number else environment


def _calibration(
    stored: StoredRows, inside: Scores | None, outside: Scores, seed: int
) -> tuple[Calibration | None, DropSplit | None]:
    """Measure calibration in an environment, and split the drop; None if there are too few rows."""
    if len(outside.targets) < _FEWEST_ROWS:
        return None, None
    if inside is None or len(inside.targets) < _FEWEST_ROWS:
        (own,) = stored.groups_of(outside) or (None,)
        return measure_calibration(*outside.pair, regression=stored.regression, groups=own), None
    groups: Any = stored.groups_of(inside, outside)
    weights: Any = stored.weights_of(inside, outside)
    split = split_drop(
        inside.pair,
        outside.pair,
        regression=stored.regression,
        n_resamples=_RESAMPLES,
        seed=seed,
        groups=groups,
        sample_weight=weights,
    )
    return split.calibration, split


def _with_training_noise(
    calibration: Calibration | None, n_rows: int, n_training: float
) -> Calibration | None:
    """Increase the standard errors of the bias to account for the sampling of training rows."""
    if calibration is None:
        return None
    scale = math.sqrt(1 + n_rows / max(1.0, n_training))
    return replace(calibration, bias_errors=tuple(scale * error for error in calibration.bias_errors))


def _decomposition(
    inputs: Array, training: Scores | None, outside: Scores, n_compared: int, stored: StoredRows, seed: int
) -> DropDecomposition | None:
    """Split the increase in loss by changed inputs and changed relation (DISDE); None with too few rows."""
    if training is None or training.rows is None or outside.rows is None:
        return None
    sides = [(inputs[each.rows], each.losses(regression=stored.regression)) for each in (training, outside)]
    groups: Any = stored.groups_of(training, outside)
    try:
        return measure_disde(*sides, level=1 - (1 - LEVEL) / n_compared, seed=seed, groups=groups)
    except EnvariantError:
        return None


def _shifts(stored: StoredRows, seed: int) -> dict[str, EnvironmentShift]:
    """Determine the kinds of shift of each environment; empty if they cannot be tested."""
    table = stored.source.table
    names, inputs = np.array(table.environments)[table.environment.values], stored.inputs(())
    # An ordered environment is compared with earlier ones only.
    compared = [(None, np.ones(len(table), dtype=bool))]
    if table.ordered:
        codes = table.environment.values
        compared = [(e, codes <= k) for k, e in enumerate(table.environments) if (e,) in stored.folds]
    shifts: dict[str, EnvironmentShift] = {}
    for wanted, rows in compared:
        with suppress(EnvariantError):
            tested = name_shifts(
                inputs[rows], table.targets()[rows], names[rows], regression=stored.regression, seed=seed,
                level=LEVEL_OF_TESTS,
            )  # fmt: skip
            shifts |= {each.environment: each for each in tested if wanted in (None, each.environment)}
    return shifts


def _levels(table: Table, rows: NDArray[np.int64]) -> tuple[float, ...]:
    """Return the weighted share of each class among the rows, or their weighted mean target."""
    targets = table.targets()[rows]
    weights = None if table.sample_weight is None else table.sample_weight.values[rows]
    if table.task == "regression":
        return (float(targets.mean() if weights is None else np.average(targets, weights=weights)),)
    counts = np.bincount(targets.astype(int), weights, minlength=len(table.classes))
    return tuple((counts / counts.sum()).tolist())


def _exceeds_zero(interval: Interval, n_tests: int) -> bool:
    """Return whether a difference is significantly positive, with Bonferroni correction for `n_tests`."""
    usual, corrected = (float(stats.norm.isf((1 - LEVEL) / 2 / n)) for n in (1, n_tests))
    return interval.mean > (interval.mean - interval.low) * corrected / usual


def number(value: float, digits: int = 3) -> str:
    """Format a number with `digits` significant digits, without an exponent."""
    places = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{min(places, 6)}f}"


def _signed(value: float) -> str:
    return f"{'−' if value < 0 else '+'}{number(abs(value), 2)}"
