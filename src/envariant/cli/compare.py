"""`envariant compare`: compare methods on a table and recommend one."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from envariant.cli.options import Json, Names, Whole, WholeOrNone
from envariant.cli.run_options import given, with_run_options
from envariant.core.paths import folder_name
from envariant.training.run_spec import SHARED


@with_run_options((*SHARED, "execution", "memory"), dict.fromkeys((*SHARED, "execution", "memory")))
def compare(
    file: Path,
    *,
    target: Annotated[str | None, Parameter(alias="-t")] = None,
    environment: Annotated[str | None, Parameter(alias="-e")] = None,
    features: str | None = None,
    text: Names = (),
    task: Literal["binary", "multiclass", "regression"] | None = None,
    algorithms: Names = (),
    metric: str | None = None,
    n_trials: Whole = 2,
    replicas: Whole = 5,
    exclude: Names = (),
    sample_weight: str | None = None,
    ordered: Annotated[bool, Parameter(negative="")] = False,
    group: str | None = None,
    subgroups: Names = (),
    min_rows: Whole = 50,
    max_rows: Whole = 5_000,
    budget: str | None = None,
    seed: Whole = 0,
    encoding: str = "utf-8",
    missing_values: Names | None = None,
    workers: WholeOrNone = None,
    executor: Literal["local", "ray"] = "local",
    address: str | None = None,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    json: Json = False,
    **options: Any,
) -> None:
    """Measure how far scores drop in new environments, compare methods, and recommend one.

    Each environment in the table (or a group of environments, if there are more than 12) is left out of
    training in turn and used for testing. Repeat the command to resume after an interruption.

    Parameters
    ----------
    file
        Table: .csv, .parquet, .xlsx, .json or another format that pandas reads; or heart-disease, an example.
        With features, a folder of images: domain/class/image.
    target
        Column to predict; not for images.
    environment
        Column with the environment of each row, such as hospital, year or country; not for images.
    features
        Frozen backbone, such as efficientnet-lite0 or "timm(resnet18, pretrained=true)" for images, or a text
        encoder; minilm by default for text columns.
    text
        Text columns that are replaced by features.
    task
        Kind of prediction task; by default inferred from the target.
    algorithms
        Methods to compare with the ordinary models (linear model, boosted trees, ERM), such as:
        irm "vrex + coral(1.0)" stable-columns.
    metric
        Metric: accuracy, "balanced accuracy", AUROC, "log loss", "calibration error", RMSE or R2.
    n_trials
        Number of trials (sampled hyperparameter configurations) per method.
    replicas
        Number of replicas (independent runs with their own seeds) per trial.
    exclude
        Columns to exclude from the inputs.
    sample_weight
        Column with case weights for training and scores: a row of weight 2 counts as two rows.
    ordered
        Treat environments as consecutive periods, such as years: train on earlier ones, test on the next one.
    group
        Column with the group of each row, such as a patient. Groups are never split; the column is not an
        input.
    subgroups
        Columns such as sex; scores are also reported for each of their values. The columns are inputs unless
        excluded.
    min_rows
        Smallest number of rows per environment; smaller environments are pooled.
    max_rows
        Largest number of rows per environment in the comparison; the saved model is trained on all rows.
    budget
        Time limit, such as 10m; trials are added while time remains.
    seed
        Base random seed.
    encoding
        Encoding of a text file.
    missing_values
        Strings that mark a missing value, such as NA. With "", only empty cells are missing. By default,
        common markers are recognized in columns of numbers or dates and, if they are rare, in other input
        columns. In the target and environment columns, words such as "none" are ordinary values.
    workers
        Number of worker processes; the CPU threads are divided among them. By default one per thread, at most
        4; with a budget, one.
    executor
        Where the runs are executed: local (this machine), or ray (a Ray cluster). Ray needs
        pip install "envariant[ray]".
    address
        Address of the Ray cluster.
    out
        Folder for the HTML report, the model and all runs; comparisons/NAME by default.
    """
    from envariant import comparison as comparisons

    comparison = comparisons.compare(
        file,
        target=target,
        environment=environment,
        features=features,
        text=text,
        task=task,
        algorithms=algorithms or comparisons.ALGORITHMS,
        metric=metric,
        n_trials=n_trials,
        replicas=replicas,
        exclude=exclude,
        sample_weight=sample_weight,
        ordered=ordered,
        group=group,
        subgroups=subgroups,
        min_rows=min_rows,
        max_rows=max_rows,
        budget=budget,
        seed=seed,
        encoding=encoding,
        missing_values=missing_values,
        workers=workers,
        executor=executor,
        address=address,
        out=out or Path("comparisons") / folder_name(file.name.partition(".")[0], "compare: the name"),
        **given(options),
    )
    _print(comparison, json=json)


def _print(comparison: Any, *, json: bool) -> None:
    """Print the recommendation, or all numbers as JSON."""
    from envariant.cli.output import print_json, print_lines
    from envariant.cli.show import print_table
    from envariant.comparison.page import methods_table

    if json:
        print_json(comparison.to_dict())
        return
    command = f"envariant adapt {comparison.folder / 'model'} labels.csv"
    steps = [step.replace("SavedModel.adapt", command) for step in comparison.recommendation.next_steps]
    print_table(methods_table(comparison.results))
    print_lines(["", comparison.verdict, "", "Next steps", *(f"- {step}" for step in steps)])
    paths = f"page: {comparison.page}; model: {comparison.folder / 'model'}"
    print_lines(["", f"{comparison.seconds:.0f} s; {paths}"])
