"""Regressors for counts get targets in their unit, because standardized counts are negative."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import PoissonRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from envariant.data.tables.source import TableSource
from envariant.data.tables.table import read
from envariant.predictors.scikit_learn import ScikitLearn
from envariant.saved_model import SavedModel, load_model


def counts(rows=300):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 2))
    visits = rng.poisson(np.exp(0.5 + 0.8 * x[:, 0]))
    return pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "visits": visits, "site": np.arange(rows) % 3})


@pytest.mark.parametrize(
    "estimator",
    [
        PoissonRegressor(alpha=1e-6),
        make_pipeline(StandardScaler(), PoissonRegressor(alpha=1e-6)),
        HistGradientBoostingRegressor(loss="poisson", max_iter=50),
    ],
)
def test_poisson_regressors_are_fitted_to_counts_saved_and_loaded(estimator, tmp_path):
    frame = counts()
    source = TableSource(read(frame, "visits", "site", task="regression"))
    fitted = ScikitLearn(estimator, name="poisson").fit(source.sample(0), 0)
    inputs = torch.cat([each.inputs for each in source.sample(0).environments])
    predicted = fitted.logits(inputs).double().numpy() * source.task.scale + source.task.center
    order = np.argsort(frame["site"], kind="stable")
    truth = np.exp(0.5 + 0.8 * frame["a"].to_numpy()[order])
    assert predicted.min() > 0
    assert np.corrcoef(predicted, truth)[0, 1] > 0.9
    assert predicted.mean() == pytest.approx(frame["visits"].mean(), rel=0.02)
    model = SavedModel.of_predictor(source, ScikitLearn(estimator, name="poisson"))
    model.save(tmp_path / "model")
    first, again = (np.ravel(each.predict(frame)) for each in (model, load_model(tmp_path / "model")))
    assert np.array_equal(first, again)
    assert first.min() > 0
    assert np.allclose(first[order], predicted, rtol=1e-4)
