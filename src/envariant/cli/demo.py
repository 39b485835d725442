"""`envariant demo`: the whole story on real digits, in a few minutes and one page."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

_RUNS = (
    ("erm", "colored-mnist"),
    ("irm", "colored-mnist"),
    ("vrex", "colored-mnist"),
    ("and-mask", "colored-mnist"),
    ("erm", "colored-mnist-grayscale"),
)


def demo(
    *,
    out: Annotated[Path, Parameter(alias="-o")] = Path("demo"),
    replicas: int | None = None,
    steps: int | None = None,
    data: str = "colored-mnist",
    mnist: Path | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train ERM, IRM, V-REx, AND-mask and the grayscale oracle on Colored MNIST; write one page.

    Stopped and called again, it goes on where it was.

    Parameters
    ----------
    out
        A folder for the runs and the page.
    replicas
        Runs of each; by default 2, or 1 where the processor has no native bfloat16 and all is slower.
    steps
        Updates of each replica, instead of the papers'.
    data
        colored-mnist, or colored-digits for a try of some seconds.
    mnist
        A folder with the MNIST files, if they are not to be fetched.
    json
        Print one JSON object instead of a table.
    """
    import torch

    from envariant import data as sources
    from envariant.cli.show import print_json, print_lines, print_table
    from envariant.reporting import page, tables
    from envariant.reporting.figures import title
    from envariant.training import TrainingResult, train
    from envariant.training.precision import native_bfloat16

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted = replicas or (2 if native_bfloat16(device) else 1)
    results: list[TrainingResult] = []
    for algorithm, usual in _RUNS:
        name = usual.replace("colored-mnist", data)
        folder = out / f"{algorithm}{'-grayscale' if 'grayscale' in name else ''}"
        result = train(
            sources.source(name, folder=mnist), algorithm, replicas=wanted, steps=steps, out=folder
        )
        results.append(result)
        if not json:
            print_lines([f"{title(result)}: {page.verdict(result)}"])
    path = out / "report.html"
    page.write(results, path, "Colored digits: what each algorithm learned")
    if json:
        print_json({"page": str(path), "runs": [result.plain() for result in results]})
    else:
        print_table(tables.scores(results))
        print_lines([f"\nOpen {path} in a browser."])
