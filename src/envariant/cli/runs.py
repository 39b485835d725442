"""`envariant runs`: inspect and manage the runs of a study."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from envariant.cli.options import Json, Whole

runs = App(name="runs", help="List, show, retry, remove, export or track the runs of a study.")

Study = Annotated[Path, Parameter(help="Folder of the study.")]
Failed = Annotated[bool, Parameter(negative="", help="Select all failed runs.")]


@runs.command(name="list")
def list_(study: Study, *, state: str | None = None, json: Json = False) -> None:
    """List the runs with their states and the reasons for failures, one run per line.

    Parameters
    ----------
    state
        List only runs in this state: planned, running, done or failed.
    """
    from envariant.cli.output import print_json, print_lines
    from envariant.core.errors import unknown_name
    from envariant.core.printable import one_line
    from envariant.training.store import STATES, Store

    if state is not None and state not in STATES:
        raise unknown_name("state", state, STATES)
    with Store(study) as store:
        selected = [run for run in store.list_runs() if state in (None, run["state"])]
    if json:
        print_json({"runs": selected})
        return
    print_lines(
        [
            one_line(
                f"{r['id']:>6}  {r['state']:<8} {r['data']}  {r['test_environments']}  {r['algorithm']}  "
                f"trial {r['trial']}  replica {r['replica']}" + (f"  {r['error']}" if r["error"] else "")
            )
            for r in selected
        ]
    )


@runs.command
def show(study: Study, run: Whole, *, json: Json = False) -> None:
    """Show the hyperparameters, provenance and evaluations of one run.

    Parameters
    ----------
    run
        Number of the run.
    """
    from envariant.cli.output import print_json, print_lines
    from envariant.core.errors import EnvariantError
    from envariant.core.printable import one_line
    from envariant.training.store import Store
    from envariant.training.store.records import record_of_run

    with Store(study) as store:
        known = {each["id"]: each for each in store.list_runs()}
        if run not in known:
            raise EnvariantError(f"{study}: has no run {run}; it has {len(known)} runs")
        history = store.history([run])
        record = record_of_run(store, run)
    provenance = {} if record is None else record.provenance()
    if json:
        print_json({**known[run], "provenance": provenance, "history": history.to_dict("records")})
        return
    shown = {key: value for key, value in {**known[run], **provenance}.items() if value is not None}
    print_lines([one_line(f"{key:<17} {value}") for key, value in shown.items()])
    print_lines([history.drop(columns="run").to_string(index=False)])


@runs.command
def retry(study: Study, *numbers: Whole, failed: Failed = False) -> None:
    """Discard the results of runs, so that the next sweep trains them again.

    Parameters
    ----------
    numbers
        Numbers of the runs.
    """
    _forget(study, numbers, failed, planned=True)


@runs.command
def rm(study: Study, *numbers: Whole, failed: Failed = False) -> None:
    """Remove runs and their results; the next sweep plans them again if the study still includes them.

    Parameters
    ----------
    numbers
        Numbers of the runs.
    """
    _forget(study, numbers, failed, planned=False)


@runs.command
def export(study: Study, *, out: Annotated[Path, Parameter(alias="-o")]) -> None:
    """Export all evaluations of all runs to a table, with the settings of the runs.

    Parameters
    ----------
    out
        File to write, ending in .csv or .parquet.
    """
    from envariant.cli.output import print_lines
    from envariant.studies.export import export as write

    print_lines([f"wrote {write(study, out)} rows to {out}"])


@runs.command
def track(
    study: Study, *, to: Literal["tensorboard", "mlflow"], at: str | None = None, json: Json = False
) -> None:
    """Send finished runs to TensorBoard or MLflow; runs that have already been sent are skipped.

    Parameters
    ----------
    to
        Experiment tracker that receives the runs. Needs pip install "envariant[tracking]".
    at
        For TensorBoard, the log folder (default: inside the study's folder). For MLflow, the tracking URI
        (default: the environment variable MLFLOW_TRACKING_URI).
    """
    from envariant.cli.output import print_json, print_lines
    from envariant.studies.trackers import track as send

    sent, before = send(study, to, at)
    if json:
        print_json({"sent": sent, "before": before})
    else:
        print_lines([f"sent {sent} runs to {to}; {before} had been sent before"])


def _forget(study: Path, numbers: tuple[int, ...], failed: bool, *, planned: bool) -> None:
    from envariant.cli.output import print_lines
    from envariant.core.errors import EnvariantError
    from envariant.training.store import Store

    with Store(study) as store:
        all_failed = [run["id"] for run in store.list_runs() if failed and run["state"] == "failed"]
        selected = list(dict.fromkeys((*numbers, *all_failed)))
        if not selected:
            raise EnvariantError("runs: no run selected; give run numbers, or --failed for all failed runs")
        store.forget(selected, planned=planned)
    count = f"{len(selected)} run{'' if len(selected) == 1 else 's'}"
    print_lines([f"{count} {'planned again' if planned else 'removed'}"])
