"""`envariant sweep`: plan a study in full, train it, and read it as one page."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from envariant.cli.options import Json, Whole
from envariant.cli.run_options import given, with_run_options
from envariant.training.run_spec import SHARED

Names = Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=True)]

_DECLARED = (
    "data",
    "algorithms",
    "name",
    "n_trials",
    "replicas",
    "test_environments",
    "holdout_fraction",
    "lr_range",
    "seed",
    "metric",
)


@with_run_options((*SHARED, "execution", "memory"), dict.fromkeys((*SHARED, "memory")))
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
    lr_range: float | None = None,
    seed: Whole | None = None,
    metric: str | None = None,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    workers: Whole = 1,
    executor: Literal["local", "ray"] = "local",
    address: str | None = None,
    track: Literal["tensorboard", "mlflow"] | None = None,
    track_at: str | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
    **options: Any,
) -> None:
    """Compare algorithms over hyperparameter trials, replicas and test environments.

    Runs are stored as they go; the same command again resumes.

    Parameters
    ----------
    file
        Study as a TOML file; flags override what it declares.
    data
        Names of data sources.
    algorithms
        Algorithms, such as erm irm "vrex + coral(1.0)".
    name
        Name of the study.
    n_trials
        Number of hyperparameter configurations per algorithm; the first is what the data suggest.
    replicas
        Number of replicas of each trial, with the same seeds for every algorithm.
    test_environments
        Test environments: suggested, each (one after another), each-and-pairs, or a name.
    holdout_fraction
        Share of every training environment's rows that is kept for selection.
    lr_range
        Factor around the suggested learning rate within which trials sample theirs.
    seed
        Base random seed of trials and replicas.
    metric
        Metric in which runs are compared, such as AUROC; by default the task's own.
    out
        Folder of the study; by default studies/NAME.
    workers
        Number of processes, which share the cores.
    executor
        Where runs train: local, or ray for a cluster (pip install "envariant[ray]").
    address
        Address of the Ray cluster.
    track
        Tracker that runs are sent to as they end (pip install "envariant[tracking]").
    track_at
        Folder of TensorBoard, by default in the study's; or tracking address of MLflow.
    dry_run
        Print what would be trained and how long it would take.
    """
    from envariant.cli.show import print_json, print_lines, print_table
    from envariant.core.errors import EnvariantError
    from envariant.reporting import study_page as page
    from envariant.studies.executors import local
    from envariant.studies.study import begin
    from envariant.studies.trackers import Following
    from envariant.training.progress import show_sweep
    from envariant.training.store import Store

    if track_at is not None and track is None:
        raise EnvariantError("track_at: says where to send runs; set track as well, to tensorboard or mlflow")
    own = dict(zip(_DECLARED, (data, algorithms, name, n_trials, replicas, test_environments,
                               holdout_fraction, lr_range, seed, metric), strict=True))  # fmt: skip
    how = {"execution": options.pop("execution"), "memory": options.pop("memory")}
    study = _declared(
        file, {key: value or None if value == () else value for key, value in own.items()}, options
    )
    folder = out or Path("studies") / study.name
    if dry_run:
        from envariant.studies.estimate import estimate

        cost = estimate(study)
        if json:
            print_json(cost.to_dict())
        else:
            print_lines(cost.lines())
        return
    with begin(folder, study) as store:
        left = store.counts()["planned"] + store.counts()["running"]
    following = None if track is None else Following(folder, track, track_at)
    with following or nullcontext(), show_sweep(study.name, left, folder) as on_progress:
        if executor == "ray":
            from envariant.studies.executors import ray

            ray.sweep(folder, study, address=address, on_progress=on_progress, **how)
        else:
            local.sweep(folder, study, workers=workers, on_progress=on_progress, **how)
    with Store(folder) as store:
        page.write(store, folder / "report.html")
        counts, table = store.counts(), store.table()
    summary, selections = page.overview(table)
    if json:
        print_json(
            {
                "folder": str(folder),
                "page": str(folder / "report.html"),
                "runs": counts,
                "selections": selections,
                **({} if following is None else {"sent": following.sent, "tracker": following.problem}),
            }
        )
        return
    print_table(summary)
    states = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    print_lines([f"\n{states}; open {folder / 'report.html'} in a browser"])
    if following is not None and following.problem:
        at = f" --at {track_at}" if track_at else ""
        print_lines([f"not all runs were sent ({following.problem}); then: envariant runs track {folder} "
                     f"--to {track}{at}"])  # fmt: skip


def _declared(file: Path | None, own: dict[str, Any], options: dict[str, Any]) -> Any:
    """Return the study that a file and flags declare; flags override the file."""
    from envariant.core.errors import EnvariantError
    from envariant.studies import study as studies

    declared: dict[str, Any] = {} if file is None else studies.read(file).to_dict()
    own["name"] = own["name"] or (None if file is None or "name" in declared else file.stem)
    if own["test_environments"] not in (None, *studies.SPLITS):
        own["test_environments"] = [[own["test_environments"]]]
    declared |= given(own)
    if own["algorithms"] and "ranges" in declared:
        kept = own["algorithms"]
        declared["ranges"] = {name: each for name, each in declared["ranges"].items() if name in kept}
    declared["settings"] = {**declared.get("settings", {}), **given(options)}
    if "data" not in declared or "algorithms" not in declared:
        raise EnvariantError("sweep: name a study file, or give data and algorithms")
    return studies.of(declared, "sweep" if file is None else str(file))
