"""Reproductions: declared in a few lines, resumed after an interruption, published on one page."""

import csv
import json
import re
import signal
import time

import pytest
from matplotlib.figure import Figure

import processes
from envariant.core.errors import EnvariantError
from envariant.reporting.tables import TextTable
from envariant.reproductions.base import (
    CaptionedFigure,
    CaptionedTable,
    Reproduction,
    section,
)
from envariant.reproductions.publish import perform
from envariant.reproductions.runner import Run, Runner, RunNotStoredError
from envariant.reproductions.summaries import (
    curves,
    gain,
    id_score,
    ood_score,
    ood_score_at,
    ood_slope,
    show_runs,
    show_sweep,
)
from envariant.reproductions.verdicts import statement

DIGITS = Run("colored-digits", "erm", {"model": "mlp(hidden=4)", "steps": 6, "evaluate_every": 1})


@section("first", "The <first> section")
def first(runner):
    """It states <b>this</b>.

    And that.
    """
    runs = runner.sweep(
        {f"l2 = {l2:g}": Run(DIGITS.data, f"erm(l2={l2:g})", DIGITS.settings) for l2 in (0.0, 0.1)}
    )
    yield from show_runs(runs, "Two runs & a caption.")
    yield "A paragraph with <script>."
    yield statement("It holds.", ood_score(runs["l2 = 0"]).mean > -1, "1 > 0")
    yield statement("It does not.", False, "0 < 1")


@section("second", "The second section")
def second(runner):
    """It states more."""
    run = runner.train(DIGITS.but(learning_rate=runner.pick(quick=0.1, full=0.2)))
    yield CaptionedFigure("dots", Figure(), "Nothing.")
    yield CaptionedTable(
        "table", TextTable(("a|b", "c"), (("x, y", f"{ood_score(run).mean!r}"),), ("A note.",)), "A table"
    )
    yield statement("Fine.", True, "")


SMALL = Reproduction(
    "small", "A small <reproduction>", "Lead.", {"quick": "little", "full": "all"}, (first, second)
)


def pages(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.suffix in (".csv", ".svg", ".md", ".html")
            and "runs" not in p.parts}  # fmt: skip


def test_page_has_every_section_in_order_and_escapes_texts(tmp_path):
    results = list(perform(SMALL, tmp_path, "quick"))
    assert [result.count for result in results] == ["1 holds, 1 undecided", "1 holds"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'<details class="section" id="([^"]+)"', page)[:2] == ["first", "second"]
    assert "It states &lt;b&gt;this&lt;/b&gt;. And that." in page
    assert "A small &lt;reproduction&gt;" in page
    assert "A paragraph with &lt;script&gt;." in page
    assert page.count('<figure class="chart">') == 1
    assert "2 of 3 claims reproduced or hold" in page
    assert page.count("data:image/png;base64,") == 1
    assert ">holds<" in page
    assert ">undecided<" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page[: page.rindex("<script>")]), "nothing is fetched"
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "- **undecided**: It does not. (0 < 1)" in markdown
    assert "| a\\|b | c |" in markdown
    assert re.search(r"## Machine and versions\n\nsystem .*, torch .*: \d+ results?\.", markdown)
    header, line = csv.reader(
        (tmp_path / "tables" / "second-table.csv").read_text(encoding="utf-8").splitlines()
    )
    assert (header, line[0]) == (["a|b", "c"], "x, y")
    for ending in ("png", "svg"):
        assert (tmp_path / "figures" / f"first-runs-curves.{ending}").exists()


def test_second_call_trains_nothing_and_writes_identical_files(tmp_path):
    list(perform(SMALL, tmp_path, "quick"))
    before = pages(tmp_path)
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*.safetensors")}
    assert len(times) == 6
    lines = []
    list(perform(SMALL, tmp_path, "quick", report=lines.append))
    assert lines == ["section 1 of 2: first", "section 2 of 2: second"]
    assert pages(tmp_path) == before
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*.safetensors")} == times


def test_only_runs_the_requested_sections_and_keeps_earlier_findings(tmp_path):
    lines = []
    (result,) = perform(SMALL, tmp_path, "quick", only=["second"], report=lines.append)
    assert result.section.name == "second"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "envariant reproduce small --only first" in page
    assert not (tmp_path / "tables" / "first-runs-scores.csv").exists()
    list(perform(SMALL, tmp_path, "quick", only=["first"], report=lines.append))
    assert "Not run yet" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert [line.partition(",")[0] for line in lines if line.startswith("run ")] == [
        "run 1 of 2: erm(l2=0)",
        "run 2 of 2: erm(l2=0.1)",
    ]


def test_unknown_section_is_rejected_before_anything_is_written(tmp_path):
    with pytest.raises(EnvariantError, match="small: unknown section 'frist'; did you mean 'first'"):
        list(perform(SMALL, tmp_path / "new", "quick", only=["frist"]))
    assert not (tmp_path / "new").exists()


def test_sections_share_equal_runs_and_profiles_do_not(tmp_path):
    runner = Runner(tmp_path, "quick")
    assert runner.train(DIGITS) is runner.train(Run(DIGITS.data, DIGITS.algorithm, dict(DIGITS.settings)))
    assert runner.train(DIGITS).record.spec.replicas == 2
    assert Runner(tmp_path, "full").train(DIGITS).record.spec.replicas == 5
    assert len(list(tmp_path.iterdir())) == 2


def test_stored_only_runner_trains_nothing(tmp_path):
    archive = Runner(tmp_path, "quick", stored_only=True)
    with pytest.raises(RunNotStoredError):
        archive.train(DIGITS)
    Runner(tmp_path, "quick").train(DIGITS)
    assert len(archive.train(DIGITS).finished) == 2


@section("only", "Only")
def only(runner):
    """It states."""
    settings = {"model": "mlp(hidden=8)", "steps": 120, "evaluate_every": 20}
    runs = {a: Run("colored-digits", a, settings) for a in ("erm", "irm", "vrex")}
    yield from show_runs(runner.sweep(runs), "c")


def perform_only(folder):
    list(perform(Reproduction("s", "t", "l", {"quick": "q", "full": "f"}, (only,)), folder, "quick"))


def test_killed_process_resumes_and_writes_identical_files(tmp_path):
    """Perform a small reproduction in another process, with runs long enough to be killed within one."""
    process = processes.start(perform_only, tmp_path / "killed")
    deadline, runs = time.monotonic() + 90, tmp_path / "killed" / "runs"
    while time.monotonic() < deadline and not list(runs.glob("irm-*/runs.sqlite")):
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(list(runs.iterdir())) == 2, "killed within the second of three runs"
    done = {p: p.stat().st_mtime_ns for p in runs.glob("erm-*/jobs/000001/*.safetensors")}
    assert len(done) == 2
    for name in ("killed", "whole"):
        assert processes.run(perform_only, tmp_path / name) == 0
    assert all(p.stat().st_mtime_ns == written for p, written in done.items())
    ours, whole = (pages(tmp_path / name) for name in ("killed", "whole"))
    assert ours == whole
    assert len(ours) >= 3


def test_summaries_agree_with_the_history(tmp_path):
    runner = Runner(tmp_path, "quick")
    plain, decayed = runner.train(DIGITS), runner.train(Run(DIGITS.data, "erm(l2=0.5)", DIGITS.settings))
    history = plain.history
    own = history[(history.environment == "flip-0.9") & (history.metric == "accuracy")]
    assert ood_score(plain).mean == pytest.approx(own[own.step == 6].value.mean())
    assert ood_score_at(plain, 3).mean == pytest.approx(own[own.step == 3].value.mean())
    other = decayed.history
    last = other[(other.environment == "flip-0.9") & (other.metric == "accuracy") & (other.step == 6)]
    expected = own[own.step == 6].value.to_numpy() - last.value.to_numpy()
    assert gain(plain, decayed).mean == pytest.approx(expected.mean())
    slopes = [100 * (g[g.step >= 5].value.diff().iloc[-1]) for _, g in own.groupby("replica")]
    assert ood_slope(plain, 5).mean == pytest.approx(sum(slopes) / 2)
    train = history[(history.role == "train") & (history.metric == "loss") & (history.step == 6)]
    assert id_score(plain, "loss").mean == pytest.approx(train.value.mean())
    assert curves(plain, "*", "risk")[0][0] == [1, 2, 3, 4, 5, 6]
    chart, table = show_sweep({1.0: plain, 2.0: decayed}, "x", "c")
    assert chart.name == "sweep-chart"
    assert [line[0] for line in table.table.rows] == ["x = 1", "x = 2"]


def test_command_lists_reproductions_and_sections(here):
    done = here("reproduce", "--list")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("sjtu-2023")
    assert "irm-stuck" in done.stdout
    sections = json.loads(here("reproduce", "--list", "--json").stdout)["sjtu-2023"]["sections"]
    assert sections[0] == "overview"
    assert sections[-1] == "summary"


def test_command_runs_a_section_without_training(tmp_path, here):
    done = here("reproduce", "sjtu-2023", "--only", "derivation", "--out", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    assert [claim["verdict"] for claim in output["sections"]["derivation"]] == ["holds", "holds"]
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sjtu-2032"], "unknown reproduction 'sjtu-2032'; did you mean 'sjtu-2023'"),
        (["sjtu-2023", "--only", "lennet"], "sjtu-2023: unknown section 'lennet'; did you mean 'lenet'"),
        (["sjtu-2023", "--resume", "--out", "nowhere"], "nowhere: has no stored runs to resume"),
        (["sjtu-2023", "--profile", "fast"], "fast"),
    ],
)
def test_invalid_input_gives_one_line_and_exit_code_two(arguments, message, here):
    done = here("reproduce", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
