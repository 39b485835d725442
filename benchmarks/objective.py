"""Compare a training step with `envariant.objective` with the same step with IRM's penalty written by hand.

    python benchmarks/objective.py

Prints the table of docs/guide/own_loop.md: medians of 21 repetitions of the CPU time of a step with one
thread. Both sides are measured alternately. It takes about a minute.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import envariant

REPEATS, COEFFICIENT = 21, 100.0


@dataclass(frozen=True)
class Case:
    """Rows per batch, numbers of inputs and hidden units of a network with two hidden layers.

    If `balanced` is true, environments have equal sizes and their rows are grouped, as in the batches of
    `EnvironmentSampler`.
    """

    rows: int
    inputs: int
    hidden: int
    balanced: bool = False


CASES = (
    Case(64, 20, 16, balanced=True),
    Case(64, 20, 16),
    Case(64, 392, 390, balanced=True),
    Case(64, 392, 390),
    Case(512, 392, 390),
    Case(4096, 392, 390),
)


def hand_written(logits: Tensor, targets: Tensor, environments: Tensor) -> Tensor:
    """Return the loss of the IRM code, divided by the coefficient."""
    risks, penalties = [], []
    for e in (0, 1):
        own = environments == e
        scale = torch.ones((), requires_grad=True)
        risk = F.binary_cross_entropy_with_logits(logits[own, 0] * scale, targets[own])
        (slope,) = torch.autograd.grad(risk, [scale], create_graph=True)
        risks.append(risk)
        penalties.append(slope.square())
    return torch.stack(risks).mean() / COEFFICIENT + torch.stack(penalties).mean()


def steps_of(case: Case) -> dict[str, Callable[[], None]]:
    """Return one training step with each of the two losses."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(case.rows, case.inputs, generator=generator)
    targets = (torch.rand(case.rows, generator=generator) > 0.5).float()
    environments = torch.randint(0, 2, (case.rows,), generator=generator)
    if case.balanced:
        environments = torch.arange(2).repeat_interleave(case.rows // 2)

    def step(loss_of: Callable[..., Tensor]) -> Callable[[], None]:
        model = nn.Sequential(
            nn.Linear(case.inputs, case.hidden), nn.ReLU(),
            nn.Linear(case.hidden, case.hidden), nn.ReLU(), nn.Linear(case.hidden, 1),
        )  # fmt: skip
        optimizer = torch.optim.Adam(model.parameters())

        def one() -> None:
            loss = loss_of(model(inputs), targets, environments)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return one

    objective = envariant.objective(f"irm(coefficient={COEFFICIENT:g})")
    return {"by hand": step(hand_written), "objective": step(objective)}


def measure(case: Case) -> dict[str, float]:
    """Return the median seconds of CPU time of one step, by loss."""
    steps = steps_of(case)
    count = max(3, 300_000 // (case.rows * case.hidden))
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(REPEATS + 1):
        for name, step in steps.items():
            started = time.process_time()
            for _ in range(count):
                step()
            # The first repetition warms up.
            if repeat:
                seconds[name].append((time.process_time() - started) / count)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    torch.set_num_threads(1)
    print("| rows | network | order of rows | by hand | with `objective` | ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for case in CASES:
        hand, ours = measure(case).values()
        network = f"{case.inputs}-{case.hidden}-{case.hidden}-1"
        order = "grouped, equal sizes" if case.balanced else "random"
        times = f"{hand * 1e3:.2f} ms | {ours * 1e3:.2f} ms | {ours / hand:.2f}"
        print(f"| {case.rows} | {network} | {order} | {times} |", flush=True)


if __name__ == "__main__":
    main()
