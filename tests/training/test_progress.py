"""Progress in log files and notebooks, with a fake clock and a fake notebook."""

import io
import sys
import types

import pytest

import envariant
from envariant.studies import sweep
from envariant.studies.study import Study, begin
from envariant.training import progress, progress_output
from envariant.training.progress_output import LINE_EVERY_S, LogBars, NotebookBars, duration, tick_until
from envariant.training.store import RunOutcome, Store


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def printed(clock, monkeypatch, unit="runs"):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    return LogBars(unit, clock), stream


def test_log_files_get_a_line_at_least_every_minute(clock, monkeypatch):
    bars, stream = printed(clock, monkeypatch)
    task, times = bars.add("study", 48), []

    def is_over(seconds):
        clock.now += seconds
        # A step of 15 minutes reports nothing; the lines appear all the same.
        bars.update(task, min(48.0, (clock.now - 100) // 900))
        return clock.now > 100 + 3600

    def tick():
        times.append(clock.now)
        bars.tick()

    tick_until(is_over, LINE_EVERY_S, tick)
    lines = stream.getvalue().splitlines()
    assert len(lines) == len(times) == 120
    assert max(b - a for a, b in zip([100.0, *times], times, strict=False)) <= 60
    assert lines[0] == "study: 0/48 runs, 30 s"
    assert lines[-1] == "study: 4/48 runs, 1 h 0 min, about 11 h 0 min left"


def test_lines_have_units_time_left_and_notes(clock, monkeypatch):
    bars, stream = printed(clock, monkeypatch, "steps")
    task = bars.add("irm on \x1b[2Jdigits", 20_000)
    clock.now += 90
    bars.update(task, 5_000, "replica 2: flip-0.9 0.653")
    bars.tick()
    bars.close()
    assert (
        stream.getvalue()
        == "irm on \\x1b[2Jdigits: 5,000/20,000 steps, 2 min, about 4 min left; replica 2: flip-0.9 0.653\n"
    )
    bars.remove(task)
    bars.tick()
    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (60, "1 min"), (3_570, "1 h 0 min"), (7_500, "2 h 5 min")],
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


@pytest.fixture
def notebook(monkeypatch):
    """Put a kernel into this process, as IPython does; return what the cell shows."""
    shown = []

    class Handle:
        def update(self, content):
            shown[-1] = content

    def display(content, display_id):
        assert display_id
        shown.append(content)
        return Handle()

    module = types.ModuleType("IPython.display")
    module.HTML, module.display = str, display
    parent = types.ModuleType("IPython")
    parent.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    parent.display = module
    monkeypatch.setitem(sys.modules, "IPython", parent)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return shown


def test_a_notebook_gets_one_bar_that_is_updated(notebook, clock):
    bars = NotebookBars("steps", clock)
    task = bars.add("<b>irm</b>", 200)
    bars.close()
    assert notebook == [], "short runs show nothing"
    bars.update(task, 50)
    bars.tick()
    bars.update(task, 200)
    clock.now += 3
    bars.close()
    (cell,) = notebook
    assert cell.startswith('<div><progress value="200.000" max="200"></progress> &lt;b&gt;irm')
    assert "200/200 steps, 3 s" in cell


def test_training_in_a_notebook_shows_the_bar(notebook, monkeypatch):
    monkeypatch.setattr(progress_output, "_NOTEBOOK_EVERY_S", 1e-4)
    envariant.train("colored-digits", "erm", steps=200, model="linear")
    assert len(notebook) == 1
    assert "erm on colored-digits: 200/200 steps" in notebook[0]


def test_training_without_a_terminal_is_silent_for_half_a_minute_or_if_asked(capsys, monkeypatch):
    envariant.train("colored-digits", "erm", steps=2, model="linear")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress_output, "LINE_EVERY_S", 1e-4)
    envariant.train("colored-digits", "erm", steps=100, model="linear", progress=False)
    assert capsys.readouterr().err == ""
    envariant.train("colored-digits", "erm", steps=200, model="linear")
    assert "/200 steps" in capsys.readouterr().err


def test_a_sweep_shows_the_scores_of_the_run_that_finished_last(tmp_path, monkeypatch, clock):
    study = Study("colored-digits", "erm", replicas=2, settings={"steps": 6, "model": "linear"})
    begin(tmp_path, study).close()
    bars, stream = printed(clock, monkeypatch)
    with Store(tmp_path) as store:
        counter = progress.SweepProgress(store)
        counter.show(bars, bars.add("mine", 2))
        assert store.newest_scores() is None
        sweep(tmp_path, on_progress=counter)
        counter.look(store)
        bars.tick()
        last = store.table().iloc[-1]
    assert stream.getvalue().endswith(f"; erm, accuracy: flip-0.9 {last['test']:.3f}\n")


def test_lines_of_a_sweep_count_runs_of_all_processes_and_failures(tmp_path, monkeypatch, clock):
    study = Study("colored-digits", "erm", replicas=8, settings={"steps": 6})
    begin(tmp_path, study).close()
    bars, stream = printed(clock, monkeypatch)
    with Store(tmp_path) as store:
        counter = progress.SweepProgress(store)
        counter.show(bars, bars.add("mine", 8))
        counter(1, 3, 6)
        store.claim()
        store.add((), [RunOutcome(run, None, 0.0, None) for run in (2, 3)])
        store.add((), [RunOutcome(4, "broken", 0.0)])
        bars.tick()
        counter.look(store)
        clock.now += 35
        bars.tick()
    assert stream.getvalue().splitlines() == [
        "mine: 0.5/8 runs, 0 s, about 0 s left",
        "mine: 3.5/8 runs, 35 s, about 45 s left; 1 failed",
    ]
