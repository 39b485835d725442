"""Tests of `benchmarks/gpu.sh`: bookkeeping of checks, verdicts, and a rehearsal on the CPU."""

import json
import os
import select
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
ANSWER = "import json, sys; open(sys.argv[-1], 'w').write(json.dumps({answer}))"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return import_module("benchmarks.gpu")


@pytest.fixture
def runner(gpu):
    return gpu.check_runner


def program(text):
    # -S leaves out the site-packages, which take longer to find than these programs take.
    return (sys.executable, "-S", "-c", text)


def answering(status, **figures):
    return program(ANSWER.format(answer={"status": status, "summary": f"it {status}", "figures": figures}))


def test_failing_checks_do_not_affect_later_ones(runner, tmp_path):
    jobs = [
        runner.Job("first", answering("failed", ratio=0.5), 60),
        runner.Job("raises", program("print('so far'); raise SystemExit('the reason')"), 60),
        runner.Job("silent", program("pass"), 60),
        runner.Job("endless", program("import time; print('begun', flush=True); time.sleep(600)"), 1.5),
        runner.Job("last", answering("passed", ratio=2.0), 60),
    ]
    results = {each.name: each for each in runner.run_all(jobs, tmp_path, 600)}
    assert [r.status for r in results.values()] == ["failed", "error", "error", "timeout", "passed"]
    assert results["first"].figures == {"ratio": 0.5}
    assert results["first"].summary == "it failed"
    assert "exit status 1; last line: the reason" in results["raises"].summary
    assert "exit status 0; no output" in results["silent"].summary
    assert "stopped after 2 s" in results["endless"].summary
    assert 1.5 <= results["endless"].seconds < 600
    assert runner.total(list(results.values())).startswith("1 passed, 1 failed, 1 timeout, 2 error in ")
    stored = json.loads(runner.to_json(list(results.values()), {"tiny": True}))
    assert [each["status"] for each in stored["checks"]] == [r.status for r in results.values()]


def test_result_of_an_earlier_run_is_not_taken_for_a_new_one(runner, tmp_path):
    (tmp_path / "silent.json").write_text(json.dumps({"status": "passed", "summary": "", "figures": {}}))
    assert runner.execute(runner.Job("silent", program("pass"), 60), tmp_path, 60).status == "error"


def test_processes_that_a_check_started_end_with_it(runner, tmp_path):
    """A pipe is closed for reading when the last process that can write to it has ended."""
    os.mkfifo(tmp_path / "pipe")
    read = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    text = (
        f"import subprocess; pipe = open({str(tmp_path / 'pipe')!r}, 'wb', buffering=0); pipe.write(b'open')\n"
        f"subprocess.Popen(['sleep', '600'], stdout=pipe)\n"
        + ANSWER.format(answer={"status": "passed", "summary": "", "figures": {}})
    )
    assert runner.execute(runner.Job("parent", program(text), 60), tmp_path, 60).status == "passed"
    assert os.read(read, 4) == b"open"
    assert select.select([read], [], [], 30)[0], "a process still holds the pipe"
    assert os.read(read, 4) == b""
    os.close(read)


def test_check_is_skipped_without_the_one_that_it_needs(runner, tmp_path):
    jobs = [
        runner.Job("digits", answering("skipped"), 60),
        runner.Job("vrex", answering("passed"), 60, needs="digits"),
        runner.Job("orphan", answering("passed"), 60, needs="unknown"),
    ]
    _, vrex, orphan = runner.run_all(jobs, tmp_path, 600)
    assert (vrex.status, vrex.summary) == ("skipped", "no digits: it skipped")
    assert (orphan.status, orphan.summary) == ("skipped", "no unknown: it was not run")
    assert not (tmp_path / "vrex.json").exists()


def test_total_time_bounds_the_checks(runner, tmp_path):
    times = iter([0.0, 0.0, 98.5, 100.0])
    endless = program("import time; time.sleep(600)")
    jobs = [
        runner.Job("quick", answering("passed"), 600),
        runner.Job("cut", endless, 600),
        runner.Job("late", endless, 600),
    ]
    quick, cut, late = runner.run_all(jobs, tmp_path, 100, clock=lambda: next(times))
    assert (quick.status, cut.status, late.status) == ("passed", "timeout", "skipped")
    assert cut.seconds < 600
    assert late.summary == "the 100 s are used up"


def test_rehearsal_does_not_judge_speed_or_accuracy(gpu, runner, tmp_path):
    def status(passed, *, tiny, of_sizes):
        check = gpu.Check("", lambda setup: gpu.Outcome(passed, "", {}), 1, of_sizes=of_sizes)
        runner.answer(check, gpu.Setup(tmp_path, "cpu", tiny), tmp_path / "answer.json")
        return json.loads((tmp_path / "answer.json").read_text())["status"]

    assert status(True, tiny=False, of_sizes=True) == "passed"
    assert status(False, tiny=False, of_sizes=True) == "failed"
    assert status(None, tiny=False, of_sizes=True) == "ran"
    assert status(False, tiny=True, of_sizes=True) == "ran"
    assert status(False, tiny=True, of_sizes=False) == "failed"


def test_checks_without_digits_are_skipped_with_the_reason(gpu, runner, tmp_path, monkeypatch):
    monkeypatch.setenv("ENVARIANT_MNIST", str(tmp_path / "nowhere"))
    runner.answer(gpu.CHECKS["digits"], gpu.Setup(tmp_path, "cpu", True), tmp_path / "answer.json")
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["status"] == "skipped"
    assert "nowhere: there is no such folder" in answer["summary"]
    assert {name for name, check in gpu.CHECKS.items() if check.needs} == {"vrex", "accuracy-time"}


def test_one_changed_bit_fails_the_check_of_trm(gpu, tmp_path, monkeypatch):
    setup, weights = gpu.Setup(tmp_path, "cpu", True), {"0 head.weight": torch.tensor([1.0, 2.0])}
    values = {(2, 0, "train", "a", "loss"): 0.5, (4, 0, "train", "a", "loss"): 0.25}
    other = {**values, (4, 0, "train", "a", "loss"): 0.25 * (1 + 1e-9)}
    for second, different, first in (
        ((values, weights), [], "none"),
        ((other, weights), [], "4 0 train a loss"),
        ((values, {"0 head.weight": torch.tensor([1.0, 2.0000002])}), ["0 head.weight"], "none"),
    ):
        runs = iter([(values, weights), (values, weights), second])
        monkeypatch.setattr(gpu, "train_trm", lambda setup, runs=runs: next(runs))
        outcome = gpu.trm(setup)
        assert outcome.passed == (not different and first == "none")
        assert outcome.figures["weights that differ"] == different
        assert outcome.figures["first measured value that differs"] == first
    assert outcome.summary == "1 of 2 repetitions are bit-identical to the first run"


def test_slower_workload_fails_the_check_of_the_network(gpu, tmp_path, monkeypatch):
    setup = gpu.Setup(tmp_path, "cuda", False)
    for worst, passed in ((0.95, False), (1.0, True)):
        table = [{"workload": "step", "ratio": worst}, {"workload": "evaluation", "ratio": 2.28}]
        monkeypatch.setattr(gpu.engine, "cnn", lambda device, repeats, table=table: table)
        outcome = gpu.cnn(setup)
        assert (outcome.passed, outcome.figures) == (passed, {"cnn": table})


def test_page_shows_every_check_and_its_tables(gpu, runner):
    results = [
        runner.Result("cnn", "failed", 1.5, "a|b", {"cnn": [{"workload": "step", "ratio": 0.95}], "n": 3}),
        runner.Result("trm", "skipped", 0.0, "the 720 s are used up"),
    ]
    hardware = {"system": "Linux", "processor": "x", "cores": 2, "threads": 1, "device": "cuda"}
    conditions = {"tiny": False, "commit": "abc", "versions": {"torch": "2"}, "hardware": hardware}
    page = gpu.page(results, conditions)
    assert "| failed | 1.5 | a\\|b |" in page
    assert "| workload | ratio |\n| --- | --- |\n| step | 0.95 |" in page
    assert "1 failed, 1 skipped in 2 s" in page
    assert "Rehearsal" not in page
    assert "Rehearsal" in gpu.page(results, {**conditions, "tiny": True})


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests the message without a CUDA device")
def test_message_without_a_cuda_device_names_the_rehearsal(gpu, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        gpu.main([str(tmp_path)])
    assert (
        "there is no CUDA device; to rehearse without one, use --device cpu --tiny" in capsys.readouterr().err
    )


@pytest.mark.verify
@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
def test_rehearsal_of_the_script(tmp_path):
    """Two processes start: the script and the check."""
    done = subprocess.run(
        [BENCHMARKS / "gpu.sh", tmp_path, "--device", "cpu", "--tiny", "--only", "extraction"],
        env={**os.environ, "ENVARIANT_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    line, total = done.stdout.splitlines()
    assert line.startswith("RAN     extraction ")
    assert "rows per second" in line
    assert total.startswith("1 ran in ")
    assert total.endswith(f"figures in {tmp_path / 'figures.md'}")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["checks"][0]["figures"]["rows"] == 64
    assert figures["checks"][0]["figures"]["wall"] > 0
    assert "| extraction |" in (tmp_path / "figures.md").read_text()
