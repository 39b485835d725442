"""Train the first algorithms on Colored MNIST (protocol `irm`) and compare them with the published figures.

    python benchmarks/colored_mnist.py [FOLDER]

Runs are stored in FOLDER (default runs/colored-mnist) and resumed after a stop. The table and its conditions
go to benchmarks/colored_mnist.md, the training curves to docs/colored-mnist-curves.svg.
"""

import sys
from pathlib import Path

import envariant
from envariant.reporting import figures, tables
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
    rows = [table.header, tuple("---" for _ in table.header), *table.lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def conditions(result: TrainingResult) -> str:
    hardware = ", ".join(f"{key} {value}" for key, value in result.record.hardware.items())
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
        "`python benchmarks/colored_mnist.py`: default settings of `envariant train`, seed 0.\n\n"
        f"{markdown(table)}\n"
        + "\n".join(f"- {note}" for note in table.notes)
        + f"\n- {conditions(results[0])}\n"
    )
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    plotted = [result for result, (_, algorithm) in zip(results, RUNS, strict=True) if algorithm != "mm-rex"]
    curves = Path(__file__).parent.parent / "docs" / "colored-mnist-curves.svg"
    figures.save(figures.curves(plotted), curves)
    print(text)


if __name__ == "__main__":
    main()
