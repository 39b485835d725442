"""Boosted trees stored as arrays, so that saved models do not depend on the version of scikit-learn."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, final

import numpy as np
import torch
from torch import Tensor

from envariant.core.tasks import Task
from envariant.predictors.base import (
    Description,
    FittedPredictor,
    Tensors,
    classes_of,
    numbers_of,
    task_logits,
)

# Trees of the library have at most 31 leaves.
_DEEPEST = 64
_ROWS_PER_BLOCK = 1_024


@final
@dataclass(frozen=True, eq=False)
class FittedTrees(FittedPredictor):
    """Boosted trees: each output is the sum of several regression trees.

    Attributes:
        task: Prediction task.
        classes: Indices of the classes with training rows, in the order of the outputs; empty for regression.
        feature: Position of the input that each node compares, `[nodes]`.
        threshold: Threshold of each node, `[nodes]`; inputs up to the threshold go to the left child.
        left, right: Child nodes of each node, `[nodes]`; a leaf is its own child.
        value: Prediction of each leaf, `[nodes]`.
        roots: Root node of each tree, `[trees]`; consecutive trees belong to successive outputs.
        baseline: Initial prediction, `[outputs]`.
        iterations: Number of trees per output.
    """

    kind: ClassVar[str] = "trees"

    task: Task
    classes: tuple[int, ...]
    feature: Tensor = field(repr=False)
    threshold: Tensor = field(repr=False)
    left: Tensor = field(repr=False)
    right: Tensor = field(repr=False)
    value: Tensor = field(repr=False)
    roots: Tensor = field(repr=False)
    baseline: Tensor = field(repr=False)

    iterations: int = field(init=False, default=1)

    @property
    def rows_are_independent(self) -> bool:
        return True

    def __post_init__(self) -> None:
        object.__setattr__(self, "iterations", len(self.roots) // len(self.baseline))

    def logits(self, inputs: Tensor, columns: Any = None) -> Tensor:
        del columns
        rows = inputs.flatten(1).cpu().double()
        sums = [self._sums(block) for block in rows.split(_ROWS_PER_BLOCK)]
        scores = torch.cat(sums) if sums else torch.zeros(0, len(self.baseline), dtype=torch.float64)
        return task_logits(self.task, scores.numpy(), self.classes).to(inputs.device)

    def _sums(self, rows: Tensor) -> Tensor:
        """Return the sum of all trees for each row and output, `[rows, outputs]`."""
        nodes = self.roots.expand(len(rows), -1)
        while True:
            goes_left = rows.gather(1, self.feature[nodes]) <= self.threshold[nodes]
            following = torch.where(goes_left, self.left[nodes], self.right[nodes])
            if torch.equal(following, nodes):
                break
            nodes = following
        values = self.value[nodes].reshape(len(rows), -1, len(self.baseline))
        return self.baseline + values.sum(dim=1)

    @classmethod
    def of(cls, task: Task, classes: tuple[int, ...], estimator: Any) -> "FittedTrees":
        """Convert a fitted scikit-learn `HistGradientBoosting…` estimator without categorical features.

        Args:
            task: Prediction task.
            classes: Indices of the classes with training rows, in the estimator's order.
            estimator: Fitted estimator.
        """
        trees: list[Any] = [tree.nodes for trees in estimator._predictors for tree in trees]
        ends = np.cumsum([0, *map(len, trees)])
        own = [np.arange(start, start + len(nodes)) for start, nodes in zip(ends, trees, strict=False)]

        def joined(name: str, kind: Any) -> Tensor:
            parts = [nodes[name] for nodes in trees] or [np.zeros(0)]
            return torch.from_numpy(np.concatenate(parts).astype(kind))

        def child(name: str) -> Tensor:
            parts = [
                np.where(nodes["is_leaf"], k, nodes[name] + start)
                for k, start, nodes in zip(own, ends, trees, strict=False)
            ]
            return torch.from_numpy(np.concatenate([*parts, np.zeros(0)]).astype(np.int64))

        threshold = joined("num_threshold", np.float64).nan_to_num()
        baseline = torch.from_numpy(np.asarray(estimator._baseline_prediction, dtype=np.float64).reshape(-1))
        return cls(
            task, classes, joined("feature_idx", np.int64), threshold, child("left"), child("right"),
            joined("value", np.float64), torch.from_numpy(ends[:-1].astype(np.int64)), baseline,
        )  # fmt: skip

    def store(self) -> tuple[Description, Tensors]:
        names = ("feature", "threshold", "left", "right", "value", "roots", "baseline")
        return {"classes": list(self.classes)}, {name: getattr(self, name) for name in names}

    @classmethod
    def restore(
        cls, description: Description, tensors: Tensors, task: Task, width: int, trusted: Sequence[str] = ()
    ) -> Self:
        del trusted
        classes = classes_of(description, task)
        outputs = len(classes) if len(classes) > 2 else 1
        nodes, trees = len(tensors["feature"]), len(tensors["roots"])
        whole, real = torch.int64, torch.float64
        feature, left, right = (
            numbers_of(tensors, name, (nodes,), whole) for name in ("feature", "left", "right")
        )
        threshold, value = (numbers_of(tensors, name, (nodes,), real) for name in ("threshold", "value"))
        roots = numbers_of(tensors, "roots", (trees,), whole)
        fits = trees > 0 and trees % outputs == 0 and bool((roots.diff() > 0).all())
        if not fits or bool(((feature < 0) | (feature >= width)).any()):
            raise ValueError("the trees do not match the inputs or the classes")
        index = torch.arange(nodes)
        is_leaf = (left == index) & (right == index)
        grows = (left > index) & (right > index) & (left < nodes) & (right < nodes)
        if not bool((is_leaf | grows).all()) or bool(((roots < 0) | (roots >= nodes)).any()):
            raise ValueError("the nodes of a tree must lead to leaves")
        level = roots
        for _ in range(_DEEPEST):
            level = level[~is_leaf[level]]
            if not len(level):
                break
            level = torch.cat([left[level], right[level]])
            if len(level) > nodes:
                raise ValueError("a node belongs to several trees")
        else:
            raise ValueError("a tree is too deep")
        baseline = numbers_of(tensors, "baseline", (outputs,), real)
        return cls(task, classes, feature, threshold, left, right, value, roots, baseline)
