"""`SavedModel`: a trained network that predicts the rows of new tables."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter
from torch import nn

from envariant.analysis.column_sketch import Sketch
from envariant.analysis.drift import Drift
from envariant.core.errors import EnvariantError
from envariant.core.files import as_path
from envariant.core.tasks import Regression, Task, task_named
from envariant.data.tables.columns import Column
from envariant.data.tables.encoding import Encoder
from envariant.data.tables.kinds import Kind, TaskName
from envariant.data.tables.loading import read_columns
from envariant.data.tables.source import TableSource
from envariant.data.tables.target_type import TargetType
from envariant.data.validation_split import ValidationSplit
from envariant.models import model_config
from envariant.saved_model import folder as files
from envariant.saved_model import onnx_export
from envariant.saved_model.network import SavedNetwork
from envariant.saved_model.onnx_export import probabilities
from envariant.training.evaluator import Evaluator
from envariant.training.result import TrainingResult

# Arrays of a column's sketch, stored as tensors instead of in the description.
_ARRAYS = ("knots", "counts", "alone")


@final
@dataclass(frozen=True, eq=False)
class SavedModel:
    """Trained network of one replica, with the encoding of its input columns and its target.

    Attributes:
        encoder: Encoding of columns as inputs, fitted on the training environments.
        task: "binary", "multiclass" or "regression".
        classes: Class labels in the order of the outputs; empty for regression.
        target: Name of the target column.
        environment: Name of the environment column of the training table; not needed for prediction.
        scale: Standard deviation of a regression target, used to rescale outputs; 1 for classes.
        center: Mean of a regression target, added to rescaled outputs; 0 for classes.
        predictor: Trained network with its model and algorithm.
        environments: Names of the training environments.
        reference: Distribution of each column in the training environments.
        about: Provenance by name: data, options, versions, command and date of the run.
        target_type: Type of the target column and the values of its classes, which are predicted.
        missing_values: Texts declared as missing values in the training table; None: decided for each column.

    Example:
        >>> from envariant import load_model
        >>> model = load_model("ward-model")  # doctest: +SKIP
        >>> model.predict("new-patients.csv")  # doctest: +SKIP
        >>> model.resembles("new-patients.csv").verdict  # doctest: +SKIP
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    encoder: Encoder = field(repr=False)
    task: TaskName
    classes: tuple[str, ...]
    target: str
    environment: str
    scale: float
    center: float
    predictor: SavedNetwork
    environments: tuple[str, ...]
    reference: tuple[Sketch, ...] = field(repr=False)
    about: Mapping[str, str] = field(repr=False)
    target_type: TargetType = field(repr=False)
    missing_values: tuple[str, ...] | None = field(repr=False)

    @classmethod
    def of(
        cls,
        source: TableSource,
        result: TrainingResult,
        replica: int = 0,
        about: Mapping[str, str] | None = None,
    ) -> "SavedModel":
        """Return the saved model of one replica of a finished run on a table.

        Args:
            source: Table of the run; test environments are those of the run.
            result: Result of the run.
            replica: Index of the replica to save.
            about: Additional provenance to store, by name.

        Raises:
            EnvariantError: If the replica does not exist or has not finished, the network cannot be rebuilt
                by name, or the run used another table.
        """
        record, settings = result.record, result.record.spec
        if replica in result.checkpoints and replica not in result.finished:
            state = result.checkpoints[replica]
            why = state.failure or f"{state.step} of {settings.steps} steps made"
            raise EnvariantError(f"replica {replica}: has not finished ({why}); choose a finished replica")
        network = result.model(replica)
        try:
            model_config(settings.model)
        except EnvariantError:
            raise EnvariantError(
                f"model '{settings.model}': is not one of the library's, so a saved model cannot rebuild it; "
                f"train a named model"
            ) from None
        source = source.with_test_environments(settings.test_environments)
        split = ValidationSplit(source, settings.holdout_fraction) if settings.holdout_fraction else source
        if split.sample(record.seeds[0].data).fingerprint() != record.fingerprints["data"]:
            raise EnvariantError(
                f"{source.label}: is not the table that this run ({settings.data}) was trained on"
            )
        table, task = source.table, source.task
        environments = tuple(name for name in table.environments if record.roles[name] == "train")
        return cls(
            encoder=source.encoder,
            task=table.task,
            classes=table.classes,
            target=table.target.name,
            environment=table.environment.name,
            scale=task.scale if isinstance(task, Regression) else 1.0,
            center=task.center if isinstance(task, Regression) else 0.0,
            predictor=SavedNetwork(
                settings.model,
                settings.algorithm,
                settings.hyperparameters,
                # Clone tensors, because they may be views of the whole replica stack.
                {name: value.detach().cpu().clone() for name, value in network.state_dict().items()},
            ),
            environments=environments,
            reference=_reference(source, environments),
            about={
                "data": settings.data,
                "test environments": ", ".join(settings.test_environments or ()),
                "replica": str(replica),
                "seed": str(settings.seed),
                "steps": str(settings.steps),
                "versions": ", ".join(f"{name} {number}" for name, number in record.versions.items()),
                "command": record.command,
                "date": datetime.now(UTC).date().isoformat(),
                **(about or {}),
            },
            target_type=table.target_type,
            missing_values=table.missing_values,
        )

    def save(self, folder: Path | str) -> None:
        """Store the model in a folder; if interrupted, either the old or the new model can be loaded.

        `model.safetensors` contains the whole model. `model.json` repeats its description for people and
        other programs, and is not used by `load`.

        Args:
            folder: Folder to write to, created if missing.

        Raises:
            EnvariantError: If the folder cannot be written.
        """
        tensors = self.predictor.to_tensors()
        for k, sketch in enumerate(self.reference):
            tensors |= {f"{name}{k}": torch.from_numpy(getattr(sketch, name)) for name in _ARRAYS}
        files.write(Path(folder), self._description(), tensors)

    @classmethod
    def load(cls, folder: Path | str) -> "SavedModel":
        """Load a saved model from a folder written by `save`.

        Args:
            folder: Folder of the saved model.

        Raises:
            EnvariantError: If the folder has no saved model, or the model is damaged or of another schema
                version.
        """
        folder = as_path(folder, "folder")
        description, tensors = files.read(folder)
        try:
            fields = {key: value for key, value in description.items() if key not in ("schema", "inputs")}
            fields["predictor"] = SavedNetwork.from_tensors(fields["predictor"], tensors)
            fields["reference"] = [
                {**sketch, **{name: tensors[f"{name}{k}"].numpy() for name in _ARRAYS}}
                for k, sketch in enumerate(fields["reference"])
            ]
            model = _FIELDS.validate_python(fields)
            for sketch, column in zip(model.reference, model.encoder.columns, strict=True):
                shape = (len(model.environments), sketch.bins)
                if sketch.name != column.name or not sketch.counts.shape == sketch.alone.shape == shape:
                    raise ValueError(f"the reference of column '{column.name}' does not fit")
            # Rebuild the network once, so that weights of wrong shape are reported on loading.
            model.network()
        except (ValueError, KeyError, RuntimeError, TypeError) as error:
            raise files.damaged(folder, error) from None
        return model

    def network(self) -> nn.Module:
        """Return the trained network in evaluation mode.

        The network maps encoded rows `[rows, width]` to raw outputs.

        Raises:
            EnvariantError: If the network's model or algorithm is unknown to this version of the library.
        """
        return self.predictor.module(self._task(), len(self.encoder.names), self.environments)

    def predict(self, data: Any, *, encoding: str = "utf-8") -> pd.DataFrame:
        """Return a prediction for every row, with the order and index of the input rows.

        Columns are matched by name, in any order; other columns are ignored. Unknown categories are treated
        as rare categories, missing values are imputed, and numbers are clipped at ten standard deviations.
        `resembles` reports unknown categories, missing values and values outside the training range.
        Computation is in float32, whatever the precision of training. Models trained by ARM predict
        neighboring rows jointly: keep the rows of an environment together.

        Args:
            data: Path of a table (.csv, .tsv, .txt, .parquet), or data frame of pandas, polars or Arrow.
            encoding: Encoding of a text file.

        Returns:
            Data frame with a column `prediction`, of the type of the target column: class labels, or targets
            in their original unit. For classes, there is also a column `P(…)` with the probability of each
            class.

        Raises:
            EnvariantError: If a column is missing, or a value does not have the type of its column.
        """
        network = self.network()
        return pd.concat(
            [self._frame(network, columns, index) for index, columns in self._read(data, encoding)]
        )

    def resembles(self, data: Any, *, encoding: str = "utf-8") -> Drift:
        """Compare new rows with the training rows, column by column.

        Args:
            data: Path of a table (.csv, .tsv, .txt, .parquet), or data frame of pandas, polars or Arrow.
            encoding: Encoding of a text file.

        Raises:
            EnvariantError: If a column is missing, or a value does not have the type of its column.
        """
        counter = _RowCounter(self.reference)
        for _, columns in self._read(data, encoding):
            counter.add(columns)
        return counter.drift(self.environments)

    def predict_and_compare(self, data: Any, *, encoding: str = "utf-8") -> tuple[pd.DataFrame, Drift]:
        """Return the results of `predict` and `resembles`; the table is read once.

        Args:
            data: Path of a table (.csv, .tsv, .txt, .parquet), or data frame of pandas, polars or Arrow.
            encoding: Encoding of a text file.

        Raises:
            EnvariantError: If a column is missing, or a value does not have the type of its column.
        """
        network, counter = self.network(), _RowCounter(self.reference)
        frames: list[pd.DataFrame] = []
        for index, columns in self._read(data, encoding):
            counter.add(columns)
            frames.append(self._frame(network, columns, index))
        return pd.concat(frames), counter.drift(self.environments)

    def to_onnx(self, path: Path | str) -> None:
        """Export the network to ONNX, with a JSON file that describes the encoding of its inputs.

        The input of the ONNX model is `inputs`, float32 `[rows, width]`, in the order of `encoder.names`. Its
        outputs are `logits` (`[rows]` for two classes, else `[rows, classes]`) and `probabilities`
        `[rows, classes]`; for regression, `prediction` `[rows]` in the original unit. The JSON file equals
        the `model.json` of `save`; its `encoder` lists the imputed value, center, scale and categories of
        each column.

        Args:
            path: File to write, ending in .onnx.

        Raises:
            EnvariantError: If a package is missing, the file cannot be written, or the network predicts
                several rows jointly.
        """
        description = files.to_json(self._description())
        onnx_export.export(self.network(), self._task(), len(self.encoder.names), Path(path), description)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible description of the model, without encoder and reference."""
        skipped = ("encoder", "inputs", "reference")
        return {key: value for key, value in self._description().items() if key not in skipped}

    def _description(self) -> dict[str, Any]:
        """Return the content of `model.json`: all fields of the model without arrays."""
        arrays: dict[str, Any] = {"predictor": {"weights"}, "reference": {"__all__": set(_ARRAYS)}}
        fields = _FIELDS.dump_python(self, mode="json", exclude=arrays)
        return {"schema": files.SCHEMA, "inputs": list(self.encoder.names), **fields}

    def _read(self, data: Any, encoding: str) -> Iterator[tuple["pd.Index[Any]", dict[str, Column]]]:
        kinds: dict[str, Kind] = {column.name: column.kind for column in self.encoder.columns}
        declared = None if self.missing_values is None else frozenset(self.missing_values)
        blocks = read_columns(
            data,
            kinds,
            notations={column.name: column.notation for column in self.encoder.columns},
            known={sketch.name: frozenset(sketch.categories) for sketch in self.reference},
            declared=declared,
            encoding=encoding,
        )
        for index, columns in blocks:
            yield index, {s.name: _recognized(columns[s.name], s) for s in self.reference}

    def _frame(
        self, network: nn.Module, columns: Mapping[str, Column], index: "pd.Index[Any]"
    ) -> pd.DataFrame:
        inputs = torch.from_numpy(self.encoder.encode(columns))
        task = self._task()
        logits = Evaluator.of_module(network, task).logits(inputs)
        if isinstance(task, Regression):
            # Use float64, because targets such as years are large compared with their standard deviation.
            numbers = self.target_type.of_numbers((logits.double() * task.scale + task.center).numpy())
            return numbers.set_axis(index).to_frame("prediction")
        predicted = (logits > 0).long() if logits.dim() == 1 else logits.argmax(dim=1)
        labels = self.target_type.decode(predicted.numpy(), self.classes).set_axis(index)
        shares = {f"P({c})": p for c, p in zip(self.classes, probabilities(logits).numpy().T, strict=True)}
        return pd.DataFrame({"prediction": labels} | shares, index=index)

    def _task(self) -> Task:
        if self.task == Regression.name:
            return Regression(scale=self.scale, center=self.center)
        return task_named(self.task, len(self.classes))


_FIELDS = TypeAdapter(SavedModel)


@final
class _RowCounter:
    """Counts of new rows in the bins of each column's sketch."""

    def __init__(self, sketches: tuple[Sketch, ...]) -> None:
        self._sketches = sketches
        self._counts = [np.zeros(sketch.bins, dtype=np.int64) for sketch in sketches]
        self._unseen: list[dict[str, int]] = [{} for _ in sketches]
        self._rows = 0

    def add(self, columns: Mapping[str, Column]) -> None:
        """Add the rows of a chunk to the counts."""
        for k, sketch in enumerate(self._sketches):
            column = columns[sketch.name]
            self._counts[k] += sketch.tally(column.values, column.categories)
            for name, count in sketch.unseen(column.values, column.categories).items():
                self._unseen[k][name] = self._unseen[k].get(name, 0) + count
        self._rows += len(next(iter(columns.values())))

    def drift(self, environments: tuple[str, ...]) -> Drift:
        """Compare the rows counted so far with the training rows."""
        return Drift.of(self._sketches, self._counts, self._unseen, self._rows, environments)


def _reference(source: TableSource, environments: Sequence[str]) -> tuple[Sketch, ...]:
    """Return the distribution of each encoded column over some environments of a table."""
    table = source.table
    positions = np.full(len(table.environments), -1)
    positions[[table.environments.index(name) for name in environments]] = np.arange(len(environments))
    codes: NDArray[Any] = positions[table.environment.values]
    rows = codes >= 0
    columns = {column.name: column for column in table.columns}
    encoded = [columns[encoding.name] for encoding in source.encoder.columns]
    return tuple(
        Sketch.of(
            c.name, c.kind, c.values[rows], codes[rows], len(environments), c.categories,
            categorical=c.type.categorical, ordered=c.type.ordered,
        )
        for c in encoded
    )  # fmt: skip


def _recognized(column: Column, sketch: Sketch) -> Column:
    """Return the column with its categories spelled as in training."""
    return replace(column, categories=sketch.recognized(column.categories))
