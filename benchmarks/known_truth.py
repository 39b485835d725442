"""Measure how often `envariant.compare` is right on tables of known truth.

    python benchmarks/known_truth.py [--seeds 20] [--analyses 100] [--kinds flip none-12 ...] [--write]

Each table is sampled from a model with a known relation between columns and target, so that the right answer
is known: whether a score drops in a new environment, which column is unstable, and which kind of shift there
is. `--write` writes the rates to known_truth.md and all answers to known_truth.json.
"""

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, final

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression

import envariant
from envariant.analysis.shift_kind import name_shifts
from envariant.analysis.statistics import interval
from envariant.comparison import protocol
from envariant.comparison.data_check import check_data
from envariant.comparison.data_summary import column_stability
from envariant.comparison.drops import has_drop
from envariant.comparison.expected_scores import expected_scores
from envariant.comparison.results import Cell, ComparisonResults
from envariant.comparison.stored_rows import StoredRows
from envariant.comparison.uncertainty import mean_interval, row_standard_error, score_of_rows
from envariant.core.tasks import Binary
from envariant.data.tables import table as tables
from envariant.data.tables.source import TableSource
from envariant.data.validation_split import held_out_rows
from envariant.training import provenance
from envariant.training.store import Predictions

HERE = Path(__file__).parent
# Methods of every comparison: the ordinary ones, one for tables and one penalty.
METHODS = ("stable-columns", "vrex")
# A recommendation is wrong if its mean score is worse than that of the better of the linear model and boosted
# trees by more than this share of its distance from the best possible score, and by more than noise.
_TOLERANCE = 0.02
_FEWEST_ROWS, _REPLICAS = 20, 5


@final
@dataclass(frozen=True)
class Truth:
    """Right answer for one table.

    Attributes:
        table: Table with the target `y` and the environment `site`.
        drops: Whether the score of an ordinary model drops in some environment.
        unstable: Columns whose relation with the target differs between environments.
        leaks: Columns that leak the target.
        naming: Columns that name the environment.
        shift: Kind of shift of the environment that differs, or "" if none differs.
    """

    table: pd.DataFrame
    drops: bool = False
    unstable: frozenset[str] = frozenset()
    leaks: frozenset[str] = frozenset()
    naming: frozenset[str] = frozenset()
    shift: str = ""

    @property
    def is_equal(self) -> bool:
        """Whether environments do not differ at all."""
        return not (self.shift or self.leaks or self.naming)

    @property
    def sites(self) -> frozenset[str]:
        """Names of the environments."""
        return frozenset(self.table["site"])


def _sites(sizes: list[int]) -> np.ndarray[Any, Any]:
    return np.repeat([f"s{k:02}" for k in range(len(sizes))], sizes)


def _outcome(rng: np.random.Generator, score: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (rng.random(len(score)) < 1 / (1 + np.exp(-score))).astype(int)


def flip(rng: np.random.Generator) -> Truth:
    """Four sites of 400 rows; `marker` follows from the target, in the last site with the opposite sign."""
    site = _sites([400] * 4)
    a, b = rng.normal(size=(2, len(site)))
    y = _outcome(rng, 1.2 * a)
    sign = np.where(site == "s03", -1.0, 1.0)
    marker = sign * (2 * y - 1) * 0.9 + rng.normal(size=len(site))
    table = pd.DataFrame({"a": a, "b": b, "marker": marker, "y": y, "site": site})
    return Truth(table, drops=True, unstable=frozenset({"marker"}), shift="concept")


def flip_small(rng: np.random.Generator) -> Truth:
    """Forty sites of 30 rows; the slope of `marker` varies between them."""
    site = _sites([30] * 40)
    a, b = rng.normal(size=(2, len(site)))
    y = _outcome(rng, a)
    slopes = np.repeat(rng.normal(0.8, 0.9, size=40), 30)
    marker = slopes * (2 * y - 1) + rng.normal(size=len(site))
    table = pd.DataFrame({"a": a, "b": b, "marker": marker, "y": y, "site": site})
    return Truth(table, drops=True, unstable=frozenset({"marker"}), shift="concept")


def covariate(rng: np.random.Generator) -> Truth:
    """Four sites of 400 rows; the columns have another mean in the last one."""
    site = _sites([400] * 4)
    moved = np.where(site == "s03", 1.2, 0.0)
    a, b, c = rng.normal(size=(3, len(site))) + [[1.0], [-1.0], [0.0]] * moved
    y = _outcome(rng, a + 0.8 * b)
    return Truth(pd.DataFrame({"a": a, "b": b, "c": c, "y": y, "site": site}), shift="covariate")


def label(rng: np.random.Generator) -> Truth:
    """Four sites of 400 rows; the positive class is more frequent in the last one."""
    site = _sites([400] * 4)
    y = (rng.random(len(site)) < np.where(site == "s03", 0.85, 0.4)).astype(int)
    a, b, c = rng.normal(size=(3, len(site))) + np.outer([0.7, 0.4, 0.0], 2 * y - 1)
    return Truth(pd.DataFrame({"a": a, "b": b, "c": c, "y": y, "site": site}), shift="label")


def none_few(rng: np.random.Generator, count: int = 12, rows: int = 100) -> Truth:
    """Twelve sites of 100 rows that do not differ."""
    site = _sites([rows] * count)
    a, b, c = rng.normal(size=(3, len(site)))
    y = _outcome(rng, a + 0.5 * b)
    return Truth(pd.DataFrame({"a": a, "b": b, "c": c, "y": y, "site": site}))


def none_many(rng: np.random.Generator) -> Truth:
    """Forty sites of 30 rows that do not differ."""
    return none_few(rng, 40, 30)


def leak(rng: np.random.Generator) -> Truth:
    """Four sites of 300 rows; the sum of two columns is the target."""
    site = _sites([300] * 4)
    a, b = rng.normal(size=(2, len(site)))
    part = rng.gamma(2.0, 30.0, size=len(site)).round()
    rest = (rng.gamma(3.0, 50.0, size=len(site)) + 20 * a).round()
    table = pd.DataFrame({"a": a, "b": b, "part": part, "rest": rest, "y": part + rest, "site": site})
    return Truth(table, leaks=frozenset({"part", "rest"}))


def naming(rng: np.random.Generator) -> Truth:
    """Four sites of 300 rows that do not differ but in `device`, which is another one in each."""
    truth = none_few(rng, 4, 300)
    codes = truth.table["site"].str[1:].astype(int)
    device = "model " + (codes * 3 + rng.integers(3, size=len(codes))).astype(str)
    return Truth(truth.table.assign(device=device), naming=frozenset({"device"}))


KINDS: Mapping[str, Callable[[np.random.Generator], Truth]] = {
    "flip": flip,
    "flip-40": flip_small,
    "covariate": covariate,
    "label": label,
    "none-12": none_few,
    "none-40": none_many,
    "leak": leak,
    "naming": naming,
}


def judge(kind: str, seed: int) -> dict[str, Any]:
    """Compare methods on one table and return what was right and wrong; None where the truth says nothing."""
    truth = KINDS[kind](np.random.default_rng([seed, *map(ord, kind)]))
    started, cpu = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = envariant.compare(
            truth.table,
            target="y",
            environment="site",
            algorithms=METHODS,
            n_trials=1,
            min_rows=_FEWEST_ROWS,
            seed=seed,
        )
    results = found.results
    drop = has_drop(results)
    kinds = {k for cause in results.causes.values() if cause.shift for k in cause.shift.kinds}
    return {
        "kind": kind,
        "seed": seed,
        "false drop": drop if not truth.drops and not truth.leaks else None,
        "missed drop": not drop if truth.drops else None,
        **_of_data(truth, results.data.columns, results.data.findings, kinds),
        "wrong recommendation": _is_wrong(results) if not truth.leaks else None,
        "seconds": round(time.perf_counter() - started, 1),
        "cpu seconds": round(time.process_time() - cpu, 1),
        "headline": found.recommendation.headline,
    }


def judge_data(kind: str, seed: int) -> dict[str, Any]:
    """Return what is right and wrong in the analyses of one table that need no trained method; fast."""
    truth = KINDS[kind](np.random.default_rng([seed, *map(ord, kind)]))
    table = tables.read(truth.table, "y", "site", min_rows=_FEWEST_ROWS)
    source = TableSource(table, "table")
    inputs = StoredRows(source, (), 0.2, ()).inputs(())
    names = np.array(table.environments)[table.environment.values]
    regression = table.task == "regression"
    shifts = name_shifts(inputs, table.targets(), names, regression=regression, seed=seed)
    answers = _of_data(
        truth, column_stability(source), check_data(table), {k for shift in shifts for k in shift.kinds}
    )
    return {"kind": kind, "seed": seed, **answers}


def judge_drops(kind: str, seed: int) -> dict[str, Any]:
    """Return whether the tests of a drop are right for a logistic regression fitted here; fast.

    The protocol is that of `compare`: five replicas with their own validation rows, and the same folds.
    """
    truth = KINDS[kind](np.random.default_rng([seed, *map(ord, kind)]))
    if truth.leaks:
        return {"kind": kind, "seed": seed, "false drop": None, "missed drop": None}
    table = tables.read(truth.table, "y", "site", min_rows=_FEWEST_ROWS)
    metric, y = protocol.choose_metric(None, table, Binary()), table.targets().astype(np.float32)
    inputs = truth.table.select_dtypes("number").drop(columns="y").to_numpy(dtype=float)
    rows = {n: np.flatnonzero(table.environment.values == k) for k, n in enumerate(table.environments)}
    out_of_domain: dict[str, list[Predictions]] = {n: [] for n in rows}
    validation: dict[str, list[dict[str, Predictions]]] = {n: [] for n in rows}
    in_domain: dict[str, list[list[float]]] = {n: [[] for _ in range(_REPLICAS)] for n in rows}
    for fold, replica in product(protocol.make_folds(table), range(_REPLICAS)):
        held = held_out_rows({n: len(own) for n, own in rows.items()}, 0.2, 1000 * seed + replica)
        training = np.concatenate([np.delete(rows[n], held[n].numpy()) for n in rows if n not in fold])
        logits = LogisticRegression().fit(inputs[training], y[training]).decision_function(inputs)
        predicted = {
            n: Predictions(n, "", len(i), logits[i].astype(np.float32), y[i])
            for n, i in ((n, rows[n] if n in fold else rows[n][held[n].numpy()]) for n in rows)
        }
        inside = {n: p for n, p in predicted.items() if n not in fold}
        for n, own in inside.items():
            in_domain[n][replica].append(score_of_rows(Binary(), metric, own))
        for n in fold:
            out_of_domain[n].append(predicted[n])
            validation[n].append(inside)
    cells: dict[str, Cell] = {}
    for n, own in out_of_domain.items():
        scores = [score_of_rows(Binary(), metric, each) for each in own]
        inside_scores = interval([float(np.nanmean(each)) for each in in_domain[n]])
        cells[n] = Cell(mean_interval(scores, row_standard_error(Binary(), metric, own)), inside_scores)
    expected = expected_scores(metric, dict.fromkeys(rows, Binary()), out_of_domain, validation)
    results = ComparisonResults(
        metric, tuple(rows), {"linear": cells}, {}, {}, (), _REPLICAS, "linear", expected=expected
    )
    drop = has_drop(results)
    return {
        "kind": kind,
        "seed": seed,
        "false drop": drop if not truth.drops else None,
        "missed drop": not drop if truth.drops else None,
    }


def _of_data(truth: Truth, columns: Any, findings: Any, kinds: set[str]) -> dict[str, bool | None]:
    """Return errors in the stability of columns, the data check and the kinds of shift."""
    blamed = {c.column for c in columns if c.unstable}
    named = {column for each in findings for column in each.columns}
    return {
        "false blame": bool(blamed - truth.unstable) if not truth.leaks else None,
        "column missed": bool(truth.unstable - blamed) if truth.unstable else None,
        "leak missed": not truth.leaks <= named if truth.leaks else None,
        "naming column missed": not truth.naming <= named if truth.naming else None,
        "shift named wrongly": kinds != {truth.shift} if truth.shift and len(truth.sites) < 12 else None,
        "shift where there is none": bool(kinds) if truth.is_equal else None,
    }


def _is_wrong(results: Any) -> bool:
    """Return whether the recommended method is worse on average than a linear model or boosted trees."""
    own = results.mean(results.recommended)
    others = [results.mean(m) for m in ("linear", "boosted-trees") if results.is_complete(m)]
    return any(results.metric.gain(other, own) > _TOLERANCE for other in others)


def rates(answers: list[dict[str, Any]]) -> pd.DataFrame:
    """Return the number of errors of each sort over the number of tables, by kind of table and in total."""
    sorts = [key for key in answers[0] if isinstance(answers[0][key], bool | None) and key != "seed"]
    frame = pd.DataFrame(answers)
    rows: dict[str, dict[str, str]] = {}
    for name, own in [*frame.groupby("kind", sort=False), ("all", frame)]:
        cells = {sort: own[sort].dropna().astype(bool) for sort in sorts}
        rows[str(name)] = {s: f"{v.sum()} of {len(v)}" if len(v) else "–" for s, v in cells.items()}
    return pd.DataFrame.from_dict(rows, orient="index")


def wilson(errors: int, tables: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a rate (Wilson 1927)."""
    z, p = 1.959964, errors / tables
    center, half = p + z**2 / (2 * tables), z * math.sqrt(p * (1 - p) / tables + (z / (2 * tables)) ** 2)
    return max(0.0, center - half) / (1 + z**2 / tables), (center + half) / (1 + z**2 / tables)


# Largest acceptable rate of each error.
TARGETS = {
    "false drop": 0.05,
    "missed drop": 0.10,
    "wrong recommendation": 0.05,
    "false blame": 0.05,
    "column missed": 0.10,
    "leak missed": 0.05,
    "naming column missed": 0.05,
    "shift named wrongly": 0.10,
    "shift where there is none": 0.05,
}


def report(answers: Mapping[str, list[dict[str, Any]]]) -> str:
    """Return the rates as Markdown."""
    frames = {name: pd.DataFrame(own) for name, own in answers.items() if own}
    seeds = ", ".join(f"{n} {frame.groupby('kind')['seed'].nunique().min()}" for n, frame in frames.items())
    lines = [
        "# Answers on tables of known truth",
        "",
        "This page is written by `python benchmarks/known_truth.py --write`. The script describes the eight",
        "kinds of synthetic tables. Three sources of answers are tested. *comparisons* are calls of",
        "`compare` with the linear model, boosted trees, ERM, `stable-columns` and `vrex`, one trial and",
        "five replicas. *analyses* are the analyses of `compare` that need no trained method. *drops* are",
        "the tests of `compare` for a drop, applied to a logistic regression that is fitted outside a study.",
        "",
        f"Number of seeds per kind of table: {seeds}. The intervals are 95 % confidence intervals",
        "(Wilson 1927).",
        "",
        "| error | at most | tables | rate | 95 % interval | by kind |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for (name, target), (source, frame) in product(TARGETS.items(), frames.items()):
        known = frame.dropna(subset=[name]) if name in frame else frame[:0]
        if not (count := len(known)):
            continue
        errors = int(known[name].astype(bool).sum())
        low, high = wilson(errors, count)
        kinds = known.groupby("kind", sort=False)[name]
        by_kind = ", ".join(f"{kind} {int(v.astype(bool).sum())}/{len(v)}" for kind, v in kinds)
        lines.append(
            f"| {name} | {100 * target:.0f} % | {source} | {errors} of {count} "
            f"({100 * errors / count:.1f} %) | {100 * low:.1f} to {100 * high:.1f} % | {by_kind} |"
        )
    seconds = frames["comparisons"].groupby("kind", sort=False)["cpu seconds"].mean()
    hardware = provenance.hardware(torch.device("cpu"))
    packages = ", ".join(f"{p} {version(p)}" for p in ("numpy", "scikit-learn", "torch"))
    lines += [
        "",
        "Mean processor time of a comparison, in seconds, by kind of table: "
        f"{', '.join(f'{k} {v:.0f}' for k, v in seconds.items())}.",
        f"Machine: {provenance.described(hardware)}; {packages}.",
        "",
    ]
    return "\n".join(lines)


def write(answers: Mapping[str, list[dict[str, Any]]]) -> None:
    """Write all answers, one per line, and their rates."""
    parts = [f'"{name}": [\n' + ",\n".join(map(json.dumps, own)) + "\n]" for name, own in answers.items()]
    (HERE / "known_truth.json").write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")
    (HERE / "known_truth.md").write_text(report(answers), encoding="utf-8")


def main() -> None:
    """Judge the tables named on the command line and print the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--analyses", type=int, default=100, help="seeds without comparison")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    answers: dict[str, list[dict[str, Any]]] = {"comparisons": [], "analyses": [], "drops": []}
    for name, count, function in (
        ("analyses", arguments.analyses, judge_data),
        ("drops", arguments.analyses, judge_drops),
        ("comparisons", arguments.seeds, judge),
    ):
        for seed in range(count):
            for kind in arguments.kinds:
                answers[name].append(function(kind, seed))
                print(json.dumps(answers[name][-1]), flush=True)
            # Written after every seed, so that an interruption loses little.
            if arguments.write and answers["comparisons"]:
                write(answers)
    for each in filter(None, answers.values()):
        print(rates(each).to_string())


if __name__ == "__main__":
    main()
