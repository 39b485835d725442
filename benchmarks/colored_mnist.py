"""Colored MNIST, `irm` protocol: every algorithm's test accuracy beside the published figure.

    python benchmarks/colored_mnist.py [FOLDER]

Runs are kept in FOLDER (default runs/colored-mnist) and continued if it was stopped; the table goes to
benchmarks/colored_mnist.md, with the conditions under which it was made, and the curves to docs/.
"""

import sys
from pathlib import Path

import envariant
from envariant.reporting import charts, tables
from envariant.training import provenance
from envariant.training.result import TrainingResult

RUNS = (
    ("colored-mnist", "erm"),
    ("colored-mnist", "irm"),
    ("colored-mnist", "vrex"),
    ("colored-mnist", "mm-rex"),
    ("colored-mnist", "and-mask"),
    ("colored-mnist-grayscale", "erm"),
)


def markdown(table: tables.TextTable) -> str:
    lines = [table.header, tuple("---" for _ in table.header), *table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def conditions(result: TrainingResult) -> str:
    hardware = provenance.described(result.record.hardware)
    versions = ", ".join(f"{key} {value}" for key, value in result.record.versions.items())
    return f"{result.record.spec.precision}; {hardware}; {versions}."


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/colored-mnist")
    results = [
        envariant.train(data, algorithm, replicas=3, out=folder / f"{algorithm}-{data}")
        for data, algorithm in RUNS
    ]
    table = tables.scores(results)
    text = (
        "# Colored MNIST, protocol irm\n\n"
        "`python benchmarks/colored_mnist.py`: the bare settings of `envariant train`, seed 0.\n\n"
        f"{markdown(table)}\n"
        + "\n".join(f"- {note}" for note in table.notes)
        + f"\n- {conditions(results[0])}\n"
    )
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    shown = [result for result, (_, algorithm) in zip(results, RUNS, strict=True) if algorithm != "mm-rex"]
    curves = Path(__file__).parent.parent / "docs" / "colored-mnist-curves.svg"
    charts.save(charts.curves(shown), curves)
    print(text)


if __name__ == "__main__":
    main()
