"""Studies as Slurm job arrays, with a small `sbatch` that runs the tasks of the script on this machine."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock

from envariant.core.errors import EnvariantError, EnvariantWarning
from envariant.studies import Store, Study, begin, sweep
from envariant.studies.executors import local, slurm

SETTINGS = {"steps": 6, "evaluate_every": 3, "model": "linear", "precision": "float32"}
STUDY = Study("colored-digits", "erm", name="slow start", replicas=2, settings=SETTINGS)
# Runs every task of the array with its number, as Slurm does, and prints the ID of the array.
SBATCH = f"""#!{sys.executable}
import os, re, subprocess, sys
assert sys.argv[1] == "--parsable"
text = open(sys.argv[2]).read()
values = dict(re.findall(r'^#SBATCH --([a-z-]+)="?([^"\\n]*)', text, re.MULTILINE))
first, last, most = map(int, re.fullmatch(r"(\\d+)-(\\d+)%(\\d+)", values["array"]).groups())
for task in range(first, last + 1):
    log = values["output"].replace("%a", str(task)).replace("%%", "%")
    environment = dict(os.environ, SLURM_ARRAY_TASK_ID=str(task))
    with open(log, "w") as file:
        subprocess.run(
            ["bash", sys.argv[2]], env=environment, cwd=values["chdir"], stdout=file, stderr=file, check=True
        )
print("4711;cluster")
"""


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Return a function that puts a program on the search path, on which `sbatch` is otherwise missing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "sed", "cut"):
        (folder / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(folder))

    def put(name, text):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)

    return put


def planned(folder, study=STUDY):
    begin(folder, study).close()
    return folder


def listed(folder):
    with Store(folder) as store:
        return store.listing().drop(columns="seconds"), store.history()


def test_tasks_of_the_array_train_the_study_as_one_process_does(programs, tmp_path, here):
    programs("sbatch", SBATCH)
    folder = tmp_path / "a study 100%"
    command = [
        "sweep", "--data", "colored-digits", "--algorithms", "erm", "--replicas", "2", "--steps", "6",
        "--evaluate-every", "3", "--model", "linear", "--precision", "float32", "--name", "slow start", "-o", folder,
        "--executor", "slurm", "--workers", "2", "--execution", "sequential",
    ]  # fmt: skip
    done = here(*command)
    assert done.returncode == 0, done.stderr
    script = folder / "slurm" / "1.sbatch"
    assert f"{script}: submitted as job array 4711 of 2 tasks" in done.stdout
    assert "repeat the command to see the results" in done.stdout
    assert (folder / "slurm" / "1.id").read_text() == "4711\n"
    lines = (folder / "slurm" / "1.tasks").read_text().splitlines()
    assert lines == [f"{k}\term on colored-digits, test environments flip-0.9: runs {k}" for k in (1, 2)]
    assert (folder / "slurm" / "1-2.log").read_text() == "job 2: 1 done\n"
    subprocess.run(["/bin/bash", "-n", script], check=True)

    alone = planned(tmp_path / "alone")
    sweep(alone, execution="sequential")
    for ours, theirs in zip(listed(folder), listed(alone), strict=True):
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)

    # The repeated command has nothing to submit, and prints the results.
    again = json.loads(here(*command, "--json").stdout)
    assert again["runs"] == {"planned": 0, "running": 0, "done": 2, "failed": 0}
    assert not (folder / "slurm" / "2.sbatch").exists()


def test_without_sbatch_the_script_is_written_and_can_be_submitted_by_hand(programs, tmp_path):
    folder = planned(tmp_path / "study")
    with pytest.warns(
        EnvariantWarning, match=r"there is no sbatch on this machine; .* run: sbatch .*1\.sbatch"
    ):
        array = slurm.sweep(folder, workers=2)
    assert (array.tasks, array.array_id) == (2, "")
    assert "not submitted; submit it with: sbatch" in str(array)
    text = array.script.read_text()
    assert f'#SBATCH --array=1-2%2\n#SBATCH --chdir="{Path.cwd()}"\n' in text
    assert '#SBATCH --job-name="envariant-slow start"\n' in text
    del programs


def test_a_failing_sbatch_is_reported_with_its_reason_and_the_written_script(programs, tmp_path, here):
    programs("sbatch", "#!/bin/bash\necho 'sbatch: error: invalid account' >&2\nexit 1\n")
    folder = planned(tmp_path / "study")
    with pytest.raises(
        EnvariantError,
        match=r"sbatch failed \(sbatch: error: invalid account\); the script is written: .*1\.sbatch",
    ):
        slurm.sweep(folder)
    programs("sbatch", "#!/bin/bash\necho Submitted\n")
    with pytest.raises(EnvariantError, match=r"unexpected output 'Submitted'\); .*2\.sbatch"):
        slurm.sweep(folder)
    assert not list(folder.glob("slurm/*.id"))
    # The same in one line on the command line.
    done = here(
        "sweep", "--data", "colored-digits", "--algorithms", "erm", "--replicas", "2", "--name", "slow start",
        "--steps", "6", "--evaluate-every", "3", "--model", "linear", "--precision", "float32", "-o", folder,
        "--executor", "slurm",
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "sbatch failed" in done.stderr


def test_no_second_array_is_submitted_while_the_first_has_not_ended(programs, tmp_path):
    programs("sbatch", "#!/bin/bash\necho 12\n")
    folder = planned(tmp_path / "study")
    assert slurm.sweep(folder).array_id == "12"
    programs("squeue", '#!/bin/bash\n[ "$3" = 12 ] && echo "12_1 main envariant R"\n')
    with pytest.raises(EnvariantError, match="job array 12 of this study has not ended; .* scancel 12"):
        slurm.sweep(folder)
    # Slurm forgets arrays that have ended.
    programs("squeue", "#!/bin/bash\necho 'slurm_load_jobs error: Invalid job id specified' >&2\nexit 1\n")
    assert slurm.sweep(folder).script.name == "2.sbatch"


def test_repeated_arrays_have_only_the_unfinished_jobs_and_jobs_are_about_equal(programs, tmp_path):
    programs("sbatch", "#!/bin/bash\necho 12\n")
    study = Study("colored-digits", ("erm", "vrex"), replicas=4, settings=SETTINGS)
    folder = planned(tmp_path / "study", study)
    assert slurm.sweep(folder, study, workers=4).tasks == 4
    with Store(folder) as store:
        assert [len(store.members(job)) for job in store.unfinished()] == [2, 2, 2, 2]
    assert local.train_job(folder, 2, execution="sequential")
    assert slurm.sweep(folder, study, workers=4).tasks == 3
    numbers = [line.split("\t")[0] for line in (folder / "slurm" / "2.tasks").read_text().splitlines()]
    assert numbers == ["1", "3", "4"]
    # Jobs that no task has trained are trained by any other executor.
    sweep(folder, study, execution="sequential")
    assert slurm.sweep(folder, study) is None
    assert set(listed(folder)[0]["state"]) == {"done"}


def test_a_job_that_another_process_trains_is_left_to_it(programs, tmp_path, here):
    programs("sbatch", "#!/bin/bash\necho 12\n")
    folder = planned(tmp_path / "study")
    slurm.sweep(folder)
    with Store(folder) as store:
        lock = store.checkpoints(1) / ".lock"
    lock.parent.mkdir(parents=True)
    with FileLock(lock):
        done = here("sweep", "--worker", 1, "-o", folder)
    assert (done.returncode, done.stdout) == (0, "job 1: 2 running; another process is training it\n")
    assert here("sweep", "--worker", 1, "-o", folder).stdout == "job 1: 2 done\n"
    # A task that is repeated after its job was finished does nothing.
    assert here("sweep", "--worker", 1, "-o", folder).stdout == "job 1: 2 done\n"


def test_objects_callbacks_and_temporary_folders_are_rejected(tmp_path):
    from envariant.algorithms import Composition, VREx

    study = Study("colored-digits", Composition(penalties=(VREx(),)), replicas=1, settings=SETTINGS)
    with pytest.raises(
        EnvariantError,
        match=r"executor slurm: the study contains Python objects \(.*\), which the tasks cannot read",
    ):
        slurm.sweep(planned(tmp_path / "study", study), study)
    with pytest.raises(EnvariantError, match="executor slurm: give a folder that all nodes share"):
        STUDY.run(executor="slurm")
    with pytest.raises(EnvariantError, match=r"workers must be in \[1, 1,000\]; got 0"):
        STUDY.run(tmp_path / "other", executor="slurm", workers=0)
    assert not list(tmp_path.rglob("*.sbatch"))
