"""`linear-sem` draws the rows of the released program of the IRM paper."""

import pytest
import torch

from envariant.core.errors import EnvariantError
from envariant.data import LinearSEM, source
from envariant.data.linear_sem import SETUPS
from envariant.testing import check_source

# First inputs and target of the first environment; causal and non-causal error of least squares on all rows.
# Computed by another implementation with NumPy and the program's order of draws.
FIXTURES = {
    "FOU": (-0.268412, -0.001888, -0.288927, -0.177585, -0.431561, 0.008739, 0.008798),
    "FOS": (0.518418, 0.288484, 0.173723, -0.827490, 0.932888, 0.010182, 0.009223),
    "FEU": (-0.268412, -0.001888, -0.288927, -0.177585, -0.362487, 0.816837, 0.817608),
    "FES": (-0.650922, -0.390849, -0.954722, 0.117506, 0.019447, 0.822346, 0.825280),
    "POU": (0.295659, 0.188929, -0.058017, -0.388417, 0.860500, 0.009343, 0.009490),
    "POS": (-1.133142, 0.329766, -0.141202, -0.151273, 0.871981, 0.016126, 0.013265),
    "PEU": (0.295659, 0.188929, -0.058017, -0.388417, 0.393106, 0.780837, 0.817037),
    "PES": (-1.392106, 0.873655, 1.379745, 0.785027, -0.512945, 0.792543, 0.792937),
}


@pytest.mark.parametrize("setup", SETUPS)
def test_rows_and_least_squares_are_those_of_the_program(setup):
    built = source(f"linear-sem({setup})")
    assert isinstance(built, LinearSEM)
    data = built.sample(0)
    (x, y) = data["e-0.2"].rows()
    drawn = built.draw(torch.Generator().manual_seed(0))
    rows, targets = drawn.x.reshape(-1, 10).double(), drawn.y.reshape(-1, 1).double()
    weights = drawn.scramble.double() @ torch.linalg.lstsq(rows, targets).solution[:, 0]
    errors = (weights - drawn.weights).square()
    found = [*x[0, :4].tolist(), y[0].item(), errors[:5].mean().item(), errors[5:].mean().item()]
    assert found == pytest.approx(FIXTURES[setup], abs=1e-6)
    assert data.roles() == {"e-0.2": "train", "e-2": "train", "e-5": "test"}
    assert data.known.optimum == {"FO": 5, "FE": 125}.get(setup[:2])


def test_normal_coefficients_are_drawn_first():
    normal = LinearSEM("FOU", coefficients="normal").draw(torch.Generator().manual_seed(0))
    b = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)) / 10
    assert torch.equal(normal.weights, torch.cat((b.sum(dim=1), torch.zeros(5))))
    assert source("linear-sem(FOU, coefficients=normal)").name == "linear-sem(FOU, coefficients=normal)"


def test_linear_sem_is_a_correct_source():
    check_source(LinearSEM("PES"))
    assert source("linear-sem").name == "linear-sem(FOU)"
    with pytest.raises(EnvariantError, match="linear-sem: setup must be FOU or FOS"):
        source("linear-sem(FOX)")
