"""Obtain the results of a reproduction; every result is stored and computed only once.

A run's folder is named after a hash of its settings, and the file of any other computation after a hash of
its inputs. Sections that need the same result therefore share it, and an interrupted reproduction can be
resumed.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, final

from envariant import data as sources
from envariant.core import specs
from envariant.core.environments import EnvironmentSource
from envariant.core.errors import EnvariantError
from envariant.reproductions import computations
from envariant.training.optimizers import OptimizerConfig
from envariant.training.option_text import text_of
from envariant.training.result import TrainingResult
from envariant.training.store.reader import FILE
from envariant.training.stored_start import FromRun
from envariant.training.train import train

Profile = Literal["quick", "full"]

K = TypeVar("K")
V = TypeVar("V")


@final
class RunNotStoredError(Exception):
    """Error raised if a `Runner` with `stored_only=True` does not find a requested run or computation."""


@final
@dataclass(frozen=True)
class Run:
    """Description of a run by the arguments of `envariant.train`.

    Attributes:
        data: Name of a data set.
        algorithm: Name of an algorithm with its hyperparameters, such as `irm(coefficient=1e4)`.
        settings: Other arguments of `train`, by name.
        start: Run that is trained first, and whose final weights are the initial weights of this run, replica
            by replica. Several runs may share it. If it does not set the number of replicas, it has as many
            as this run.
    """

    data: str
    algorithm: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    start: "Run | None" = None

    def but(self, **settings: Any) -> "Run":
        """Return a copy of the run in which the given settings are changed."""
        return replace(self, settings={**self.settings, **settings})


@final
class Runner:
    """Object that trains the runs of a reproduction, stores them, and reuses stored runs.

    Other computations are stored and reused in the same way.

    Args:
        folder: Folder of the runs and computations.
        profile: Size of the experiments: "quick" or "full".
        mnist: Folder of the MNIST files. Default: download to the cache.
        stored_only: Whether results are only loaded, never computed. If a run or computation is missing,
            `RunNotStoredError` is raised.
        report: Function called with a line of text before each run of a sweep and before each computation, to
            report progress. Default: no report.

    Attributes:
        runs: Result of each requested run, by folder name.
        computations: Each requested computation, by file name.
    """

    def __init__(
        self,
        folder: Path,
        profile: Profile,
        *,
        mnist: Path | None = None,
        stored_only: bool = False,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self.folder, self.mnist = folder, mnist
        self.profile: Profile = profile
        self.stored_only = stored_only
        self.runs: dict[str, TrainingResult] = {}
        self.computations: dict[str, computations.Computation] = {}
        self._report = report

    def pick(self, *, quick: V, full: V) -> V:
        """Return `quick` or `full`, depending on the profile of this runner."""
        return quick if self.profile == "quick" else full

    @property
    def replicas(self) -> int:
        """Default number of replicas of a run: 2 in the quick profile, 5 in the full profile."""
        return self.pick(quick=2, full=5)

    def source(self, data: str) -> EnvironmentSource:
        """Return the data source with a given name, such as `colored-mnist:thirds`."""
        return sources.source(data, folder=self.mnist)

    def train(self, run: Run) -> TrainingResult:
        """Return the result of a run: load it if it is stored, otherwise train and store it.

        Raises:
            RunNotStoredError: If `stored_only` is True and the run is not completely stored.
        """
        settings: dict[str, Any] = {"replicas": self.replicas, **run.settings}
        name = _folder(run, settings)
        if name not in self.runs:
            if self.stored_only or (run.start is not None and self._is_known(run)):
                self.runs[name] = self._stored(name, settings["replicas"])
            else:
                if run.start is not None:
                    start = run.start.but(**{"replicas": settings["replicas"], **run.start.settings})
                    self.train(start)
                    settings["init"] = FromRun(str(self.folder / _folder(start, start.settings)))
                # If the mode were chosen by timing, results would not be bit-identical between calls.
                self.runs[name] = train(
                    self.source(run.data), run.algorithm, execution="sequential", **settings,
                    out=self.folder / name,
                )  # fmt: skip
        return self.runs[name]

    def compute(
        self, name: str, inputs: Mapping[str, Any], function: Callable[..., Any], version: int = 1
    ) -> Any:
        """Return the result of `function(**inputs)`: load it if it is stored, otherwise compute and store it.

        Args:
            name: Name of the computation, which is part of the file name.
            inputs: Arguments of the function; numbers, strings, lists or dictionaries. They must determine
                the result.
            function: Function that returns numbers, strings, lists or dictionaries; tuples become lists.
            version: Version number of the function. Increase it when its results change.

        Raises:
            RunNotStoredError: If `stored_only` is True and the result is not stored.
            EnvariantError: If inputs or result have other types, or the stored file is damaged.
        """
        path = computations.file_of(self.folder, name, inputs, version)
        if path.name not in self.computations:
            stored = computations.load(path)
            if stored is None and self.stored_only:
                raise RunNotStoredError(f"{path.name}: is not stored")
            if stored is None:
                if self._report is not None:
                    self._report(f"computation: {name}")
                stored = computations.perform(path, name, inputs, version, function)
            self.computations[path.name] = stored
        return self.computations[path.name].result

    def sweep(self, runs: Mapping[K, Run]) -> dict[K, TrainingResult]:
        """Train several runs; runs that are already stored are loaded instead.

        Args:
            runs: Runs by key, such as a label.

        Returns:
            Result of each run, by the same keys.
        """
        results: dict[K, TrainingResult] = {}
        started, trained = time.monotonic(), 0
        for i, (key, run) in enumerate(runs.items()):
            known = self._is_known(run)
            if self._report is not None and not self.stored_only and not known:
                left = (time.monotonic() - started) / trained * (len(runs) - i) if trained else None
                estimate = (
                    "" if left is None else f", about {max(1, round(left / 60))} min left in this sweep"
                )
                self._report(f"run {i + 1} of {len(runs)}: {run.algorithm}{estimate}")
            results[key] = self.train(run)
            trained += not known
        return results

    def _is_known(self, run: Run) -> bool:
        name = _folder(run, {"replicas": self.replicas, **run.settings})
        if name in self.runs:
            return True
        try:
            self._stored(name, run.settings.get("replicas", self.replicas))
        except (RunNotStoredError, EnvariantError):
            return False
        return True

    def _stored(self, name: str, replicas: int) -> TrainingResult:
        if not (self.folder / name / FILE).exists():
            raise RunNotStoredError(f"{name}: is not stored")
        result = TrainingResult.load(self.folder / name)
        if len(result.finished) + len(result.failures) < replicas:
            raise RunNotStoredError(f"{name}: is not stored completely")
        return result


def _folder(run: Run, settings: Mapping[str, Any]) -> str:
    """Return the name of a run's folder: the algorithm, and a hash of the run's description."""
    start = () if run.start is None else (_folder(run.start, run.start.settings),)
    declaration = json.dumps(
        [run.data, run.algorithm, dict(settings), *start], sort_keys=True, default=_optimizer_text
    )
    digest = hashlib.blake2b(declaration.encode(), digest_size=5).hexdigest()
    return f"{specs.parse(run.algorithm).name}-{digest}"


def _optimizer_text(setting: object) -> str:
    """Return the text of an optimizer of the reproduction; other objects might have equal texts."""
    if isinstance(setting, OptimizerConfig):
        return text_of(setting)
    raise TypeError(f"setting {setting!r}: must be a number, a string or an optimizer")
