"""`envariant predict`: use a saved model to make predictions for the rows of a table."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from envariant.cli.options import Json, Number, Switch
from envariant.core.errors import EnvariantError
from envariant.core.printable import one_line

# Largest number of remarks printed without --check.
_REMARKS = 5
# Regular expression that the beginning of a file of predictions matches.
_OURS = r'\Aprediction(,"?P\(|,low,high|,unlike|\r?\n)'


def predict(
    model: Path,
    new: Path | None = None,
    *,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    level: Number = 0.9,
    unlike_level: Number = 0.01,
    check: Switch = False,
    onnx: Path | None = None,
    encoding: str = "utf-8",
    json: Json = False,
) -> None:
    """Make predictions for the rows of a new table, and compare these rows with the model's training rows.

    Predictions are written to standard output as CSV: calibrated probabilities, a prediction set or interval,
    and whether the row is unlike the training rows. A summary is written to standard error.

    Parameters
    ----------
    model
        Folder of a saved model.
    new
        Table to predict: .csv, .tsv, .txt or .parquet. Columns are matched by name; other columns are
        ignored.
    out
        CSV file for the predictions, with rows in the same order as in the table.
    level
        Requested coverage: share of rows whose prediction set or interval contains the target, on average
        over new environments.
    unlike_level
        False-positive rate of the flag for rows that are unlike the training rows.
    check
        Instead of predictions, print a comparison of each column with the training rows.
    onnx
        ONNX file to which the network is exported; a .json file of the same name describes its inputs.
    encoding
        Encoding of a text file.
    """
    import pandas as pd

    from envariant.cli.output import print_json
    from envariant.cli.show import print_table
    from envariant.core.files import replacing
    from envariant.core.paths import check_overwrite
    from envariant.reporting.shift import drift_table
    from envariant.saved_model import load_model

    if new is None and onnx is None:
        raise EnvariantError("predict: give a table to predict, or --onnx FILE to export the network")
    if out is not None and out.suffix != ".csv":
        raise EnvariantError(f"{out}: predictions are written as CSV; the file name must end in .csv")
    if out is not None:
        check_overwrite(out, _OURS, [each for each in (new,) if each is not None])
    loaded = load_model(model)
    if onnx is not None:
        loaded.to_onnx(onnx)
    if new is None:
        if json:
            print_json({"model": loaded.to_dict(), "onnx": str(onnx)})
        return
    if check and out is None:
        served, drift = None, loaded.resembles(new, encoding=encoding)
    else:
        served = loaded.serve(new, level=level, unlike_level=unlike_level, encoding=encoding)
        drift = served.drift
    predictions = None if served is None else served.table
    if out is not None and predictions is not None:
        with replacing(out) as part:
            predictions.to_csv(part, index=False)
    _print_remarks(() if served is None else served.summary, drift.remarks, everything=check and not json)
    if json:
        answer: dict[str, object] = {"model": loaded.to_dict(), "drift": drift.to_dict()}
        if served is not None:
            answer["serving"] = served.to_dict()
        if onnx is not None:
            answer["onnx"] = str(onnx)
        if out is not None:
            answer["predictions"] = str(out)
        elif predictions is not None:
            columns = {name: _plain(values.tolist()) for name, values in predictions.items()}
            answer["predictions"] = pd.DataFrame(columns).to_dict(orient="records")
        print_json(answer)
    elif check:
        print_table(drift_table(drift))
    elif predictions is not None and out is None:
        predictions.to_csv(sys.stdout, index=False)


def _plain(values: Sequence[Any]) -> list[Any]:
    return [v if isinstance(v, bool | int | float) else str(v) for v in values]


def _print_remarks(summary: Sequence[str], remarks: Sequence[str], *, everything: bool) -> None:
    """Print the summary, and the remarks on the new rows, to standard error."""
    if not everything and len(remarks) > _REMARKS:
        remarks = [*remarks[:_REMARKS], f"{len(remarks) - _REMARKS} more remarks; --check shows all"]
    for remark in (*summary, *remarks):
        sys.stderr.write(one_line(f"envariant: {remark}") + "\n")
