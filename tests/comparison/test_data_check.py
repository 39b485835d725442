"""The data check names what is wrong with a table, and is silent on clean tables."""

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn import datasets

from envariant.comparison.data_check import check_data, print_findings
from envariant.comparison.data_summary import DataSummary
from envariant.comparison.page.data_check import DataCheck
from envariant.data.tables.table import read


def check(frame, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = check_data(read(frame, "y", "site", **{"min_rows": 10, **more}))
    for finding in found:
        assert len(finding.sentence.split()) <= 25, finding
        assert len(finding.action.split()) <= 15, finding
        assert finding.sentence.endswith(".")
        assert finding.action.endswith(".")
    return found


def clean(seed=0, rows=400, environments=4, task="binary"):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 4))
    y = x[:, 0] + rng.normal(size=rows)
    return pd.DataFrame(
        {
            **dict(zip("abcd", x.T, strict=True)),
            "group": rng.choice(list("pqr"), rows),
            "count": rng.poisson(3, rows),
            "gaps": np.where(rng.random(rows) < 0.2, np.nan, rng.normal(size=rows)),
            "y": (y > 0).astype(int) if task == "binary" else y,
            "site": [f"s{k}" for k in np.arange(rows) % environments],
        }
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["breast_cancer", "diabetes", "iris", "wine"])
def test_no_finding_on_clean_tables_of_scikit_learn(name, seed):
    frame = getattr(datasets, f"load_{name}")(as_frame=True).frame.rename(columns={"target": "y"})
    frame["site"] = np.random.default_rng(seed).choice(list("ABC"), len(frame))
    assert check(frame) == ()


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_no_finding_on_made_tables_and_small_environments(task):
    for seed in range(3):
        assert check(clean(seed, task=task)) == ()
        assert check(clean(seed, rows=1200, environments=40, task=task)) == ()
    shifted = clean(task=task)
    shifted["a"] += shifted["site"].str[1].astype(int) * 2
    assert check(shifted) == ()


def test_all_kinds_of_finding():
    rng = np.random.default_rng(1)
    frame = clean(1)
    frame["copy"] = frame["y"] + 0.1 * rng.normal(size=400)
    frame["device"] = frame["site"].replace({"s0": "x1", "s1": "x2", "s2": "x3", "s3": "x4"})
    frame["vessels"] = np.where(frame["site"] == "s2", 0.5, np.nan)
    frame.loc[::7, "vessels"] = 1.0
    frame["chol"] = np.where(np.arange(400) % 9, rng.normal(220, 30, 400), 0)
    frame["patient_id"] = rng.choice(90_000, 400, replace=False)
    frame["name"] = [f"n{k}" for k in range(400)]
    frame["when"] = pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(900, size=400), unit="D")
    frame.loc[frame.index[3:160:4], "group"] = "only there"
    frame = pd.concat([frame, frame.iloc[:48:4].assign(site="tiny", y=1, copy=1.0, device="x5")])
    found = check(frame)
    assert [(f.kind, f.columns) for f in found] == [
        ("target leak", ("copy",)),
        ("names the environment", ("device",)),
        ("missing by environment", ("vessels",)),
        ("code for missing", ("chol",)),
        ("identifier", ("name",)),
        ("identifier", ("patient_id",)),
        ("date", ("when",)),
        ("local category", ("group",)),
        ("small environment", ("site",)),
        ("one class", ("y",)),
    ]
    assert "Only s3 has 'only there' in 'group'" in found[7].sentence
    assert found[1].action == "Exclude 'device'."


def test_a_sum_and_a_near_leak():
    frame = clean(task="regression")
    frame["y"] = frame["a"] + 2 * frame["b"]
    (finding,) = check(frame)
    assert (finding.kind, finding.columns) == ("joint target leak", ("a", "b"))
    frame = clean(task="regression")
    frame["near"] = frame["y"] + 0.25 * frame["c"]
    (finding,) = check(frame)
    assert (finding.kind, finding.columns) == ("near leak", ("near",))


def test_whole_number_targets():
    rng = np.random.default_rng(0)
    for levels, task, text in (
        (19, "regression", "predicted by regression"),
        (7, "multiclass", "treated as classes"),
    ):
        frame = clean().assign(y=rng.integers(levels, size=400))
        (finding,) = check(frame)
        assert finding.kind == "whole-number target"
        assert text in finding.sentence
        assert read(frame, "y", "site").task == task
    assert check(clean().assign(y=rng.integers(3, size=400))) == ()


def test_findings_are_printed_and_shown(capsys):
    frame = clean(task="regression")
    frame["y"] = frame["a"] + 2 * frame["b"]
    found = check(frame)
    print_findings(found)
    printed = capsys.readouterr().err
    assert printed.startswith("joint target leak: 'a' and 'b' together determine y")
    assert DataSummary(findings=found).findings == found
    assert DataCheck.title == "Data check"
