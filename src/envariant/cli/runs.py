"""`envariant runs`: what a study holds, run by run."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from envariant.cli.options import Json, Whole

runs = App(name="runs", help="List, show, retry or remove the runs of a study, or export them.")

State = Annotated[str | None, Parameter(help="planned, running, done or failed.")]


@runs.command(name="list")
def list_(study: Path, *, state: State = None, json: Json = False) -> None:
    """A line a run: what it is, its state, and why it failed.

    Parameters
    ----------
    study
        Its folder.
    """
    from envariant.cli.show import print_json, print_lines
    from envariant.core.errors import unknown_name
    from envariant.training.store import STATES, Store

    if state is not None and state not in STATES:
        raise unknown_name("state", state, STATES)
    with Store(study) as store:
        table = store.listing()
    shown = table if state is None else table[table["state"] == state]
    if json:
        print_json({"runs": shown.to_dict("records")})
        return
    print_lines(
        [
            f"{r['id']:>6}  {r['state']:<8} {r['data']}  {r['test_environments']}  {r['algorithm']}  "
            f"draw {r['draw']}  replica {r['replica']}" + (f"  {r['error']}" if r["error"] else "")
            for r in shown.astype(object).where(shown.notna(), None).to_dict("records")
        ]
    )


@runs.command
def show(study: Path, run: Whole, *, json: Json = False) -> None:
    """One run: its hyperparameters, where it was made, and what was measured.

    Parameters
    ----------
    study
        Its folder.
    run
        Its number.
    """
    from envariant.cli.show import print_json, print_lines
    from envariant.core.errors import EnvariantError
    from envariant.training.store import Store

    with Store(study) as store:
        listed = store.listing()
        found = listed[listed["id"] == run].astype(object)
        if found.empty:
            raise EnvariantError(f"{study}: holds no run {run}; it has {len(listed)}")
        facts = found.where(found.notna(), None).iloc[0].to_dict()
        history = store.history([run])
        known = store.provenance(run)
    if json:
        print_json({**facts, "provenance": known, "history": history.to_dict("records")})
        return
    print_lines([f"{key:<16} {value}" for key, value in {**facts, **known}.items() if value is not None])
    print_lines([history.drop(columns="run").to_string(index=False)])


@runs.command
def retry(study: Path, *numbers: Whole, failed: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Plan runs anew; the next sweep trains them.

    Parameters
    ----------
    study
        Its folder.
    numbers
        Of the runs.
    failed
        All that failed.
    """
    _forget(study, numbers, failed, planned=True)


@runs.command
def rm(study: Path, *numbers: Whole, failed: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Remove runs and what they measured; a sweep that still declares them plans them again.

    Parameters
    ----------
    study
        Its folder.
    numbers
        Of the runs.
    failed
        All that failed.
    """
    _forget(study, numbers, failed, planned=False)


@runs.command
def export(study: Path, *, out: Annotated[Path, Parameter(alias="-o")]) -> None:
    """Write every measured number with its run's settings to a .csv or .parquet file.

    Parameters
    ----------
    study
        Its folder.
    out
        The file.
    """
    from envariant.cli.show import print_lines
    from envariant.studies.export import export as write

    print_lines([f"wrote {write(study, out)} rows to {out}"])


@runs.command
def track(
    study: Path, *, to: Literal["tensorboard", "mlflow"], at: str | None = None, json: Json = False
) -> None:
    """Send runs that are done to TensorBoard or MLflow; those that were sent before are left alone.

    Parameters
    ----------
    study
        Its folder.
    to
        Which of the two; pip install "envariant[tracking]".
    at
        A folder for TensorBoard, by default one in the study's; a tracking address for MLflow, by default
        what MLFLOW_TRACKING_URI says.
    """
    from envariant.cli.show import print_json, print_lines
    from envariant.studies.trackers import track as send

    sent, before = send(study, to, at)
    if json:
        print_json({"sent": sent, "before": before})
    else:
        print_lines([f"sent {sent} runs to {to}; {before} were there"])


def _forget(study: Path, numbers: tuple[int, ...], failed: bool, *, planned: bool) -> None:
    from envariant.cli.show import print_lines
    from envariant.core.errors import EnvariantError
    from envariant.training.store import Store

    with Store(study) as store:
        listed = store.listing()
        chosen = [*numbers, *(listed.loc[listed["state"] == "failed", "id"] if failed else ())]
        if not chosen:
            raise EnvariantError("runs: give their numbers, or --failed for all that failed")
        store.forget([int(run) for run in dict.fromkeys(chosen)], planned=planned)
    print_lines([f"{len(chosen)} runs {'planned anew' if planned else 'removed'}"])
