"""`envariant demo`: train five methods briefly on Colored MNIST, and write an HTML report."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from envariant.cli.options import Json, Mnist, WholeOrNone

# Algorithm, and whether images are converted to grayscale.
_RUNS = (("erm", False), ("irm", False), ("vrex", False), ("and-mask", False), ("erm", True))


def demo(
    *,
    out: Annotated[Path, Parameter(alias="-o")] = Path("demo"),
    replicas: WholeOrNone = None,
    steps: WholeOrNone = None,
    data: str = "colored-mnist",
    mnist: Mnist = None,
    json: Json = False,
) -> None:
    """Train ERM, IRM, V-REx, AND-mask and the grayscale oracle on Colored MNIST, and write an HTML report.

    Run the same command again to resume after an interruption.

    Parameters
    ----------
    out
        Folder for the runs and the HTML report.
    replicas
        Number of replicas per algorithm; the default is 2, or 1 on processors without native bfloat16.
    steps
        Number of optimizer updates per replica; by default the number in each method's paper.
    data
        Data set: colored-mnist, or colored-digits for a demo of a few seconds.
    """
    import sys
    from dataclasses import replace

    import torch

    from envariant import data as sources
    from envariant.cli.show import exit_code, print_json, print_lines, print_table
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
        replicas = 2 if native_bfloat16(device) else 1
    source = sources.source(data, folder=mnist)
    if not isinstance(source, ColoredMNIST | ColoredDigits):
        raise EnvariantError(f"demo: '{data}' is not a colored data set; use colored-mnist or colored-digits")
    results: list[TrainingResult] = []
    for algorithm, gray in _RUNS:
        folder = out / f"{algorithm}{'-grayscale' if gray else ''}"
        result = train(replace(source, gray=gray), algorithm, replicas=replicas, steps=steps, out=folder)
        results.append(result)
        if not json:
            print_lines([f"{title(result)}: {verdict(result)}"])
    run_page.write(results, path, "Five algorithms on colored digits", mnist)
    if json:
        print_json({"page": str(path), "runs": [result.to_dict() for result in results]})
    else:
        print_table(tables.scores(results))
        print_lines([f"\nOpen {path} in a browser."])
    sys.exit(exit_code(results))
