"""Records of stored runs. Unlike the rest of the store's reader, this module loads PyTorch."""

from envariant.training.record import Record
from envariant.training.store.reader import StoreReader


def record_of_job(store: StoreReader, job: int) -> Record | None:
    """Return the record of a job; None if the job has not begun.

    Args:
        store: Store of the runs.
        job: ID of the job.

    Raises:
        EnvariantError: If the record is damaged.
    """
    text = store.record_text(job)
    return None if text is None else Record.of_json(text, str(store.path))


def record_of_run(store: StoreReader, run: int) -> Record | None:
    """Return the record of a run's job; None if the job has not begun.

    Args:
        store: Store of the runs.
        run: ID of the run.

    Raises:
        EnvariantError: If the record is damaged.
    """
    job = store.jobs_of([run]).get(run)
    return None if job is None else record_of_job(store, job)
