"""Moments give the risk and gradient that the rows give."""

import torch

from envariant.reproductions.quadratic import Moments


def test_risk_gradient_and_least_squares_equal_those_of_the_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 50, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(2, 3, 50, generator=generator, dtype=torch.float64)
    w = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    moments = Moments.of(x, y, intercept=True)
    rows = ((x * w[..., None, :4]).sum(-1) + w[..., None, 4] - y).square().mean(-1)
    (gradient,) = torch.autograd.grad(rows.sum(), w)
    torch.testing.assert_close(moments.risk(w.detach()), rows.detach())
    torch.testing.assert_close(moments.gradient(w.detach()), gradient)

    pooled = Moments.of(x, y).mean(1)
    for b in range(2):
        expected = torch.linalg.lstsq(x[b].reshape(-1, 4), y[b].reshape(-1, 1)).solution[:, 0]
        torch.testing.assert_close(pooled.least_squares()[b], expected)
        torch.testing.assert_close(pooled[b].least_squares(), expected)
