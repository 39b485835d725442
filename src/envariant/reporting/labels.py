"""What is said of runs in words: what they are called beside one another, and what they reached."""

from collections.abc import Mapping, Sequence
from typing import Any

from envariant.core.specs import format_value
from envariant.training.result import TrainingResult

_LONGEST = 48


def labels(results: Sequence[TrainingResult]) -> list[str]:
    """A name for each run, as short as it can be: settings are named only where the runs differ in them."""
    known = [settings(result) for result in results]
    titles = [title(result) for result in results]
    names = list(titles)
    for key in dict.fromkeys(key for each in known for key in each):
        if len(set(names)) == len(names):
            break
        for i, each in enumerate(known):
            twins = [
                j for j, name in enumerate(names) if j != i and name.split(", ")[0] == names[i].split(", ")[0]
            ]
            if any(known[j].get(key) != each.get(key) for j in twins) and key in each:
                names[i] += f", {key}={each[key]}"
    return [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in names]


def title(result: TrainingResult) -> str:
    """The algorithm's name, and that the data were gray."""
    gray = "-grayscale" in result.record.spec.data
    return f"{result.record.spec.algorithm}{' (grayscale oracle)' if gray else ''}"


def verdict(result: TrainingResult) -> str:
    """One sentence on what a run reached where it trained and where it did not, from its numbers alone."""
    record = result.record
    if not result.finished:
        return "no replica finished" + "".join(f"; {reason}" for reason in result.failures.values())
    metric = record.metric
    test_environments = {n: result.final(n, metric) for n, role in record.roles.items() if role == "test"}
    trained = [result.final(n, metric).mean for n, role in record.roles.items() if role == "train"]
    mean = sum(trained) / len(trained)
    start = f"{mean:.3f} {metric} in training"
    if not test_environments:
        return f"{start}; no environment was held out."
    pick = min if record.higher_is_better else max
    name = pick(test_environments, key=lambda key: test_environments[key].mean)
    score, spread = test_environments[name].mean, test_environments[name].sd or 0.0
    start = f"{start}, {score:.3f} at {name}"
    if not record.higher_is_better:
        return f"{start}: a difference of {score - mean:+.3f}."
    # A tenth, or twice the spread over replicas, is what counts as a difference.
    margin = max(0.1, 2 * spread)
    if record.chance is not None and score < record.chance - margin / 2:
        return f"{start}: worse than guessing. What it learned does not hold there."
    if record.chance is not None and max(mean, score) < record.chance + 0.05:
        return f"{start}: no better than guessing anywhere."
    if mean - score > margin:
        return f"{start}: {mean - score:.3f} less. Part of what it learned does not hold there."
    if score - mean > margin:
        return f"{start}: better than in training."
    return f"{start}: it holds."


def settings(result: TrainingResult) -> dict[str, str]:
    """Everything that decided a run's numbers, as text, in the order in which people ask for it."""
    s = result.record.spec
    hyperparameters: Mapping[str, Any] = s.hyperparameters
    return {
        **{key: _text(value) for key, value in hyperparameters.items()},
        "data": s.data,
        "held out": ", ".join(s.test_environments) or "none",
        "model": s.model,
        "optimizer": s.optimizer,
        "learning rate": _text(s.learning_rate),
        "weight decay": _text(s.weight_decay),
        "steps": str(s.steps),
        "rows a step": "all" if s.batch_size is None else f"{s.batch_size} of each environment",
        "augmentation": s.augmentation or "none",
        "measured every": f"{s.evaluate_every} steps",
        "replicas": str(s.replicas),
        "seed": str(s.seed),
        "precision": s.precision,
        "device": f"{s.device}, {s.threads} threads",
        "execution": _execution(result),
        "what was not given": s.source,
        "changed from there": ", ".join(s.changed) or "nothing",
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else format_value(value)


def _execution(result: TrainingResult) -> str:
    execution, compiled = result.record.execution, ", compiled" if result.record.spec.compile else ""
    how = f"stacks of {execution.group}" if execution.mode == "stacked" else "one after another"
    return how + compiled
