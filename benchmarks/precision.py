"""Accuracy under bfloat16 beside float32: ten replicas each on Colored MNIST, in the papers' own settings.

It takes hours; stopped, it goes on where it was. `python benchmarks/precision.py [--only erm] [FOLDER]`.
"""

import argparse
from pathlib import Path

import envariant
from envariant import TrainingResult
from envariant.analysis.statistics import interval
from envariant.training.result import Spread

HERE = Path(__file__).parent
ALGORITHMS = ("irm", "vrex", "erm", "and-mask")
PRECISIONS = ("bfloat16", "float32")
PLACES = ("flip-0.2", "flip-0.1", "flip-0.9")


def half_width(spread: Spread) -> float:
    """Half of the 95 % confidence interval of the mean."""
    found = interval(spread.values)
    return found.high - found.mean


def line(name: str, results: dict[str, TrainingResult]) -> list[str]:
    cells = []
    for place in PLACES:
        spreads = [results[p].final(place, "accuracy") for p in PRECISIONS if p in results]
        shown = [f"{s.mean:.4f} ± {half_width(s):.4f} ({len(s.values)})" for s in spreads]
        inside = ""
        if len(spreads) == 2:
            apart = abs(spreads[0].mean - spreads[1].mean)
            inside = "yes" if apart <= min(map(half_width, spreads)) else "no"
        cells += [*(shown + ["–"] * (2 - len(shown))), inside or "–"]
    return [name, *cells]


def written(results: dict[str, dict[str, TrainingResult]]) -> str:
    header = ["algorithm"] + [
        f"{place} {what}" for place in PLACES for what in ("bfloat16", "float32", "within")
    ]
    rows = [line(name, found) for name, found in results.items() if found]
    some = next(result for found in results.values() for result in found.values())
    return "\n".join(
        [
            "# bfloat16 beside float32",
            "",
            "Colored MNIST, protocol irm, 501 steps, the papers' settings. Mean accuracy ± half of its 95 % "
            "confidence interval (Student) over replicas, their number in brackets; replica k has the same "
            "data, initial weights and batches in both precisions. *Within*: each mean lies in the other's "
            "interval. flip-0.9 is held out.",
            "",
            "| " + " | ".join(header) + " |",
            "|" + " --- |" * len(header),
            *("| " + " | ".join(row) + " |" for row in rows),
            "",
            ", ".join(f"{key} {value}" for key, value in some.record.hardware.items())
            + f"; torch {some.record.versions['torch']}.",
            "",
        ]
    )


def main() -> None:
    """Trains what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
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
                if (out / "run.json").exists():
                    results[name][precision] = TrainingResult.load(out)
                continue
            results[name][precision] = envariant.train(
                "colored-mnist", name, precision=precision, replicas=arguments.replicas,
                evaluate_every=100, out=out,
            )  # fmt: skip
    device = next(r for found in results.values() for r in found.values()).record.spec.device
    page = "precision.md" if device == "cpu" else "precision_cuda.md"
    (HERE / page).write_text(written(results), encoding="utf-8")


if __name__ == "__main__":
    main()
