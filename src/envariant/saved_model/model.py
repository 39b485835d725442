"""`SavedModel`: a trained network or fitted predictor that predicts the rows of new tables."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, final

import numpy as np
import pandas as pd
import torch
from pydantic import ConfigDict, SkipValidation, TypeAdapter
from torch import nn

from envariant.analysis.column_sketch import Sketch
from envariant.analysis.drift import Drift
from envariant.core.display import Displayed, Summary
from envariant.core.environments import EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.files import as_path
from envariant.core.tasks import Regression, Task, task_named
from envariant.data.tables.columns import Column
from envariant.data.tables.encoding import ColumnEncoding, Encoder
from envariant.data.tables.kinds import KINDS, Kind, TaskName
from envariant.data.tables.loading import read_columns
from envariant.data.tables.raw import frame_of
from envariant.data.tables.source import TableSource
from envariant.data.tables.target_type import TargetType
from envariant.data.validation_split import ValidationSplit
from envariant.models import model_config
from envariant.predictors import FittedLinear, FittedPredictor, Predictor, UntrustedTypes
from envariant.saved_model import folder as files
from envariant.saved_model import onnx_export, validation
from envariant.saved_model.network import SavedNetwork
from envariant.saved_model.onnx_export import probabilities
from envariant.saved_model.reference import RowCounter, first_row, recognized, reference_of
from envariant.saved_model.stored_predictor import Predicting, columns_of, described, restore, store
from envariant.training import provenance
from envariant.training.evaluator import Evaluator
from envariant.training.result import TrainingResult

# Arrays of a column's sketch, stored as tensors instead of in the description.
_ARRAYS = ("knots", "counts", "alone")

Predict = Callable[..., torch.Tensor]
"""Function from encoded rows, and raw columns if the predictor needs them, to logits."""


@final
@dataclass(frozen=True, eq=False, repr=False)
class SavedModel(Displayed):
    """Trained network or fitted predictor, with the encoding of its input columns and its target.

    Attributes:
        encoder: Encoding of columns as inputs, fitted on the training environments.
        task: "binary", "multiclass" or "regression".
        classes: Class labels in the order of the outputs; empty for regression.
        target: Name of the target column.
        environment: Name of the environment column of the training table; not needed for prediction.
        scale: Standard deviation of a regression target, used to rescale outputs; 1 for classes.
        center: Mean of a regression target, added to rescaled outputs; 0 for classes.
        predictor: Trained network with its model and algorithm, or fitted predictor.
        environments: Names of the training environments.
        reference: Distribution of each column in the training environments.
        about: Provenance by name: data, options, versions, command and date of the run.
        target_type: Type of the target column and the values of its classes, which are predicted.
        missing_values: Strings declared as missing values in the training table; None: decided by column.
        other_columns: Columns that the predictor needs, but which are not encoded, such as free text.

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
    predictor: Annotated[Predicting, SkipValidation]
    environments: tuple[str, ...]
    reference: tuple[Sketch, ...] = field(repr=False)
    about: Mapping[str, str] = field(repr=False)
    target_type: TargetType = field(repr=False)
    missing_values: tuple[str, ...] | None = field(repr=False)
    other_columns: tuple[ColumnEncoding, ...] = field(default=(), repr=False)

    @classmethod
    def of(
        cls,
        source: TableSource,
        result: TrainingResult,
        replica: int = 0,
        about: Mapping[str, str] | None = None,
    ) -> "SavedModel":
        """Create a saved model from one replica of a finished run on a table.

        Args:
            source: Table of the run; test environments are those of the run.
            result: Result of the run.
            replica: Index of the replica to save.
            about: Additional provenance to store, as text by name.

        Raises:
            EnvariantError: If the replica does not exist or has not finished, the network's model was not
                given by name, or the run used another table.
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
        saved = SavedNetwork(
            settings.model,
            settings.algorithm,
            settings.hyperparameters,
            # Clone tensors, because they may be views of the whole replica stack.
            {name: value.detach().cpu().clone() for name, value in network.state_dict().items()},
        )
        environments = tuple(name for name in source.table.environments if record.roles[name] == "train")
        return cls._of_table(
            source,
            saved,
            environments,
            {
                "data": settings.data,
                "test environments": ", ".join(settings.test_environments or ()),
                "replica": str(replica),
                "seed": str(settings.seed),
                "steps": str(settings.steps),
                "versions": ", ".join(f"{name} {number}" for name, number in record.versions.items()),
                "command": record.command,
                **(about or {}),
            },
        )

    @classmethod
    def of_predictor(
        cls,
        source: TableSource,
        predictor: Predictor | FittedPredictor,
        *,
        name: str = "",
        seed: int = 0,
        about: Mapping[str, str] | None = None,
    ) -> "SavedModel":
        """Create a saved model from a predictor, which is fitted first if necessary.

        Args:
            source: Table; its test environments are not used.
            predictor: Predictor to fit to all training rows of the source, or a predictor fitted to them.
            name: Name of the method, stored in `about`. Default: name of the predictor.
            seed: Random seed of the fit.
            about: Additional provenance to store, by name.

        Raises:
            EnvariantError: If the predictor cannot be fitted to the data.
        """
        sample = source.sample(seed)
        training = tuple(each for each in sample.environments if each.name not in source.test)
        fitted = predictor
        if isinstance(fitted, Predictor):
            name = name or fitted.name
            fitted = fitted.fit(EnvironmentSet(sample.label, training, sample.task), seed)
        facts = {
            "method": name or fitted.kind,
            "data": source.label,
            "test environments": ", ".join(source.test),
            "seed": str(seed),
            "versions": ", ".join(f"{name} {number}" for name, number in provenance.versions().items()),
            "command": provenance.command(),
        }
        if note := fitted.note(source.encoder.names):
            facts["note"] = note
        return cls._of_table(source, fitted, [each.name for each in training], {**facts, **(about or {})})

    @classmethod
    def _of_table(
        cls,
        source: TableSource,
        predictor: Predicting,
        environments: Sequence[str],
        about: Mapping[str, str],
    ) -> "SavedModel":
        table, task = source.table, source.task
        return cls(
            encoder=source.encoder,
            task=table.task,
            classes=table.classes,
            target=table.target.name,
            environment=table.environment.name,
            scale=task.scale if isinstance(task, Regression) else 1.0,
            center=task.center if isinstance(task, Regression) else 0.0,
            predictor=predictor,
            environments=tuple(environments),
            reference=reference_of(source, environments),
            about={"date": datetime.now(UTC).date().isoformat(), **about},
            target_type=table.target_type,
            missing_values=table.missing_values,
            other_columns=tuple(
                ColumnEncoding(column.name, column.kind, notation=column.notation)
                for column in (*table.columns, *table.texts)
                if column.name in columns_of(predictor) and column.name not in source.encoder.slices
            ),
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
        description, tensors = self._stored()
        for k, sketch in enumerate(self.reference):
            tensors |= {f"{name}{k}": torch.from_numpy(getattr(sketch, name)) for name in _ARRAYS}
        files.write(Path(folder), description, tensors)

    @classmethod
    def load(cls, folder: Path | str, *, trusted: Sequence[str] = ()) -> "SavedModel":
        """Load a saved model from a folder written by `save`.

        Args:
            folder: Folder of the saved model.
            trusted: Full names of Python classes and functions that the model may contain, beyond those of
                scikit-learn, XGBoost and LightGBM. Only trust code that you know.

        Raises:
            EnvariantError: If the folder has no saved model, or the model is damaged, of another schema
                version, or contains a type that is not trusted.
        """
        folder = as_path(folder, "folder")
        description, tensors = files.read(folder)
        try:
            model = cls._of_stored(description, tensors, trusted)
            # A trial prediction detects errors that the checks of single fields miss.
            names = [column.name for column in (*model.encoder.columns, *model.other_columns)]
            row = first_row(names, model.reference if columns_of(model.predictor) else ())
            numbers = model.predict_and_compare(row)[0].select_dtypes("number").to_numpy(dtype=np.float64)
            if not np.isfinite(numbers).all():
                raise ValueError("its predictions are not finite")
        except UntrustedTypes as error:
            raise EnvariantError(f"{folder}: {error}") from None
        # An untrusted file can raise any exception, and so can the package of a plug-in that it names.
        except Exception as error:
            raise files.damaged(folder, error) from error
        return model

    @classmethod
    def _of_stored(
        cls, description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], trusted: Sequence[str]
    ) -> "SavedModel":
        fields = {key: value for key, value in description.items() if key not in ("schema", "inputs")}
        predictor = dict(fields["predictor"])
        fields["reference"] = [
            {**sketch, **{name: tensors[f"{name}{k}"].numpy() for name in _ARRAYS}}
            for k, sketch in enumerate(fields["reference"])
        ]
        model = _FIELDS.validate_python(fields)
        validation.check_columns(model.encoder, model.reference, model.environments)
        validation.check_other_columns(model.encoder, model.other_columns)
        validation.check_target(model.task, model.classes, model.target_type, model.scale, model.center)
        width = len(model.encoder.names)
        return replace(model, predictor=restore(predictor, tensors, model._task(), width, trusted))

    def network(self) -> nn.Module:
        """Return the trained network or linear model in evaluation mode.

        The network maps encoded rows `[rows, width]` to raw outputs.

        Raises:
            EnvariantError: If the model is neither a network nor linear, or the network's model or algorithm
                is unknown to this version of the library.
        """
        if isinstance(self.predictor, FittedLinear):
            return self.predictor.module()
        if isinstance(self.predictor, FittedPredictor):
            method = self.about.get("method", self.predictor.kind)
            raise EnvariantError(f"{method}: is neither a network nor a linear model; use predict instead")
        return self.predictor.module(self._task(), len(self.encoder.names), self.environments)

    def _predict(self) -> Predict:
        """Return the function that predicts encoded rows."""
        if isinstance(self.predictor, FittedPredictor):
            return self.predictor.logits
        return Evaluator.of_module(self.network(), self._task()).logits

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
        predict = self._predict()
        return pd.concat(
            [self._frame(predict, columns, index) for index, columns in self._read(data, encoding)]
        )

    def resembles(self, data: Any, *, encoding: str = "utf-8") -> Drift:
        """Compare new rows with the training rows, column by column.

        Args:
            data: Path of a table (.csv, .tsv, .txt, .parquet), or data frame of pandas, polars or Arrow.
            encoding: Encoding of a text file.

        Raises:
            EnvariantError: If a column is missing, or a value does not have the type of its column.
        """
        counter = RowCounter(self.reference)
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
        predict, counter = self._predict(), RowCounter(self.reference)
        frames: list[pd.DataFrame] = []
        for index, columns in self._read(data, encoding):
            counter.add(columns)
            frames.append(self._frame(predict, columns, index))
        return pd.concat(frames), counter.drift(self.environments)

    def to_onnx(self, path: Path | str) -> None:
        """Export a network or linear model to ONNX, with a JSON file on the encoding of its inputs.

        The input of the ONNX model is `inputs`, float32 `[rows, width]`, in the order of `encoder.names`. Its
        outputs are `logits` (`[rows]` for two classes, else `[rows, classes]`) and `probabilities`
        `[rows, classes]`; for regression, `prediction` `[rows]` in the original unit. The JSON file equals
        the `model.json` of `save`; its `encoder` lists the imputed value, center, scale and categories of
        each column.

        Args:
            path: File to write, ending in .onnx.

        Raises:
            EnvariantError: If a package is missing, the file cannot be written, the model is neither a
                network nor linear, or the network predicts several rows jointly.
        """
        description = files.to_json(self._stored()[0])
        onnx_export.export(self.network(), self._task(), len(self.encoder.names), Path(path), description)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible description of the model, without encoder and reference."""
        skipped = ("encoder", "inputs", "reference")
        return {key: value for key, value in self._stored()[0].items() if key not in skipped}

    def _display(self) -> Summary:
        columns = [column.name for column in (*self.encoder.columns, *self.other_columns)]
        task = f"{self.target} ({', '.join((self.task, *self.classes))})"
        return described(self.predictor, task, columns, self.environments, self.about)

    def _stored(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return the content of `model.json`, all fields without arrays, and the arrays of the predictor."""
        without: dict[str, Any] = {"predictor": True, "reference": {"__all__": set(_ARRAYS)}}
        fields = _FIELDS.dump_python(self, mode="json", exclude=without)
        predictor, tensors = store(self.predictor)
        return {
            "schema": files.SCHEMA,
            "inputs": list(self.encoder.names),
            **fields,
            "predictor": predictor,
        }, tensors

    def _read(self, data: Any, encoding: str) -> Iterator[tuple["pd.Index[Any]", dict[str, Column]]]:
        encodings = (*self.encoder.columns, *self.other_columns)
        kinds: dict[str, Kind] = {column.name: column.kind for column in encodings}
        blocks = read_columns(
            data,
            kinds,
            notations={column.name: column.notation for column in encodings},
            known={sketch.name: frozenset(sketch.categories) for sketch in self.reference},
            declared=None if self.missing_values is None else frozenset(self.missing_values),
            encoding=encoding,
        )
        for index, columns in blocks:
            yield index, columns | {s.name: recognized(columns[s.name], s) for s in self.reference}

    def _frame(self, predict: Predict, columns: Mapping[str, Column], index: "pd.Index[Any]") -> pd.DataFrame:
        inputs = torch.from_numpy(self.encoder.encode(columns))
        task = self._task()
        logits = predict(inputs, self._frame_of(columns)) if columns_of(self.predictor) else predict(inputs)
        if isinstance(task, Regression):
            # Use float64, because targets such as years are large compared with their standard deviation.
            numbers = self.target_type.of_numbers((logits.double() * task.scale + task.center).numpy())
            return numbers.set_axis(index).to_frame("prediction")
        predicted = (logits > 0).long() if logits.dim() == 1 else logits.argmax(dim=1)
        labels = self.target_type.decode(predicted.numpy(), self.classes).set_axis(index)
        shares = {f"P({c})": p for c, p in zip(self.classes, probabilities(logits).numpy().T, strict=True)}
        return pd.DataFrame({"prediction": labels} | shares, index=index)

    def _frame_of(self, columns: Mapping[str, Column]) -> pd.DataFrame:
        """Return the raw columns that the predictor needs."""
        texts = [column.name for column in self.other_columns if KINDS[column.kind].categorical]
        return frame_of((columns[name] for name in columns_of(self.predictor)), texts)

    def _task(self) -> Task:
        if self.task == Regression.name:
            return Regression(scale=self.scale, center=self.center)
        return task_named(self.task, len(self.classes))


_FIELDS = TypeAdapter(SavedModel)
