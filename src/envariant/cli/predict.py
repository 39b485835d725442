"""`envariant predict`: predict the rows of a table with a saved model."""

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from envariant.cli.options import Json, Switch
from envariant.core.errors import EnvariantError
from envariant.core.printable import one_line

# Largest number of remarks printed without --check.
_REMARKS = 5


def predict(
    model: Path,
    new: Path | None = None,
    *,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    check: Switch = False,
    onnx: Path | None = None,
    encoding: str = "utf-8",
    json: Json = False,
) -> None:
    """Predict the rows of a new table, and compare them with the training rows of the model.

    Predictions are written to standard output as CSV, remarks to standard error.

    Parameters
    ----------
    model
        Folder of a saved model.
    new
        Table to predict: .csv, .tsv, .txt or .parquet. Columns are matched by name, others ignored.
    out
        CSV file for the predictions, in the order of the rows of the table.
    check
        Print the column-by-column comparison with the training rows instead of predictions.
    onnx
        ONNX file to which the network is exported; a .json file of the same name describes its inputs.
    encoding
        Encoding of a text file.
    """
    from envariant.cli.show import print_json, print_table
    from envariant.core.files import replacing
    from envariant.core.paths import check_overwrite
    from envariant.reporting.shift import drift_table
    from envariant.saved_model import load_model

    if new is None and onnx is None:
        raise EnvariantError("predict: give a table to predict, or --onnx FILE to export the network")
    if out is not None and out.suffix != ".csv":
        raise EnvariantError(f"{out}: predictions are written as CSV; the file name must end in .csv")
    if out is not None:
        check_overwrite(out, r'\Aprediction(,"?P\(|\r?\n)', [each for each in (new,) if each is not None])
    loaded = load_model(model)
    if onnx is not None:
        loaded.to_onnx(onnx)
    if new is None:
        if json:
            print_json({"model": loaded.to_dict(), "onnx": str(onnx)})
        return
    if check and out is None:
        predictions, drift = None, loaded.resembles(new, encoding=encoding)
    else:
        predictions, drift = loaded.predict_and_compare(new, encoding=encoding)
    if out is not None and predictions is not None:
        with replacing(out) as part:
            predictions.to_csv(part, index=False)
    _print_remarks(drift, everything=check and not json)
    if json:
        answer: dict[str, object] = {"model": loaded.to_dict(), "drift": drift.to_dict()}
        if onnx is not None:
            answer["onnx"] = str(onnx)
        if out is not None:
            answer["predictions"] = str(out)
        elif predictions is not None:
            labels = [
                v if isinstance(v, bool | int | float) else str(v) for v in predictions["prediction"].tolist()
            ]
            answer["predictions"] = predictions.assign(prediction=labels).to_dict(orient="records")
        print_json(answer)
    elif check:
        print_table(drift_table(drift))
    elif predictions is not None and out is None:
        predictions.to_csv(sys.stdout, index=False)


def _print_remarks(drift: Any, *, everything: bool) -> None:
    """Print the remarks on the new rows to standard error."""
    remarks = list(drift.remarks)
    if not everything:
        if drift.kind == "different":
            remarks.insert(0, drift.verdict)
        if len(remarks) > _REMARKS:
            remarks[_REMARKS:] = [f"{len(remarks) - _REMARKS} more remarks; --check shows all"]
    for remark in remarks:
        sys.stderr.write(one_line(f"envariant: {remark}") + "\n")
