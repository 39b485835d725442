"""Compare the engine with plain training loops on this machine and write the tables of engine.md.

    python benchmarks/engine.py [--device cuda] [--name NAME] [PART ...]

On CUDA the tables go to engine_cuda.md; `--name` chooses another page for another kind of machine. Both
sides of each ratio are measured alternately and reported as medians of fourteen. A full run takes about ten
minutes and must have the machine to itself: other processes that multiply matrices invalidate the figures.
"""

import argparse
import datetime
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import plain_loops
import step_timing
import torch
from step_timing import Case
from torch import nn

from envariant.algorithms import recipe
from envariant.training import execution, provenance
from envariant.training.allocator import keep_freed_memory
from envariant.training.execution import Stacked
from envariant.training.replica_stack import ReplicaStack
from envariant.training.replicas import Replica, Seeds

HERE = Path(__file__).parent
REPEATS = 7
STEPS, MEASUREMENTS = 501, 6
FULL = step_timing.CASES["irm-full-batch"]
SMALL = step_timing.CASES["small-mlp"]
LINEAR = step_timing.CASES["linear"]
CNN = step_timing.CASES["mnist-cnn"]


Timer = Callable[[int], float]
"""Return the seconds of one repetition, after the given number of warm-up calls."""


def timer(device: torch.device, work: Callable[[], object]) -> Timer:
    return lambda warm: step_timing.median_seconds(work, 1, device, warm)


def time_alternately(*timers: Timer, warm: int = 1, repeats: int = REPEATS) -> list[float]:
    """Return the median seconds of each workload: two repetitions of each in turn, `repeats` times over.

    Alternation spreads the slow minutes of a shared machine over all workloads. Warm-up calls come first,
    because a large step leaves cold caches for a small one.
    """
    seconds: list[list[float]] = [[] for _ in timers]
    for _ in range(repeats):
        for times, measure in zip(seconds, timers, strict=True):
            times += [measure(warm), measure(0)]
    return [statistics.median(times) for times in seconds]


def rows(case: Case) -> list[plain_loops.Rows]:
    return [(e.inputs.to(case.device), e.targets.to(case.device)) for e in case.data().environments]


def _serve_restart_steps(device: torch.device, *, allocator: bool, calls: Connection) -> None:
    """Time steps of the paper's loop on request, in a separate process."""
    if allocator:
        keep_freed_memory()
    training = rows(replace(FULL, device=device.type))
    test = (torch.rand(10_000, 392, device=device), (torch.rand(10_000, device=device) > 0.5).float())
    model = plain_loops.mlp(392, 390).to(device)
    adam = torch.optim.Adam(model.parameters(), lr=4.9e-4)

    def step() -> None:
        plain_loops.irm_step(model, adam, training, 91_257.0, 1.1e-3, test)

    # The loop ends when the other side closes its end of the pipe.
    with suppress(EOFError):
        while True:
            calls.send(step_timing.median_seconds(step, 1, device, calls.recv()))


@contextmanager
def restart_steps(device: torch.device, *, allocator: bool) -> Iterator[Timer]:
    """Time steps of the paper's loop in a process that the engine's allocator setting does not affect."""
    processes = multiprocessing.get_context("spawn")
    here, there = processes.Pipe()
    process = processes.Process(
        target=_serve_restart_steps,
        args=(device,),
        kwargs={"allocator": allocator, "calls": there},
        daemon=True,
    )
    process.start()
    # While this copy is open, a dead process would not raise EOFError.
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
    """Time of one restart in the paper (501 steps), computed from the median times of a step and of an
    evaluation. The engine evaluates the model six times (60,000 rows each), the plain loop at every step
    (10,000 rows).
    """
    full = replace(FULL, device=device.type)
    cases = [
        ("bfloat16", replace(full, precision="bfloat16")),
        ("bfloat16, compiled", replace(full, precision="bfloat16", compiled=True)),
        *([("tf32", replace(full, precision="tf32"))] if device.type == "cuda" else []),
        ("float32", full),
    ]
    keep_freed_memory()
    table = []
    with (
        restart_steps(device, allocator=False) as plain,
        restart_steps(device, allocator=True) as plain_with_allocator,
    ):
        for name, case in cases:
            stack = case.stack()
            # A compiled step has the same products, but they cannot be recorded.
            products = step_timing.record_products(replace(case, compiled=False).stack())
            loop, loop_with_allocator, step, measure, products_alone = time_alternately(
                plain,
                plain_with_allocator,
                *(timer(device, work) for work in (stack.advance, stack.measure, products.replay)),
            )
            # Includes the training environments: 50,000 rows more than the plain loop evaluates.
            seconds = step * STEPS + measure * MEASUREMENTS
            table.append(
                {
                    "precision": name,
                    "step ms": 1e3 * step,
                    "measurement ms": 1e3 * measure,
                    "restart s": seconds,
                    "plain loop step ms": 1e3 * loop,
                    "plain loop step with the allocator setting, ms": 1e3 * loop_with_allocator,
                    "ratio": loop * STEPS / seconds,
                    "ratio with the allocator setting": loop_with_allocator * STEPS / seconds,
                    "matrix products alone ms": 1e3 * products_alone,
                    "share of matrix products": products_alone / step,
                    "GFLOP per step": products.flops / 1e9,
                }
            )
    return table


def small(device: torch.device, repeats: int = REPEATS) -> list[dict[str, object]]:
    """A small network for tables: 100 replicas in one stack, compared with sequential execution. Both are run
    by Envariant.
    """
    table = []
    for algorithm in ("erm", "irm", "and-mask"):
        for compiled in (False, True):
            case = replace(SMALL, algorithm=algorithm, device=device.type)
            single = case.stack()
            stacked = replace(case, replicas=100, compiled=compiled).stack()
            one, hundred = time_alternately(
                timer(device, single.advance), timer(device, stacked.advance), warm=5, repeats=repeats
            )
            table.append(
                {
                    "algorithm": algorithm,
                    "compiled": compiled,
                    "sequential ms": 1e3 * one,
                    "stacked ms per replica": 1e3 * hundred / 100,
                    "ratio": one / (hundred / 100),
                }
            )
    return table


def linear(device: torch.device, repeats: int = REPEATS) -> list[dict[str, object]]:
    """Linear models: 20 replicas with different hyperparameters on the same data, compared with plain
    loops.
    """
    base = replace(LINEAR, device=device.type)
    table, training = [], rows(base)
    for algorithm in ("erm", "irm", "and-mask", "iga"):
        model = nn.Linear(10, 1).to(device)
        adam = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
        setting = {"irm": "coefficient", "iga": "coefficient", "and-mask": "threshold"}.get(algorithm, "l2")
        replicas = [
            Replica(
                k,
                Seeds.of(0, 0),
                recipe(algorithm).build({setting: 1.0 if setting == "threshold" else 0.1 * (k + 1)}),
                1e-3 * (k + 1),
                0.0,
            )
            for k in range(20)
        ]
        for compiled in (False, True):
            case = replace(base, compiled=compiled)
            stacked = ReplicaStack(case.data(), replicas, case.run_config())
            single = ReplicaStack(case.data(), replicas[:1], base.run_config())
            works = (
                partial(plain_loops.linear_step, model, adam, training, algorithm),
                single.advance,
                stacked.advance,
            )
            loop, one, twenty = time_alternately(
                *(timer(device, work) for work in works), warm=5, repeats=repeats
            )
            table.append(
                {
                    "algorithm": algorithm,
                    "compiled": compiled,
                    "plain loop ms": 1e3 * loop,
                    "engine, sequential ms": 1e3 * one,
                    "stacked ms per replica": 1e3 * twenty / 20,
                    "ratio": loop / (twenty / 20),
                    "ratio to sequential": one / (twenty / 20),
                }
            )
    return table


def cnn(device: torch.device, repeats: int = REPEATS) -> list[dict[str, object]]:
    """DomainBed's MNIST network: a training step on 2 × 64 rows, and the evaluation of 70,000 rows."""
    case = replace(CNN, precision="bfloat16", device=device.type)
    model = plain_loops.cnn(2).to(device)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    inputs = torch.rand(128, 2, 28, 28, device=device)
    targets = (torch.rand(128, device=device) > 0.5).float()
    images = torch.rand(7_000, 2, 28, 28, device=device)

    def step() -> None:
        plain_loops.erm_step(model, adam, inputs, targets)

    def evaluation() -> None:
        plain_loops.evaluate(model, images, 64)

    evaluated = replace(case, environments=1, rows=7_000).stack()
    workloads = [
        ("step of 2×64 rows", 1e3, step, case.stack().advance),
        ("step of 2×64 rows, compiled", 1e3, step, replace(case, compiled=True).stack().advance),
        ("evaluation of 70,000 rows (7,000 timed)", 1e4, evaluation, evaluated.measure),
    ]
    table = []
    for name, scale, loop, engine in workloads:
        loop_seconds, seconds = time_alternately(timer(device, loop), timer(device, engine), repeats=repeats)
        table.append(
            {
                "workload": name,
                "plain loop ms": scale * loop_seconds,
                "engine ms": scale * seconds,
                "ratio": loop_seconds / seconds,
            }
        )
    return table


def growth(device: torch.device, repeats: int = REPEATS) -> list[dict[str, object]]:
    """Time and memory of 1, 10, 100 and 1,000 replicas, in stacks of the size that the engine chooses.

    Each case runs in its own process. The memory of tensors is predicted from stacks of two and of four
    replicas. The memory of the process includes heap fragmentation.
    """
    rates, table = step_timing.matrix_product_rates(device), []
    for case in (replace(LINEAR, rows=1_000), SMALL):
        base = replace(case, device=device.type)
        for k in (1, 10, 100, 1000):
            whole = replace(base, replicas=k)
            chosen = execution.choose(
                Stacked(), whole.data(), whole.build_replicas(), whole.run_config(), None
            )
            stack = replace(whole, name=f"{base.name}-x{k}", replicas=chosen.group)
            (timing,) = step_timing.measure_cases([stack], rates, repeats)
            table.append(
                {
                    "case": base.name,
                    "replicas": k,
                    "stack size": chosen.group,
                    "ms per replica": 1e3 * timing.seconds / timing.replicas,
                    "process MB": timing.bytes_measured / 1e6,
                    "tensors MB": timing.bytes_of_tensors / 1e6,
                    "predicted MB": timing.bytes_predicted / 1e6,
                }
            )
    return table


def start(device: torch.device) -> list[dict[str, object]]:
    """Start-up time of `envariant train` with one step on colored digits, compared with `import torch`
    alone.
    """

    def seconds(*command: str) -> float:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    python, package = seconds("-c", "pass"), seconds("-c", "import envariant")
    torch_alone = seconds("-c", "import torch")
    command = ("train", "--data", "colored-digits", "--steps", "1", "--device", device.type)
    whole = seconds("-m", "envariant", *command)
    return [
        {
            "import envariant s": package - python,
            "import torch s": torch_alone,
            "total s": whole,
            "beyond import s": whole - torch_alone,
        }
    ]


def profile(device: torch.device) -> list[dict[str, object]]:
    """The most expensive PyTorch operations of a step, as shares of the time of all operations."""
    table = []
    for name in ("irm-full-batch-bfloat16", "small-mlp-x100", "linear-x20", "mnist-cnn-bfloat16"):
        stack = replace(step_timing.CASES[name], device=device.type).stack()
        for _ in range(3):
            stack.advance()
        with torch.profiler.profile() as profiled:
            for _ in range(5):
                stack.advance()
        column = f"self_{'device' if device.type == 'cuda' else 'cpu'}_time_total"
        events = sorted(profiled.key_averages(), key=lambda event: -getattr(event, column))
        total = sum(getattr(event, column) for event in events)
        shares = [f"{e.key.removeprefix('aten::')} {getattr(e, column) / total:.0%}" for e in events[:8]]
        table.append({"case": name, "largest operations": ", ".join(shares)})
    return table


PARTS = {
    "restart": restart, "small": small, "linear": linear, "cnn": cnn, "growth": growth, "start": start,
    "profile": profile,
}  # fmt: skip


def markdown(figures: dict[str, object]) -> str:
    """Format the figures as a Markdown page."""
    hardware = figures["hardware"]
    lines = [
        "# Speed of the engine",
        "",
        f"This page is written by `python benchmarks/engine.py{figures.get('options', '')}`. No other "
        "program ran during the measurements. All times are medians. The two times of each ratio are "
        "measured in the same run.",
        "",
        "The reference is [plain_loops.py](plain_loops.py): plain float32 training loops as the papers "
        "describe them. The full-batch step of the plain loop is timed without Envariant's allocator setting "
        "(`training/allocator.py`), because users of the papers' code run it without this setting. The table "
        "also shows its time with the setting.",
        "",
        f"Machine: {provenance.described(hardware)}; torch {figures['versions']['torch']}. The machine may "
        "be shared with other users. Each section therefore states how fast matrix products were during its "
        "run (the best rate over several matrix shapes).",
    ]
    for name, work in PARTS.items():
        if name not in figures:
            continue
        table = figures[name]
        measured = figures["measured"][name]
        rates = [f"{rate / 1e9:,.0f} in {precision}" for precision, rate in measured["limits"].items()]
        products = f"; rate of matrix products, in GFLOP/s: {', '.join(rates)}" if rates else ""
        lines += ["", f"## {name}", ""]
        lines += [" ".join(f"{work.__doc__} Measured on {measured['date']}{products}.".split()), ""]
        lines += table_lines(table)
    return "\n".join(lines) + "\n"


def table_lines(table: Sequence[Mapping[str, object]]) -> list[str]:
    """Format rows with the same keys as the lines of a Markdown table."""
    header = list(table[0])
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return lines + ["| " + " | ".join(_text(row[key]) for key in header) + " |" for row in table]


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Measure the parts named on the command line (default: all) and keep the last figures of the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--name", help="page name; default: engine or engine_cuda")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    default = "engine" if device.type == "cpu" else "engine_cuda"
    path = HERE / f"{arguments.name or default}.json"
    figures = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    conditions = {
        "options": (" --device cuda" if device.type == "cuda" else "")
        + (f" --name {arguments.name}" if arguments.name else ""),
        "hardware": provenance.hardware(device),
        "versions": provenance.versions(),
    }
    for name in arguments.parts or PARTS:
        rates = step_timing.matrix_product_rates(device)
        figures[name] = PARTS[name](device)
        measured = {"date": datetime.date.today().isoformat(), "limits": rates}
        figures.setdefault("measured", {})[name] = measured
        print(name, json.dumps(figures[name], indent=1))
        figures |= conditions
        path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(markdown(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
