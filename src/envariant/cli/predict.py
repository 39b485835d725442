"""`envariant predict`: a stored model reads new rows, and says whether they are like those it knows."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from envariant.cli.options import Json
from envariant.core.errors import EnvariantError

if TYPE_CHECKING:
    import pandas as pd

    from envariant.analysis.drift import Drift

# On standard error, beside predictions; --check says all.
_REMARKS = 5


def predict(
    model: Path,
    new: Path | None = None,
    *,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    check: Annotated[bool, Parameter(negative="")] = False,
    onnx: Path | None = None,
    encoding: str = "utf-8",
    json: Json = False,
) -> None:
    """Predict the rows of a new table with a stored model, and say whether they resemble its training rows.

    Predictions go to standard output as CSV, remarks to standard error.

    Parameters
    ----------
    model
        A folder that a model was saved in.
    new
        A table: .csv, .tsv, .txt or .parquet. Columns are found by name; others are passed over.
    out
        A .csv file for the predictions, a line a row of the table, in its order.
    check
        Print the comparison with the training rows, column by column, instead of predictions.
    onnx
        Write the network as .onnx for other runtimes, and beside it, as .json, how columns become inputs.
    encoding
        Of a text file.
    """
    from envariant.cli.show import print_json, print_table
    from envariant.reporting.shift import drift_table
    from envariant.saved_model import load_model

    if new is None and onnx is None:
        raise EnvariantError("predict: name a table to predict, or --onnx FILE to write the network")
    if out is not None and out.suffix != ".csv":
        raise EnvariantError(f"{out}: predictions are written as CSV; its name must end in .csv")
    loaded = load_model(model)
    if onnx is not None:
        loaded.to_onnx(onnx)
    if new is None:
        if json:
            print_json({"model": loaded.to_dict(), "onnx": str(onnx)})
        return
    wanted = out is not None or not check
    if wanted:
        found, drift = loaded.predict_and_compare(new, encoding=encoding)
    else:
        found, drift = None, loaded.resembles(new, encoding=encoding)
    if out is not None and found is not None:
        _write(found, out)
    _remark(drift, everything=check and not json)
    if json:
        answer: dict[str, object] = {"model": loaded.to_dict(), "drift": drift.to_dict()}
        if onnx is not None:
            answer["onnx"] = str(onnx)
        if out is not None:
            answer["predictions"] = str(out)
        elif found is not None:
            answer["predictions"] = found.to_dict(orient="records")
        print_json(answer)
    elif check:
        print_table(drift_table(drift))
    elif found is not None and out is None:
        found.to_csv(sys.stdout, index=False)


def _remark(drift: "Drift", *, everything: bool) -> None:
    """What is notable about the new rows, on standard error."""
    remarks = list(drift.remarks)
    if not everything:
        if drift.kind == "different":
            remarks.insert(0, drift.verdict)
        if len(remarks) > _REMARKS:
            remarks[_REMARKS:] = [f"{len(remarks) - _REMARKS} remarks more: --check shows them"]
    for remark in remarks:
        sys.stderr.write(f"envariant: {remark}\n")


def _write(found: "pd.DataFrame", path: Path) -> None:
    """The whole file or none."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        found.to_csv(partial, index=False)
        partial.replace(path)
    except OSError as error:
        raise EnvariantError(f"{path}: cannot be written ({error.strerror or error})") from None
