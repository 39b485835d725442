"""Compare accuracy in bfloat16 and float32 on Colored MNIST, ten replicas each, in the papers' settings.

    python benchmarks/precision.py [--only erm] [FOLDER]

Runs are stored in FOLDER (default runs/precision) and resumed after a stop. A full run takes hours.
"""

import argparse
from pathlib import Path
from typing import Any

import envariant
from envariant import TrainingResult
from envariant.analysis.statistics import interval
from envariant.training import provenance
from envariant.training.result import Spread

HERE = Path(__file__).parent
ALGORITHMS = ("irm", "vrex", "erm", "and-mask")
PRECISIONS = ("bfloat16", "float32")
ENVIRONMENTS = ("flip-0.2", "flip-0.1", "flip-0.9")


def half_width(spread: Spread) -> float:
    """Return half the width of the 95 % confidence interval of the mean."""
    estimate = interval(spread.values)
    return estimate.high - estimate.mean


def table_row(name: str, results: dict[str, TrainingResult]) -> list[str]:
    cells = []
    for environment in ENVIRONMENTS:
        spreads = [results[p].final(environment, "accuracy") for p in PRECISIONS if p in results]
        estimates = [f"{s.mean:.4f} ± {half_width(s):.4f} ({len(s.values)})" for s in spreads]
        within = ""
        if len(spreads) == 2:
            difference = abs(spreads[0].mean - spreads[1].mean)
            within = "yes" if difference <= min(map(half_width, spreads)) else "no"
        cells += [*(estimates + ["–"] * (2 - len(estimates))), within or "–"]
    return [name, *cells]


def page(results: dict[str, dict[str, TrainingResult]]) -> str:
    header = ["algorithm"] + [
        f"{environment} {column}"
        for environment in ENVIRONMENTS
        for column in ("bfloat16", "float32", "within")
    ]
    rows = [table_row(name, runs) for name, runs in results.items() if runs]
    first = next(run for runs in results.values() for run in runs.values())
    return "\n".join(
        [
            "# Accuracy in bfloat16 and float32",
            "",
            "All runs use Colored MNIST with the protocol `irm`, 501 steps and the papers' settings. "
            "flip-0.9 is the test environment. The table shows the mean accuracy over replicas ± half the "
            "width of its 95 % confidence interval (Student's t), with the number of replicas in "
            "parentheses. Replica k has the same data, initial weights and batches in both precisions. "
            "*within* states whether the mean of each precision lies in the confidence interval of the other "
            "precision.",
            "",
            "| " + " | ".join(header) + " |",
            "|" + " --- |" * len(header),
            *("| " + " | ".join(row) + " |" for row in rows),
            "",
            f"Machine: {provenance.described(first.record.hardware)}; "
            f"torch {first.record.versions['torch']}.",
            "",
        ]
    )


def trained(
    name: str, precision: str, out: Path, *, replicas: int, device: str = "auto", **options: Any
) -> TrainingResult:
    """Train the replicas of an algorithm in one precision, or load them if they are stored in a folder.

    Args:
        name: Name of the algorithm.
        precision: Precision of matrix products.
        out: Folder for the runs.
        replicas: Number of replicas.
        device: "auto", "cpu" or "cuda".
        options: Options of `envariant.train` that differ from the paper's settings.
    """
    return envariant.train(
        "colored-mnist",
        name,
        precision=precision,
        replicas=replicas,
        device=device,
        out=out,
        **{"evaluate_every": 100, **options},
    )


def main() -> None:
    """Train the missing runs and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/precision"))
    parser.add_argument("--replicas", type=int, default=10)
    parser.add_argument("--only", nargs="+", default=ALGORITHMS, choices=ALGORITHMS)
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--only-report", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    results: dict[str, dict[str, TrainingResult]] = {name: {} for name in ALGORITHMS}
    for name in ALGORITHMS:
        for precision in PRECISIONS:
            out = arguments.folder / f"{name}-{precision}"
            if arguments.only_report or name not in arguments.only or precision not in arguments.precisions:
                if (out / "runs.sqlite").exists():
                    results[name][precision] = TrainingResult.load(out)
                continue
            results[name][precision] = trained(name, precision, out, replicas=arguments.replicas)
    device = next(run for runs in results.values() for run in runs.values()).record.spec.device
    name = "precision.md" if device == "cpu" else "precision_cuda.md"
    (HERE / name).write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
