"""`envariant evaluate`: score predictions made elsewhere, in every environment and group."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, final

from cyclopts import Parameter

from envariant.cli.options import Json, Names
from envariant.core.errors import EnvariantError


@final
@dataclass(frozen=True)
class Reading:
    """Options that say how the table and its predictions are read and scored.

    Parameters
    ----------
    metric
        Metric: accuracy, "balanced accuracy", AUROC, "log loss", "calibration error", RMSE or R2.
    task
        Kind of prediction task; by default inferred from targets and predictions.
    kind
        Kind of the predictions; by default inferred. Logits are never inferred.
    classes
        Labels of the classes, in the order of the columns with their probabilities.
    encoding
        Encoding of a text file.
    missing_values
        Strings that mark a missing value, such as NA.
    """

    metric: str | None = None
    task: Literal["binary", "multiclass", "regression"] | None = None
    kind: Literal["labels", "probabilities", "logits", "values"] | None = None
    classes: Names | None = None
    encoding: str = "utf-8"
    missing_values: Names | None = None


def evaluate(
    file: Path,
    *,
    target: Annotated[str, Parameter(alias="-t")],
    environment: Annotated[str, Parameter(alias="-e")],
    prediction: Annotated[Names, Parameter(alias="-p")] = (),
    model: Path | None = None,
    group: Names = (),
    cluster: str | None = None,
    sample_weight: str | None = None,
    reading: Annotated[Reading | None, Parameter(name="*")] = None,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    json: Json = False,
) -> None:
    """Score predictions that were made by any program, in every environment and group.

    Scores, intervals and tests are those of compare. Use rows that no model was trained on.

    Parameters
    ----------
    file
        Table: .csv, .parquet, .xlsx, .json or another format that pandas reads.
    target
        Column with the targets.
    environment
        Column with the environment of each row, such as hospital, year or country.
    prediction
        Columns with predictions: labels, values, or probabilities of the second class. Columns named for the
        classes, such as "P(no)" "P(yes)", are the probabilities of one model; otherwise, each column is a
        model.
    model
        Folder of a saved model; its predictions for the rows of the table are scored.
    group
        Columns such as sex; scores are also reported for each of their values, or combinations of values.
    cluster
        Column with the cluster of each row, such as a patient; whole clusters are resampled for intervals.
    sample_weight
        Column with case weights: a row of weight 2 counts as two rows.
    out
        Folder for the HTML report and the numbers (evaluation.json).
    """
    from envariant.cli.output import print_json, print_lines
    from envariant.cli.show import print_table
    from envariant.evaluation import evaluate_table
    from envariant.evaluation.page import check

    if bool(prediction) == (model is not None):
        raise EnvariantError("evaluate: give either --prediction or --model")
    if out is not None:
        check(out / "report.html", out / "evaluation.json")
    evaluation = evaluate_table(
        file,
        target=target,
        environment=environment,
        prediction=prediction,
        model=model,
        groups=group,
        cluster=cluster,
        sample_weight=sample_weight,
        **vars(reading or Reading()),
    )
    if out is not None:
        evaluation.save(out)
    if json:
        files = {} if out is None else {"page": str(out / "report.html")}
        print_json({**evaluation.to_dict(), **files})
        return
    print_table(evaluation.environments_table())
    if evaluation.results.groups:
        print_table(evaluation.groups_table())
    print_lines(["", evaluation.headline, *(f"- {line}" for line in evaluation.bullets)])
    if out is not None:
        print_lines(["", f"page: {out / 'report.html'}"])
