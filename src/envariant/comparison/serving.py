"""Extend a saved model with data for calibrated probabilities, prediction sets and accuracy estimates."""

from collections.abc import Sequence
from dataclasses import replace

from envariant.comparison.baselines import Folds
from envariant.comparison.results import ComparisonResults
from envariant.comparison.stored_rows import StoredRows
from envariant.core.errors import EnvariantError
from envariant.data.tables.source import TableSource
from envariant.saved_model import SavedModel
from envariant.saved_model.serving import fit_serving


def with_serving(
    model: SavedModel,
    source: TableSource,
    results: ComparisonResults,
    folds: Folds,
    holdout_fraction: float,
    seeds: Sequence[int],
) -> tuple[SavedModel, str]:
    """Add a calibration temperature, conformal scores and an accuracy estimator to a saved model.

    All three are fitted to out-of-domain predictions of the recommended method. For regression, the estimator
    returns RMSE instead of accuracy.

    Args:
        model: Model of the recommended method.
        source: Table of the study.
        results: Results of a study, with stored predictions.
        folds: Groups of environments; the environments of a group are held out together.
        holdout_fraction: Share of rows used for validation in each training environment.
        seeds: Seed of each replica's data draw.

    Returns:
        The model with the added data, and an empty string. If the data cannot be added: the unchanged model,
            and the reason as a string.
    """
    stored = StoredRows(source, folds, holdout_fraction, seeds)
    rows = {
        environment: stored.out_of_domain(environment, each.out_of_domain)
        for (method, environment), each in results.rows.items()
        if method == results.recommended and each.out_of_domain
    }
    try:
        serving = fit_serving(
            [each.values for each in rows.values()],
            [each.targets for each in rows.values()],
            list(rows),
            regression=stored.regression,
        )
    except EnvariantError as error:
        return model, f"prediction sets and estimated accuracy of the saved model: {error}"
    return replace(model, serving=serving), ""
