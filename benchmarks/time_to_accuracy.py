"""Measure how long training on Colored MNIST takes to reach 0.67 or 0.70 in the test environment.

    python benchmarks/time_to_accuracy.py [NAME … | all] [--replicas 10] [--precision float32]
                                          [--device cuda] [--write]

Every method is trained one replica after another, each from its own data, initial weights and batches. The
time of a replica includes sampling of the data, pretraining, training, and evaluation after the last step,
but not the start of the program. Without names, only the methods that take seconds are trained; `all` adds
the papers' protocols. The matrix products of one more replica are counted by PyTorch's operation counter.
`--write` stores the results by machine in time_to_accuracy.json, and writes docs/time-to-accuracy.md from
this file.

To measure a processor with AMX as if it had none, set ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16.
"""

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from colored_mnist import markdown
from torch.utils.flop_counter import FlopCounterMode

from envariant.cli.demo import SHORT
from envariant.reporting.tables import TextTable
from envariant.training import provenance
from envariant.training.result import TrainingResult
from envariant.training.train import train

STORED = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parent.parent / "docs" / "time-to-accuracy.md"
TEST, SEED, GOALS = "flip-0.9", 2026, (0.67, 0.70)

_ERM_START = "erm(steps=80, l2=0.001, batch_size=2048, learning_rate=0.001)"
SECONDS: Mapping[str, Mapping[str, Any]] = {
    "V-REx, head on features from `jtt`": {"algorithm": "vrex", **SHORT["vrex"]},
    "IRM, head on features from `jtt`": {"algorithm": "irm", **SHORT["irm"]},
    "V-REx, head on features from `erm`": {
        "algorithm": "vrex",
        **SHORT["vrex"],
        "init": _ERM_START,
        "steps": 200,
    },
}
"""Methods that take seconds, and their options."""

PAPERS: Mapping[str, Mapping[str, Any]] = {
    "V-REx, settings of the REx code": {"algorithm": "vrex"},
    "IRM, settings of the IRM paper": {"algorithm": "irm"},
}
"""Protocols of the papers, which take minutes."""


def once(options: Mapping[str, Any], replica: int) -> tuple[TrainingResult, float]:
    """Train one replica, and return its result and the time in seconds."""
    options = {**options, "evaluate_every": options.get("steps"), "seed": SEED + replica}
    if options["evaluate_every"] is None:
        options["evaluate_every"] = 500  # Once, in a run of the papers' 500 or 501 steps.
    start = time.perf_counter()
    result = train("colored-mnist", **options)
    return result, time.perf_counter() - start


def measured(options: Mapping[str, Any], replicas: int) -> dict[str, Any]:
    """Return the accuracies and times of all replicas of a method, and its operations."""
    results = [once(options, k) for k in range(replicas)]
    with FlopCounterMode(display=False) as counter:
        once(options, 0)
    spec = results[0][0].record.spec
    return {
        "accuracies": [result.final(TEST, "accuracy").values[0] for result, _ in results],
        "seconds": [seconds for _, seconds in results],
        "operations": counter.get_total_flops(),
        "machine": _machine(results[0][0]),
        "precision": spec.precision,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
    }


def commit() -> str:
    """Return the short name of the current commit, or "unknown"."""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def _machine(result: TrainingResult) -> str:
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    limited = f"; instructions limited to {limit}" if limit else ""
    versions = result.record.versions
    return f"{provenance.described(result.record.hardware)}{limited}; torch {versions['torch']}"


def page(stored: Sequence[Mapping[str, Any]]) -> str:
    """Return the Markdown page about all stored measurements."""
    parts = [_HEAD]
    for number, where in enumerate(dict.fromkeys(each["machine"] for each in stored), start=1):
        parts += [f"## Machine {number}", f"{where}.", _table([e for e in stored if e["machine"] == where])]
    return "\n\n".join(parts).rstrip("\n") + "\n"


def _table(stored: Sequence[Mapping[str, Any]]) -> str:
    rows: list[tuple[str, ...]] = []
    for each in stored:
        accuracies, count = each["accuracies"], len(each["accuracies"])
        mean = statistics.fmean(accuracies)
        spread = f" ± {statistics.stdev(accuracies):.3f}" if count > 1 else ""
        reached = [f"{goal:.2f}" for goal in GOALS if mean >= goal]
        rows.append(
            (
                each["method"],
                f"{statistics.median(each['seconds']):.1f}",
                f"{each['operations'] / 1e12:.2f}",
                each["precision"],
                f"{mean:.3f}{spread}",
                str(count),
                ", ".join(reached) or "–",
                f"{each['date']}, {each['commit']}",
            )
        )
    header = ("method", "seconds", "TFLOP", "precision", "flip-0.9", "replicas", "mean reaches", "measured")
    return markdown(TextTable(header, tuple(rows)))


_HEAD = (
    "# Time to accuracy on Colored MNIST\n\n"
    "How long does it take to reach an accuracy of 0.67 or 0.70 in the test environment flip-0.9? This "
    "page is written by `python benchmarks/time_to_accuracy.py all --write`. *Seconds* is the median time"
    " of one replica: sampling of the data, pretraining, training and one evaluation. *TFLOP* counts the "
    "operations of matrix products, in units of 10¹². Accuracies are means ± standard deviations (divisor"
    " n − 1) over replicas with data, initial weights and batches of their own, after the last step.\n\n"
    "All settings are oracle settings. Those of the papers were chosen by their authors by test accuracy,"
    " and those of the short methods by test accuracy in other draws of the same data. The short methods "
    "are:\n\n"
    "- **Features from `jtt`.** A first network is trained by ERM for 20 steps, which suffices to learn "
    "the color. A second network is trained for 100 steps, in which the rows that the first one predicts "
    "wrongly have as much weight as all others. Its features are frozen, and IRM or V-REx trains the last"
    " layer in 100 full-batch steps. The errors of the first network are the digits whose color is "
    "misleading. The recipe therefore assumes that the feature that is learned first is spurious, as JTT "
    "does. A penalty alone does not need this assumption.\n"
    "- **Features from `erm`.** The features are those of a network that was trained by ERM for 80 steps."
    " They contain less about the shape, because color predicts the label better.\n\n"
    "`envariant demo` uses the first recipe, which is described in the [training "
    "guide](guide/training.md)."
)


def main() -> None:
    """Measure the selected methods, and write the page if requested."""
    parser = argparse.ArgumentParser()
    parser.add_argument("methods", nargs="*", help="parts of method names, or 'all'")
    parser.add_argument("--replicas", type=int, default=10)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    known = {**SECONDS, **PAPERS}
    chosen = {
        name: each
        for name, each in known.items()
        if "all" in options.methods
        or any(part in name for part in options.methods)
        or (not options.methods and name in SECONDS)
    }
    stored: list[dict[str, Any]] = json.loads(STORED.read_text()) if STORED.exists() else []
    for name, each in chosen.items():
        changes = {"precision": options.precision, "device": options.device}
        new = {"method": name, **measured({**each, **changes}, options.replicas)}
        print(new, flush=True)
        key = (name, new["machine"], new["precision"])
        stored = [e for e in stored if (e["method"], e["machine"], e["precision"]) != key] + [new]
        if options.write:
            STORED.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n")
            PAGE.write_text(page(stored))


if __name__ == "__main__":
    main()
