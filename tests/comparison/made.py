"""Results of a comparison from scikit-learn models that are fitted here, without a study; fast."""

from functools import cache

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression, Ridge

from envariant.analysis.statistics import Interval
from envariant.comparison.results import Cell, ComparisonResults, ScoredRows
from envariant.core.metrics import METRICS
from envariant.data.tables import table as tables
from envariant.data.tables.source import TableSource, task_of
from envariant.data.validation_split import held_out_rows
from envariant.training.store import Predictions

SHARE = 0.2


def exact(value):
    return Interval(value, value - 0.02, value + 0.02, 5)


SEEDS = (11, 12, 13)


def made(frame, target, environment, models=None, seeds=SEEDS, folds=None, columns=None, **options):
    """Return source, results and folds; `models` are estimators by method, `columns` inputs by method."""
    table = tables.read(frame, target, environment, min_rows=5, **options)
    source, regression = TableSource(table, "table"), table.task == "regression"
    models = models or {"linear": Ridge() if regression else LogisticRegression(C=0.3, max_iter=300)}
    folds = folds or tuple((name,) for name in table.environments)
    metric = METRICS["RMSE" if regression else "accuracy"]
    inside, outside, others = {}, {}, {}
    for fold in folds:
        codes = [table.environments.index(name) for name in fold]
        task = task_of(table, ~np.isin(table.environment.values, codes))
        sample = source.with_test_environments(fold).sample(0)
        for method, model in models.items():
            used = [source.with_test_environments(fold).columns[c] for c in (columns or {}).get(method, ())]
            part = np.r_[tuple(used)] if used else slice(None)
            for seed in seeds:
                sizes = {e.name: len(e) for e in sample.environments if e.name not in fold}
                held = {k: v.numpy() for k, v in held_out_rows(sizes, SHARE, seed).items()}
                data = {e.name: (e.inputs.numpy()[:, part], e.targets.numpy()) for e in sample.environments}
                kept = {n: np.setdiff1d(np.arange(sizes[n]), held[n]) for n in sizes}
                x, y = (np.concatenate([data[n][k][kept[n]] for n in sizes]) for k in (0, 1))
                model.fit(x, y)

                predict = model.predict if regression else model.decision_function

                def predicted(name, rows, role, data=data, predict=predict):
                    x, y = data[name]
                    z = predict(x[rows]).astype(np.float32)
                    return Predictions(name, role, len(rows), z, y[rows].astype(np.float32))

                trained = {name: predicted(name, rows, "validation") for name, rows in held.items()}
                for name in fold:
                    everything = np.arange(len(data[name][1]))
                    outside.setdefault((method, name), []).append(predicted(name, everything, "test"))
                    others.setdefault((method, name), []).append(trained)
                for name, each in trained.items():
                    inside.setdefault((method, name), {}).setdefault(seed, (each, task))
    rows = {
        key: ScoredRows(tuple(p for p, _ in inside[key].values()), tuple(own), tuple(others[key]))
        for key, own in outside.items()
    }
    cells = {}
    for (method, name), own in rows.items():
        task = task_of(table, table.environment.values != table.environments.index(name))
        score = np.mean([metric.compute(task, p.logits, p.targets) for p in own.out_of_domain])
        home = np.mean(
            [
                metric.compute(inside[method, name][s][1], p.logits, p.targets)
                for s, p in zip(seeds, own.in_domain, strict=True)
            ]
        )
        gain = None
        if method != "linear":
            gain = exact(metric.gain(score, cells["linear"][name].ood_score.mean))
        cells.setdefault(method, {})[name] = Cell(
            exact(score), exact(home), gain, None if gain is None else 0.01
        )
    results = ComparisonResults(
        metric,
        tuple(table.environments),
        cells,
        {},
        dict.fromkeys(cells, 0),
        (),
        len(seeds),
        "linear",
        rows=rows,
    )
    return source, results, folds


@cache
def made_shifted(kind, seed=0):
    """Return source, results and folds of a table of `shifted`."""
    return made(shifted(kind, seed), "y", "site")


def shifted(kind, seed=0, n=250, names=("A", "B", "C", "D")):
    """Return a table in which the last site differs: "none", "label", "covariate" or "flip"."""
    generator, parts = np.random.default_rng(seed), []
    for site in names:
        odd = site == names[-1]
        x = generator.normal(size=(n, 3))
        if kind == "label":
            y = (generator.random(n) < (0.85 if odd else 0.35)).astype(int)
            x += np.outer(y, [1.2, 0.8, 0.0])
        else:
            x[:, 0] += 1.5 * (odd and kind == "covariate")
            slope = -1.5 if odd and kind == "flip" else 1.5
            y = (x @ [slope, 1.0, 0.0] + generator.logistic(size=n) > 0).astype(int)
        parts.append(pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": y, "site": site}))
    return pd.concat(parts, ignore_index=True)
