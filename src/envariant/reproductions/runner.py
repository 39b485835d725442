"""Training for reproductions: every run is stored and is trained only once.

The folder of a run is named after its declaration, so that sections with the same run share it and an
interrupted reproduction resumes.
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
from envariant.training.result import TrainingResult
from envariant.training.store.reader import FILE
from envariant.training.train import train

Profile = Literal["quick", "full"]

K = TypeVar("K")
V = TypeVar("V")


@final
class RunNotStoredError(Exception):
    """A runner that may not train was asked for a run that is not stored."""


@final
@dataclass(frozen=True)
class Run:
    """Declaration of a run: the arguments of `envariant.train`.

    Attributes:
        data: Name of a data set.
        algorithm: Recipe with its hyperparameters, such as `irm(coefficient=1e4)`.
        settings: Other arguments of `train` by name.
    """

    data: str
    algorithm: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def but(self, **settings: Any) -> "Run":
        """Return a copy with some settings changed."""
        return replace(self, settings={**self.settings, **settings})


@final
class Runner:
    """Trains runs and stores them.

    Args:
        folder: Folder of the runs.
        profile: "quick" or "full".
        mnist: Folder of the MNIST files; None downloads them to the cache.
        stored_only: Whether to load runs only; one that is not stored raises `RunNotStoredError`.
        report: Receives a line of text before each run of a sweep.

    Attributes:
        runs: Results of all requested runs by the name of their folder.
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
        self.folder, self.profile, self.mnist = folder, profile, mnist
        self.stored_only = stored_only
        self.runs: dict[str, TrainingResult] = {}
        self._report = report

    def pick(self, *, quick: V, full: V) -> V:
        """Return the value for this profile."""
        return quick if self.profile == "quick" else full

    @property
    def replicas(self) -> int:
        """Default number of replicas of a run."""
        return self.pick(quick=2, full=5)

    def source(self, data: str) -> EnvironmentSource:
        """Return the data set of that name."""
        return sources.source(data, folder=self.mnist)

    def train(self, run: Run) -> TrainingResult:
        """Return a run's result, loaded from its folder or trained now.

        Raises:
            RunNotStoredError: If nothing may be trained and the run is not stored to its end.
        """
        settings: dict[str, Any] = {"replicas": self.replicas, **run.settings}
        name = _folder(run, settings)
        if name not in self.runs:
            if self.stored_only:
                self.runs[name] = self._stored(name, settings["replicas"])
            else:
                # A fixed mode: an automatic choice would depend on timings, and with it the last bits.
                self.runs[name] = train(
                    self.source(run.data), run.algorithm, execution="sequential", **settings,
                    out=self.folder / name,
                )  # fmt: skip
        return self.runs[name]

    def sweep(self, runs: Mapping[K, Run]) -> dict[K, TrainingResult]:
        """Return the result of each run, by the same keys."""
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
            raise RunNotStoredError(f"{name}: is not stored to its end")
        return result


def _folder(run: Run, settings: Mapping[str, Any]) -> str:
    """Return the name of a run's folder: its algorithm and a digest of the declaration."""
    declaration = json.dumps([run.data, run.algorithm, dict(settings)], sort_keys=True)
    digest = hashlib.blake2b(declaration.encode(), digest_size=5).hexdigest()
    return f"{specs.parse(run.algorithm).name}-{digest}"
