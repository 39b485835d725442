"""Train the runs of a study and show progress, for the command line, `Study.run` and `compare`."""

import tempfile
from pathlib import Path
from typing import Any, Literal

from envariant.core.errors import EnvariantError
from envariant.core.files import as_path
from envariant.studies.executors import local, ray, slurm
from envariant.studies.executors.slurm import JobArray
from envariant.studies.study import Study, begin
from envariant.studies.study_results import StudyResults
from envariant.training.callbacks import check_callbacks
from envariant.training.progress import show_sweep
from envariant.training.store import Store

Executor = Literal["local", "ray", "slurm"]
"""Name of an executor."""


def run_study(study: Study, out: Path | str | None, progress: bool | None, **options: Any) -> StudyResults:
    """Plan and train all runs of a study; see `Study.run` for the arguments."""
    if out is None and options.get("executor") == "slurm":
        raise EnvariantError("executor slurm: give a folder that all nodes share, such as 'studies/first'")
    folder = Path(tempfile.mkdtemp(prefix="envariant-")) if out is None else as_path(out, "out")
    begin(folder, study).close()
    train_runs(study, folder, progress=progress, **options)
    return StudyResults(folder)


def train_runs(
    study: Study,
    folder: Path,
    *,
    workers: int = 1,
    executor: Executor = "local",
    address: str | None = None,
    until: float | None = None,
    progress: bool | None = None,
    execution: object = "auto",
    memory: str | float | None = None,
    callbacks: Any = None,
) -> JobArray | None:
    """Train the unfinished runs of the study in a folder, and show the progress.

    With Slurm, the runs are submitted as a job array, and the call does not wait for them.

    Args:
        study: Study to train; its runs must already be planned in the folder.
        folder: Folder of the study.
        workers: Number of processes on this machine, or of Slurm tasks at a time.
        executor: "local", "ray" for a Ray cluster, or "slurm" for a Slurm cluster.
        address: Address of the Ray cluster.
        until: Value of `time.monotonic()` at which training on this machine stops. Default: no limit.
        progress: Whether to show progress. Default: see `show_sweep`.
        execution: Execution mode of each job: the option `execution` of `envariant.train`, or an `Execution`.
        memory: Memory limit of each replica stack, per process. Default: half of the free memory.
        callbacks: Objects whose methods are called during training on this machine.

    Returns:
        Submitted job array with Slurm; None if no run is left, and with other executors.

    Raises:
        EnvariantError: If an option is invalid, or the store cannot be written.
    """
    if executor not in ("local", "ray", "slurm"):
        raise EnvariantError(f"executor must be 'local', 'ray' or 'slurm', got {executor!r}")
    if address is not None and executor != "ray":
        raise EnvariantError("the option 'address' requires executor='ray'; set executor, or remove address")
    if check_callbacks(callbacks) and executor != "local":
        raise EnvariantError(
            "callbacks are called on this machine only; leave them out, or use executor='local'"
        )
    with Store(folder) as store:
        counts = store.counts(study.declares)
    left = counts["planned"] + counts["running"]
    how: dict[str, Any] = {"execution": execution, "memory": memory}
    if executor == "slurm":
        return slurm.sweep(folder, study, workers=workers, **how)
    with show_sweep(study.name, left, folder, progress) as on_progress:
        if executor == "ray":
            ray.sweep(folder, study, address=address, on_progress=on_progress, **how)
        else:
            how |= {"workers": workers, "until": until, "callbacks": callbacks}
            local.sweep(folder, study, on_progress=on_progress, **how)
    return None
