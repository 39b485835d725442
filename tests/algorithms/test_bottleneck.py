"""Spectral decoupling and the information bottleneck: the spec's numbers."""

import torch

from algorithms.spec_values import (
    LABELS_A,
    LABELS_B,
    Y3,
    Z3,
    A,
    B,
    close,
    predicted,
    two_environments,
    vector,
)
from envariant.algorithms import IRM, InformationBottleneck, SpectralDecoupling
from envariant.core.tasks import Multiclass

HEAD = {"weight": torch.tensor([[1, 0], [0, 0.5]], dtype=torch.float64), "bias": vector(0, 0.1)}


def test_values_of_the_specification_for_spectral_decoupling():
    seen = predicted(Multiclass(3), Z3, Y3, (4,))
    penalty = SpectralDecoupling().penalty(seen, {})[0]
    close(penalty, 0.8275)
    close(seen.risks[0], 0.898920)
    close(seen.risks[0] + 0.1 * penalty, 0.981670)


def test_values_of_the_specification_for_the_bottleneck_and_its_recipes():
    seen = two_environments(**HEAD)
    close(A.var(dim=0), 1, 4)
    bottleneck = InformationBottleneck().penalty(seen, {})[0]
    close(bottleneck, 2.25)
    close(seen.risks, 1.48079, 0.468022)
    halves = IRM(1.0, form="halves")
    each = [
        predicted(Multiclass(2), h @ HEAD["weight"].T + HEAD["bias"], y, (3,))
        for h, y in ((A, LABELS_A), (B, LABELS_B))
    ]
    close(torch.stack([halves.penalty(one, {})[0] for one in each]), 0.144304, -0.0435667)
    irm = halves.penalty(seen, {})[0]
    close(irm, 0.0503686)
    close(seen.risks.mean() + 100 * bottleneck, 225.974)
    close(seen.risks.mean() + 100 * bottleneck + 100 * irm, 231.011)


def test_an_environment_of_one_row_has_no_variance():
    alone = predicted(Multiclass(3), Z3[:1], Y3[:1], (1,), A[:1])
    assert float(InformationBottleneck().penalty(alone, {})[0]) == 0.0
