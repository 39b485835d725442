"""`Served`: predictions for a batch of rows, with prediction sets, flags and an estimated accuracy."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from envariant.analysis.conformal import ConformalThreshold
from envariant.analysis.drift import Drift
from envariant.analysis.input_density import InputDensity
from envariant.analysis.statistics import LEVEL, Interval
from envariant.core.display import Displayed, Summary
from envariant.core.errors import EnvariantError
from envariant.core.metrics import probabilities
from envariant.core.tasks import Regression, Task
from envariant.data.tables.target_type import TargetType
from envariant.saved_model.serving import Serving, minus_log_probabilities

WITHOUT_SERVING = (
    "calibrated probabilities, prediction sets and estimated accuracy, because the model was saved without "
    "predictions in held-out environments (models saved by compare have them)"
)
"""Reason for absent results of a model that was not saved by a comparison."""

# Scores are compared with the threshold up to this rounding error of float32 logits.
_ROUNDING = 1e-6


@final
@dataclass(frozen=True, eq=False, repr=False)
class Served(Displayed):
    """Predictions for a batch of new rows, with prediction sets, flags and an estimated score.

    Attributes:
        table: Data frame with one row per input row and the same index. Columns: `prediction`; for
            classification, `P(…)` with the calibrated probability of each class, and `set` with the classes
            of the prediction set, separated by " | "; for regression, `low` and `high`, the ends of the
            prediction interval; `unlike`, whether the row is unlike the training rows. A result that could
            not be computed has no column.
        sets: Whether each class is in the prediction set of each row, `[rows, classes]`; None if there are no
            such sets.
        level: Requested coverage of the prediction sets, on average over new environments.
        threshold: Threshold of the conformal score: a prediction set or interval contains all classes or
            values with scores up to the threshold. None if there are no sets or intervals.
        coverage: Coverage in each left-out environment, with the threshold computed from the other
            environments.
        score_name: Name of the estimated score, "accuracy" or "RMSE"; "" if there is no estimate.
        score: Estimated score of the batch with its 95 % prediction interval; None if there is no estimate.
        score_method: Name of the method that estimated the score.
        unlike_level: False-positive rate of the column `unlike`: among rows that are similar to
            the training rows, the share that is flagged.
        drift: Comparison with the training rows, column by column.
        not_given: Results that could not be computed, each with the reason.
    """

    table: pd.DataFrame
    sets: NDArray[np.bool_] | None
    level: float
    threshold: ConformalThreshold | None
    coverage: Mapping[str, float]
    score_name: str
    score: Interval | None
    score_method: str
    unlike_level: float
    drift: Drift
    not_given: tuple[str, ...]

    @property
    def n_unlike(self) -> int:
        """Number of rows flagged as unlike the training rows."""
        return int(self.table["unlike"].sum()) if "unlike" in self.table else 0

    @property
    def summary(self) -> tuple[str, ...]:
        """Sentences about the estimated score, prediction sets, flagged rows, drift and missing results."""
        rows = len(self.table)
        lines: list[str] = []
        if (score := self.score) is not None:
            lines.append(
                f"estimated {self.score_name} {score.mean:.3g}, 95 % interval [{score.low:.3g}, "
                f"{score.high:.3g}] ({_METHODS.get(self.score_method, self.score_method)})"
            )
        if self.threshold is not None and rows:
            lines.append(self._sets_line())
        if "unlike" in self.table and rows:
            lines.append(
                f"{self.n_unlike} of {rows} rows are unlike the training environments "
                f"({_percent(self.n_unlike / rows)}; {_percent(self.unlike_level)} expected)"
            )
        lines.append(self.drift.verdict)
        return (*lines, *(f"not given: {each}" for each in self.not_given))

    def _display(self) -> Summary:
        columns = ", ".join(map(str, self.table.columns))
        return Summary(f"Served: {len(self.table):,} rows", {"table": columns}, lines=self.summary)

    def _sets_line(self) -> str:
        level = _percent(self.level)
        if self.sets is not None:
            sizes = self.sets.sum(axis=1)
            empty = f", {int((sizes == 0).sum())} empty" if (sizes == 0).any() else ""
            line = f"{level} prediction sets: {sizes.mean():.2g} classes on average{empty}"
        else:
            line = f"{level} prediction intervals"
        if not self.coverage:
            return f"{line}; valid for rows like the labeled ones"
        worst = min(self.coverage, key=lambda name: self.coverage[name])
        return (
            f"{line}; coverage in held-out environments: {np.mean(list(self.coverage.values())):.2f} on "
            f"average, lowest {self.coverage[worst]:.2f} ({worst})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return level, coverage, score, flags and summary as a JSON-compatible dictionary."""
        score = None if self.score is None else [self.score.mean, self.score.low, self.score.high]
        return {
            "level": self.level,
            "coverage": dict(self.coverage),
            "score": {"name": self.score_name, "method": self.score_method, "estimate": score},
            "unlike": {"level": self.unlike_level, "rows": self.n_unlike},
            "not_given": list(self.not_given),
            "summary": list(self.summary),
        }


_METHODS = {
    "difference of confidences": "from the confidence of its predictions; wrong if Y given X has changed",
    "thresholded confidence": "from the confidence of its predictions; wrong if Y given X has changed",
    "mean of environments": "mean of held-out environments; independent of these rows",
    "labels": "cross-validated on the labels",
}


@final
@dataclass(frozen=True, eq=False)
class ServedRows:
    """Collector of chunks of predicted rows; `result` returns the `Served` of all rows.

    Attributes:
        serving: Temperature, conformal scores and accuracy estimate of the model; None if the model has none.
        density: Density of the training inputs; None if the model has none.
        classes: Class labels; empty for regression.
        level: Requested coverage of the prediction sets.
        unlike_level: False-positive rate of the column `unlike`: among rows that are similar to
            the training rows, the share that is flagged.
    """

    serving: Serving | None
    density: InputDensity | None
    classes: Sequence[str]
    level: float
    unlike_level: float
    _frames: list[pd.DataFrame] = field(default_factory=list[pd.DataFrame])
    _sets: list[NDArray[np.bool_]] = field(default_factory=list[NDArray[np.bool_]])
    _confidences: list[NDArray[np.float64]] = field(default_factory=list[NDArray[np.float64]])

    def __post_init__(self) -> None:
        for name, value in (("level", self.level), ("unlike_level", self.unlike_level)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
                raise EnvariantError(f"serve: {name} must be between 0 and 1, got {value}")

    @property
    def temperature(self) -> float:
        """Temperature by which logits are divided for calibration."""
        return 1.0 if self.serving is None else self.serving.temperature

    @cached_property
    def _threshold(self) -> tuple[ConformalThreshold | None, Mapping[str, float]]:
        """Threshold of the prediction sets, None if unattainable, and coverage by environment."""
        if self.serving is None:
            return None, {}
        threshold, coverage = self.serving.threshold(1 - self.level)
        return (threshold, coverage) if math.isfinite(threshold.value) else (None, {})

    def add(
        self,
        frame: pd.DataFrame,
        inputs: NDArray[Any],
        logits: NDArray[Any],
        task: Task,
        target_type: TargetType,
    ) -> None:
        """Add a chunk of rows, and compute its prediction sets and flags.

        Args:
            frame: Predictions and calibrated probabilities.
            inputs: Encoded inputs, `[rows, inputs]`.
            logits: Calibrated logits, or standardized predictions for regression.
            task: Prediction task.
            target_type: Type of the target column.
        """
        z, threshold = logits.astype(np.float64), self._threshold[0]
        if isinstance(task, Regression):
            z = z * task.scale + task.center
        if self.classes:
            self._confidences.append(probabilities(z).max(axis=1) if len(z) else np.zeros(0))
        else:
            self._confidences.append(np.zeros(len(z)))
        if threshold is not None and self.classes:
            members = minus_log_probabilities(z) <= threshold.value + _ROUNDING
            names = np.array(self.classes, dtype=object)
            patterns, pattern = np.unique(members, axis=0, return_inverse=True)
            texts = np.array([" | ".join(names[each]) for each in patterns], dtype=object)
            frame = frame.assign(set=texts[pattern.reshape(-1)])
            self._sets.append(members)
        elif threshold is not None:
            for name, ends in (("low", z - threshold.value), ("high", z + threshold.value)):
                frame[name] = target_type.of_numbers(ends).set_axis(frame.index)
        if self.density is not None and math.isfinite(limit := self.density.threshold(self.unlike_level)):
            frame = frame.assign(unlike=self.density.measure(inputs) > limit)
        self._frames.append(frame)

    def result(self, drift: Drift) -> Served:
        """Return the `Served` of all rows added so far.

        Args:
            drift: Comparison of all rows with the training rows.
        """
        serving, (threshold, coverage) = self.serving, self._threshold
        confidences = np.concatenate(self._confidences)
        estimated = serving is not None and len(confidences) > 0
        score = serving.score if serving is not None and estimated else None
        return Served(
            pd.concat(self._frames),
            np.concatenate(self._sets) if self._sets else None,
            self.level,
            threshold,
            coverage,
            "" if score is None else score.name,
            None if score is None else score.estimate(confidences, LEVEL),
            "" if score is None else score.method,
            self.unlike_level,
            drift,
            tuple(self._not_given(estimated=estimated)),
        )

    def _not_given(self, *, estimated: bool) -> list[str]:
        reasons: list[str] = []
        if self.serving is None:
            reasons.append(WITHOUT_SERVING)
        elif not estimated:
            reasons.append("estimated accuracy, because there are no rows")
        if self.serving is not None and self._threshold[0] is None:
            count = self.serving.scores.shape[1]
            reasons.append(
                f"prediction sets at {_percent(self.level)}, because {count} labels allow at most "
                f"{_percent(count / (count + 1))}"
            )
        if self.density is None:
            reasons.append(
                "flags of unlike rows, because the model was saved without a density of its inputs"
            )
        elif not math.isfinite(self.density.threshold(self.unlike_level)):
            reasons.append(
                f"flags of unlike rows, because {len(self.density.distances)} training rows are too few for "
                f"a level of {_percent(self.unlike_level)}"
            )
        return reasons


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
