"""Covariate shift in Colored MNIST: counts of a second implementation (NumPy and torch seed 0)."""

import numpy as np
import pytest
import torch

from envariant.core.errors import EnvariantError
from envariant.data import source
from envariant.data.colored.covariate_shift import CovariateShift, kept_rows


def counts(environment):
    label, color = environment.targets.long(), environment.attributes["color"]
    agree = [label == 1, color == label, label == environment.attributes["shape"]]
    return [len(environment), *(int(rows.sum()) for rows in agree)]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("class", [[12_717, 9_044, 10_214, 9_596], [12_277, 3_572, 11_033, 9_258], [5_000, 2_505, 477, 3_798]]),
        ("digit", [[9_960, 4_961, 7_998, 7_521], [10_304, 5_122, 9_265, 7_794], [4_046, 2_031, 385, 3_048]]),
    ],
)  # fmt: skip
def test_rows_and_labels_are_those_of_the_fixture(kind, expected):
    drawn = CovariateShift(kind, 0.1).sample(0)
    assert drawn.names == ("flip-0.2", "flip-0.1", "flip-0.9")
    assert drawn.test == ("flip-0.9",)
    assert list(map(counts, drawn.environments)) == expected


def test_shades_are_those_of_the_fixture():
    drawn = CovariateShift("color", 0.1).sample(0)
    assert [torch.bincount(each.attributes["channel"]).tolist() for each in drawn.environments] == [
        [1075, 11205, 11582, 1138], [11237, 1083, 1173, 11507], [2494, 2529, 2445, 2532]
    ]  # fmt: skip
    for each in drawn.environments:
        inked = each.inputs.flatten(2).any(dim=2)
        assert inked.shape[1] == 4
        assert torch.equal(inked.long().argmax(dim=1), each.attributes["channel"])
        assert inked.sum(dim=1).eq(1).all()
        assert torch.equal(each.attributes["channel"] // 2, each.attributes["color"])


def test_rows_are_kept_from_the_front_group_by_group():
    labels = np.array([7, 1, 7, 2, 9, 8, 0, 5])
    # Five rows of digits from 5 on, three below; sizes are truncated.
    kept = kept_rows(labels, ((5, 6, 7, 8, 9), (0, 1, 2, 3, 4)), 0.5)
    assert kept.tolist() == [0, 2, 1]
    assert kept_rows(labels, ((5, 6, 7, 8, 9), (0, 1, 2, 3, 4)), 0.0).tolist() == [1, 3, 6]


def test_overlap_one_is_balanced_and_zero_is_disjoint():
    balanced, disjoint = (CovariateShift("class", f).sample(0) for f in (1.0, 0.0))
    shares = [
        [float(e.attributes["shape"].double().mean()) for e in s.environments] for s in (balanced, disjoint)
    ]
    assert shares[0][:2] == pytest.approx([0.51, 0.51], abs=0.005)
    assert shares[1][:2] == [1.0, 0.0]


def test_the_source_is_found_by_name_and_rejects_wrong_settings():
    assert source("colored-mnist-covariate-shift(kind=digit)") == CovariateShift("digit")
    assert source("colored-mnist-covariate-shift(kind=class, overlap=0.5)") == CovariateShift("class", 0.5)
    assert (
        source("colored-mnist-covariate-shift(overlap=0.5)").name
        == "colored-mnist-covariate-shift(overlap=0.5)"
    )
    for text in ("(kind=shape)", "(overlap=2)"):
        with pytest.raises(EnvariantError, match="colored-mnist-covariate-shift"):
            source(f"colored-mnist-covariate-shift{text}")
