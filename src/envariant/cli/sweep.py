"""`envariant sweep`: a study, planned in full, trained, and read as one page."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from envariant.cli.options import Json, Whole

Names = Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=True)]


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
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
) -> None:
    """Compare algorithms over draws of hyperparameters, replicas and held-out environments.

    Runs are stored as they go; the same command again goes on where it was.

    Parameters
    ----------
    file
        A study as TOML; what is given as well on the command line wins.
    data
        Names of data sets.
    algorithms
        Such as erm irm "vrex + coral(1.0)".
    name
        Of the study.
    draws
        Of hyperparameters, of each algorithm; the first is what the data suggest.
    replicas
        Of each draw: the same data draws, weights and batches for all.
    test_environments
        suggested by the data, each environment in turn, each-and-pairs, or a name.
    holdout_fraction
        Share of every training environment's rows to choose by.
    seed
        From which draws and replicas follow.
    metric
        In which runs are compared, such as AUROC; by default the task's own.
    steps
        Of each run.
    model
        Of each run.
    out
        The study's folder; by default studies/NAME.
    workers
        Processes, which share the cores.
    executor
        local, or ray for a cluster: pip install "envariant[ray]".
    address
        Of the cluster.
    execution
        How the runs of a batch are executed, as for train.
    track
        Send runs there as they end: pip install "envariant[tracking]".
    track_at
        A folder for TensorBoard, by default in the study's; a tracking address for MLflow.
    dry_run
        Print what would be run and how long it would take.
    """
    from envariant.cli.show import print_json, print_lines, print_table
    from envariant.core.errors import EnvariantError
    from envariant.reporting import study_page as page
    from envariant.studies import study as studies
    from envariant.studies.executors import local
    from envariant.studies.progress import watching
    from envariant.studies.selection import SELECTIONS, select
    from envariant.studies.store import Store
    from envariant.studies.trackers import BackgroundTracking

    declared: dict[str, Any] = {} if file is None else studies.read(file).to_dict()
    given = {
        "data": data or None,
        "algorithms": algorithms or None,
        "name": name or (None if file is None or "name" in declared else file.stem),
        "n_trials": n_trials,
        "replicas": replicas,
        "test_environments": test_environments
        if test_environments in (None, "suggested", "each", "each-and-pairs")
        else [[test_environments]],
        "holdout_fraction": holdout_fraction,
        "seed": seed,
        "metric": metric,
    }
    declared |= {key: value for key, value in given.items() if value is not None}
    if algorithms and "ranges" in declared:
        declared["ranges"] = {name: own for name, own in declared["ranges"].items() if name in algorithms}
    extra = {key: value for key, value in (("steps", steps), ("model", model)) if value is not None}
    declared["settings"] = {**declared.get("settings", {}), **extra}
    if track_at is not None and track is None:
        raise EnvariantError("sweep: --track-at says where; say with --track tensorboard or mlflow to what")
    if "data" not in declared or "algorithms" not in declared:
        raise EnvariantError("sweep: name a study file, or give --data and --algorithms")
    study = studies.of(declared, "sweep" if file is None else str(file))
    folder = out or Path("studies") / study.name
    if dry_run:
        from envariant.studies.estimate import estimate

        found = estimate(study)
        if json:
            print_json(found.to_dict())
        else:
            print_lines(found.lines())
        return
    with Store.begin(folder, study) as store:
        left = store.counts()["planned"] + store.counts()["running"]
    following = None if track is None else BackgroundTracking(folder, track, track_at)
    with following or nullcontext(), watching(study.name, left, folder) as on_progress:
        if executor == "ray":
            from envariant.studies.executors import ray

            ray.sweep(folder, address=address, execution=execution, on_progress=on_progress)
        else:
            local.sweep(folder, execution=execution, workers=workers, on_progress=on_progress)
    with Store(folder) as store:
        page.write(store, folder / "report.html")
        counts, table = store.counts(), store.table()
    ways = [way() for way in SELECTIONS.values()]
    pooled = {way.name: select(table, way, pooled=True) for way in ways}
    if json:
        print_json(
            {
                "folder": str(folder),
                "page": str(folder / "report.html"),
                "runs": counts,
                "selections": {key: page.to_dict(found) for key, found in pooled.items()},
                **({} if following is None else {"sent": following.sent, "tracker": following.problem}),
            }
        )
    else:
        print_table(page.summary(pooled, ways))
        print_lines([f"\n{', '.join(f'{n} {state}' for state, n in counts.items() if n)}; "
                     f"open {folder / 'report.html'} in a browser"])  # fmt: skip
        if following is not None and following.problem:
            print_lines([f"not all runs were sent ({following.problem}); "
                         f"mend that, then: envariant runs track {folder} --to {track}"
                         f"{f' --at {track_at}' if track_at else ''}"])  # fmt: skip
