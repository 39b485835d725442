"""Measure what serving promises at new environments: coverage, flags, drift and the accuracy of a batch.

    python benchmarks/conformal.py [--tables 20] [--json] [--write]

Each synthetic table has environments whose intercepts, slopes, input means and noise vary by a known spread.
`envariant.compare` trains on them and keeps its recommended model, which serves new environments drawn in the
same way, and new rows of the training environments (no shift). `--write` writes the rates to conformal.md.
"""

import argparse
import json
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import pandas as pd

import envariant
from envariant.saved_model import SavedModel

HERE = Path(__file__).parent
LEVELS = (0.8, 0.9, 0.95)
TASKS = ("binary", "regression", "multiclass", "regression")
SPREADS = (0.0, 0.3, 0.6, 1.0, 0.2)
SIZES = ((6, 100), (10, 60), (20, 60), (4, 150))
NEW_ENVIRONMENTS, NEW_ROWS = 40, 200
_BASE = np.array([1.0, -0.7, 0.4, 0.0])

Array = np.ndarray[Any, Any]


@final
@dataclass(frozen=True)
class MadeTable:
    """Distribution of environments: parameters of each are drawn around common ones.

    Attributes:
        task: "binary", "multiclass" or "regression".
        spread: Standard deviation of the intercepts; slopes, means and noise vary in proportion.
        sizes: Number of environments, and of rows in each.
    """

    task: str
    spread: float
    sizes: tuple[int, int]

    def environment(self, rng: np.random.Generator) -> tuple[Array, Array, float, float]:
        """Return slopes, input means, intercept and noise of an environment."""
        s = self.spread
        return (
            _BASE + 0.4 * s * rng.normal(size=4),
            0.4 * s * rng.normal(size=4),
            s * rng.normal(),
            float(np.exp(0.3 * s * rng.normal())),
        )

    def rows(self, rng: np.random.Generator, parameters: Any, n: int, name: str) -> pd.DataFrame:
        """Return rows of an environment."""
        slopes, means, intercept, noise = parameters
        x = means + rng.normal(size=(n, 4))
        color = rng.choice(["red", "green", "blue"], n, p=[0.5, 0.3, 0.2])
        score = x @ slopes + intercept + 0.5 * (color == "red") + noise * rng.logistic(size=n)
        frame = pd.DataFrame(x, columns=[*"abcd"]).assign(color=color, site=name)
        if self.task == "regression":
            return frame.assign(y=50 + 5 * score)
        cuts = [0.2] if self.task == "binary" else [-0.8, 1.2]
        return frame.assign(y=np.array(["low", "mid", "top"])[np.digitize(score, cuts)])


def made(k: int) -> MadeTable:
    """Return the k-th table."""
    return MadeTable(TASKS[k % len(TASKS)], SPREADS[k % len(SPREADS)], SIZES[(k // 2) % len(SIZES)])


def measure(k: int) -> dict[str, Any]:
    """Return the rates of one table."""
    table, rng = made(k), np.random.default_rng(k)
    count, size = table.sizes
    known = [table.environment(rng) for _ in range(count)]
    training = pd.concat([table.rows(rng, each, size, f"s{j:02}") for j, each in enumerate(known)])
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options: dict[str, Any] = {"algorithms": (), "n_trials": 1, "replicas": 1, "steps": 60}
        options |= {"task": table.task, "out": folder}
        model = envariant.compare(training, target="y", environment="site", **options).best_model
    result: dict[str, Any] = {"table": k, "task": table.task, "spread": table.spread, "environments": count}
    new = [table.rows(rng, table.environment(rng), NEW_ROWS, "new") for _ in range(NEW_ENVIRONMENTS)]
    for level in LEVELS:
        result[f"coverage {level:.0%}"] = float(np.mean([_coverage(model, rows, level) for rows in new]))
    served = [model.serve(rows) for rows in new]
    result["size"] = float(np.mean([_size(each) for each in served]))
    result["score interval"] = float(
        np.mean([each.score.contains(_score(each, rows)) for each, rows in zip(served, new, strict=True)])
    )
    result["unlike, new"] = float(np.mean([each.n_unlike / NEW_ROWS for each in served]))
    same = [pd.concat([table.rows(rng, each, 30, "s") for each in known]) for _ in range(NEW_ENVIRONMENTS)]
    no_shift = [model.serve(rows) for rows in same]
    result["unlike, no shift"] = float(
        np.mean([each.n_unlike / len(rows) for each, rows in zip(no_shift, same, strict=True)])
    )
    result["drift, no shift"] = float(np.mean([bool(each.drift.differing) for each in no_shift]))
    result["drift, new"] = float(np.mean([bool(each.drift.differing) for each in served]))
    return result


def _coverage(model: SavedModel, rows: pd.DataFrame, level: float) -> float:
    served = model.serve(rows, level=level)
    if served.sets is None:
        inside = (rows["y"] >= served.table["low"]) & (rows["y"] <= served.table["high"])
        return float(inside.mean())
    codes = np.searchsorted(model.classes, rows["y"].to_numpy(dtype=str))
    return float(served.sets[np.arange(len(rows)), codes].mean())


def _size(served: Any) -> float:
    if served.sets is None:
        return float((served.table["high"] - served.table["low"]).mean())
    return float(served.sets.sum(axis=1).mean())


def _score(served: Any, rows: pd.DataFrame) -> float:
    if served.sets is None:
        return float(np.sqrt(np.square(served.table["prediction"] - rows["y"].to_numpy()).mean()))
    return float((served.table["prediction"].to_numpy() == rows["y"].to_numpy()).mean())


def summarize(results: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean of every rate over tables."""
    names = [name for name, value in results[0].items() if isinstance(value, float) and name != "spread"]
    return {name: float(np.mean([each[name] for each in results])) for name in names if name != "size"}


def page(results: list[dict[str, Any]], means: dict[str, float]) -> str:
    """Return the results as a Markdown page."""
    lines = [
        "# Serving at new environments",
        "",
        "This page is written by `python benchmarks/conformal.py --write`. For each of "
        f"{len(results)} synthetic tables, `envariant.compare` trains a model. The model then predicts "
        f"{NEW_ENVIRONMENTS} new environments of {NEW_ROWS} rows, and the same number of batches without "
        "shift, which consist of 30 new rows from each training environment. *spread* is the standard "
        "deviation of the intercepts over environments; slopes, input means and noise vary in proportion.",
        "",
        "| rate | mean over tables | nominal |",
        "| --- | --- | --- |",
    ]
    nominal = {f"coverage {level:.0%}": f"{level:.0%}" for level in LEVELS}
    nominal |= {"score interval": "95%", "unlike, no shift": "1%", "drift, no shift": "at most 5%"}
    lines += [f"| {name} | {value:.1%} | {nominal.get(name, '–')} |" for name, value in means.items()]
    header = [name for name in results[0] if name != "table"]
    lines += ["", f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    for each in results:
        lines.append(f"| {' | '.join(_text(name, each[name]) for name in header)} |")
    return "\n".join(lines).replace("%", " %") + "\n"


def _text(name: str, value: Any) -> str:
    if name in ("spread", "size"):
        return f"{value:.3g}"
    return f"{value:.1%}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tables", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    results = []
    for k in range(arguments.tables):
        results.append(measure(k))
        if not arguments.json:
            print(json.dumps(results[-1]), flush=True)
    means = summarize(results)
    print(json.dumps(means))
    if arguments.write:
        (HERE / "conformal.md").write_text(page(results, means), encoding="utf-8")


if __name__ == "__main__":
    main()
