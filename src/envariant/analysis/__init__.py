"""Statistical analyses of environments: pure functions from arrays to frozen dataclasses.

Public names are imported on first use. Each module can also be imported alone, without loading PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envariant.analysis.batch_score import BatchScore, fit_batch_error, fit_batch_score
    from envariant.analysis.calibration import (
        Calibration,
        DropParts,
        DropSplit,
        measure_calibration,
        split_drop,
    )
    from envariant.analysis.column_stability import ColumnStability, measure_stability
    from envariant.analysis.conformal import (
        ConformalThreshold,
        environment_jackknife,
        finest_level,
        held_out_threshold,
        mondrian_thresholds,
        new_environment_threshold,
        pooled_cdf_threshold,
        prediction_intervals,
        prediction_sets,
        split_threshold,
        weighted_thresholds,
    )
    from envariant.analysis.data_quality import (
        Identifier,
        LocalCategories,
        MissingCode,
        MissingShares,
        NamingColumn,
        identifiers,
        local_categories,
        missing_codes,
        missingness_differences,
        naming_columns,
    )
    from envariant.analysis.disde import (
        DropDecomposition,
        decompose_drop,
        measure_disde,
    )
    from envariant.analysis.distribution_shift import Shift, measure_shift
    from envariant.analysis.drift import ColumnDrift, Drift, measure_drift
    from envariant.analysis.few_labels import (
        Gain,
        LabelFit,
        LabelGain,
        Recalibration,
        fit_labels,
        gain_from_labels,
        recalibrate,
    )
    from envariant.analysis.input_density import InputDensity, fit_density
    from envariant.analysis.invariance_test import InvarianceTest, assess_invariance
    from envariant.analysis.label_free_accuracy import (
        AccuracyEstimate,
        ExpectedConfusion,
        agreement_on_the_line,
        average_confidence,
        confidence_scores,
        difference_of_confidences,
        expected_confusion,
        solve_agreement,
        thresholded_confidence,
    )
    from envariant.analysis.label_shift import (
        PriorEstimate,
        ShiftTest,
        adjust_probabilities,
        assess_conditional_shift,
        assess_label_shift,
        assess_output_shift,
        estimate_prior_bbse,
        estimate_prior_em,
        solve_bbse,
    )
    from envariant.analysis.leakage import LeakyColumn, LeakyGroup, leaky_columns, leaky_group
    from envariant.analysis.random_effects import (
        PooledEstimate,
        pool_estimates,
    )
    from envariant.analysis.shift_kind import (
        EnvironmentShift,
        name_shifts,
    )
    from envariant.analysis.statistics import (
        Interval,
        Ranking,
        bootstrap,
        difference,
        friedman,
        holm,
        interquartile_mean,
        interval,
        probability_of_improvement,
        signed_rank,
        slope,
    )
    from envariant.analysis.temperature import fit_temperature

_MODULES = {
    "batch_score": ("BatchScore", "fit_batch_error", "fit_batch_score"),
    "calibration": ("Calibration", "DropParts", "DropSplit", "measure_calibration", "split_drop"),
    "column_stability": ("ColumnStability", "measure_stability"),
    "conformal": (
        "ConformalThreshold", "environment_jackknife", "finest_level", "held_out_threshold",
        "mondrian_thresholds", "new_environment_threshold", "pooled_cdf_threshold", "prediction_intervals",
        "prediction_sets", "split_threshold", "weighted_thresholds",
    ),
    "data_quality": (
        "Identifier", "LocalCategories", "MissingCode", "MissingShares", "NamingColumn", "identifiers",
        "local_categories", "missing_codes", "missingness_differences", "naming_columns",
    ),
    "disde": ("DropDecomposition", "decompose_drop", "measure_disde"),
    "distribution_shift": ("Shift", "measure_shift"),
    "drift": ("ColumnDrift", "Drift", "measure_drift"),
    "few_labels": (
        "Gain", "LabelFit", "LabelGain", "Recalibration", "fit_labels", "gain_from_labels", "recalibrate",
    ),
    "input_density": ("InputDensity", "fit_density"),
    "invariance_test": ("InvarianceTest", "assess_invariance"),
    "label_free_accuracy": (
        "AccuracyEstimate", "ExpectedConfusion", "agreement_on_the_line", "average_confidence",
        "confidence_scores", "difference_of_confidences", "expected_confusion", "solve_agreement",
        "thresholded_confidence",
    ),
    "label_shift": (
        "PriorEstimate", "ShiftTest", "adjust_probabilities", "assess_conditional_shift",
        "assess_label_shift", "assess_output_shift", "estimate_prior_bbse", "estimate_prior_em",
        "solve_bbse",
    ),
    "leakage": ("LeakyColumn", "LeakyGroup", "leaky_columns", "leaky_group"),
    "random_effects": ("PooledEstimate", "pool_estimates"),
    "shift_kind": ("EnvironmentShift", "name_shifts"),
    "statistics": (
        "Interval", "Ranking", "bootstrap", "difference", "friedman", "holm", "interquartile_mean",
        "interval", "probability_of_improvement", "signed_rank", "slope",
    ),
    "temperature": ("fit_temperature",),
}  # fmt: skip

__all__ = [
    "AccuracyEstimate",
    "BatchScore",
    "Calibration",
    "ColumnDrift",
    "ColumnStability",
    "ConformalThreshold",
    "Drift",
    "DropDecomposition",
    "DropParts",
    "DropSplit",
    "EnvironmentShift",
    "ExpectedConfusion",
    "Gain",
    "Identifier",
    "InputDensity",
    "Interval",
    "InvarianceTest",
    "LabelFit",
    "LabelGain",
    "LeakyColumn",
    "LeakyGroup",
    "LocalCategories",
    "MissingCode",
    "MissingShares",
    "NamingColumn",
    "PooledEstimate",
    "PriorEstimate",
    "Ranking",
    "Recalibration",
    "Shift",
    "ShiftTest",
    "adjust_probabilities",
    "agreement_on_the_line",
    "assess_conditional_shift",
    "assess_invariance",
    "assess_label_shift",
    "assess_output_shift",
    "average_confidence",
    "bootstrap",
    "confidence_scores",
    "decompose_drop",
    "difference",
    "difference_of_confidences",
    "environment_jackknife",
    "estimate_prior_bbse",
    "estimate_prior_em",
    "expected_confusion",
    "finest_level",
    "fit_batch_error",
    "fit_batch_score",
    "fit_density",
    "fit_labels",
    "fit_temperature",
    "friedman",
    "gain_from_labels",
    "held_out_threshold",
    "holm",
    "identifiers",
    "interquartile_mean",
    "interval",
    "leaky_columns",
    "leaky_group",
    "local_categories",
    "measure_calibration",
    "measure_disde",
    "measure_drift",
    "measure_shift",
    "measure_stability",
    "missing_codes",
    "missingness_differences",
    "mondrian_thresholds",
    "name_shifts",
    "naming_columns",
    "new_environment_threshold",
    "pool_estimates",
    "pooled_cdf_threshold",
    "prediction_intervals",
    "prediction_sets",
    "probability_of_improvement",
    "recalibrate",
    "signed_rank",
    "slope",
    "solve_agreement",
    "solve_bbse",
    "split_drop",
    "split_threshold",
    "thresholded_confidence",
    "weighted_thresholds",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"envariant.analysis.{name}")
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"envariant.analysis.{module}"), name)
    raise AttributeError(f"module 'envariant.analysis' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])
