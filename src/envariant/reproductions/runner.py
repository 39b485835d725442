"""Where the parts of a reproduction train: every run is stored as it goes and is never run twice.

A run's folder follows from what is run and from nothing else, so that two parts that ask for the same run
share it, and a second call goes on where a first was stopped.
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
class NotRunError(Exception):
    """A run was asked for that is not stored, where nothing may be trained."""


@final
@dataclass(frozen=True)
class Run:
    """A declared run: what `envariant.train` is to be given.

    Attributes:
        data: the name of a data set.
        algorithm: a recipe with its settings, as in `irm(coefficient=1e4)`.
        settings: everything else, by the names that `train` gives its arguments.
    """

    data: str
    algorithm: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def but(self, **settings: Any) -> "Run":
        """The same with some settings changed."""
        return replace(self, settings={**self.settings, **settings})


@final
class Lab:
    """Trains and remembers.

    Args:
        folder: for the runs.
        profile: "quick" or "full".
        mnist: where the MNIST files are, if not to be fetched.
        stored_only: train nothing; a run that is not stored and done is a `NotRunError`.
        report: is given a line before each run.

    Attributes:
        runs: every result that was asked for, by the name of its folder.
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
        """What this profile uses."""
        return quick if self.profile == "quick" else full

    @property
    def replicas(self) -> int:
        """How many replicas a run has, unless it says otherwise."""
        return self.pick(quick=2, full=5)

    def source(self, data: str) -> EnvironmentSource:
        """The data set of that name."""
        return sources.source(data, folder=self.mnist)

    def train(self, run: Run) -> TrainingResult:
        """The run's result: from its folder if it is there, else trained now.

        Raises:
            NotRunError: nothing may be trained, and the run is not stored to its end.
        """
        settings: dict[str, Any] = {"replicas": self.replicas, **run.settings}
        name = _folder(run, settings)
        if name not in self.runs:
            if self.stored_only:
                self.runs[name] = self._stored(name, settings["replicas"])
            else:
                # One after another, said and not measured, so that two calls make the same bits.
                self.runs[name] = train(
                    self.source(run.data), run.algorithm, execution="sequential", **settings,
                    out=self.folder / name,
                )  # fmt: skip
        return self.runs[name]

    def sweep(self, runs: Mapping[K, Run]) -> dict[K, TrainingResult]:
        """The result of each run, by the same keys."""
        found: dict[K, TrainingResult] = {}
        started, trained = time.monotonic(), 0
        for i, (key, run) in enumerate(runs.items()):
            known = self._is_known(run)
            if self._report is not None and not self.stored_only and not known:
                left = (time.monotonic() - started) / trained * (len(runs) - i) if trained else None
                ahead = "" if left is None else f", about {max(1, round(left / 60))} min left here"
                self._report(f"run {i + 1} of {len(runs)}: {run.algorithm}{ahead}")
            found[key] = self.train(run)
            trained += not known
        return found

    def _is_known(self, run: Run) -> bool:
        name = _folder(run, {"replicas": self.replicas, **run.settings})
        if name in self.runs:
            return True
        try:
            self._stored(name, run.settings.get("replicas", self.replicas))
        except (NotRunError, EnvariantError):
            return False
        return True

    def _stored(self, name: str, replicas: int) -> TrainingResult:
        if not (self.folder / name / FILE).exists():
            raise NotRunError(f"{name}: has not been run")
        result = TrainingResult.load(self.folder / name)
        if len(result.finished) + len(result.failures) < replicas:
            raise NotRunError(f"{name}: has not been run to its end")
        return result


def _folder(run: Run, settings: Mapping[str, Any]) -> str:
    """A name that says what is run, and a digest of all of it."""
    whole = json.dumps([run.data, run.algorithm, dict(settings)], sort_keys=True)
    digest = hashlib.blake2b(whole.encode(), digest_size=5).hexdigest()
    return f"{specs.parse(run.algorithm).name}-{digest}"
