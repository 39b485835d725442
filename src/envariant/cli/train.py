"""`envariant train`: train replicas of one algorithm and evaluate every environment."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from envariant.cli.options import Json, Mnist
from envariant.cli.run_options import OPTIONS, Assignments, assignments, with_run_options


@with_run_options(OPTIONS, {"data": "colored-mnist"})
def train(
    *,
    set_: Assignments = (),
    mnist: Mnist = None,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    track: Literal["tensorboard", "mlflow", "wandb"] | None = None,
    track_at: str | None = None,
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
    track
        Tracker to which values are logged during training: tensorboard or mlflow, which need pip install
        "envariant[tracking]", or wandb, which needs pip install wandb.
    track_at
        Folder for TensorBoard, by default tensorboard; tracking URI for MLflow; or project of wandb.
    """
    from envariant import data as sources
    from envariant.cli.output import print_json
    from envariant.cli.show import exit_code, print_result
    from envariant.core.errors import EnvariantError
    from envariant.training.trackers import live_tracker
    from envariant.training.train import train as run

    if track_at is not None and track is None:
        raise EnvariantError("train: --track-at needs --track tensorboard, --track mlflow or --track wandb")
    callbacks = None if track is None else live_tracker(track, track_at)
    source = sources.source(options.pop("data"), folder=mnist)
    result = run(source, hyperparameters=assignments(set_), out=out, callbacks=callbacks, **options)
    if json:
        print_json(result.to_dict())
    else:
        print_result(result, out)
    sys.exit(exit_code([result]))
