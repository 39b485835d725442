"""Export measured numbers for other tools, one row each, as CSV or Parquet."""

from pathlib import Path

from envariant.core.errors import EnvariantError
from envariant.training.store import Store


def export(study: Path, out: Path) -> int:
    """Write every measured number of a folder of runs with what its run is, and return their number.

    Args:
        study: Folder of a run or a study.
        out: File to write, .csv or .parquet.

    Raises:
        EnvariantError: If the file's extension is neither, or it cannot be written.
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
