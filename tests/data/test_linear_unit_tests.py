"""Linear unit tests: rows of the released program at data seed 0, roles, and theory."""

import pytest
import torch

from envariant.core.errors import EnvariantError
from envariant.data import LinearUnitTests, source
from envariant.data.linear_unit_tests import PROBLEMS, SPLITS

# First values of row 0 of E0; sums over the rows of E0, E1, E2 in train, validation and test: of inputs (x) or
# targets (y). Numbers of the released program at data seed 0; a product of matrices that scrambles the inputs
# rounds differently on different processors.
ROWS = {
    "example1": (-0.0838315, 0.0000892, 0.0841894),
    "example1s": (0.867600, 0.510768, 1.537765),
    "example2": (-0.005992, -0.009231),
    "example3": (0.038642, 0.103159, 0.050732, 0.124841, 0.143970, 1.428758),
    "example3s": (-0.519860, -0.103224, -0.497804),
}
SUMS = {
    "example1": ("x", -191.616, -568.737, 152.118, -198.029, 926.712, 277.947, 203.986, 580.183, 587.174),
    "example2": ("y", 2969, 5040, 6957, 2934, 4962, 7057, 3049, 5055, 6999),
    "example2s": ("y", 2968, 5043, 6950, 2921, 4959, 7063, 3044, 5062, 6995),
    "example3": ("x", -14.163, 16.782, 15.616, -31.369, -23.666, 35.478, 7.338, 30.362, -54.575),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_rows_are_those_of_the_released_program(problem):
    drawn = dict(LinearUnitTests(problem).draw(0))
    assert tuple(drawn) == SPLITS
    x, y = drawn["train"][0]
    expected = ROWS.get(problem, ())
    assert x[0, : len(expected)].tolist() == pytest.approx(expected, abs=1.1e-6)
    if problem.startswith("example1"):
        assert y[0].item() == pytest.approx(
            {"example1": 0.023439, "example1s": -0.028649}[problem], abs=1.1e-6
        )
    if problem in SUMS:
        kind, *sums = SUMS[problem]
        parts = [part for split in SPLITS for part in drawn[split]]
        own = [float((x if kind == "x" else y).double().sum()) for x, y in parts]
        assert own == pytest.approx(sums, abs=1.1e-3)


def test_the_shortcut_of_example3_is_the_first_draw():
    x, _ = next(iter(LinearUnitTests("example3").draw(0)))[1][0]
    expected = torch.tensor([1.540996, -0.293429, -2.178789, 0.568431, -1.084522])
    torch.testing.assert_close(x[:5000, 5:].mean(dim=0), expected, atol=5e-3, rtol=0)


def test_roles_and_reference_scores():
    x = source("linear-unit-tests(example1, environments=2, rows=100)").sample(0)
    assert x.roles() == {
        "E0": "train", "E1": "train", "E0 validation": "validation", "E1 validation": "validation",
        "E0 test": "test", "E1 test": "test",
    }  # fmt: skip
    known = {p: LinearUnitTests(p, rows=10).sample(0).known for p in PROBLEMS}
    assert known["example1"].optimum == pytest.approx(10.43333, abs=1e-5)
    assert known["example2s"].optimum == 1
    assert known["example3"].optimum == pytest.approx(1 - 0.0126737, abs=1e-7)


def test_spurious_inputs_are_independent_of_the_target_in_test_and_for_the_oracle():
    def correlation(rows):
        x, y = rows
        return torch.corrcoef(torch.stack((x[:, 5:].sum(dim=1), y)))[0, 1].abs().item()

    plain, oracle = (dict(LinearUnitTests("example2", oracle=flag).draw(1)) for flag in (False, True))
    assert correlation(plain["train"][0]) > 0.8
    assert correlation(plain["validation"][0]) > 0.8
    assert all(correlation(each) < 0.05 for each in (plain["test"][0], *oracle["train"], *oracle["test"]))


@pytest.mark.parametrize("text", [
    "linear-unit-tests(example2s, environments=10, dim_spu=0, rows=50)",
    "linear-unit-tests(example3, dim_inv=2, dim_spu=7, oracle=true)",
    "linear-unit-tests(example1)",
])  # fmt: skip
def test_names_round_trip_and_every_width_works(text):
    x = source(text)
    assert x.name == text
    assert x.sample(3).input_shape == (x.dim_inv + x.dim_spu,)


@pytest.mark.parametrize(("text", "message"), [
    ("example4", "linear-unit-tests: problem must be"),
    ("example1, environments=1", "linear-unit-tests: environments must"),
    ("example3, rows=11", "linear-unit-tests: rows must be even in example3; got 11"),
])  # fmt: skip
def test_invalid_settings_are_rejected(text, message):
    with pytest.raises(EnvariantError, match=message):
        source(f"linear-unit-tests({text})")
