"""Check the recommendations of `envariant.compare` on tables against scikit-learn alone.

    python benchmarks/real_tables.py FILE:TARGET:ENVIRONMENT[:EXCLUDED,COLUMNS] ... [--write]

For each table, every environment is held out in turn. A logistic (or ridge) regression and gradient-boosted
trees with the defaults of scikit-learn are fitted to the other environments, without code of this library,
and scored on the held-out one. A bootstrap over its rows gives the noise. The recommended method should not
be worse on average by more than the noise. `--write` writes real_tables.md.
"""

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import roc_auc_score, root_mean_squared_error
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import envariant
from envariant.training import provenance

HERE = Path(__file__).parent
_RESAMPLES = 200


def scores(name: str, truth: Any, predicted: Any) -> float:
    """Return accuracy, AUROC or RMSE; `predicted` holds probabilities or real predictions."""
    if name == "RMSE":
        return float(root_mean_squared_error(truth, predicted))
    if name == "AUROC":
        return float(roc_auc_score(truth, predicted)) if len(np.unique(truth)) == 2 else np.nan
    return float(np.mean((predicted > 0.5) == truth))


def independent(frame: pd.DataFrame, target: str, environment: str, metric: str) -> dict[str, list[float]]:
    """Return mean score and its bootstrap error of two ordinary models, with each environment held out."""
    regression = metric == "RMSE"
    inputs = frame.drop(columns=[target, environment])
    numeric = make_pipeline(SimpleImputer(add_indicator=True), StandardScaler())
    words = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore"))
    encode = make_column_transformer(
        (numeric, make_column_selector(dtype_include="number")),
        (words, make_column_selector(dtype_exclude="number")),
    )
    linear = RidgeCV(np.logspace(-2, 4, 13)) if regression else LogisticRegression(max_iter=1000)
    trees = HistGradientBoostingRegressor() if regression else HistGradientBoostingClassifier()
    truth = frame[target].astype(float) if regression else frame[target] == sorted(frame[target].unique())[1]
    found: dict[str, list[float]] = {}
    for name, model in (("linear", linear), ("trees", trees)):
        means, samples = list[float](), list[list[float]]()
        for _, rows in inputs.groupby(frame[environment]).groups.items():
            held = inputs.index.isin(rows)
            fitted = make_pipeline(encode, model)
            if name == "trees":
                kinds = dict.fromkeys(inputs.select_dtypes(exclude="number"), "category")
                fitted = model.set_params(categorical_features="from_dtype")
                table = inputs.astype(kinds)
            else:
                table = inputs
            fitted.fit(table[~held], truth[~held])
            predicted = fitted.predict(table[held]) if regression else fitted.predict_proba(table[held])[:, 1]
            own = truth[held].to_numpy()
            rng = np.random.default_rng(0)
            draws = rng.integers(len(own), size=(_RESAMPLES, len(own)))
            means.append(scores(metric, own, predicted))
            samples.append([scores(metric, own[i], predicted[i]) for i in draws])
        error = float(np.nanstd(np.nanmean(samples, axis=0)))
        found[name] = [float(np.nanmean(means)), error]
    return found


def line(argument: str) -> dict[str, Any]:
    """Compare methods on one table and check the recommendation."""
    path, target, environment, *rest = argument.split(":")
    excluded = rest[0].split(",") if rest else []
    frame = pd.read_csv(path, na_values=["?"]).dropna(subset=[target, environment], ignore_index=True)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = envariant.compare(frame, target=target, environment=environment, exclude=excluded)
        seconds = time.perf_counter() - started
        results = found.results
        metric = results.metric.name
        checked = independent(frame.drop(columns=excluded), target, environment, metric)
    own = results.mean(results.recommended)
    worse = [results.metric.gain(mean, own) - 2 * error for mean, error in checked.values()]
    return {
        "table": Path(path).stem,
        "environments": environment,
        "verdict": found.recommendation.headline,
        "metric": metric,
        "recommended": f"{results.recommended} {own:.3f}",
        **{f"scikit-learn {k}": f"{mean:.3f} ± {2 * error:.3f}" for k, (mean, error) in checked.items()},
        "no worse": "yes" if max(worse) <= 0 else "NO",
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Check the tables named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tables", nargs="+", metavar="FILE:TARGET:ENVIRONMENT[:EXCLUDED]")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    rows = list[dict[str, Any]]()
    for each in arguments.tables:
        rows.append(line(each))
        print(rows[-1], flush=True)
    if arguments.write:
        header = list(rows[0])
        hardware = provenance.hardware(torch.device("cpu"))
        text = [
            "# Recommendations on tables, checked with scikit-learn alone",
            "",
            "Made by `python benchmarks/real_tables.py`. Scores are means over environments, each held out",
            "once; ± is two bootstrap standard errors over rows. *No worse*: the mean score of the",
            "recommended method is not worse than that of either scikit-learn model by more than ±.",
            "",
            "| " + " | ".join(header) + " |",
            "|" + " --- |" * len(header),
            *("| " + " | ".join(str(row[key]) for key in header) + " |" for row in rows),
            "",
            f"Machine: {', '.join(f'{key} {value}' for key, value in hardware.items())}.",
            "",
        ]
        (HERE / "real_tables.md").write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
