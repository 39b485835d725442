"""AND-mask on Colored MNIST over thresholds: what the mask keeps, and what that does to the test accuracy.

    python benchmarks/and_mask_thresholds.py [FOLDER]

With two training environments |mean sign| is 0, ½ or 1, so only three thresholds differ: 0 (every entry is
kept), anything up to ½ and anything above. The table and the picture go to
benchmarks/and_mask_thresholds.md and .svg.
"""

import sys
from pathlib import Path

from colored_mnist import conditions, markdown

import envariant
from envariant.reporting import charts, tables

THRESHOLDS = (0.0, 0.5, 1.0)
VARIANTS = {
    "unscaled": "mean=arithmetic,inverse_sparsity=false",
    "geometric": "mean=geometric,inverse_sparsity=true",
}


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/and-mask")
    swept = {
        τ: envariant.train(
            "colored-mnist", f"and-mask(threshold={τ:g})", replicas=3, out=folder / f"threshold-{τ:g}"
        )
        for τ in THRESHOLDS
    }
    variants = {
        name: envariant.train("colored-mnist", f"and-mask({text})", replicas=1, out=folder / name)
        for name, text in VARIANTS.items()
    }
    table = tables.scores([*swept.values(), *variants.values()])
    names = [f"τ = {τ:g}" for τ in THRESHOLDS] + [f"τ = 1, {name}" for name in VARIANTS]
    lines = tuple((name, *line[1:]) for name, line in zip(names, table.rows, strict=True))
    place = Path(__file__)
    charts.save(charts.sweep(swept, "threshold τ"), place.with_suffix(".svg"))
    text = (
        "# AND-mask on Colored MNIST over thresholds\n\n"
        "`python benchmarks/and_mask_thresholds.py`: ERM's settings (hidden 256, lr 0.001, l2 0.001, 501 "
        "full-batch steps), seed 0; unless said otherwise the arithmetic mean, scaled by the inverse "
        "sparsity.\n\n![accuracy over thresholds](and_mask_thresholds.svg)\n\n"
        f"{markdown(tables.TextTable(table.header, lines))}\n"
        + "\n".join(f"- {note}" for note in table.notes)
        + f"\n- {conditions(swept[0.0])}\n"
    )
    place.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
