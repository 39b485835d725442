"""A page of every kind, from small results that are made here without training."""

import math
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from comparison.made import made_shifted
from envariant.comparison import page as comparison_page
from envariant.comparison.causes import find_causes
from envariant.comparison.data_summary import column_stability, summarize
from envariant.comparison.narrative import recommend
from envariant.comparison.remedies import ranked, remedies_by_environment
from envariant.comparison.results import ColumnImportance
from envariant.data import ColoredDigits
from envariant.reporting import charts, data_page, run_page, study_page
from envariant.reporting.tables import TextTable
from envariant.reproductions.base import CaptionedFigure, CaptionedTable, Reproduction, section
from envariant.reproductions.publish import perform
from envariant.reproductions.verdicts import statement
from envariant.studies import Study, begin
from envariant.training.checkpoint import ReplicaState
from envariant.training.history import HistoryRow
from envariant.training.record import EnvironmentRecord
from envariant.training.replicas import Seeds
from envariant.training.result import TrainingResult
from envariant.training.store import RunOutcome
from stored import RECORD

FLIPS = ("flip-0.2", "flip-0.1", "flip-0.9")
ROLES = ("train", "train", "test")
# Final accuracies in the three environments.
FINAL = {
    "erm": (0.80, 0.90, 0.15),
    "irm": (0.70, 0.72, 0.62),
    "vrex": (0.71, 0.72, 0.68),
    "coral": (0.8, 0.88, 0.2),
}


def run(algorithm: str, names=FLIPS, final=None, replicas=3, **changes) -> TrainingResult:
    """Return a run of 10 steps whose accuracies move from 0.5 to the final ones."""
    noise = np.random.default_rng(len(algorithm))
    environments = tuple(EnvironmentRecord(n, r, 8, 0.69) for n, r in zip(names, ROLES, strict=True))
    record = replace(
        RECORD,
        spec=RECORD.spec.but(
            algorithm=algorithm, steps=10, replicas=replicas, data=changes.pop("data", "mine")
        ),
        environments=environments,
        seeds=tuple(Seeds.of(0, k) for k in range(replicas)),
        command=f"envariant train --algorithm {algorithm}",
        fingerprints={"data": "x", "model": "y"},
        hardware={"system": "Linux"},
        **changes,
    )
    rows = [
        HistoryRow(k, step, name, role, "accuracy", 0.5 + (goal - 0.5) * step / 10 + noise.normal(0, 0.004))
        for k in range(replicas)
        for step in range(0, 11, 2)
        for name, role, goal in zip(names, ROLES, final or FINAL[algorithm], strict=True)
    ]
    return TrainingResult(record, rows, {k: ReplicaState(10, {}, {}, None, 1.0) for k in range(replicas)})


def runs_page() -> str:
    return run_page.render([run(name) for name in ("irm", "erm", "vrex", "coral")], "Four algorithms")


def stored_study(folder: Path, algorithms=("erm", "irm", "vrex"), replicas=3):
    """Return the store of a finished study with two trials per algorithm, two test environments."""
    study = Study(
        ("colored-digits",), algorithms, name="Small study", n_trials=2, replicas=replicas,
        test_environments=[["flip-0.9"], ["flip-0.1"]], settings={"steps": 10},
    )  # fmt: skip
    store = begin(folder, study)
    noise = np.random.default_rng(0)
    while (job := store.claim()) is not None:
        runs = store.listing()
        own = runs[runs["state"] == "running"]
        test = own["test_environments"].iloc[0][0]
        algorithm = str(own["algorithm"].iloc[0])
        names = [(n, "train") for n in FLIPS if n != test] + [(n, "validation") for n in FLIPS if n != test]
        record = replace(RECORD, environments=tuple(
            EnvironmentRecord(n, role, 8, 0.69) for n, role in [*names, (test, "test")]
        ))  # fmt: skip
        store.begin(job, record, "accuracy", True)
        goals = dict(zip(FLIPS, FINAL[algorithm], strict=True))
        rows = [
            HistoryRow(
                int(each),
                step,
                name,
                role,
                "accuracy",
                goals[name] * (0.9 + step / 100) + noise.normal(0, 0.01),
            )
            for each in own["id"]
            for step in (5, 10)
            for name, role in [*names, (test, "test")]
        ]
        store.add(rows, [RunOutcome(int(each), None, 1.0) for each in own["id"]])
        store.finish(job)
    return store


def study_text(folder: Path) -> str:
    with stored_study(folder) as store:
        return study_page.render(store)


def compared():
    """Return results of a comparison of four sites, one with other shares of the classes."""
    source, results, folds = made_shifted("label")
    columns = column_stability(source)
    constants = dict.fromkeys(results.environments, 0.5)
    data = summarize(source, folds, constants, columns, results.hardest_first(), 0, [])
    importance = {"linear": {c.column: ColumnImportance(0.1, 0.08, 0.02) for c in columns}}
    results = replace(results, data=data, importance=importance, settings={"data": "table('/home/me/x.csv')"})
    seeds = [11, 12, 13]
    causes = find_causes(source, results, folds, 0.2, seeds, seed=0)
    results = replace(results, causes=causes)
    return replace(
        results,
        remedies=ranked(
            chain.from_iterable(remedies_by_environment(source, results, causes, folds, 0.2, seeds))
        ),
    )


def comparison_text() -> str:
    results = compared()
    return comparison_page.render(results, recommend(results))


@section("first", "A section with a chart")
def _first(_runner):
    """It states something."""
    steps = list(range(1, 9))
    series = {
        name: (steps, [math.exp(-k * rate) for k in steps]) for name, rate in (("erm", 0.3), ("irm", 0.6))
    }
    yield CaptionedFigure("losses", charts.lines(series, "step", "loss", ("linear", "log")), "Two losses.")
    table = TextTable(("method", "score"), tuple((f"m{k}", f"{k / 10}") for k in range(8)))
    yield CaptionedTable("scores", table, "Scores")
    yield statement("It holds.", True, "1 > 0")
    yield statement("It does not.", False, "0 < 1")


def reproduction_text(folder: Path) -> str:
    profiles = {"quick": "few steps", "full": "all steps"}
    list(
        perform(Reproduction("small", "A small reproduction", "Lead.", profiles, (_first,)), folder, "quick")
    )
    return (folder / "report.html").read_text(encoding="utf-8")


def data_text() -> str:
    return data_page.render(ColoredDigits())


def write_all(folder: Path) -> dict[str, Path]:
    """Write a page of every kind; return the files by kind."""
    texts = {
        "runs": runs_page(), "study": study_text(folder / "study"), "comparison": comparison_text(),
        "reproduction": reproduction_text(folder / "reproduction"), "data": data_text(),
    }  # fmt: skip
    files = {kind: folder / f"{kind}.html" for kind in texts}
    for kind, text in texts.items():
        files[kind].write_text(text, encoding="utf-8")
    return files
