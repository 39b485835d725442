"""`envariant compare`: a table in, an answer out."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from envariant.cli.options import Json, Whole

Names = Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=True)]


def compare(
    file: Path,
    *,
    target: Annotated[str, Parameter(alias="-t")],
    environment: Annotated[str, Parameter(alias="-e")],
    task: Literal["binary", "multiclass", "regression"] | None = None,
    algorithms: Names = (),
    metric: str | None = None,
    n_trials: Whole = 4,
    replicas: Whole = 5,
    exclude: Names = (),
    weights: str | None = None,
    least: Whole = 50,
    rows: Whole = 5_000,
    budget: str | None = None,
    seed: Whole = 0,
    encoding: str = "utf-8",
    executor: Literal["local", "ray"] = "local",
    address: str | None = None,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    json: Json = False,
) -> None:
    """Say whether a model holds at a new place, whether any method helps, and what to do.

    Each environment of a table is held out in its turn. Stopped and called again, it goes on.

    Parameters
    ----------
    file
        A table: .csv or .parquet.
    target
        The column to predict.
    environment
        The column that says where a row came from: hospital, year, country.
    task
        What the target is; inferred unless said.
    algorithms
        To compare with ERM, such as irm "vrex + coral(1.0)" boosted-trees.
    metric
        accuracy, "balanced accuracy", AUROC, "log loss", "calibration error", RMSE or R2.
    draws
        Of hyperparameters of each algorithm.
    replicas
        Of each draw: other weights, batches and held-out rows.
    exclude
        Columns that no model may look at.
    weights
        The column that says how often a row is drawn in training.
    least
        Rows that an environment needs; smaller ones are pooled.
    rows
        Of each environment to compare on, drawn at random; the model that is kept learns from all.
    budget
        Time there is, such as 10m; more draws are tried as long as it lasts.
    seed
        From which everything that is drawn follows.
    encoding
        Of a text file.
    executor
        local, or ray for a cluster: pip install "envariant[ray]".
    address
        Of the cluster.
    out
        A folder for the page, the model and all runs; by default comparisons/NAME.
    """
    from envariant.cli.show import print_json, print_lines, print_table
    from envariant.comparison import ALGORITHMS
    from envariant.comparison import compare as run
    from envariant.comparison.page import methods

    answer = run(
        file,
        target=target,
        environment=environment,
        task=task,
        algorithms=algorithms or ALGORITHMS,
        metric=metric,
        n_trials=n_trials,
        replicas=replicas,
        exclude=exclude,
        weights=weights,
        least=least,
        rows=rows,
        budget=budget,
        seed=seed,
        encoding=encoding,
        executor=executor,
        address=address,
        out=out or Path("comparisons") / file.name.partition(".")[0],
    )
    if json:
        print_json(answer.to_dict())
        return
    print_table(methods(answer.evidence))
    print_lines(["", answer.verdict, *(f"- {step}" for step in answer.words.next)])
    where = f"open {answer.page} in a browser; the model is in {answer.folder / 'model'}"
    print_lines(["", f"{answer.seconds:.0f} s; {where}"])
