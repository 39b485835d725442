"""The command line in real processes with real files; invalid input gives one line and exit code 2."""

import json
import re
import subprocess
import sys

import pytest

from envariant.algorithms import recipe
from envariant.cli.demo import SHORT
from envariant.training.resolution import resolve
from envariant.training.run_spec import RunSpec

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


# Third-party packages that --help may import. PyTorch, NumPy and the like take seconds.
LIGHT = {"attr", "attrs", "cyclopts", "docstring_parser", "rich", "markdown_it", "mdurl", "pygments"}
LIGHT |= {"pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"}


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_help_imports_only_light_packages(arguments):
    script = f"""
import sys
from envariant.cli import main
main({arguments})
loaded = {{name.partition(".")[0] for name in sys.modules}} - set(sys.stdlib_module_names)
print("loaded:", *sorted(name for name in loaded if not name.startswith("_")))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page, _, loaded = done.stdout.rpartition("loaded: ")
    assert set(loaded.split()) - LIGHT == {"envariant"}
    words = ("demo", "train", "algorithms", "report") if arguments == ["--help"] else ("--weight-decay",)
    assert all(word in page for word in words)


def test_json_output_has_the_documented_keys(here):
    done = here(
        *TRAIN, "--algorithm", "irm", "--set", "coefficient=step(1,91257,at=2)", "--replicas", 2, "--json"
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["algorithm"] == "irm"
    assert answer["data"] == "colored-digits"
    assert answer["replicas"] == 2
    test = answer["environments"]["flip-0.9"]
    assert test["role"] == "test"
    assert len(test["accuracy"]["values"]) == 2
    assert {"mean", "sd", "values"} == test["accuracy"].keys() == test["loss"].keys()
    assert answer["options"]["hyperparameters"]["coefficient"] == "step(1, 91257, at=2)"
    assert {"worst", "versions", "seconds", "seeds", "hardware"} <= answer.keys()


def test_same_seed_is_bit_identical_and_another_seed_is_not(here):
    done = run(*TRAIN, "--seed", 1, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "quiet when not on a terminal"
    first = json.loads(done.stdout)
    assert first["command"] == "envariant train --data colored-digits --steps 4 --seed 1 --json"
    second, other = (json.loads(here(*TRAIN, "--seed", seed, "--json").stdout) for seed in (1, 2))
    assert first["environments"] == second["environments"]
    assert first["environments"] != other["environments"]


def test_table_shows_every_environment_the_worst_and_the_replicas(here):
    done = here(*TRAIN, "--replicas", 2)
    assert done.returncode == 0
    for word in ("flip-0.2 (train)", "flip-0.1 (train)", "flip-0.9 (test)", "worst", "replicas", "±"):
        assert word in done.stdout


def test_stored_runs_are_reported(here, tmp_path):
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


def test_demo_on_small_digits_writes_its_page(here, tmp_path):
    done = here("demo", "--data", "colored-digits", "--steps", 5, "--replicas", 1, "--out", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "demo" / "report.html").read_text()
    for word in ("erm", "irm", "vrex", "and-mask", "grayscale oracle", "Bayes"):
        assert word in text
    wrong = here("demo", "--data", "colored-digits", "--full", "--out", tmp_path / "demo")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "--full needs colored-mnist" in wrong.stderr


@pytest.mark.parametrize("algorithm", SHORT)
def test_short_settings_of_the_demo_are_those_of_the_runs(algorithm):
    resolved = resolve(RunSpec(data="colored-mnist", algorithm=algorithm, **SHORT[algorithm]))
    assert resolved.spec.model == "mlp(hidden=390)"
    frozen = algorithm in ("irm", "vrex")
    assert (resolved.spec.freeze, resolved.spec.init is not None) == ("features" if frozen else None, frozen)
    assert not resolved.algorithm.scaled, "no suggested schedule is rescaled"


@pytest.mark.verify
def test_demo_shows_on_real_digits_that_erm_fails_and_invariant_methods_do_not(tmp_path):
    command = [*ENVARIANT, "demo", "--replicas", "2", "--out", str(tmp_path / "demo"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout)["runs"]
    erm, irm, vrex, _, gray = (each["environments"]["flip-0.9"]["accuracy"]["mean"] for each in runs)
    assert erm < 0.2
    assert min(irm, vrex) > 0.6
    assert gray > 0.7


def test_algorithms_are_listed_with_parts_papers_and_ranges(here):
    done = here("algorithms")
    assert done.returncode == 0
    for word in ("erm", "irm", "vrex", "mm-rex", "and-mask", "gradient aggregator", "penalty"):
        assert word in done.stdout
    one = here("algorithms", "and-mask").stdout
    for word in (
        "m·ḡ",
        "arXiv 2009.00329",
        "threshold=1",
        "search 0.5 … 1",
        "at least 2 training environments",
    ):
        assert word in one
    answer = json.loads(here("algorithms", "--json").stdout)
    assert answer["irm"]["needs"] == ["at least 2 training environments"]
    threshold = answer["and-mask"]["hyperparameters"]["threshold"]
    assert (threshold["default"], threshold["range"]) == ("1", "0.5 … 1")
    assert threshold["meaning"].startswith("τ in [0, 1].")
    composed = here("algorithms", "vrex + and-mask").stdout
    assert "vrex + and-mask: Penalize" in composed
    example = re.search(r'--algorithm "(.*?)"', " ".join(composed.split()))
    assert recipe(example[1]).name == "vrex + and-mask", "the example can be run"
    wrong = here("algorithms", "vrx")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "did you mean 'vrex'" in wrong.stderr


def test_data_show_writes_a_figure_and_counts(here, tmp_path):
    for ending, start in ((".png", b"\x89PNG"), (".svg", b"<!-- envariant -->\n<svg")):
        done = here("data", "show", "colored-digits", "-o", tmp_path / f"picture{ending}")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / f"picture{ending}").read_bytes().startswith(start)
    for word in ("599", "color only", "shape only", "Bayes", "0.750", "0.900"):
        assert word in done.stdout
    answer = json.loads(here("data", "show", "colored-digits", "-o", tmp_path / "p.png", "--json").stdout)
    assert answer["environments"][2]["theory"]["color_only"] == pytest.approx(0.1)


def test_data_show_counts_images_by_environment_and_class(here, tmp_path):
    for path in ("day/fox/1.png", "day/fox/2.png", "day/hare/1.png", "night/fox/1.png", "night/notes.txt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        # Listed, not read.
        (tmp_path / path).write_bytes(b"")
    (tmp_path / "night/owl").mkdir()
    name = f"image-folders('{tmp_path}', size=28)"
    done = here("data", "show", name, "-o", tmp_path / "x.svg")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.svg").read_text().startswith("<!-- envariant -->\n<svg")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["day", "3", "2", "1", "–"] in lines
    assert ["night", "1", "1", "0", "hare"] in lines
    for line in ("skipped, a file in place of a folder: night/notes.txt", "no images in: night/owl"):
        assert line in done.stdout
    answer = json.loads(here("data", "show", name, "--json").stdout)
    assert answer["environments"] == {"day": {"fox": 2, "hare": 1}, "night": {"fox": 1, "hare": 0}}


def test_data_show_counts_rows_of_a_table(here, tmp_path):
    rows = [f"{k % 2},{k % 7},{'abc'[k % 3] if k % 2 else 'd'}" for k in range(300)]
    (tmp_path / "x.csv").write_text("site,x,y\n" + "\n".join(rows))
    for target, cells in (("y", ["150", "50", "50", "50", "0", "d"]), ("x", ["150"])):
        name = f"table('{tmp_path / 'x.csv'}', target={target}, environment=site, min_rows=5, task={'regression' if target == 'x' else 'multiclass'})"
        done = here("data", "show", name)
        assert done.returncode == 0, done.stderr
        assert ["1", *cells] in [line.split() for line in done.stdout.splitlines()]
        assert f"'{target}': target; " in done.stdout
        page = tmp_path / f"{target}.html"
        assert here("data", "show", name, "-o", page).returncode == 0
        text = page.read_text(encoding="utf-8")
        assert ("0 has no rows of" in text) == (target == "y")
        assert str(tmp_path) not in text


def test_data_fetch_verifies_digests():
    done = run("data", "fetch", "mnist", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["md5"]["train-images-idx3-ubyte"] == "6bbc9ace898e44ae57da46a324031adb"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--algorithm", "imr"], "did you mean 'irm'"),
        (["train", "--data", "colored-minst"], "did you mean 'colored-mnist'"),
        (["train", "--data", "colored-mnist:irn"], "did you mean 'irm'"),
        ([*TRAIN, "--algorithm", "and-mask", "--set", "threshold=1.7"], "AndMask: threshold must be in [0, 1], got 1.7"),
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
def test_invalid_input_gives_one_line_and_exit_code_2(arguments, message, here):
    done = here(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_invalid_input_in_a_new_process():
    done = run(*TRAIN, "--algorithm", "imr")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip().splitlines() == [done.stderr.strip()]
    assert "did you mean 'irm'" in done.stderr


def test_closed_pipe_is_no_error():
    pipe = subprocess.run(
        f"{sys.executable} -m envariant algorithms | head -1",
        shell=True, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert pipe.stdout.startswith("erm")
    assert "Traceback" not in pipe.stderr
