"""Initial weights from a stored run, so that several runs can share one pretraining."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from torch import Tensor

from envariant.core.environments import EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.training.initializer import Fit, Initializer
from envariant.training.replicas import Seeds


@final
@dataclass(frozen=True)
class FromRun(Initializer):
    """Final weights of a run stored by `train(…, out=folder)`.

    Each replica starts from the stored replica with the same seeds, and therefore the same data draw. The
    stored run and the new run need the same `seed`. The state of the optimizer is not reused.

    Attributes:
        folder: Folder of the stored run.
    """

    name: ClassVar[str] = "run"
    folder: str

    @property
    def total_steps(self) -> int:
        return 0

    def identity(self) -> str | None:
        # Imported here for the same reason as in `weights`.
        from envariant.training.store.single_run import SingleRun

        # A missing folder is reported when the weights are read.
        record = SingleRun(Path(self.folder)).record
        return None if record is None else f"run {record.identity} {record.spec.seed} {record.spec.steps}"

    def weights(self, environments: EnvironmentSet, fit: Fit, seed: int) -> Mapping[str, Tensor]:
        # Reading stored runs imports the whole store, which runs without pretraining do not need.
        from envariant.training.store.single_run import load_run

        record, _, states, _ = load_run(Path(self.folder))
        spec = record.spec
        for k, state in states.items():
            if Seeds.of(spec.seed, k, shared_init=spec.shared_init).order == seed:
                if not state.completed(spec.steps or 1):
                    raise EnvariantError(f"init: replica {k} of the run in {self.folder} is not finished")
                return {**state.params, **state.buffers}
        raise EnvariantError(
            f"init: the run in {self.folder} has no replica with the same seeds; use seed={spec.seed}, and "
            f"at most {spec.replicas} replicas"
        )
