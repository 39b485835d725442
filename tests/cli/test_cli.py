"""The command line as a user meets it: real processes, real files, one line and exit code 2 when wrong."""

import json
import subprocess
import sys

import pytest

from helpers import cpu_of_children

ENVARIANT = [sys.executable, "-m", "envariant"]
TRAIN = ["train", "--data", "colored-digits", "--steps", "4"]


def run(*arguments, **options):
    return subprocess.run(
        [*ENVARIANT, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def test_help_is_fast_and_loads_no_torch():
    script = "import sys, contextlib\nfrom envariant.cli import main\nmain(['--help'])\nassert 'torch' not in sys.modules"
    seconds = []
    for _ in range(3):
        started = cpu_of_children()
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        seconds.append(cpu_of_children() - started)
        assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("demo", "train", "algorithms", "report", "data"))
    assert min(seconds) < 0.6, "well under 300 ms on an idle machine; a busy one takes longer for the same"


def test_json_is_one_object_with_what_the_readme_promises():
    done = run(
        *TRAIN, "--algorithm", "irm", "--set", "coefficient=step(1,91257,at=190)", "--replicas", 2, "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["algorithm"] == "irm"
    assert found["data"] == "colored-digits"
    assert found["replicas"] == 2
    test = found["environments"]["flip-0.9"]
    assert test["role"] == "test"
    assert len(test["accuracy"]["values"]) == 2
    assert {"mean", "sd", "values"} == test["accuracy"].keys() == test["loss"].keys()
    assert found["settings"]["hyperparameters"]["coefficient"] == "step(1, 91257, at=190)"
    assert {"worst", "versions", "seconds", "seeds", "hardware"} <= found.keys()
    assert found["command"].startswith("envariant train --data colored-digits --steps 4 --algorithm irm ")
    assert done.stderr == "", "quiet when not on a terminal"


def test_the_same_command_twice_prints_identical_numbers_and_another_seed_others():
    first, second, other = (json.loads(run(*TRAIN, "--seed", s, "--json").stdout) for s in (1, 1, 2))
    assert first["environments"] == second["environments"]
    assert first["environments"] != other["environments"]


def test_the_table_shows_every_environment_the_worst_and_the_replicas():
    done = run(*TRAIN, "--replicas", 2)
    assert done.returncode == 0
    for word in ("flip-0.2 (train)", "flip-0.1 (train)", "flip-0.9 (test)", "worst", "replicas", "±"):
        assert word in done.stdout


def test_runs_are_stored_and_reported(here, tmp_path):
    for algorithm in ("erm", "vrex"):
        assert here(*TRAIN, "--algorithm", algorithm, "--out", tmp_path / algorithm).returncode == 0
    page = tmp_path / "report.html"
    done = here("report", tmp_path / "erm", tmp_path / "vrex", "-o", page)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert "vrex" in text
    assert "flip-0.9" in text
    again = here("report", tmp_path / "erm", tmp_path / "vrex", "-o", page, "--json")
    assert [r["algorithm"] for r in json.loads(again.stdout)["runs"]] == ["erm", "vrex"]


def test_the_demo_on_small_digits_writes_its_page(tmp_path):
    done = run("demo", "--data", "colored-digits", "--steps", 5, "--replicas", 1, "--out", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "demo" / "report.html").read_text()
    for word in ("erm", "irm", "vrex", "and-mask", "grayscale oracle", "Bayes"):
        assert word in text


def test_algorithms_are_listed_with_parts_papers_and_ranges(here):
    done = here("algorithms")
    assert done.returncode == 0
    for word in ("erm", "irm", "vrex", "mm-rex", "and-mask", "gradient combination", "penalty"):
        assert word in done.stdout
    one = here("algorithms", "and-mask").stdout
    for word in ("mask · ḡ", "arXiv 2009.00329", "threshold=1", "search 0.5 … 1", "2 environments or more"):
        assert word in one
    found = json.loads(here("algorithms", "--json").stdout)
    assert found["irm"]["needs"] == ["2 environments or more"]
    threshold = found["and-mask"]["hyperparameters"]["threshold"]
    assert (threshold["default"], threshold["range"]) == ("1", "0.5 … 1")
    assert threshold["meaning"].startswith("τ in [0, 1].")
    assert "vrex + and-mask: Equal risk" in here("algorithms", "vrex + and-mask").stdout
    wrong = here("algorithms", "vrx")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "did you mean 'vrex'" in wrong.stderr


def test_data_show_draws_and_counts(here, tmp_path):
    for ending, start in ((".png", b"\x89PNG"), (".svg", b"<svg")):
        done = here("data", "show", "colored-digits", "-o", tmp_path / f"picture{ending}")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / f"picture{ending}").read_bytes().startswith(start)
    for word in ("599", "color only", "shape only", "Bayes", "0.750", "0.900"):
        assert word in done.stdout
    found = json.loads(here("data", "show", "colored-digits", "-o", tmp_path / "p.png", "--json").stdout)
    assert found["environments"][2]["theory"]["color_only"] == pytest.approx(0.1)


def test_data_fetch_proves_the_four_digests():
    done = run("data", "fetch", "mnist", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["md5"]["train-images-idx3-ubyte"] == "6bbc9ace898e44ae57da46a324031adb"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--algorithm", "imr"], "did you mean 'irm'"),
        (["train", "--data", "colored-minst"], "did you mean 'colored-mnist'"),
        (["train", "--data", "colored-mnist:irn"], "did you mean 'irm'"),
        ([*TRAIN, "--algorithm", "and-mask", "--set", "threshold=1.7"], "AndMask: threshold must lie in [0, 1]; got 1.7"),
        ([*TRAIN, "--algorithm", "irm", "--set", "coefficent=3"], "did you mean 'coefficient'"),
        ([*TRAIN, "--algorithm", "irm", "--set", "coefficient=setp(1,2,at=3)"], "did you mean 'step'"),
        ([*TRAIN, "--set", "l2"], "expected KEY=VALUE"),
        (
            [*TRAIN, "--algorithm", "irm", "--test-environments", "flip-0.1", "--test-environments", "flip-0.9"],
            "irm: needs at least 2 training environments",
        ),
        ([*TRAIN, "--test-environments", "flip-9"], "unknown environment 'flip-9'"),
        ([*TRAIN, "--out", "/dev/null/run"], "cannot be written"),
        ([*TRAIN, "--steps", "many"], "steps"),
        ([*TRAIN, "--stesp", "3"], "--stesp"),
        (["trian"], "trian"),
        (["report"], "at least one run"),
        (["report", "nowhere"], "holds no run"),
        (["data", "show", "colored-digits", "-o", "x.bmp"], "must end in .png or .svg"),
        (["data", "show", "colored-digits", "-o", "/dev/null/x.png"], "cannot be written"),
        (["data", "fetch", "mnist", "--mnist", "/nowhere"], "MNIST folder /nowhere"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_clear_line_and_exit_code_2(arguments, message, here):
    done = here(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_so_it_is_in_a_process_of_its_own():
    done = run(*TRAIN, "--algorithm", "imr")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip().splitlines() == [done.stderr.strip()]
    assert "did you mean 'irm'" in done.stderr


def test_a_reader_that_stops_reading_is_no_error():
    pipe = subprocess.run(
        f"{sys.executable} -m envariant algorithms | head -1",
        shell=True, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert pipe.stdout.startswith("erm")
    assert "Traceback" not in pipe.stderr
