"""Repeat the deterministic computations in the REx paper: a toy problem, and V-REx for linear models.

Krueger et al. 2021, Out-of-Distribution Generalization via Risk Extrapolation.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from envariant.data.linear_sem import ROWS, WIDTH, Equations, LinearSEM, Setup
from envariant.reproductions import irm_linear
from envariant.reproductions.quadratic import Moments
from envariant.reproductions.sem import Problems

ToyMethod = Literal["ERM", "IRM", "REx", "REx-HD"]
TOY_METHODS: tuple[ToyMethod, ...] = ("ERM", "IRM", "REx", "REx-HD")
TOY_STEPS = 500
# P(x) and P(y = 1 | x) of each environment, for the three inputs x.
INPUTS = ((0.4, 0.1, 0.5), (0.1, 0.4, 0.5), (0.1, 0.4, 0.5))
LABELS = ((0.5, 0.75, 0.1), (0.5, 0.75, 0.1), (0.5, 0.75, 0.2))
STABLE = (0.5, 0.75, 0.5)
"""P(y = 1 | x) of the predictor that ignores the third input, whose labels shift between environments."""

Baseline = Literal["REx_0", "REx_var", "REx_var_diff"]
BASELINES: tuple[Baseline, ...] = ("REx_0", "REx_var", "REx_var_diff")


def toy(method: ToyMethod, steps: int) -> list[list[float]]:
    """Train the logits of three inputs by gradient descent with learning rate 0.1 on exact expectations.

    R_ij is the risk for the inputs of environment i and the labels of environment j. With R_e = R_ee and
    k = step + 1, the losses are

        ERM     Σ_e R_e
        IRM     Σ_e R_e + min(k, 100) · mean over x of (∂Σ_e R_e/∂s_x)², s_x a factor of logit x
        REx     Σ_e R_e / k + k · Var(R_e)
        REx-HD  10 · Σ_ij R_ij / k + k · Σ_i Var_j(R_ij)

    Args:
        method: Name of the method.
        steps: Number of steps.

    Returns:
        P(y = 1 | x) after each step, including step 0.
    """
    inputs, labels = torch.tensor(INPUTS).double(), torch.tensor(LABELS).double()
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    path = [torch.sigmoid(w).tolist()]
    for k in range(1, steps + 1):
        factor = torch.ones_like(w, requires_grad=True)
        logits = (w * factor).expand(3, 3)
        losses = binary_cross_entropy_with_logits(logits, labels, reduction="none")
        risks = inputs @ losses.T
        own = risks.diagonal()
        if method == "ERM":
            loss = own.sum()
        elif method == "IRM":
            (slopes,) = torch.autograd.grad(own.sum(), factor, create_graph=True)
            loss = own.sum() + min(k, 100) * slopes.square().mean()
        elif method == "REx":
            loss = own.sum() / k + k * own.var()
        else:
            loss = 10 * risks.sum() / k + k * risks.var(dim=1).sum()
        (gradient,) = torch.autograd.grad(loss, w)
        w = (w - 0.1 * gradient).detach().requires_grad_()
        path.append(torch.sigmoid(w).tolist())
    return path


def adjusted(with_intercept: Moments, baseline: Baseline) -> Moments:
    """Return moments without an intercept whose risk is r = R − b.

    R is the mean squared error, and b is the baseline that a variant of V-REx subtracts.

    b is 0 (`REx_0`), Var(y) + Var(ŷ) (`REx_var`) or Var(y) − Var(ŷ) (`REx_var_diff`), with divisor n − 1. The
    variance of the prediction ŷ is a quadratic form in the weights, and so is r.

    Args:
        with_intercept: Moments of the same data with an intercept; they contain the means of inputs and
            targets, from which the variances are computed.
        baseline: Name of the variant.
    """
    gram, cross, square = with_intercept.gram, with_intercept.cross, with_intercept.square
    means, mean = gram[..., -1, :-1], cross[..., -1]
    inner = gram[..., :-1, :-1]
    if baseline == "REx_0":
        return Moments(inner, cross[..., :-1], square)
    divisor = ROWS / (ROWS - 1)
    of_y = divisor * (square - mean**2)
    of_prediction = divisor * (inner - means[..., :, None] * means[..., None, :])
    sign = -1 if baseline == "REx_var" else 1
    return Moments(inner + sign * of_prediction, cross[..., :-1], square - of_y)


def vrex(problems: Problems, steps: int) -> dict[Baseline, irm_linear.Selected]:
    """Run V-REx on the first two environments, and select the weight of the risks by the error in the third.

    The loss is reg · (r₁ + r₂) + (1 − reg) · (r₁ − r₂)². Weights start at 1, and Adam has the
    settings of `irm_linear`.

    Args:
        problems: Problems in one batch.
        steps: Number of full-batch steps.

    Returns:
        For each variant of the risks r, the selected solutions of all problems.
    """
    count, regs = len(problems.weights), torch.tensor(irm_linear.REGS, dtype=torch.float64)
    variants = [adjusted(problems.with_intercept[:, :2], baseline) for baseline in BASELINES]
    gram, cross, square = (
        torch.cat([getattr(each, part) for each in variants]).repeat_interleave(len(regs), dim=0)
        for part in ("gram", "cross", "square")
    )
    stacked, reg = gram.flatten(1, 2), regs.repeat(count * len(variants))[:, None]
    w = torch.ones(len(reg), 2 * WIDTH, dtype=torch.float64)
    optimizer = torch.optim.Adam([w], lr=irm_linear.RATE)
    for _ in range(steps):
        # With p = Gw: R = wᵀ(p − 2c) + s, and half the gradient is p − c.
        product = torch.bmm(stacked, w[..., None]).view_as(cross)
        risks = ((product - 2 * cross) * w[:, None]).sum(-1) + square
        halves = product - cross
        gap = (risks[:, 0] - risks[:, 1])[:, None]
        w.grad = 2 * reg * halves.sum(1) + 4 * (1 - reg) * gap * (halves[:, 0] - halves[:, 1])
        optimizer.step()
    weights = w.view(len(BASELINES), count, len(regs), -1)
    return {
        name: irm_linear.selected(own, problems.moments[:, 2])
        for name, own in zip(BASELINES, weights, strict=True)
    }


def solve(setups: Sequence[Setup], repetitions: int, steps: int) -> dict[str, Any]:
    """Return the errors of IRM and of the V-REx variants for problems with normally distributed coefficients.

    The repetitions of each setup are drawn one after another from a generator with seed 0.

    Args:
        setups: Setups of `linear-sem`.
        repetitions: Number of problems of each setup.
        steps: Number of steps of every method.

    Returns:
        Errors as in `Problems.errors`, by setup and method; the method "zero" estimates all weights as 0.
    """
    drawn: list[Equations] = []
    for setup in setups:
        source, generator = LinearSEM(setup, coefficients="normal"), torch.Generator().manual_seed(0)
        drawn += [source.draw(generator) for _ in range(repetitions)]
    problems = Problems.of(drawn)
    irm = irm_linear.select(problems.moments[:, :2], problems.moments[:, 2], steps)
    solutions = {"IRM": irm, **vrex(problems, steps)}
    errors = {name: problems.errors(each.weights) for name, each in solutions.items()}
    errors["zero"] = problems.errors(torch.zeros_like(problems.weights))
    return {
        setup: {
            name: {kind: own[k * repetitions : (k + 1) * repetitions] for kind, own in kinds.items()}
            for name, kinds in errors.items()
        }
        for k, setup in enumerate(setups)
    }


def as_printed(errors: dict[str, list[float]], scrambled: bool) -> dict[str, list[float]]:
    """Return causal and non-causal errors as the program of the REx paper computes them.

    The program rotates the true weights instead of the estimate, and counts a coordinate as causal if its
    rotated true weight is not 0. With scrambled inputs, all coordinates therefore count as causal. The causal
    error is then the mean over all of them, which rotation does not change; the non-causal error is 0.

    Args:
        errors: Errors of the unscrambled estimate.
        scrambled: Whether the inputs are scrambled.
    """
    if not scrambled:
        return errors
    pairs: Sequence[tuple[float, float]] = list(zip(errors["causal"], errors["non-causal"], strict=True))
    return {"causal": [(a + b) / 2 for a, b in pairs], "non-causal": [0.0 for _ in pairs]}
