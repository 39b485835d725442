"""The tool that injects faults notices each of the consequences that it counts."""

import random

import pytest

from benchmarks import faults
from benchmarks.faults import Result, Tally, judge, mutate

SOUND = Result(0, '{"accuracy": 1}', "")


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([SOUND], "same"),
        ([Result(0, SOUND.output, "envariant: x: is damaged")], "computed again"),
        ([Result(2, "", "envariant: x: is damaged\n")], "refused"),
        ([Result(2, "", "")], "tracebacks"),
        ([Result(1, "", "Traceback (most recent call last):\nKeyError: 1")], "tracebacks"),
        ([Result(-7, "", "the process died")], "tracebacks"),
        ([], "tracebacks"),
        ([Result(0, '{"accuracy": 2}', "")], "silent differences"),
    ],
)
def test_consequences_are_told_apart(results, expected):
    tally = Tally()
    judge(tally, "x", [SOUND], results)
    assert set(tally.counts) == {expected}
    assert bool(tally.notes) == (expected in faults.FAULTS)


def test_every_mutation_changes_the_file(tmp_path):
    rng, path = random.Random(0), tmp_path / "x"
    content = random.Random(1).randbytes(9000)
    kinds = set()
    for _ in range(100):
        path.write_bytes(content)
        kinds.add(mutate(path, rng).partition(" at")[0])
        assert path.read_bytes() != content
    assert kinds == {"bit", "garbage", "zeroed page", "garbage page", "cut", "appended"}


def test_page_states_the_figures():
    figures = {"faults": 7, "counts": {"same": 4, "lost runs": 2}, "notes": [], "seconds": 3.2}
    text = faults.page({"kills": figures})
    assert (
        "| SIGKILL at a random moment of `train`, `sweep` and `compare` | 7 | 0 | 0 | 2 | 0 | 3 s |" in text
    )
    assert "Outcomes of kills: same results 4." in text


def test_published_figures_have_enough_faults_and_no_consequence():
    rows = [line.split("|")[2:7] for line in faults.FIGURES.read_text().splitlines() if line.startswith("| ")]
    counts = [[int(cell) for cell in row] for row in rows if row[0].strip().isdigit()]
    assert [row[1:] for row in counts] == [[0] * len(faults.FAULTS)] * len(faults.KINDS)
    assert all(row[0] >= least for row, least in zip(counts, faults.FEWEST.values(), strict=True))
