"""`envariant sweep`: plan and train all runs of a study, and write an HTML report."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from envariant.cli.options import Json, Names, NumberOrNone, Switch, Whole, WholeOrNone
from envariant.cli.run_options import given, with_run_options
from envariant.core.errors import EnvariantError
from envariant.core.paths import folder_name
from envariant.training.run_spec import SHARED


@with_run_options((*SHARED, "execution", "memory"), dict.fromkeys((*SHARED, "memory")))
def sweep(
    file: Path | None = None,
    *,
    data: Names = (),
    algorithms: Names = (),
    name: str | None = None,
    n_trials: WholeOrNone = None,
    replicas: WholeOrNone = None,
    test_environments: str | None = None,
    holdout_fraction: NumberOrNone = None,
    lr_range: NumberOrNone = None,
    seed: WholeOrNone = None,
    metric: str | None = None,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    workers: Whole = 1,
    executor: Literal["local", "ray", "slurm"] = "local",
    address: str | None = None,
    worker: WholeOrNone = None,
    track: Literal["tensorboard", "mlflow"] | None = None,
    track_at: str | None = None,
    dry_run: Switch = False,
    json: Json = False,
    **options: Any,
) -> None:
    """Compare algorithms over trials (hyperparameter configurations), replicas and test environments.

    Finished runs are stored. Repeat the command to resume after an interruption.

    Parameters
    ----------
    file
        TOML file with the settings of the study. Command-line options override them.
    data
        Names of data sets.
    algorithms
        Algorithms to compare, such as: erm irm "vrex + coral(1.0)".
    name
        Name of the study; by default the name of the file.
    n_trials
        Number of hyperparameter trials per algorithm. The first uses the default settings of the data set.
    replicas
        Number of replicas per trial. All trials use the same seeds for data, initialization and batch order.
    test_environments
        Test environments: suggested (those of the data set), each (every environment in turn),
        each-and-pairs (also every pair), or the name of one environment.
    holdout_fraction
        Share of the rows of every training environment used for validation, above 0 and below 1.
    lr_range
        Factor r of at least 1: learning rates of trials are sampled between 1/r and r times the default of
        the data set.
    seed
        Base random seed of trials and replicas.
    metric
        Metric used to compare runs, such as AUROC; by default the metric of the task.
    out
        Folder of the study; studies/NAME by default.
    workers
        Number of worker processes, among which the CPU threads are divided, or of Slurm tasks at a time.
    executor
        Where the runs are executed: local (this machine), ray (a Ray cluster, which needs
        pip install "envariant[ray]"), or slurm (a job array that is written into the study's folder and
        submitted with sbatch; repeat the command when it has ended).
    address
        Address of the Ray cluster.
    worker
        Train one job of the study in the folder given by out, as the tasks of a Slurm job array do.
    track
        Experiment tracker to which finished runs are sent. Needs pip install "envariant[tracking]".
    track_at
        For TensorBoard, the log folder (default: inside the study's folder). For MLflow, the tracking URI.
    dry_run
        Print the number of runs and the estimated time instead of training.
    """
    _check_tracking(track, track_at, executor)
    execution = {"execution": options.pop("execution"), "memory": options.pop("memory")}
    _check_execution(execution, executor, address, workers)
    if worker is not None:
        _work(out, worker, execution)
        return
    declared = {
        "data": data or None,
        "algorithms": algorithms or None,
        "name": name or None,
        "n_trials": n_trials,
        "replicas": replicas,
        "test_environments": test_environments,
        "holdout_fraction": holdout_fraction,
        "lr_range": lr_range,
        "seed": seed,
        "metric": metric,
    }
    study = _declared(file, given(declared), given(options))
    folder = out or Path("studies") / folder_name(study.name, "sweep: the name")
    if dry_run:
        _print_estimate(study, json)
        return
    how = {"executor": executor, "address": address, "workers": workers, **execution}
    _train(study, folder, how, track, track_at, json=json)


def _train(
    study: Any,
    folder: Path,
    how: dict[str, Any],
    track: Literal["tensorboard", "mlflow"] | None,
    track_at: str | None,
    *,
    json: bool,
) -> None:
    """Plan and train the runs, and print a summary; with Slurm, print the submitted job array."""
    from envariant.cli.output import print_lines
    from envariant.reporting import html
    from envariant.studies.running import train_runs
    from envariant.studies.study import begin
    from envariant.studies.trackers import BackgroundTracking

    html.check_page(folder / "report.html", "study")
    with begin(folder, study):
        pass
    tracking = None if track is None else BackgroundTracking(folder, track, track_at)
    with tracking or nullcontext():
        array = train_runs(study, folder, **how)
    if array is not None:
        _print_array(array, json)
        return
    _print_summary(folder, tracking, json)
    if not json and tracking is not None and tracking.problem:
        at = f" --at {track_at}" if track_at else ""
        command = f"envariant runs track {folder} --to {track}{at}"
        print_lines([f"not all runs were sent ({tracking.problem}); to send them: {command}"])


def _check_tracking(track: str | None, track_at: str | None, executor: str) -> None:
    if track is not None and executor == "slurm":
        raise EnvariantError("sweep: --track needs another executor; envariant runs track sends runs later")
    if track_at is not None and track is None:
        raise EnvariantError("sweep: --track-at needs --track tensorboard or --track mlflow")


def _work(out: Path | None, worker: int, execution: dict[str, Any]) -> None:
    """Train one job, and print the states of its runs."""
    from envariant.cli.output import print_lines
    from envariant.studies.executors.local import train_job
    from envariant.training.store import Store

    if out is None:
        raise EnvariantError("sweep: --worker needs --out, the folder of the study")
    is_free = train_job(out, worker, **execution)
    with Store(out) as store:
        runs = {stored.id for stored in store.members(worker)}
        listing = store.listing()
    states = listing[listing["id"].isin(runs)]["state"].value_counts()
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    busy = "" if is_free else "; another process is training it"
    print_lines([f"job {worker}: {counts}{busy}"])


def _print_array(array: Any, json: bool) -> None:
    from envariant.cli.output import print_json, print_lines

    if json:
        print_json({"script": str(array.script), "tasks": array.tasks, "array": array.array_id or None})
        return
    print_lines([str(array), "when it has ended, repeat the command to see the results or to resume"])


def _check_execution(execution: dict[str, Any], executor: str, address: str | None, workers: int) -> None:
    from envariant.studies.executors import local, slurm
    from envariant.training.resolution import check_objects

    check_objects(execution)
    if address is not None and executor != "ray":
        raise EnvariantError("sweep: --address needs --executor ray")
    most = slurm.MAX_WORKERS if executor == "slurm" else local.MAX_WORKERS
    if not 1 <= workers <= most:
        raise EnvariantError(f"--workers: must be in [1, {most}]; got {workers}")


def _declared(file: Path | None, options: dict[str, Any], settings: dict[str, Any]) -> Any:
    """Return the study declared in a file, with the settings overridden by command-line options."""
    from envariant.studies import study as studies
    from envariant.studies.option_types import SPLITS

    declared: dict[str, Any] = {} if file is None else studies.read(file).to_dict()
    if file is not None:
        declared.setdefault("name", file.stem)
    declared |= options
    if options.get("test_environments", "each") not in SPLITS:
        declared["test_environments"] = [[options["test_environments"]]]
    if "algorithms" in options and "ranges" in declared:
        ranges = declared["ranges"].items()
        declared["ranges"] = {name: values for name, values in ranges if name in options["algorithms"]}
    declared["settings"] = {**declared.get("settings", {}), **settings}
    if "data" not in declared or "algorithms" not in declared:
        raise EnvariantError("sweep: give a study file, or --data and --algorithms")
    return studies.of(declared, "sweep" if file is None else str(file))


def _print_estimate(study: Any, json: bool) -> None:
    from envariant.cli.output import print_json, print_lines
    from envariant.studies.estimate import estimate

    cost = estimate(study)
    if json:
        print_json(cost.to_dict())
    else:
        print_lines(cost.lines())


def _print_summary(folder: Path, tracking: Any, json: bool) -> None:
    """Write the page of a study, and print the scores of each selection rule."""
    from envariant.cli.output import print_json, print_lines
    from envariant.cli.show import print_table
    from envariant.reporting import study_page
    from envariant.studies import StudyResults
    from envariant.training.store import Store

    page = StudyResults(folder).report()
    with Store(folder) as store:
        counts = store.counts()
        summary, selections = study_page.overview(store)
    if json:
        sent = {} if tracking is None else {"sent": tracking.sent, "tracker": tracking.problem}
        print_json(
            {"folder": str(folder), "page": str(page), "runs": counts, "selections": selections, **sent}
        )
        return
    print_table(summary)
    states = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    print_lines([f"\n{states}; open {page} in a browser"])
