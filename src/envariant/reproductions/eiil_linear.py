"""EIIL for linear models: infer two groups of rows, then run IRM on them.

Creager, Jacobsen, Zemel 2021, Environment Inference for Invariant Learning. The data are those of the
paper's released program. In environment e, causes x ~ N(0, 25) determine y = x + e ε, and y determines
effects z = y + ε′. The noise terms ε and ε′ are standard normal. The inputs are x and z; the target is the
sum of the components of y.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from envariant.data.linear_sem import DEVIATIONS, ROWS, WIDTH, Equations
from envariant.reproductions import irm_linear
from envariant.reproductions.causal_prediction import predict_causally
from envariant.reproductions.quadratic import Moments
from envariant.reproductions.sem import Problems

REFERENCES = tuple(round(0.1 * k, 1) for k in range(11))
"""Weights a of the effects in the artificial reference models; the weights of the causes are 1 − a."""


@final
@dataclass(frozen=True, eq=False)
class Repetition:
    """Rows of one repetition, and the initial logits for the inference of groups.

    Attributes:
        equations: Rows of the three environments.
        start: Initial logits of the rows of the first two environments, without the last row of each
            environment.
    """

    equations: Equations
    start: Tensor


def draw(repetitions: int) -> list[Repetition]:
    """Draw the rows and the initial logits of all repetitions, as the released program does with seed 0.

    The rows of every repetition are drawn first, and then the initial logits of every repetition.
    """
    generator = torch.Generator().manual_seed(0)

    def normal() -> Tensor:
        return torch.randn(ROWS, WIDTH, generator=generator)

    drawn: list[Equations] = []
    for _ in range(repetitions):
        inputs: list[Tensor] = []
        targets: list[Tensor] = []
        for e in DEVIATIONS:
            normal()  # The hidden variable, which has no effect here.
            x = normal() * 5
            y = x + normal() * e
            inputs.append(torch.cat((x, y + normal()), dim=1))
            targets.append(y.sum(dim=1))
            normal()  # Noise that only a printed diagnostic uses.
        weights = torch.cat((torch.ones(WIDTH), torch.zeros(WIDTH)))
        drawn.append(Equations(torch.stack(inputs), torch.stack(targets), torch.eye(2 * WIDTH), weights))
    return [Repetition(each, torch.randn(2 * (ROWS - 1), generator=generator)) for each in drawn]


def pooled(repetition: Repetition) -> tuple[Tensor, Tensor]:
    """Return the inputs and targets of the first two environments, each without its last row, in float64."""
    x, y = repetition.equations.x[:2, :-1], repetition.equations.y[:2, :-1]
    return x.flatten(0, 1).double(), y.flatten().double()


def infer(x: Tensor, y: Tensor, references: Tensor, start: Tensor, steps: int) -> Tensor:
    """Assign rows to two groups so that the IRM penalty of a reference model is as large as possible.

    Row i belongs to the first group with probability σ(q_i). The reference model is Φ = diag(weights),
    followed by weights w = 1 on the features Φx; its residuals are r. With n rows and
    A_ij = 2 r_i Φ_j x_ij / n, the gradients of the two groups' losses with respect to w are g = Aᵀσ(q) and
    Aᵀ(1 − σ(q)). Adam with learning rate 1e-3 changes the logits q to maximize the mean square of all entries
    of both gradients.

    Args:
        x: Inputs of each problem, of shape `[problems, rows, d]`.
        y: Targets, of shape `[problems, rows]`.
        references: Weights of the reference model of each problem, of shape `[problems, d]`.
        start: Initial logit q of each row.
        steps: Number of steps.

    Returns:
        Whether each row is in the first group, of shape `[problems, rows]`.
    """
    residuals = (x @ references[..., None])[..., 0] - y
    a = 2 * residuals[..., None] * references[:, None] * x / x.shape[1]
    total = a.sum(dim=1)
    logits = start.double().clone()
    optimizer = torch.optim.Adam([logits], lr=1e-3, maximize=True)
    for _ in range(steps):
        q = torch.sigmoid(logits)
        first = torch.bmm(q[:, None], a)[:, 0]
        # d/dg of ½ (mean g² + mean (total − g)²), with d entries.
        direction = (2 * first - total) / x.shape[2]
        logits.grad = torch.bmm(a, direction[..., None])[..., 0] * q * (1 - q)
        optimizer.step()
    return torch.sigmoid(logits) > 0.5


def grouped(x: Tensor, y: Tensor, first: Tensor) -> Moments:
    """Return the moments of both groups of each problem, of shape `[problems, 2]`."""
    groups = [
        Moments.of(inputs[mask], targets[mask])
        for inputs, targets, own in zip(x, y, first, strict=True)
        for mask in (own, ~own)
    ]
    shape = (len(x), 2)
    return Moments(
        torch.stack([each.gram for each in groups]).unflatten(0, shape),
        torch.stack([each.cross for each in groups]).unflatten(0, shape),
        torch.stack([each.square for each in groups]).unflatten(0, shape),
    )


def baselines(repetitions: int) -> dict[str, Any]:
    """Return the errors of "ERM" and of invariant causal prediction ("ICP"); see `Problems.errors`.

    Neither method needs iterative training, and both use all three environments.
    """
    problems = Problems.of([each.equations for each in draw(repetitions)])
    causal = predict_causally(problems.with_intercept, ROWS)
    return {
        "ERM": problems.errors(problems.moments.mean(1).least_squares()),
        "ICP": problems.errors(causal.weights),
    }


def given(repetitions: int, steps: int) -> dict[str, list[float]]:
    """Return the errors of IRM on the given environments; see `Problems.errors`.

    IRM trains on the first two environments and selects the weight of its risk by the error in the third.

    Args:
        repetitions: Number of repetitions.
        steps: Number of steps of IRM.
    """
    problems = Problems.of([each.equations for each in draw(repetitions)])
    irm = irm_linear.select(problems.moments[:, :2], problems.moments[:, 2], steps, dtype=torch.float64)
    return problems.errors(irm.weights)


def inferred(repetitions: int, steps: int, inference_steps: int, references: list[float]) -> dict[str, Any]:
    """Return the errors of IRM on inferred groups.

    Args:
        repetitions: Number of repetitions.
        steps: Number of steps of IRM.
        inference_steps: Number of steps in which groups are inferred.
        references: One number a for each artificial reference model, in which causes have weight 1 − a and
            effects have weight a. The ERM solution is always the first reference model; it is not listed.

    Returns:
        Dictionary with four entries. "errors" contains the errors (see `Problems.errors`) by reference model,
        whose name is "ERM" or the number a. The other entries describe the inference from ERM in each
        repetition: the sizes of both groups ("sizes"), the share of the first and of the second given
        environment that is assigned to the first group ("shares"), and the selected weight of IRM's risk
        ("regs").
    """
    drawn = draw(repetitions)
    problems = Problems.of([each.equations for each in drawn])
    rows = [pooled(each) for each in drawn]
    x, y = torch.stack([each for each, _ in rows]), torch.stack([each for _, each in rows])
    start = torch.stack([each.start for each in drawn])
    models = {"ERM": problems.moments.mean(1).least_squares()}
    for a in references:
        weights = torch.tensor([1 - a] * WIDTH + [a] * WIDTH, dtype=torch.float64)
        models[f"{a:.1f}"] = weights.expand(repetitions, -1)
    errors: dict[str, Mapping[str, list[float]]] = {}
    details: dict[str, Any] = {}
    for name, model in models.items():
        first = infer(x, y, model, start, inference_steps)
        irm = irm_linear.select(grouped(x, y, first), problems.moments[:, 2], steps, dtype=torch.float64)
        errors[name] = problems.errors(irm.weights)
        if name == "ERM":
            shares = first.unflatten(1, (2, -1)).double().mean(dim=2).tolist()
            sizes = [[int(own.sum()), int((~own).sum())] for own in first]
            details = {"sizes": sizes, "shares": shares, "regs": irm.regs.tolist()}
    return {"errors": errors, **details}
