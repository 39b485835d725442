"""Export the metrics of runs to a CSV or Parquet file, with one row per value."""

from pathlib import Path

from envariant.core.errors import EnvariantError
from envariant.core.files import replacing
from envariant.core.paths import check_overwrite
from envariant.training.store import Store


def export(study: Path, out: Path) -> int:
    """Write all metrics of a run or study to a file: one row per value, with columns for the run's settings.

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
    check_overwrite(out, r'\Arun,step,environment,role,|"name": "test_environments"')
    with Store(study) as store:
        whole = store.history().merge(store.listing(), left_on="run", right_on="id").drop(columns="id")
    whole["test_environments"] = whole["test_environments"].map(", ".join)
    with replacing(out) as part:
        if out.suffix == ".csv":
            whole.to_csv(part, index=False)
        else:
            try:
                whole.to_parquet(part, index=False)
            except ImportError:
                raise EnvariantError(
                    "export: Parquet needs pyarrow; pip install pyarrow, or write .csv"
                ) from None
    return len(whole)
