"""The engine against the yardstick, on this machine, in one run: the tables of engine.md.

Each ratio is measured in one process, the two sides in turn, medians of fourteen. It takes some five minutes
and must run alone: another process that multiplies matrices makes every figure here worthless.
"""

import datetime
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import yardstick
from torch import nn

from envariant import benchmark
from envariant.algorithms import recipe
from envariant.benchmark import Case
from envariant.models import MNISTCNN
from envariant.training import execution, provenance
from envariant.training.allocator import keep_freed_memory
from envariant.training.execution import Stacked
from envariant.training.group import Group
from envariant.training.replicas import Replica, Seeds

HERE = Path(__file__).parent
REPEATS = 7
STEPS, MEASUREMENTS = 501, 6
FULL = benchmark.CASES["irm-full-batch"]
SMALL = benchmark.CASES["small-mlp"]
LINEAR = benchmark.CASES["linear"]
CNN = benchmark.CASES["mnist-cnn"]


def in_turn(*works: Callable[[], object], warm: int = 2) -> list[float]:
    """Median seconds of each: some repetitions of one, then of the other, and the same again.

    Not one after each of the other: a large step would leave a small one with cold caches.
    """
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(2):
        for each, work in zip(seconds, works, strict=True):
            for _ in range(warm):
                work()
            for _ in range(REPEATS):
                started = time.perf_counter()
                work()
                each.append(time.perf_counter() - started)
    return [statistics.median(each) for each in seconds]


def rows(case: Case) -> list[yardstick.Rows]:
    return [(e.inputs, e.targets) for e in case.data().environments]


def restart() -> list[dict[str, object]]:
    """The paper's restart, computed from the medians of steps and measurements: 501 steps; the engine
    measures six times (60,000 rows), the yardstick at every step (10,000 rows).
    """
    training = rows(FULL)
    test = (torch.rand(10_000, 392), (torch.rand(10_000) > 0.5).float())
    model = yardstick.mlp(392, 390)
    adam = torch.optim.Adam(model.parameters(), lr=4.9e-4)

    def plain() -> None:
        yardstick.irm_step(model, adam, training, 91_257.0, 1.1e-3, test)

    # Before the engine asks the allocator to keep freed memory, which would help the yardstick too.
    (theirs,) = in_turn(plain)
    keep_freed_memory()
    (helped,) = in_turn(plain)
    found = []
    for name, case in (
        ("bfloat16", replace(FULL, precision="bfloat16")),
        ("bfloat16, compiled", replace(FULL, precision="bfloat16", compiled=True)),
        ("float32", FULL),
    ):
        group = case.group()
        (step,) = in_turn(group.advance)
        (measure,) = in_turn(group.measure)
        products = benchmark.products_of(group)
        (alone,) = in_turn(products.again)
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


def small() -> list[dict[str, object]]:
    """The tabular network: 100 replicas in one program against one after another, both Envariant's."""
    found = []
    for algorithm in ("erm", "irm", "and-mask"):
        for compiled in (False, True):
            one = replace(SMALL, algorithm=algorithm)
            many = replace(one, replicas=100, compiled=compiled)
            alone, together = one.group(), many.group()
            a, b = in_turn(alone.advance, together.advance, warm=5)
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


def linear() -> list[dict[str, object]]:
    """Linear models: 20 replicas of hyperparameters that share the data, against plain eager loops."""
    found, training = [], rows(LINEAR)
    for algorithm in ("erm", "irm", "and-mask", "iga"):
        model = nn.Linear(10, 1)
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
            case = replace(LINEAR, compiled=compiled)
            together = Group(case.data(), members, case.plan())
            alone = Group(case.data(), members[:1], LINEAR.plan())
            a, b, c = in_turn(
                lambda model=model, adam=adam, algorithm=algorithm: yardstick.linear_step(
                    model, adam, training, algorithm
                ),
                alone.advance,
                together.advance,
                warm=5,
            )
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


def cnn() -> list[dict[str, object]]:
    """DomainBed's network: a step of 2 × 64 rows, and 70,000 rows evaluated."""
    case = replace(CNN, precision="bfloat16")
    model = MNISTCNN().build((2, 28, 28), 1)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    inputs, targets = torch.rand(128, 2, 28, 28), (torch.rand(128) > 0.5).float()
    group = case.group()
    theirs, ours = in_turn(lambda: yardstick.erm_step(model, adam, inputs, targets), group.advance)
    held = replace(case, environments=1, rows=7_000).group()
    images = torch.rand(7_000, 2, 28, 28)
    slow, fast = in_turn(lambda: yardstick.evaluate(model, images, 64), held.measure, warm=1)
    return [
        {"what": "a step of 2×64 rows", "yardstick ms": 1e3 * theirs, "engine ms": 1e3 * ours,
         "ratio": theirs / ours},
        {"what": "70,000 rows evaluated (7,000 timed)", "yardstick ms": 1e4 * slow, "engine ms": 1e4 * fast,
         "ratio": slow / fast},
    ]  # fmt: skip


def growth() -> list[dict[str, object]]:
    """One, ten, a hundred, a thousand replicas, in the groups that the engine makes of them.

    Each in a process of its own. What the tensors take is predicted from groups of two and of four; what
    the process takes has the heap's holes on top.
    """
    limits, found = benchmark.limits(), []
    for base in (replace(LINEAR, rows=1_000), SMALL):
        for k in (1, 10, 100, 1000):
            whole = replace(base, replicas=k)
            chosen = execution.choose(Stacked(), whole.data(), whole.members(), whole.plan(), None)
            case = replace(whole, name=f"{base.name}-x{k}", replicas=chosen.group)
            (figure,) = benchmark.measured([case], limits, REPEATS)
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


def start() -> list[dict[str, object]]:
    """`envariant train`, one step on colored digits, against importing torch alone."""

    def seconds(*command: str) -> float:
        found = []
        for _ in range(5):
            started = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
            found.append(time.perf_counter() - started)
        return statistics.median(found)

    torch_alone = seconds("-c", "import torch")
    program = "from envariant.cli import main; main()"
    whole = seconds("-c", program, "train", "--data", "colored-digits", "--steps", "1")
    return [{"import torch s": torch_alone, "whole s": whole, "beyond s": whole - torch_alone}]


def profile() -> list[dict[str, object]]:
    """Where the time of a step goes: the largest operations, as shares of all time spent in operations."""
    found = []
    for name in ("irm-full-batch-bfloat16", "small-mlp-x100", "linear-x20", "mnist-cnn-bfloat16"):
        group = benchmark.CASES[name].group()
        for _ in range(3):
            group.advance()
        with torch.profiler.profile() as profiled:
            for _ in range(5):
                group.advance()
        events = sorted(profiled.key_averages(), key=lambda event: -event.self_cpu_time_total)
        whole = sum(event.self_cpu_time_total for event in events)
        shares = [f"{e.key.removeprefix('aten::')} {e.self_cpu_time_total / whole:.0%}" for e in events[:8]]
        found.append({"case": name, "largest operations": ", ".join(shares)})
    return found


PARTS = {
    "restart": restart, "small": small, "linear": linear, "cnn": cnn, "growth": growth, "start": start,
    "profile": profile,
}  # fmt: skip


def written(found: dict[str, object]) -> str:
    """The figures as Markdown."""
    hardware, limits = found["hardware"], found["limits"]
    lines = [
        "# The engine, measured",
        "",
        "Made by `python benchmarks/engine.py`, which ran alone; medians, both sides measured in one run.",
        "What it is measured against is [yardstick.py](yardstick.py): plain float32 loops as the papers have "
        "them. The yardstick's full-batch step is taken before the allocator is set "
        "(`training/allocator.py`), as users of the papers' code have it; with it set, see the table.",
        "",
        f"Machine: {', '.join(f'{key} {value}' for key, value in hardware.items())}; "
        f"torch {found['versions']['torch']}. Matrix products, the best of several shapes: "
        + ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in limits.items())
        + ".",
    ]
    for name, work in PARTS.items():
        if name not in found:
            continue
        table = found[name]
        header = list(table[0])
        summary, _, rest = (work.__doc__ or "").partition("\n")
        when = found["measured"][name]
        lines += ["", f"## {name}", "", " ".join(f"{summary} {rest} Measured {when}.".split()), ""]
        lines += ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
        lines += ["| " + " | ".join(_text(row[key]) for key in header) + " |" for row in table]
    return "\n".join(lines) + "\n"


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Measures the parts named on the command line, or all, and keeps the others' last figures."""
    path = HERE / "engine.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in sys.argv[1:] or PARTS:
        found[name] = PARTS[name]()
        found.setdefault("measured", {})[name] = datetime.date.today().isoformat()
        print(name, json.dumps(found[name], indent=1))
    found["hardware"] = provenance.hardware(torch.device("cpu"))
    found["versions"] = provenance.versions()
    found["limits"] = benchmark.limits()
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (HERE / "engine.md").write_text(written(found), encoding="utf-8")


if __name__ == "__main__":
    main()
