"""Section of the reproduction of REx (Krueger et al. 2021) on stock prices.

The task is to predict from financial figures of a year whether the price of a stock rises in the next year.
Environments are years: three for training and two for testing. The user provides the files.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from envariant.analysis.statistics import Interval, difference
from envariant.core.errors import unknown_name
from envariant.reporting import charts
from envariant.reporting.tables import TextTable
from envariant.reproductions.base import CaptionedFigure, CaptionedTable, Finding, section
from envariant.reproductions.rex_finance_training import (
    FILES,
    FOLDER_VARIABLE,
    METHODS,
    SIZES,
    FolderNotSetError,
    Size,
    choices,
    stopped,
    trained,
)
from envariant.reproductions.runner import Runner
from envariant.reproductions.summaries import mean_and_sd, signed
from envariant.reproductions.verdicts import statement

SIZE_VARIABLE = "ENVARIANT_FINANCE_SIZE"
"""Environment variable that replaces the size of the profile: "quick", "reduced" or "full"."""

# With fewer tasks, an interval that contains 0 says little.
_FEWEST = 20


def _size(runner: Runner) -> Size:
    name = os.environ.get(SIZE_VARIABLE) or runner.pick(quick="quick", full="reduced")
    if name not in SIZES:
        raise unknown_name("size", name, SIZES, where=SIZE_VARIABLE)
    return SIZES[name]


def _results(runner: Runner, size: Size) -> dict[str, list[dict[str, Any]]]:
    """Return the accuracies of each method, with one entry per choice of training years.

    Raises:
        FolderNotSetError: If a result is not stored and the folder of the files is not set.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    function = partial(trained, Path(named).expanduser() if named else None)
    shared: dict[str, Any] = {"steps": size.steps, "restarts": size.restarts, "every": size.every}
    shared["digests"] = [file.digest for file in FILES.values()]
    compute: Callable[..., Any] = partial(runner.compute, "stock-prices", function=function)
    return {
        method: [
            compute({"method": method, "training_years": years, **shared})
            for years in choices()[: size.choices]
        ]
        for method in METHODS
    }


@section("finance", "Stock prices")
def finance(runner: Runner) -> Iterator[Finding]:
    """Test whether REx and IRM predict stock prices in unseen years better than ERM does.

    The task is to predict from financial figures of a year whether the price of a stock rises in the next
    year. Three of the years 2014 to 2018 are for training, and the other two for testing, which gives ten
    choices and twenty tasks. Each test year selects the stopping point for the other one. A preprint of the
    paper has this experiment; the final version does not. Its table was not available here, so no number is
    compared.
    """
    size = _size(runner)
    try:
        results = _results(runner, size)
    except FolderNotSetError:
        yield from _without_files(size)
        return
    tasks = _tasks(size)
    scores = {
        (method, dropout): [score for each in own for score in stopped(each[dropout])]
        for method, own in results.items()
        for dropout in ("on", "off")
    }
    yield _table(scores, size)
    baseline = scores["ERM, as run", "on"]
    relative = {
        task: {m: scores[m, "on"][k] - baseline[k] for m in METHODS if m != "ERM, as run"}
        for k, task in enumerate(tasks)
    }
    chart = charts.grouped(relative, "test accuracy, difference from ERM as run")
    yield CaptionedFigure("differences", chart, "One row per task: training years → test year.")
    yield from _notes(scores, size)
    yield from _claims(scores, size)


def _tasks(size: Size) -> list[str]:
    return [
        f"{'+'.join(str(year) for year in years)} → {test}"
        for years in choices()[: size.choices]
        for test in FILES
        if test not in years
    ]


def _described(size: Size) -> str:
    return f"{2 * size.choices} tasks, {size.steps:,} updates, restarts per choice: {size.restarts}"


TEXTS = (
    "The accuracies of REx and IRM differ from those of the program's ERM by no more than noise.",
    "The accuracies of REx and IRM differ from those of a true ERM by no more than noise.",
    "In its worst task, every method is less accurate than chance.",
)


def _without_files(size: Size) -> Iterator[Finding]:
    names = ", ".join(f"{year}_clean.csv" for year in FILES)
    yield (
        f"This section needs five files of the code that the authors of the paper released: {names}. They "
        "are not part of this library, because their license is that of their publishers. To run the "
        f"section, set the environment variable {FOLDER_VARIABLE} to the folder of these files. The section "
        "verifies the files, trains REx, IRM, the program's ERM and a true ERM on three years, and measures "
        f"their accuracy in the other two ({_described(size)}). {SIZE_VARIABLE} selects another size: "
        f"{', '.join(SIZES)}; full is the size of the program."
    )
    for text in TEXTS:
        yield statement(text, None, "not run, because the files are missing")


def _table(scores: Mapping[tuple[str, str], list[float]], size: Size) -> CaptionedTable:
    rows = tuple(
        (method, *(cell for dropout in ("on", "off") for cell in _cells(scores[method, dropout])))
        for method in METHODS
    )
    notes = (
        f"± is the standard deviation (divisor n − 1) over {2 * size.choices} tasks; least and greatest are "
        "those of single tasks. Chance is 0.5, because classes are balanced in every year.",
        "Dropout on: as in the released program, which never switches dropout off. Dropout off: measured "
        "without dropout, which also changes the stopping points.",
        "ERM, as run: the program's runs with this name pass the settings of REx. ERM: no penalty.",
    )
    header = (
        "method",
        *(f"{name}, dropout {d}" for d in ("on", "off") for name in ("mean", "least", "greatest")),
    )
    return CaptionedTable("accuracies", TextTable(header, rows, notes), f"Test accuracy: {_described(size)}")


def _cells(values: Sequence[float]) -> tuple[str, str, str]:
    return mean_and_sd(values), f"{min(values):.3f}", f"{max(values):.3f}"


def _notes(scores: Mapping[tuple[str, str], list[float]], size: Size) -> Iterator[Finding]:
    if size != SIZES["full"]:
        yield (
            f"The released program has {_described(SIZES['full'])}. This page has fewer: {_described(size)}. "
            "Claims about differences are therefore undecided."
        )
    same = difference(scores["REx", "on"], scores["ERM, as run", "on"])
    off = {method: difference(scores[method, "off"], scores[method, "on"]) for method in METHODS}
    yield (
        "In the released program, the runs named ERM pass the settings of REx, so both are runs of one "
        f"method with different random numbers. Their accuracies differ by {signed(same)}, which measures "
        "the noise of such a comparison. Without dropout in evaluation, accuracy changes by "
        f"{_listed(off)}. Each of these differences is paired over tasks, with a 95 % interval. Tasks share "
        "years and are not independent, so the intervals are too narrow rather than too wide."
    )
    yield (
        "Every year, also for testing, is standardized by its own mean and standard deviation, and classes "
        "are balanced by the first rows of each class. The column with the price change of the next year, "
        "whose sign is the label, is dropped. The program shuffles the rows, which has no effect on full "
        "batches. Each test year selects the block of 50 steps in which accuracy in the other test year is "
        "measured, so this is validation in another unseen year."
    )


def _listed(changes: Mapping[str, Interval]) -> str:
    return "; ".join(f"{name} {signed(each)}" for name, each in changes.items())


def _claims(scores: Mapping[tuple[str, str], list[float]], size: Size) -> Iterator[Finding]:
    complete = size == SIZES["full"]
    for text, baseline in zip(TEXTS, ("ERM, as run", "ERM"), strict=False):
        changes = {m: difference(scores[m, "on"], scores[baseline, "on"]) for m in ("REx", "IRM")}
        holds = within_noise(list(changes.values())) if complete else None
        yield statement(text, holds, f"differences, paired over tasks: {_listed(changes)}")
    worst = {method: min(scores[method, "on"]) for method in METHODS}
    numbers = ", ".join(f"{method} {value:.3f}" for method, value in worst.items())
    below = all(value < 0.5 for value in worst.values())
    # More tasks can only lower the accuracy in the worst task.
    yield statement(
        TEXTS[2], below or (False if complete else None), f"accuracy in the worst task: {numbers}"
    )


def within_noise(changes: Sequence[Interval]) -> bool | None:
    """Return False if any interval of a difference excludes 0; otherwise True, or None for under 20 tasks."""
    if not all(change.contains(0.0) for change in changes):
        return False
    return True if min(change.count for change in changes) >= _FEWEST else None
