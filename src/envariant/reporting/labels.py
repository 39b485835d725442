"""Short texts about runs for tables, figures and pages: names, settings and verdicts."""

import re
from collections.abc import Sequence
from typing import Any

from envariant.core.printable import number_of
from envariant.core.specs import format_value
from envariant.training.result import TrainingResult

_MAX_LENGTH = 48
# Smallest reported drop, unless twice the standard deviation over replicas is larger.
_MIN_DROP = 0.1
# An absolute path up to its last component.
_FOLDERS = re.compile(r"(?<![^\s'\"=(,])(?:~|[A-Za-z]:)?[/\\](?:[^\s'\",()/\\]+[/\\])+")


def labels(results: Sequence[TrainingResult]) -> list[str]:
    """Return a short name for each run: its algorithm, and the settings that differ between the runs."""
    known = [settings(result) for result in results]
    titles = [title(result) for result in results]
    names = list(titles)
    for key in dict.fromkeys(key for each in known for key in each):
        if len(set(names)) == len(names):
            break
        for i, each in enumerate(known):
            twins = [j for j, other in enumerate(titles) if j != i and other == titles[i]]
            if any(known[j].get(key) != each.get(key) for j in twins) and key in each:
                names[i] += f", {key}={each[key]}"
    return [name if len(name) <= _MAX_LENGTH else f"{name[: _MAX_LENGTH - 1]}…" for name in names]


def title(result: TrainingResult) -> str:
    """Return the algorithm's name, with "(grayscale oracle)" added if the data are grayscale."""
    gray = "-grayscale" in result.record.spec.data
    return f"{result.record.spec.algorithm}{' (grayscale oracle)' if gray else ''}"


def verdict(result: TrainingResult) -> str:
    """Return one sentence that compares a run's final scores in training and test environments."""
    record = result.record
    if not result.finished:
        return "no replica finished" + "".join(f"; {reason}" for reason in result.failures.values())
    metric = record.metric
    finals = {name: result.final(name, metric) for name in record.roles}
    trained = [finals[name].mean for name, role in record.roles.items() if role == "train"]
    tests = {name: finals[name] for name in record.test_environments if name not in record.unpredictable}
    mean = sum(trained) / len(trained)
    scores = f"{mean:.3f} {metric} in training"
    if record.unpredictable and not tests:
        name, share = next(iter(record.unpredictable.items()))
        return (
            f"{scores}; no verdict: {share:.0%} of the rows in {name} have classes that no training "
            f"environment has."
        )
    if not tests:
        return f"{scores}; there is no test environment."
    name = (min if record.higher_is_better else max)(tests, key=lambda key: tests[key].mean)
    score, margin = tests[name].mean, max(_MIN_DROP, 2 * (tests[name].sd or 0.0))
    scores = f"{scores}, {score:.3f} in {name}"
    if not record.higher_is_better:
        return f"{scores}: a difference of {score - mean:+.3f}."
    if record.chance is not None and score < record.chance - margin / 2:
        return f"{scores}: worse than chance. Part of what was learned does not transfer."
    if record.chance is not None and max(mean, score) < record.chance + 0.05:
        return f"{scores}: no better than chance in any environment."
    if mean - score > margin:
        return f"{scores}: a drop of {mean - score:.3f}. Part of what was learned does not transfer."
    if score - mean > margin:
        return f"{scores}: better than in training."
    return f"{scores}: no notable drop."


def settings(result: TrainingResult) -> dict[str, str]:
    """Return the options and hyperparameters of a run: values as text, by the names shown in tables."""
    record = result.record
    options = record.spec.to_dict()
    hyperparameters = options.pop("hyperparameters")
    return {
        **{key: _text(value) for key, value in hyperparameters.items()},
        **{key.replace("_", " "): _text(value) for key, value in options.items() if key != "algorithm"},
        "test environments": ", ".join(record.test_environments) or "none",
        "device": f"{record.spec.device}, {number_of(record.threads, 'thread')}",
        "execution": f"stacks of {record.execution.group}"
        if record.execution.mode == "stacked"
        else "sequential",
        "source of defaults": record.defaults,
        "changed from defaults": ", ".join(record.changed) or "nothing",
    }


def without_folders(text: str) -> str:
    """Replace absolute paths in a string by file names, because pages may be shared with other people.

    Example:
        >>> without_folders("envariant train --data 'table(/home/me/x.csv, target=y)'")
        "envariant train --data 'table(x.csv, target=y)'"
    """
    return _FOLDERS.sub("", text)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else format_value(value)
