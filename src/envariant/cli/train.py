"""`envariant train`: train replicas of one algorithm and evaluate every environment."""

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from envariant.cli.options import Json, Mnist
from envariant.cli.run_options import OPTIONS, Assignments, assignments, with_run_options


@with_run_options(OPTIONS, {"data": "colored-mnist"})
def train(
    *,
    set_: Assignments = (),
    mnist: Mnist = None,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    json: Json = False,
    **options: Any,
) -> None:
    """Train replicas of one algorithm and evaluate every environment.

    Options that are not given have the values that the data set suggests for the algorithm. Without any
    options, the command reproduces the ERM baseline of the IRM paper on Colored MNIST.

    Parameters
    ----------
    out
        Folder for the results of the run. Repeat the command to resume an interrupted run.
    """
    from envariant import data as sources
    from envariant.cli.show import exit_code, print_json, print_result
    from envariant.training.train import train as run

    source = sources.source(options.pop("data"), folder=mnist)
    result = run(source, hyperparameters=assignments(set_), out=out, **options)
    if json:
        print_json(result.to_dict())
    else:
        print_result(result, out)
    sys.exit(exit_code([result]))
