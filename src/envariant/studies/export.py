"""Export the metrics of runs as CSV or Parquet, one row per value."""

from pathlib import Path

from envariant.core.errors import EnvariantError
from envariant.training.store import Store


def export(study: Path, out: Path) -> int:
    """Write all metrics in a folder of runs to a file, one row per value with the settings of its run.

    Args:
        study: Folder of a run or a study.
        out: File to write; its name ends in .csv or .parquet.

    Returns:
        Number of rows written.

    Raises:
        EnvariantError: If the file has another extension or cannot be written, or pyarrow is missing.
    """
    if out.suffix not in (".csv", ".parquet"):
        raise EnvariantError(f"{out}: must end in .csv or .parquet")
    with Store(study) as store:
        whole = store.history().merge(store.listing(), left_on="run", right_on="id").drop(columns="id")
    whole["test_environments"] = whole["test_environments"].map(", ".join)
    partial = out.with_name(out.name + ".partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".csv":
            whole.to_csv(partial, index=False)
        else:
            whole.to_parquet(partial, index=False)
        partial.replace(out)
    except ImportError:
        raise EnvariantError("export: Parquet needs pyarrow; pip install pyarrow, or write .csv") from None
    except OSError as error:
        raise EnvariantError(f"{out}: cannot be written ({error.strerror or error})") from None
    return len(whole)
