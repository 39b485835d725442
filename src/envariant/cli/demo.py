"""`envariant demo`: train five methods briefly on Colored MNIST, and write an HTML report.

By default, every method is trained in seconds. ERM and AND-mask are trained in minibatches. IRM and V-REx
train only the last layer, on features that a network has learned from the errors of a first network. These
settings were chosen by test accuracy, in other draws of the data.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from envariant.cli.options import Json, Mnist, Switch, WholeOrNone

# Algorithm, and whether images are converted to grayscale.
_RUNS = (("erm", False), ("irm", False), ("vrex", False), ("and-mask", False), ("erm", True))

_WIDTH, _ROWS = "mlp(hidden=390)", 2048
_START = f"jtt(first_steps=20, steps=100, l2=0.002, batch_size={_ROWS}, learning_rate=0.001)"
_MINIBATCHES = {
    "model": _WIDTH,
    "steps": 120,
    "batch_size": _ROWS,
    "learning_rate": 1e-3,
    "evaluate_every": 20,
}
_HEAD = {
    "model": _WIDTH,
    "steps": 100,
    "batch_size": "full",
    "learning_rate": 1e-2,
    "init": _START,
    "freeze": "features",
    "evaluate_every": 20,
}
_SHORT_NOTE = "These settings are not the papers'. To use the papers' settings (minutes), add --full."
_PENALTY = {"coefficient": 1e4, "l2": 0.01}

SHORT: Mapping[str, Mapping[str, Any]] = {
    "erm": _MINIBATCHES,
    "and-mask": _MINIBATCHES,
    "irm": {**_HEAD, "hyperparameters": _PENALTY},
    "vrex": {**_HEAD, "hyperparameters": {**_PENALTY, "pairwise": False, "risk_aggregator": "mean"}},
}
"""Options of each algorithm for training in seconds on Colored MNIST with the protocol `irm`."""


def demo(
    *,
    out: Annotated[Path, Parameter(alias="-o")] = Path("demo"),
    replicas: WholeOrNone = None,
    steps: WholeOrNone = None,
    data: str = "colored-mnist",
    full: Switch = False,
    mnist: Mnist = None,
    json: Json = False,
) -> None:
    """Train ERM, IRM, V-REx, AND-mask and the grayscale oracle on Colored MNIST, and write an HTML report.

    By default, training is short, and its protocol differs from the papers'. Run the same command again to
    resume after an interruption.

    Parameters
    ----------
    out
        Folder for the runs and the HTML report.
    replicas
        Number of replicas per algorithm; the default is 3, or 2 for the papers' settings (1 on processors
        without native bfloat16).
    steps
        Number of optimizer updates per replica.
    data
        Data set: colored-mnist, or colored-digits for a demo of a few seconds.
    full
        Use the settings of each paper, with which its published figures can be compared. Data with another
        protocol than irm are always trained with their usual settings.
    """
    import sys
    from dataclasses import replace

    import torch

    from envariant import data as sources
    from envariant.cli.output import print_json, print_lines
    from envariant.cli.show import exit_code, print_table
    from envariant.core.errors import EnvariantError
    from envariant.data import ColoredDigits, ColoredMNIST
    from envariant.reporting import html, run_page, tables
    from envariant.reporting.labels import title, verdict
    from envariant.training.precision import native_bfloat16
    from envariant.training.result import TrainingResult
    from envariant.training.train import train

    path = out / "report.html"
    html.check_page(path, "runs")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if replicas is None:
        replicas = (2 if native_bfloat16(device) else 1) if full else 3
    source = sources.source(data, folder=mnist)
    if not isinstance(source, ColoredMNIST | ColoredDigits):
        raise EnvariantError(f"demo: '{data}' is not a colored data set; use colored-mnist or colored-digits")
    short = not full and isinstance(source, ColoredMNIST) and source.protocol == "irm"
    if full and not isinstance(source, ColoredMNIST):
        raise EnvariantError("demo: --full needs colored-mnist, the data of the papers")
    results: list[TrainingResult] = []
    for algorithm, gray in _RUNS:
        folder = out / f"{algorithm}{'-grayscale' if gray else ''}{'-full' if full else ''}"
        options: dict[str, Any] = {**(SHORT[algorithm] if short else {}), "replicas": replicas}
        if steps is not None:
            options |= {"steps": steps, "evaluate_every": None}
        result = train(replace(source, gray=gray), algorithm, out=folder, **options)
        results.append(result)
        if not json:
            print_lines([f"{title(result)}: {verdict(result)}"])
    heading = f"Five algorithms on colored digits{', trained in seconds' if short else ''}"
    run_page.write(results, path, heading, mnist)
    if json:
        print_json({"page": str(path), "runs": [result.to_dict() for result in results]})
    else:
        print_table(tables.scores(results))
        print_lines(["", *([_SHORT_NOTE] if short else []), f"Open {path} in a browser."])
    sys.exit(exit_code(results))
