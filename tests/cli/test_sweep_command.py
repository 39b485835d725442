"""`envariant sweep` and `envariant runs`."""

import json

import pandas as pd
import pytest

SMALL = ["--data", "colored-digits", "--algorithms", "erm", "vrex", "--n-trials", "2", "--replicas", "2"]
SHORT = ["--steps", "8", "--model", "linear"]


def test_sweep_is_planned_trained_listed_exported_and_retried(here, tmp_path):
    folder = tmp_path / "study"
    plan = json.loads(here("sweep", *SMALL, *SHORT, "-o", folder, "--dry-run", "--json").stdout)
    assert plan["runs"] == 8
    assert not folder.exists(), "a dry run writes nothing"
    done = here("sweep", *SMALL, *SHORT, "-o", folder)
    assert done.returncode == 0, done.stderr
    for word in ("training-domain", "invariance", "oracle", "8 done", "report.html"):
        assert word in done.stdout
    # No progress when not on a terminal; only the remark that 8 steps are too few for the penalty of vrex.
    assert "is suggested for 150 steps; scaled to step(1, 100000, at=3) for 8 steps" in done.stderr
    assert all(line.startswith("envariant: vrex") for line in done.stderr.splitlines())
    assert (folder / "report.html").exists()
    again = json.loads(here("sweep", *SMALL, *SHORT, "-o", folder, "--json").stdout)
    assert again["runs"] == {"planned": 0, "running": 0, "done": 8, "failed": 0}
    assert len(again["selections"]["invariance"]["choices"]) == 2
    listed = json.loads(here("runs", "list", folder, "--json").stdout)["runs"]
    assert len(listed) == 8
    assert here("runs", "list", folder, "--state", "failed").stdout == ""
    rows = here("runs", "list", folder, "--state", "done").stdout.splitlines()
    assert len(rows) == 8
    assert all("colored-digits" in row and "trial " in row and "replica " in row for row in rows)
    shown = json.loads(here("runs", "show", folder, 3, "--json").stdout)
    assert shown["id"] == 3
    assert {"versions", "hardware"} <= shown["provenance"].keys()
    assert "learning_rate" in here("runs", "show", folder, 3).stdout
    for ending in ("csv", "parquet"):
        wrote = here("runs", "export", folder, "-o", tmp_path / f"all.{ending}")
        assert wrote.returncode == 0 or "pip install pyarrow" in wrote.stderr
    whole = pd.read_csv(tmp_path / "all.csv")
    assert len(whole[whole["run"] == 3]) == len(shown["history"])
    assert set(whole["run"]) == set(range(1, 9))
    assert here("runs", "retry", folder, 3).stdout == "1 run planned again\n"
    assert here("runs", "rm", folder, 4).stdout == "1 run removed\n"
    assert len(json.loads(here("runs", "list", folder, "--json").stdout)["runs"]) == 7
    back = json.loads(here("sweep", *SMALL, *SHORT, "-o", folder, "--json").stdout)
    assert back["runs"]["done"] == 8
    for name, selection in back["selections"].items():
        # A run that was removed comes back under another number.
        for ours, theirs in zip(selection["choices"], again["selections"][name]["choices"], strict=True):
            assert {**ours, "run": 0} == {**theirs, "run": 0}


def test_options_override_the_study_file(here, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        'data = ["colored-digits"]\nalgorithms = ["erm"]\nreplicas = 5\n[settings]\nmodel = "linear"\n'
    )
    plan = json.loads(here("sweep", file, "--replicas", 2, "--steps", 5, "--dry-run", "--json").stdout)
    assert plan["runs"] == 2
    assert plan["jobs"][0]["steps"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep"], "give a study file, or --data and --algorithms"),
        (["sweep", "nowhere.toml"], "nowhere.toml: there is no such file"),
        (["sweep", *SMALL, "--test-environments", "flip-9"], "unknown environment 'flip-9'"),
        (["sweep", "--data", "colored-digits", "--algorithms", "imr"], "did you mean 'irm'"),
        (["sweep", *SMALL, "--seed", "many"], "expected a whole number"),
        (["sweep", *SMALL, "-o", "/dev/null/study"], "/dev/null/study: cannot be written"),
        (["runs", "list", "nowhere"], "nowhere: holds no runs"),
        (["runs", "retry", "nowhere"], "nowhere: holds no runs"),
        (["sweep", *SMALL, "--track-at", "folder"], "--track-at needs --track tensorboard or --track mlflow"),
    ],
)
def test_invalid_input_gives_one_line_and_exit_code_2(here, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = here(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
