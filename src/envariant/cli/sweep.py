"""`envariant sweep`: plan a study in full, train it, and summarize it on one page."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from envariant.cli.options import Json, Names, Switch, Whole
from envariant.core.errors import EnvariantError

if TYPE_CHECKING:
    from envariant.studies.study import Study
    from envariant.studies.trackers import Following


def sweep(
    file: Path | None = None,
    *,
    data: Names = (),
    algorithms: Names = (),
    name: str | None = None,
    n_trials: Whole | None = None,
    replicas: Whole | None = None,
    test_environments: str | None = None,
    holdout_fraction: float | None = None,
    seed: Whole | None = None,
    metric: str | None = None,
    steps: Whole | None = None,
    model: str | None = None,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    workers: Whole = 1,
    executor: Literal["local", "ray"] = "local",
    address: str | None = None,
    execution: str = "auto",
    track: Literal["tensorboard", "mlflow"] | None = None,
    track_at: str | None = None,
    dry_run: Switch = False,
    json: Json = False,
) -> None:
    """Compare algorithms over hyperparameter trials, replicas and test environments.

    Runs are stored as they finish. The same command resumes an interrupted study.

    Parameters
    ----------
    file
        Study as a TOML file. Options given on the command line override it.
    data
        Names of data sets.
    algorithms
        Algorithms to compare, such as erm irm "vrex + coral(1.0)".
    name
        Name of the study; by default that of the file.
    n_trials
        Number of hyperparameter trials per algorithm. The first trial takes the values suggested by the data.
    replicas
        Number of replicas of each trial; all trials share their data, initialization and batch-order seeds.
    test_environments
        Environments that are not trained on: suggested (by the data), each (every environment in turn),
        each-and-pairs, or the name of one environment.
    holdout_fraction
        Share of the rows of every training environment that is kept for validation, in [0, 1).
    seed
        Base random seed of trials and replicas.
    metric
        Metric by which runs are compared, such as AUROC; by default that of the task.
    steps
        Number of optimizer updates of each run.
    model
        Network of every run: linear, "mlp(hidden=390)", lenet or mnist-cnn.
    out
        Folder of the study; by default studies/NAME.
    workers
        Number of worker processes, which share the processor cores.
    executor
        local, or ray for a Ray cluster. Ray needs pip install "envariant[ray]".
    address
        Address of the Ray cluster.
    execution
        How replicas are executed: auto, sequential, stacked or "stacked(group=50)".
    track
        Tracker to which finished runs are sent. Needs pip install "envariant[tracking]".
    track_at
        Folder for TensorBoard, by default inside the study's folder; or tracking URI for MLflow.
    dry_run
        Print the number of runs and the estimated time instead of training.
    """
    from envariant.studies.store import Store
    from envariant.studies.trackers import Following

    if track_at is not None and track is None:
        raise EnvariantError("sweep: --track-at needs --track tensorboard or --track mlflow")
    one = test_environments not in (None, "suggested", "each", "each-and-pairs")
    options = {
        "data": data or None,
        "algorithms": algorithms or None,
        "name": name or None,
        "n_trials": n_trials,
        "replicas": replicas,
        "test_environments": [[test_environments]] if one else test_environments,
        "holdout_fraction": holdout_fraction,
        "seed": seed,
        "metric": metric,
    }
    study = _declared(file, options, {"steps": steps, "model": model})
    folder = out or Path("studies") / study.name
    if dry_run:
        _print_estimate(study, json)
        return
    with Store.begin(folder, study):
        pass
    tracking = None if track is None else Following(folder, track, track_at)
    with tracking or nullcontext():
        _train(study, folder, executor, address=address, execution=execution, workers=workers)
    _print_summary(folder, tracking, json)
    if not json and tracking is not None and tracking.problem:
        from envariant.cli.show import print_lines

        at = f" --at {track_at}" if track_at else ""
        retry = f"envariant runs track {folder} --to {track}{at}"
        print_lines([f"not all runs were sent ({tracking.problem}); to send them: {retry}"])


def _declared(file: Path | None, options: dict[str, Any], settings: dict[str, Any]) -> "Study":
    """Return the study of a file, with the options given on the command line in place of its own."""
    from envariant.studies import study as studies

    declared: dict[str, Any] = {} if file is None else studies.read(file).to_dict()
    if file is not None:
        declared.setdefault("name", file.stem)
    declared |= {key: value for key, value in options.items() if value is not None}
    if options["algorithms"] and "ranges" in declared:
        ranges = declared["ranges"].items()
        declared["ranges"] = {name: own for name, own in ranges if name in options["algorithms"]}
    settings = {key: value for key, value in settings.items() if value is not None}
    declared["settings"] = {**declared.get("settings", {}), **settings}
    if "data" not in declared or "algorithms" not in declared:
        raise EnvariantError("sweep: give a study file, or --data and --algorithms")
    return studies.of(declared, "sweep" if file is None else str(file))


def _print_estimate(study: "Study", json: bool) -> None:
    from envariant.cli.show import print_json, print_lines
    from envariant.studies.estimate import estimate

    plan = estimate(study)
    if json:
        print_json(plan.to_dict())
    else:
        print_lines(plan.lines())


def _train(
    study: "Study", folder: Path, executor: str, *, address: str | None, execution: str, workers: int
) -> None:
    """Train the runs of a study that are not done."""
    from envariant.studies.executors import local
    from envariant.studies.progress import watching
    from envariant.studies.store import Store

    with Store(folder) as store:
        counts = store.counts()
    with watching(study.name, counts["planned"] + counts["running"], folder) as on_progress:
        if executor == "ray":
            from envariant.studies.executors import ray

            ray.sweep(folder, address=address, execution=execution, on_progress=on_progress)
        else:
            local.sweep(folder, execution=execution, workers=workers, on_progress=on_progress)


def _print_summary(folder: Path, tracking: "Following | None", json: bool) -> None:
    """Write the page of a study, and print what each selection rule selects."""
    from envariant.cli.show import print_json, print_lines, print_table
    from envariant.reporting import study_page
    from envariant.studies.selection import SELECTIONS, select
    from envariant.studies.store import Store

    page = folder / "report.html"
    with Store(folder) as store:
        study_page.write(store, page)
        counts, table = store.counts(), store.table()
    rules = [rule() for rule in SELECTIONS.values()]
    pooled = {rule.name: select(table, rule, pooled=True) for rule in rules}
    if json:
        selections = {name: study_page.to_dict(selection) for name, selection in pooled.items()}
        sent = {} if tracking is None else {"sent": tracking.sent, "tracker": tracking.problem}
        print_json(
            {"folder": str(folder), "page": str(page), "runs": counts, "selections": selections, **sent}
        )
        return
    print_table(study_page.summary(pooled, rules))
    states = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    print_lines([f"\n{states}; open {page} in a browser"])
