"""Every algorithm on Colored MNIST, protocol `irm`: each environment, the worst, and the published figure.

    python benchmarks/algorithms.py [FOLDER] [--only irm "vrex from rfc"]

No search: the settings that the data suggest, else the algorithm's defaults, and what CASES says. Runs are
kept in FOLDER (default runs/algorithms) and continued if they were stopped; the table goes to
docs/colored_mnist.md. It takes hours.
"""

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import envariant
from envariant import published
from envariant.algorithms import RECIPES
from envariant.errors import EnvariantError
from envariant.training import Spread, TrainingResult

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "colored_mnist.md"
PLACES = ("flip-0.2", "flip-0.1", "flip-0.9")
_LAST = ("replicas", "steps", "changed")

# What nobody has run on all rows need not be: a step of some of them takes seconds then. SD and IGA were, for
# 1001 steps, and would take an hour here.
_SMALL = {"batch_size": 512}
_FROM_RFC = {"init": "rfc", "steps": 1001, "learning_rate": 5e-4, "model": "mlp(hidden=390)"}


@dataclass(frozen=True)
class Case:
    """One line of the table: an algorithm, what is changed, and where its published figure stands."""

    algorithm: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    published: tuple[str, str, str] | None = None


_REX, _FISHR, _RFC = "rex_colored_mnist", "fishr_colored_mnist", "rfc_colored_mnist"
_PUBLISHED = {
    "erm": (_REX, "ERM", "test"),
    "irm": (_REX, "IRM", "test"),
    "vrex": (_REX, "V-REx", "test"),
    "mm-rex": (_REX, "MM-REx", "test"),
    "risk-interpolation": (_REX, "RI", "test"),
    "fishr": (_FISHR, "Fishr", "test"),
    "sd": (_RFC, "SD", "ERM"),
    "iga": (_RFC, "IGA", "ERM"),
    "clove": (_RFC, "CLOvE", "ERM"),
}
# Of the risks' sum, as in the RFC code; the penalty at the largest weight that it lists, from step 0 on.
_SUM = {"weighting": "sum", "rescale": True, "l2": 0.0011}
_STARTED: dict[str, tuple[dict[str, Any], str]] = {
    # (R_1 − R_2)² is twice the variance with divisor n − 1.
    "vrex": ({"coefficient": 5e4, "pairwise": True, **_SUM}, "vREx"),
    "sd": ({"coefficient": 2000.0, **_SUM}, "SD"),
    "irm": ({"coefficient": 1e5, **_SUM}, "IRMv1"),
    "fishr": ({"coefficient": 1e5, "memory": 0.0, "centred": False, "summed": True, **_SUM}, "Fishr"),
}
_WHOLE = ("erm", "irm", "vrex", "mm-rex", "risk-interpolation", "clove", "eiil")
# Its context network is three wide convolutions: a step on 2 × 512 images takes a second.
_ARM = {"batch_size": 64}
CASES: dict[str, Case] = {
    "fishr": Case("fishr", published=_PUBLISHED["fishr"]),
    "arm": Case("arm", _ARM),
    **{
        f"{name} from rfc": Case(name, {**_FROM_RFC, "hyperparameters": given}, (_RFC, row, "RFC"))
        for name, (given, row) in _STARTED.items()
    },
    **{
        f"{name} from rfc, features frozen": Case(
            name, {**_FROM_RFC, "freeze": "features", "hyperparameters": given}, (_RFC, row, "RFC(cf)")
        )
        for name, (given, row) in _STARTED.items()
    },
    **{
        name: Case(name, {} if name in _WHOLE else _SMALL, _PUBLISHED.get(name))
        for name in RECIPES
        if name not in ("fishr", "arm")
    },
}


def shown(spread: Spread) -> str:
    sd = "" if spread.sd is None else f" ± {spread.sd:.3f}"
    return f"{spread.mean:.3f}{sd}"


def line(name: str, case: Case, result: TrainingResult) -> str:
    worst, _ = result.worst()
    figures = [shown(result.final(place, "accuracy")) for place in PLACES] + [shown(worst)]
    told = "–"
    if case.published is not None:
        table, row, column = case.published
        mean, spread = published.table(table).fraction(row, column)
        told = f"{mean:.3f}" + (f" ± {spread:.3f}" if spread else "") + (" (RFC)" if table == _RFC else "")
    settings = result.record.settings
    changed = "; ".join(f"{key} {value}" for key, value in case.changes.items() if key != "hyperparameters")
    return " | ".join(
        ["", f"`{name}`", *figures, told, f"{len(result.finished)}", f"{settings.steps}", changed or "–", ""]
    ).strip()


def page(results: Mapping[str, TrainingResult]) -> str:
    some = next(iter(results.values())).record
    hardware = ", ".join(f"{key} {value}" for key, value in some.hardware.items())
    return "\n".join(
        [
            "# Every algorithm on Colored MNIST",
            "",
            "Made by `python benchmarks/algorithms.py`. Protocol `irm`: flip-0.2 and flip-0.1 are trained "
            "on, flip-0.9 is held out. Accuracy at the last step, mean ± standard deviation (divisor n − 1) "
            "over replicas. No search, and no look at flip-0.9 on our side; the settings of the IRM, REx, "
            "Fishr, EIIL and RFC codes were chosen there with one.",
            "",
            "An algorithm that only weighs, masks or aligns cannot see that the colour is spurious where it "
            "helps in both training environments: figures near 0.1 to 0.2 are expected of those, and none of "
            "their papers claims more here. Figures marked (RFC) are the least of three test environments, "
            "so they are not quite the same measure; its code says neither which weight nor which step they "
            "are of. From rich features the penalty has the largest weight that the code lists.",
            "",
            "SD falls short of its published figures. From rich features (one replica, all weights tried) it "
            "passes 0.70 in all environments near step 80, while it shrinks the logits, and leaves it again: "
            "0.41 at step 1001 with weight 50, 0.22 with 10. Without them the released code divides the loss "
            "by a further 500 at the switch, which all but stops Adam there; this does not.",
            "",
            "| " + " | ".join(("algorithm", *PLACES, "worst", "published flip-0.9", *_LAST)) + " |",
            "|" + " --- |" * 9,
            *(line(name, CASES[name], result) for name, result in results.items()),
            "",
            f"{hardware}; torch {some.versions['torch']}; {some.settings.precision}.",
            "",
        ]
    )


def main() -> None:
    """Trains what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/algorithms"))
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE")
    arguments = parser.parse_args()
    results: dict[str, TrainingResult] = {}
    for name, case in CASES.items():
        out = arguments.folder / re.sub(r"[^a-z0-9+]+", "-", name)
        if name in arguments.only:
            try:
                results[name] = envariant.train(
                    "colored-mnist",
                    case.algorithm,
                    replicas=arguments.replicas,
                    execution="sequential",
                    out=out,
                    **case.changes,
                )
            except EnvariantError as error:
                print(f"{name}: {error}", flush=True)
                continue
            print(line(name, case, results[name]), flush=True)
        elif (out / "run.json").exists():
            found = TrainingResult.load(out)
            if len(found.finished) == arguments.replicas:
                results[name] = found
        if results:
            PAGE.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
