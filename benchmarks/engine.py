"""The engine against the yardstick, on this machine, in one run: the tables of engine.md.

    python benchmarks/engine.py [--device cuda] [--name NAME] [PART ...]

On CUDA they go to engine_cuda.md; those of another kind of machine to NAME.md. The two sides of each ratio
are measured by turns, medians of fourteen. It takes some ten minutes and must run alone: another process that
multiplies matrices makes every figure here worthless.
"""

import argparse
import datetime
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import yardstick
from torch import nn

from envariant import benchmark
from envariant.algorithms import recipe
from envariant.benchmark import Case
from envariant.training import execution, provenance
from envariant.training.allocator import keep_freed_memory
from envariant.training.execution import Stacked
from envariant.training.replica_stack import ReplicaStack
from envariant.training.replicas import Replica, Seeds

HERE = Path(__file__).parent
REPEATS = 7
STEPS, MEASUREMENTS = 501, 6
FULL = benchmark.CASES["irm-full-batch"]
SMALL = benchmark.CASES["small-mlp"]
LINEAR = benchmark.CASES["linear"]
CNN = benchmark.CASES["mnist-cnn"]


Timed = Callable[[int], float]
"""Seconds of one repetition, after so many that are not timed."""


def timed(device: torch.device, work: Callable[[], object]) -> Timed:
    return lambda warm: benchmark.median_seconds(work, 1, device, warm)


def in_turn(*works: Timed, warm: int = 1) -> list[float]:
    """Median seconds of each: two repetitions of one, two of the other, and so on, seven times over.

    So often, because a machine that is shared has slow minutes, which must fall on all of them; and after
    some that are not timed, because a large step leaves a small one with cold caches.
    """
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(REPEATS):
        for each, work in zip(seconds, works, strict=True):
            each += [work(warm), work(0)]
    return [statistics.median(each) for each in seconds]


def rows(case: Case) -> list[yardstick.Rows]:
    return [(e.inputs.to(case.device), e.targets.to(case.device)) for e in case.data().environments]


def _restart_steps(device: torch.device, *, allocator: bool, calls: Connection) -> None:
    """In a process of its own: the paper's loop, whose steps it times when it is asked."""
    if allocator:
        keep_freed_memory()
    training = rows(replace(FULL, device=device.type))
    test = (torch.rand(10_000, 392, device=device), (torch.rand(10_000, device=device) > 0.5).float())
    model = yardstick.mlp(392, 390).to(device)
    adam = torch.optim.Adam(model.parameters(), lr=4.9e-4)

    def step() -> None:
        yardstick.irm_step(model, adam, training, 91_257.0, 1.1e-3, test)

    # Until the other side closes its end.
    with suppress(EOFError):
        while True:
            calls.send(benchmark.median_seconds(step, 1, device, calls.recv()))


@contextmanager
def restart_steps(device: torch.device, *, allocator: bool) -> Iterator[Timed]:
    """Seconds of a step of the paper's loop, elsewhere: what the engine asks of the allocator helps it."""
    processes = multiprocessing.get_context("spawn")
    here, there = processes.Pipe()
    process = processes.Process(
        target=_restart_steps, args=(device,), kwargs={"allocator": allocator, "calls": there}, daemon=True
    )
    process.start()
    # With this copy open, a process that died would be waited for.
    there.close()

    def seconds(warm: int) -> float:
        here.send(warm)
        return here.recv()

    try:
        yield seconds
    finally:
        here.close()
        process.join()


def restart(device: torch.device) -> list[dict[str, object]]:
    """The paper's restart, computed from the medians of steps and measurements: 501 steps; the engine
    measures six times (60,000 rows), the yardstick at every step (10,000 rows).
    """
    full = replace(FULL, device=device.type)
    cases = [
        ("bfloat16", replace(full, precision="bfloat16")),
        ("bfloat16, compiled", replace(full, precision="bfloat16", compiled=True)),
        *([("tf32", replace(full, precision="tf32"))] if device.type == "cuda" else []),
        ("float32", full),
    ]
    keep_freed_memory()
    found = []
    with (
        restart_steps(device, allocator=False) as plain,
        restart_steps(device, allocator=True) as spared,
    ):
        for name, case in cases:
            group = case.group()
            # What is compiled has the same products, but they cannot be seen there.
            products = benchmark.products_of(replace(case, compiled=False).group())
            theirs, helped, step, measure, alone = in_turn(
                plain, spared, *(timed(device, w) for w in (group.advance, group.measure, products.again))
            )
            # It measures the training environments as well: 50,000 rows more than the yardstick.
            ours = step * STEPS + measure * MEASUREMENTS
            found.append(
                {
                    "precision": name,
                    "step ms": 1e3 * step,
                    "measurement ms": 1e3 * measure,
                    "restart s": ours,
                    "yardstick step ms": 1e3 * theirs,
                    "yardstick with the allocator set, ms": 1e3 * helped,
                    "ratio": theirs * STEPS / ours,
                    "ratio with the allocator set": helped * STEPS / ours,
                    "products alone ms": 1e3 * alone,
                    "share that is products": alone / step,
                    "GFLOP a step": products.flops / 1e9,
                }
            )
    return found


def small(device: torch.device) -> list[dict[str, object]]:
    """The tabular network: 100 replicas in one program against one after another, both Envariant's."""
    found = []
    for algorithm in ("erm", "irm", "and-mask"):
        for compiled in (False, True):
            one = replace(SMALL, algorithm=algorithm, device=device.type)
            many = replace(one, replicas=100, compiled=compiled)
            alone, together = one.group(), many.group()
            a, b = in_turn(timed(device, alone.advance), timed(device, together.advance), warm=5)
            found.append(
                {
                    "algorithm": algorithm,
                    "compiled": compiled,
                    "sequential ms": 1e3 * a,
                    "stacked ms a replica": 1e3 * b / 100,
                    "ratio": a / (b / 100),
                }
            )
    return found


def linear(device: torch.device) -> list[dict[str, object]]:
    """Linear models: 20 replicas of hyperparameters that share the data, against plain eager loops."""
    base = replace(LINEAR, device=device.type)
    found, training = [], rows(base)
    for algorithm in ("erm", "irm", "and-mask", "iga"):
        model = nn.Linear(10, 1).to(device)
        adam = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
        settings = {"irm": "coefficient", "iga": "coefficient", "and-mask": "threshold"}.get(algorithm, "l2")
        members = [
            Replica(
                k,
                Seeds.of(0, 0),
                recipe(algorithm).build({settings: 1.0 if settings == "threshold" else 0.1 * (k + 1)}),
                1e-3 * (k + 1),
                0.0,
            )
            for k in range(20)
        ]
        for compiled in (False, True):
            case = replace(base, compiled=compiled)
            together = ReplicaStack(case.data(), members, case.plan())
            alone = ReplicaStack(case.data(), members[:1], base.plan())
            works = (
                partial(yardstick.linear_step, model, adam, training, algorithm),
                alone.advance,
                together.advance,
            )
            a, b, c = in_turn(*(timed(device, work) for work in works), warm=5)
            found.append(
                {
                    "algorithm": algorithm,
                    "compiled": compiled,
                    "plain eager ms": 1e3 * a,
                    "engine, one at a time ms": 1e3 * b,
                    "stacked ms a replica": 1e3 * c / 20,
                    "ratio": a / (c / 20),
                    "ratio to one at a time": b / (c / 20),
                }
            )
    return found


def cnn(device: torch.device) -> list[dict[str, object]]:
    """DomainBed's network: a step of 2 × 64 rows, and 70,000 rows evaluated."""
    case = replace(CNN, precision="bfloat16", device=device.type)
    model = yardstick.cnn(2).to(device)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    inputs = torch.rand(128, 2, 28, 28, device=device)
    targets = (torch.rand(128, device=device) > 0.5).float()
    images = torch.rand(7_000, 2, 28, 28, device=device)

    def step() -> None:
        yardstick.erm_step(model, adam, inputs, targets)

    def evaluation() -> None:
        yardstick.evaluate(model, images, 64)

    held = replace(case, environments=1, rows=7_000).group()
    works = [
        ("a step of 2×64 rows", 1e3, step, case.group().advance),
        ("a step of 2×64 rows, compiled", 1e3, step, replace(case, compiled=True).group().advance),
        ("70,000 rows evaluated (7,000 timed)", 1e4, evaluation, held.measure),
    ]
    found = []
    for what, scale, theirs, ours in works:
        slow, fast = in_turn(timed(device, theirs), timed(device, ours))
        found.append(
            {"what": what, "yardstick ms": scale * slow, "engine ms": scale * fast, "ratio": slow / fast}
        )
    return found


def growth(device: torch.device) -> list[dict[str, object]]:
    """One, ten, a hundred, a thousand replicas, in the groups that the engine makes of them.

    Each in a process of its own. What the tensors take is predicted from groups of two and of four; what
    the process takes has the heap's holes on top.
    """
    limits, found = benchmark.limits(device), []
    for case in (replace(LINEAR, rows=1_000), SMALL):
        base = replace(case, device=device.type)
        for k in (1, 10, 100, 1000):
            whole = replace(base, replicas=k)
            chosen = execution.choose(Stacked(), whole.data(), whole.members(), whole.plan(), None)
            part = replace(whole, name=f"{base.name}-x{k}", replicas=chosen.group)
            (figure,) = benchmark.measured([part], limits, REPEATS)
            found.append(
                {
                    "case": base.name,
                    "replicas": k,
                    "in groups of": chosen.group,
                    "ms a replica": 1e3 * figure.seconds / figure.replicas,
                    "process MB": figure.bytes_measured / 1e6,
                    "tensors MB": figure.bytes_of_tensors / 1e6,
                    "predicted MB": figure.bytes_predicted / 1e6,
                }
            )
    return found


def start(device: torch.device) -> list[dict[str, object]]:
    """`envariant train`, one step on colored digits, against importing torch alone."""

    def seconds(*command: str) -> float:
        found = []
        for _ in range(5):
            started = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
            found.append(time.perf_counter() - started)
        return statistics.median(found)

    torch_alone = seconds("-c", "import torch")
    command = ("train", "--data", "colored-digits", "--steps", "1", "--device", device.type)
    whole = seconds("-m", "envariant", *command)
    return [{"import torch s": torch_alone, "whole s": whole, "beyond s": whole - torch_alone}]


def profile(device: torch.device) -> list[dict[str, object]]:
    """Where the time of a step goes: the largest operations, as shares of all time spent in operations."""
    found = []
    for name in ("irm-full-batch-bfloat16", "small-mlp-x100", "linear-x20", "mnist-cnn-bfloat16"):
        group = replace(benchmark.CASES[name], device=device.type).group()
        for _ in range(3):
            group.advance()
        with torch.profiler.profile() as profiled:
            for _ in range(5):
                group.advance()
        kept = f"self_{'device' if device.type == 'cuda' else 'cpu'}_time_total"
        events = sorted(profiled.key_averages(), key=lambda event: -getattr(event, kept))
        whole = sum(getattr(event, kept) for event in events)
        shares = [f"{e.key.removeprefix('aten::')} {getattr(e, kept) / whole:.0%}" for e in events[:8]]
        found.append({"case": name, "largest operations": ", ".join(shares)})
    return found


PARTS = {
    "restart": restart, "small": small, "linear": linear, "cnn": cnn, "growth": growth, "start": start,
    "profile": profile,
}  # fmt: skip


def written(found: dict[str, object]) -> str:
    """The figures as Markdown."""
    hardware = found["hardware"]
    lines = [
        "# The engine, measured",
        "",
        f"Made by `python benchmarks/engine.py{found.get('options', '')}`, which ran alone; medians, both "
        "sides measured in one run.",
        "What it is measured against is [yardstick.py](yardstick.py): plain float32 loops as the papers have "
        "them. The yardstick's full-batch step is taken where the allocator (`training/allocator.py`) is not "
        "set, as users of the papers' code have it; with it set, see the table.",
        "",
        f"Machine: {', '.join(f'{key} {value}' for key, value in hardware.items())}; "
        f"torch {found['versions']['torch']}. A machine may be shared, so each table says what "
        "matrix products, the best of several shapes, reached in the same run.",
    ]
    for name, work in PARTS.items():
        if name not in found:
            continue
        table = found[name]
        header = list(table[0])
        summary, _, rest = (work.__doc__ or "").partition("\n")
        when = found["measured"][name]
        reached = [f"{rate / 1e9:,.0f} in {bits}" for bits, rate in when["limits"].items()]
        products = f"; products: {', '.join(reached)} (GFLOP/s)" if reached else ""
        when = f"Measured {when['date']}{products}."
        lines += ["", f"## {name}", "", " ".join(f"{summary} {rest} {when}".split()), ""]
        lines += ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
        lines += ["| " + " | ".join(_text(row[key]) for key in header) + " |" for row in table]
    return "\n".join(lines) + "\n"


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Measures the parts named on the command line, or all, and keeps the others' last figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all of them unless said"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--name", help="of the tables; engine or engine_cuda unless said")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    usual = "engine" if device.type == "cpu" else "engine_cuda"
    path = HERE / f"{arguments.name or usual}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    conditions = {
        "options": (" --device cuda" if device.type == "cuda" else "")
        + (f" --name {arguments.name}" if arguments.name else ""),
        "hardware": provenance.hardware(device),
        "versions": provenance.versions(),
    }
    for name in arguments.parts or PARTS:
        limits = benchmark.limits(device)
        found[name] = PARTS[name](device)
        when = {"date": datetime.date.today().isoformat(), "limits": limits}
        found.setdefault("measured", {})[name] = when
        print(name, json.dumps(found[name], indent=1))
        found |= conditions
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(written(found), encoding="utf-8")


if __name__ == "__main__":
    main()
