"""Descriptions of environments and sets of environments for consoles and notebooks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from envariant.core.display import Summary, counted, named
from envariant.core.input_store import InputStore
from envariant.core.tasks import Task

# Largest numbers of environments and of classes in the table of a notebook.
_MOST_ROWS, _MOST_CLASSES = 20, 8


@final
@dataclass(frozen=True, eq=False)
class Part:
    """Facts about one environment of a set.

    Attributes:
        name: Name of the environment.
        role: "train", "validation" or "test".
        targets: Targets of the environment, `[rows, …]`.
    """

    name: str
    role: str
    targets: Tensor


def of_environment(name: str, store: InputStore, targets: Tensor, more: Mapping[str, str]) -> Summary:
    """Return the description of one environment.

    Args:
        name: Name of the environment.
        store: Inputs of the environment.
        targets: Targets of the environment, `[rows, …]`.
        more: Additional facts as text, by label.
    """
    facts = {"rows": f"{len(targets):,}", "inputs": _inputs(store), "targets": _range(targets)}
    return Summary(f"Environment '{name}'", {**facts, **more})


def of_set(
    label: str, task: Task, store: InputStore, parts: Sequence[Part], classes: Sequence[str]
) -> Summary:
    """Return the description of a set of environments.

    Args:
        label: Name of the set.
        task: Prediction task.
        store: Inputs of one of the environments.
        parts: Name, role and targets of each environment.
        classes: Labels of the classes; empty if the classes are numbers, or for regression.
    """
    has_classes = task.chance is not None and not task.target_shape
    labels = list(classes)
    if has_classes and not labels:
        labels = [str(k) for k in range(1 + max(int(part.targets.max()) for part in parts))]
    columns = labels if len(labels) <= _MOST_CLASSES else []
    rows: list[tuple[str, ...]] = []
    for part in parts[:_MOST_ROWS]:
        cells = [part.name, part.role, f"{len(part.targets):,}"]
        if columns:
            counts = torch.bincount(part.targets.long().flatten().cpu(), minlength=len(columns))
            cells += [f"{count / len(part.targets):.1%}" for count in counts.tolist()]
        elif not has_classes:
            cells.append(_range(part.targets))
        rows.append(tuple(cells))
    header = ["environment", "role", "rows", *(f"share of {name}" for name in columns)]
    more = len(parts) - len(rows)
    kind = f"{task.name} ({named(labels)})" if labels else task.name
    return Summary(
        f"EnvironmentSet '{label}'",
        {
            "inputs": _inputs(store),
            "task": kind,
        },
        {
            "environments": counted({part.name: len(part.targets) for part in parts}),
            "test environments": named(part.name for part in parts if part.role == "test") or "none",
        },
        header=(*header, *(() if has_classes else ("targets",))),
        rows=tuple(rows),
        notes=(f"{more:,} more environments",) if more else (),
    )


def _inputs(store: InputStore) -> str:
    """Return the shape and storage type of one row of inputs, such as "3 × 32 × 32, uint8"."""
    return f"{' × '.join(map(str, store.shape)) or 'one number'}, {str(store.dtype).removeprefix('torch.')}"


def _range(targets: Tensor) -> str:
    kind = str(targets.dtype).removeprefix("torch.")
    return f"{float(targets.min()):.4g} … {float(targets.max()):.4g}, {kind}"
