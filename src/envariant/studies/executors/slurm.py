"""Train the runs of a study as a Slurm job array, whose tasks share the study's store.

The folder of the study must be on a file system that all nodes share. Every array task trains one job of the
study, resumes it from its checkpoints after an interruption, and stores the results as the local executor
does. Options of `sbatch`, such as the partition or the time limit, are set by its environment variables
(`SBATCH_PARTITION`, `SBATCH_TIMELIMIT`), or in the script before it is submitted.
"""

import math
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from envariant.core.errors import EnvariantError, EnvariantWarning, listed, shortened
from envariant.core.files import write_text
from envariant.core.printable import number_of
from envariant.studies.jobs import unfinished
from envariant.studies.study import Study, stored_study
from envariant.training.execution import execution_request
from envariant.training.store import Store

FOLDER = "slurm"
"""Name of the folder, in the folder of the study, with the scripts, task lists and logs."""

MAX_WORKERS = 1_000
"""Largest number of array tasks at a time."""

# Seconds that sbatch and squeue may take.
_TIMEOUT_S = 120

_SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=1-{tasks}%{workers}
#SBATCH --chdir={directory}
#SBATCH --output={log}
#SBATCH --requeue
# Task k trains the job that line k of the list names; a repeated task resumes its job.
set -eu
job=$(sed -n "${{SLURM_ARRAY_TASK_ID}}p" {tasks_file} | cut -f 1)
export OMP_NUM_THREADS="${{SLURM_CPUS_PER_TASK:-1}}"
exec {command} --worker "$job"
"""


@final
@dataclass(frozen=True)
class JobArray:
    """Job array of a study.

    Attributes:
        script: Script that `sbatch` submits.
        tasks: Number of array tasks.
        array_id: ID of the submitted array; "" if it has not been submitted.
    """

    script: Path
    tasks: int
    array_id: str = ""

    def __str__(self) -> str:
        tasks = number_of(self.tasks, "task")
        if not self.array_id:
            return f"{self.script}: job array of {tasks}, not submitted; submit it with: sbatch {self.script}"
        return f"{self.script}: submitted as job array {self.array_id} of {tasks}"


def sweep(
    folder: Path,
    study: Study | None = None,
    *,
    workers: int = 1,
    execution: object = "auto",
    memory: str | float | None = None,
) -> JobArray | None:
    """Write a job array that trains all unfinished runs of a study, and submit it with `sbatch`.

    The call does not wait for the array. Call it again after the array has ended, to resume runs that are
    still unfinished. While an array of the study is queued or running, no other array is written.

    Args:
        folder: Folder of the study, on a file system that all nodes share.
        study: Study to train. Default: the study stored in the folder.
        workers: Largest number of array tasks at a time; the runs are divided into at least as many jobs.
        execution: Execution mode of each job: the option `execution` of `envariant.train`.
        memory: Memory limit of each replica stack, such as "8GB". Default: half of the free memory.

    Returns:
        The job array; None if no run is left.

    Raises:
        EnvariantError: If the study contains Python objects, which tasks cannot read, an array of the study
            has not ended, `sbatch` fails, or the folder cannot be written.

    Warns:
        EnvariantWarning: If there is no `sbatch`; the message says how to submit the script.
    """
    if not 1 <= workers <= MAX_WORKERS:
        raise EnvariantError(f"workers must be in [1, {MAX_WORKERS:,}]; got {workers}")
    if not isinstance(execution, str):
        raise EnvariantError("executor slurm: execution must be given by name, such as auto or sequential")
    execution_request(execution)
    with Store(folder) as store:
        declared = stored_study(store) if study is None else study
        if declared.objects:
            raise EnvariantError(
                f"executor slurm: the study contains Python objects ({listed(declared.objects)}), which the "
                f"tasks cannot read; give them by name, or use the executor local or ray"
            )
        _check_ended(folder / FOLDER)
        jobs = _jobs(store, declared, workers)
        lines = [f"{job}\t{_description(store, job)}" for job in jobs]
    if not jobs:
        return None
    array = _written(folder.resolve(), declared, lines, workers, _options(execution, memory))
    return _submitted(array)


def _jobs(store: Store, study: Study, workers: int) -> list[int]:
    """Return the unfinished jobs of a study, after all planned runs have become jobs of about equal size."""
    size = max(1, math.ceil(store.counts(study.declares)["planned"] / workers))
    while left := store.counts(study.declares)["planned"]:
        if store.claim(math.ceil(left / size), study.declares, study.searched_options) is None:
            break
    return unfinished(store, study)


def _description(store: Store, job: int) -> str:
    """Return the runs of a job as text, for readers of the task list."""
    runs = store.members(job)
    first = runs[0].run
    test = ", ".join(first.test_environments) or "none"
    numbers = listed([stored.id for stored in runs], 8)
    return shortened(f"{first.algorithm} on {first.data}, test environments {test}: runs {numbers}", 300)


def _options(execution: str, memory: str | float | None) -> list[str]:
    return ["--execution", execution, *([] if memory is None else ["--memory", str(memory)])]


def _written(
    folder: Path, study: Study, lines: Sequence[str], workers: int, options: Sequence[str]
) -> JobArray:
    """Write the script and the task list under a new number, because earlier arrays may still be queued."""
    own = folder / FOLDER
    number = 1 + max((int(path.stem) for path in own.glob("*.sbatch") if path.stem.isdecimal()), default=0)
    script, tasks = own / f"{number}.sbatch", own / f"{number}.tasks"
    command = [sys.executable, "-m", "envariant", "sweep", "--out", str(folder), *options]
    # In the name of a log, Slurm replaces % followed by a letter.
    log = f"{own}/{number}".replace("%", "%%") + "-%a.log"
    text = _SCRIPT.format(
        name=_quoted(f"envariant-{study.name}"),
        tasks=len(lines),
        workers=workers,
        directory=_quoted(str(Path.cwd())),
        log=_quoted(log),
        tasks_file=shlex.quote(str(tasks)),
        command=shlex.join(command),
    )
    own.mkdir(parents=True, exist_ok=True)
    write_text("".join(f"{line}\n" for line in lines), tasks)
    write_text(text, script)
    return JobArray(script, len(lines))


def _quoted(text: str) -> str:
    """Quote the value of an option in a comment that `sbatch` reads.

    Raises:
        EnvariantError: If the text contains a quotation mark or a line break.
    """
    if set(text) & set('"\n\r'):
        raise EnvariantError(f"executor slurm: {text} contains a quotation mark or a line break; rename it")
    return f'"{text}"'


def _submitted(array: JobArray) -> JobArray:
    """Submit a job array, and store its ID next to its script."""
    if (program := shutil.which("sbatch")) is None:
        warnings.warn(
            f"executor slurm: there is no sbatch on this machine; the script is written: on a machine with "
            f"Slurm, run: sbatch {shlex.quote(str(array.script))}",
            EnvariantWarning,
            stacklevel=4,
        )
        return array
    output, problem = _called([program, "--parsable", str(array.script)])
    # With several clusters, the ID is followed by a semicolon and the name of the cluster.
    array_id = output.strip().partition(";")[0]
    if problem or not array_id.isdecimal():
        reason = problem or f"unexpected output '{shortened(output)}'"
        raise EnvariantError(
            f"executor slurm: sbatch failed ({reason}); the script is written: correct it or set sbatch's "
            f"environment variables, then run: sbatch {shlex.quote(str(array.script))}",
            retryable=True,
        )
    write_text(f"{array_id}\n", array.script.with_suffix(".id"))
    return JobArray(array.script, array.tasks, array_id)


def _check_ended(folder: Path) -> None:
    """Check that no array of the study is queued or running; unknown arrays have ended.

    Raises:
        EnvariantError: If an array has not ended.
    """
    program = shutil.which("squeue")
    for path in sorted(folder.glob("*.id")) if program else ():
        array_id = path.read_text(encoding="utf-8").strip()
        output, problem = _called([str(program), "--noheader", "--jobs", array_id])
        if output.strip() and not problem:
            raise EnvariantError(
                f"executor slurm: job array {array_id} of this study has not ended; wait for it, or cancel "
                f"it with: scancel {array_id}"
            )


def _called(command: Sequence[str]) -> tuple[str, str]:
    """Return the output of a program, and the reason of its failure; "" if it succeeded."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", shortened(str(error), 200)
    reason = shortened(done.stderr, 200) or f"exit code {done.returncode}"
    return done.stdout, reason if done.returncode else ""
