"""Stock prices of the REx paper on made-up files, with plain loops as second implementations."""

import hashlib
import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch

from envariant.analysis.statistics import interval
from envariant.core.errors import EnvariantError
from envariant.reproductions import rex_finance, rex_finance_training
from envariant.reproductions.rex_finance import TEXTS, finance, within_noise
from envariant.reproductions.rex_finance_training import FILES, ReleasedFile, Size, stopped
from envariant.reproductions.runner import Runner
from envariant.reproductions.stacked_mlp import dropout_mask, initial
from envariant.reproductions.verdicts import Claim


def made_up(year, rng):
    """Table of one year; the years differ in columns, and the price change determines the class."""
    count = 20 + year % 5
    change = rng.normal(size=count)
    change[:8] = [1, -1, -1, 1, 1, -1, 1, -1]
    columns = {
        "profit": rng.normal(size=count) + change,
        f"only {year}": rng.normal(size=count),
        "debt": rng.normal(size=count),
        "cash": rng.integers(0, 9, size=count),
        "Sector": ["Energy"] * count,
        f"{year + 1} PRICE VAR [%]": change,
        "Class": (change > 0).astype(int),
    }
    return pd.DataFrame(columns, index=[f"S{k}" for k in range(count)])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for year in FILES:
        table = made_up(year, rng)
        table.to_csv(tmp_path / f"{year}_clean.csv")
        digest = hashlib.sha256((tmp_path / f"{year}_clean.csv").read_bytes()).hexdigest()[:16]
        ones = int(table["Class"].sum())
        known = ReleasedFile(len(table), table.shape[1], (len(table) - ones, ones), digest)
        monkeypatch.setitem(FILES, year, known)
    return tmp_path


@pytest.fixture
def small(folder, monkeypatch):
    """Size of seconds, and the folder of the files in the environment variable."""
    monkeypatch.setattr(rex_finance_training, "HIDDEN", 3)
    monkeypatch.setattr(rex_finance_training, "BLOCK", 2)
    for name in rex_finance_training.SIZES:
        monkeypatch.setitem(rex_finance_training.SIZES, name, Size(9, 2, 1, 1))
    monkeypatch.setenv(rex_finance_training.FOLDER_VARIABLE, str(folder))


def test_classes_are_balanced_in_file_order_and_columns_are_standardized(folder):
    for year, (inputs, labels) in rex_finance_training.environments(
        rex_finance_training.load(folder)
    ).items():
        table = pd.read_csv(folder / f"{year}_clean.csv")
        smaller = min((table["Class"] == 0).sum(), (table["Class"] == 1).sum())
        taken, rows = {0: 0, 1: 0}, []
        for _, row in table.iterrows():
            if taken[row["Class"]] < smaller:
                taken[row["Class"]] += 1
                rows.append(row)
        assert labels.tolist() == [row["Class"] for row in rows]
        assert taken == {0: smaller, 1: smaller}
        for k, column in enumerate(("profit", "debt", "cash")):
            values = [float(row[column]) for row in rows]
            mean = sum(values) / len(values)
            sd = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
            assert inputs[:, k].tolist() == pytest.approx([(v - mean) / sd for v in values], abs=1e-5)
        assert inputs.shape[1] == 3


def test_wrong_files_are_refused(folder, monkeypatch):
    path = folder / "2016_clean.csv"
    content = path.read_text()

    def refused(text, match):
        path.write_text(text)
        rex_finance_training.load.cache_clear()
        with pytest.raises(EnvariantError, match=match):
            rex_finance_training.load(folder)

    refused(content + "EXTRA" + content.splitlines()[-1] + "\n", "number of rows is 22, expected 21")
    refused(content.replace("S1,", "T1,"), "SHA-256")
    refused(content.replace("Class", "Klass"), r"rows by class is \(0, 0\)")
    path.unlink()
    rex_finance_training.load.cache_clear()
    with pytest.raises(EnvariantError, match="2016_clean.csv: cannot be read"):
        rex_finance_training.load(folder)


def test_the_price_change_of_the_next_year_is_no_input():
    table = made_up(2014, np.random.default_rng(0))
    assert rex_finance_training.predictors(table, 2014) == ["profit", "only 2014", "debt", "cash"]


def test_every_year_is_tested_equally_often():
    ten = rex_finance_training.choices()
    assert sorted(ten) == sorted(map(list, itertools.combinations(FILES, 3)))
    for count in (5, 10):
        trained = [year for years in ten[:count] for year in years]
        assert {trained.count(year) for year in FILES} == {3 * count // 5}


def plain_logit(weights, x, masks):
    """Logit of one row; the weights are those of one network, and the masks have one entry per unit."""
    for k, mask in enumerate(masks):
        w, b = weights[2 * k], weights[2 * k + 1]
        sums = [sum(x[i] * w[i][j] for i in range(len(x))) + b[j] for j in range(len(b))]
        x = [math.tanh(each) * m for each, m in zip(sums, mask, strict=True)]
    return sum(a * w[0] for a, w in zip(x, weights[4], strict=True)) + weights[5][0]


def plain_loss(weights, parts, masks, penalty, step):
    risks, slopes, start = [], [], 0
    for inputs, labels in parts:
        risk = slope = 0.0
        for i, (x, y) in enumerate(zip(inputs, labels, strict=True)):
            z = plain_logit(weights, x, [mask[start + i] for mask in masks])
            p = 1 / (1 + math.exp(-z))
            risk -= y * math.log(p) + (1 - y) * math.log(1 - p)
            slope += (p - y) * z
        risks.append(risk / len(labels))
        slopes.append(slope / len(labels))
        start += len(labels)
    mean = sum(risks) / 3
    loss = mean + 0.001 * sum(float((w**2).sum()) for w in weights)
    if not penalty:
        return loss
    if step >= 1000:
        loss /= 10_000
    if penalty == "irm":
        return loss + sum(s * s for s in slopes) / 3
    return loss + sum((r - mean) ** 2 for r in risks) / 2


@pytest.mark.parametrize(
    ("penalty", "step"), [("vrex", 999), ("vrex", 1000), ("irm", 999), ("irm", 1000), ("", 1000)]
)
def test_loss_and_gradient_are_those_of_plain_loops(penalty, step):
    rng = np.random.default_rng(1)
    parts = [(rng.normal(size=(n, 2)), rng.integers(0, 2, n)) for n in (3, 4, 2)]
    inputs, targets = (torch.from_numpy(np.concatenate(each)).float() for each in zip(*parts, strict=True))
    params = initial((2, 2, 2, 1), 2, rng)
    with torch.no_grad():
        for bias in params[1::2]:
            bias += 0.1
    z = rex_finance_training.logits(params, inputs, torch.tanh, np.random.default_rng(7))
    loss = rex_finance_training.objective(z, targets, (3, 4, 2), params, penalty, step)
    loss.sum().backward()
    same = np.random.default_rng(7)
    masks = [dropout_mask((2, 9, 2), same).numpy() for _ in range(2)]
    for run in range(2):
        own = [mask[run] for mask in masks]
        weights = [p.detach()[run].double().numpy() for p in params]
        weights[1::2] = [bias[0] for bias in weights[1::2]]
        assert loss[run].item() == pytest.approx(plain_loss(weights, parts, own, penalty, step), rel=1e-5)
        for param, weight in zip(params, weights, strict=True):
            gradient = param.grad[run].flatten().tolist()
            numeric = []
            flat = weight.reshape(-1)
            for i, value in enumerate(flat.tolist()):
                sides = []
                for shift in (1e-5, -1e-5):
                    flat[i] = value + shift
                    sides.append(plain_loss(weights, parts, own, penalty, step))
                flat[i] = value
                numeric.append((sides[0] - sides[1]) / 2e-5)
            assert gradient == pytest.approx(numeric, rel=1e-3, abs=2e-6)


def test_an_update_is_one_step_of_adam(monkeypatch):
    """With a learning rate of 0.5, the first step of Adam changes every parameter by 0.5 times a sign."""
    for name, value in (("HIDDEN", 4), ("BLOCK", 1), ("RATE", 0.5)):
        monkeypatch.setattr(rex_finance_training, name, value)
    rng = np.random.default_rng(3)
    data = {
        year: (torch.from_numpy(rng.normal(size=(40, 2))).float(), torch.from_numpy(rng.integers(0, 2, 40)).float())
        for year in FILES
    }  # fmt: skip
    years = [2014, 2015, 2017]
    found = rex_finance_training.train(data, years, "vrex", Size(2, 1, 1, 1), [5])
    training, _ = np.random.default_rng([5]).spawn(2)
    params = initial((2, 4, 4, 1), 1, training)
    inputs, targets = (torch.cat([data[year][k] for year in years]) for k in (0, 1))
    z = rex_finance_training.logits(params, inputs, torch.tanh, training)
    rex_finance_training.objective(z, targets, (40, 40, 40), params, "vrex", 0).sum().backward()
    moved = [(p - 0.5 * p.grad / (p.grad.abs() + 1e-8)).detach()[0] for p in params]
    for block, weights in enumerate(([p.detach()[0] for p in params], moved)):
        for k, year in enumerate((2016, 2018)):
            x, y = data[year]
            hidden = (x @ weights[0] + weights[1]).tanh()
            z = ((hidden @ weights[2] + weights[3]).tanh() @ weights[4] + weights[5])[:, 0]
            assert found["off"][0][k][block] == pytest.approx(float(((z > 0) == (y == 1)).double().mean()))


def test_each_test_year_selects_the_block_of_the_other():
    curves = np.random.default_rng(2).random((3, 2, 7)).round(1)
    curves[:, :, 0] = 1  # The first block is best, but may not be selected.
    expected = []
    for own, other in ((0, 1), (1, 0)):
        best, at = -1.0, 0
        for block in range(1, 7):
            mean = sum(curves[run][other][block] for run in range(3)) / 3
            if mean > best:
                best, at = mean, block
        expected.append(sum(curves[run][own][at] for run in range(3)) / 3)
    assert stopped(curves.tolist()) == pytest.approx(expected)


def test_blocks_are_means_of_consecutive_measurements():
    curves = torch.arange(14.0).view(1, 2, 7)
    assert rex_finance_training._block_means(curves, 3) == [[[1.0, 4.0], [8.0, 11.0]]]


def test_the_section_runs_to_its_end_and_shows_stored_results_without_the_files(small, tmp_path, monkeypatch):
    first = list(finance.find(Runner(tmp_path / "runs", "quick")))
    claims = [each for each in first if isinstance(each, Claim)]
    assert [claim.text for claim in claims] == list(TEXTS)
    monkeypatch.delenv(rex_finance_training.FOLDER_VARIABLE)
    again = list(finance.find(Runner(tmp_path / "runs", "quick", stored_only=True)))
    assert [each for each in again if isinstance(each, Claim)] == claims
    (table,) = (each for each in first if getattr(each, "name", "") == "accuracies")
    assert [row[0] for row in table.table.rows] == list(rex_finance_training.METHODS)
    # Two draws of one method: the random numbers differ, so the accuracies do.
    assert table.table.rows[0][1:] != table.table.rows[1][1:]


def test_without_files_the_section_names_them_and_stays_undecided(tmp_path, monkeypatch):
    monkeypatch.delenv(rex_finance_training.FOLDER_VARIABLE, raising=False)
    note, *claims = finance.find(Runner(tmp_path, "quick"))
    for part in ("2014_clean.csv", "2018_clean.csv", "ENVARIANT_FINANCE", "4 tasks, 1,201 updates"):
        assert part in note
    assert [claim.verdict for claim in claims] == ["undecided"] * 3


def test_an_unknown_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(rex_finance.SIZE_VARIABLE, "ful")
    with pytest.raises(EnvariantError, match="did you mean 'full'"):
        next(finance.find(Runner(tmp_path, "quick")))


def test_few_tasks_show_no_absence_of_differences():
    around, above = [-0.1, 0.1] * 10, [0.1, 0.11] * 10
    assert within_noise([interval(around)]) is True
    assert within_noise([interval(around), interval(above)]) is False
    assert within_noise([interval(around[:4])]) is None


@pytest.mark.parametrize(
    ("size", "verdicts"),
    [
        ("full", ["holds", "not reproduced", "not reproduced"]),
        ("reduced", ["undecided", "undecided", "undecided"]),
    ],
)
def test_verdicts_follow_the_scores_and_only_the_full_size_contradicts(size, verdicts):
    noise = [-0.01, 0.01] * 10
    levels = {"ERM, as run": 0.55, "REx": 0.55, "IRM": 0.55, "ERM": 0.52}
    # The noise of REx and IRM is opposite, so that their differences from the program's ERM have a spread.
    signs = {"ERM, as run": 0, "REx": 1, "IRM": -1, "ERM": 0}
    scores = {
        (name, d): [level + signs[name] * e for e in noise]
        for name, level in levels.items()
        for d in ("on", "off")
    }
    claims = rex_finance._claims(scores, rex_finance_training.SIZES[size])
    assert [claim.verdict for claim in claims] == verdicts


def test_a_worst_task_below_chance_is_found_at_any_size():
    scores = {
        (name, d): [0.4, *[0.55, 0.56] * 4] for name in rex_finance_training.METHODS for d in ("on", "off")
    }
    *_, worst = rex_finance._claims(scores, rex_finance_training.SIZES["reduced"])
    assert worst.verdict == "holds"
