"""`SavedModel`: a trained network or fitted predictor that makes predictions for new tables."""

from collections.abc import Callable, Mapping, Sequence
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
from envariant.analysis.input_density import UNLIKE_LEVEL, InputDensity
from envariant.core.display import Displayed, Summary
from envariant.core.environments import EnvironmentSet
from envariant.core.errors import EnvariantError
from envariant.core.files import as_path
from envariant.core.multi_target import task_named
from envariant.core.tasks import Regression, Task
from envariant.data.tables.columns import Column
from envariant.data.tables.encoding import ColumnEncoding, Encoder
from envariant.data.tables.kinds import KINDS, TaskName
from envariant.data.tables.raw import frame_of
from envariant.data.tables.source import TableSource
from envariant.data.tables.target_type import TargetType
from envariant.predictors import FittedLinear, FittedPredictor, Predictor, UntrustedTypes
from envariant.saved_model import arrays, onnx_export, validation
from envariant.saved_model import folder as files
from envariant.saved_model.adaptation import Adaptation, Adapted, LabelColumn, fit_adaptation
from envariant.saved_model.from_run import network_of
from envariant.saved_model.reference import RowCounter, density_of, first_row, reference_of
from envariant.saved_model.rows import Rows, prediction_frame, read_rows
from envariant.saved_model.served import Served, ServedRows
from envariant.saved_model.serving import Serving
from envariant.saved_model.stored_predictor import Predicting, columns_of, described, restore, store
from envariant.training import provenance
from envariant.training.evaluator import Evaluator
from envariant.training.result import TrainingResult

Predict = Callable[..., torch.Tensor]
"""Function from encoded rows, and raw columns if the predictor needs them, to logits."""


@final
@dataclass(frozen=True, eq=False, repr=False)
class SavedModel(Displayed):
    """Trained network or fitted predictor, with the encodings of its input columns and its target.

    Attributes:
        encoder: Encoder that converts table columns to inputs, fitted on the training environments.
        task: "binary", "multiclass" or "regression".
        classes: Class labels in the order of the outputs; empty for regression.
        target: Name of the target column.
        environment: Name of the environment column in the training table; prediction does not need this
            column.
        scale: Standard deviation of a regression target, which multiplies the outputs; 1 for classification.
        center: Mean of a regression target, which is added after multiplication by `scale`; 0 for
            classification.
        predictor: Trained network with its model and algorithm, or fitted predictor.
        environments: Names of the training environments.
        reference: Distribution of each column in the training environments.
        about: Provenance: mapping with data, options, versions, command and date of the run.
        target_type: Data type of the target column and of its class labels; predictions have the same data
            type.
        missing_values: Strings that were declared as missing values for the training table. None: missing
            values were recognized in each column separately.
        other_columns: Columns that the predictor needs in raw form, such as free text.
        density: Density of the inputs in the training environments, to flag unusual rows.
        serving: Calibration, conformal scores and estimated accuracy, computed from predictions for left-out
            environments; None if the model was saved without them. `compare` adds them to the model that it
            recommends.
        adaptation: Intercept and slope fitted to a few labels of a new environment; None if there are none.
        embedded: Columns of texts or image paths that are replaced by features: name and encoder of each.

    Example:
        >>> from envariant import load_model
        >>> model = load_model("ward-model")  # doctest: +SKIP
        >>> model.predict("new-patients.csv")  # doctest: +SKIP
        >>> model.resembles("new-patients.csv").verdict  # doctest: +SKIP
        >>> model.serve("new-patients.csv", level=0.8).summary  # doctest: +SKIP
        >>> model.adapt("labels.csv").save("ward-model-adapted")  # doctest: +SKIP
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
    density: InputDensity | None = field(default=None, repr=False)
    serving: Serving | None = field(default=None, repr=False)
    adaptation: Adaptation | None = None
    embedded: tuple[tuple[str, str], ...] = ()

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
            source: Table on which the run was trained.
            result: Result of the run.
            replica: Index of the replica to save.
            about: Additional provenance: mapping from name to text, stored with the model.

        Raises:
            EnvariantError: If the replica does not exist or has not finished, the network's model was not
                given by name, or the run used another table.
        """
        source, saved, environments, facts = network_of(source, result, replica)
        return cls._of_table(source, saved, environments, {**facts, **(about or {})})

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
            source: Table with the training rows; rows of its test environments are not used.
            predictor: Predictor of the model. An unfitted predictor is fitted to all training rows of
                `source`.
            name: Name of the method, stored in `about`. Default: name of the predictor.
            seed: Random seed of the fit.
            about: Additional provenance: mapping from name to text, stored with the model.

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
        cls, source: TableSource, predictor: Predicting, environments: Sequence[str], about: Mapping[str, str]
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
            density=density_of(source, environments),
            embedded=table.embedded,
        )

    def save(self, folder: Path | str) -> None:
        """Save the model to a folder; an interruption leaves either the old or the new model complete.

        `model.safetensors` contains the whole model. `model.json` repeats the model's description for people
        and other programs; `load` does not read this file.

        Args:
            folder: Folder to write to, created if missing.

        Raises:
            EnvariantError: If the folder cannot be written.
        """
        description, tensors = self._stored()
        tensors |= arrays.to_tensors(self.reference, {"density": self.density, "serving": self.serving})
        files.write(Path(folder), description, tensors)

    @classmethod
    def load(cls, folder: Path | str, *, trusted: Sequence[str] = ()) -> "SavedModel":
        """Load a saved model from a folder written by `save`.

        Args:
            folder: Folder of the saved model.
            trusted: Full names of Python classes and functions that the model may contain, in addition to
                those of scikit-learn, XGBoost and LightGBM. Only trust code that you know.

        Raises:
            EnvariantError: If the folder contains no saved model, or the model is damaged, has an unsupported
                schema version, or contains a type that is not trusted.
        """
        folder = as_path(folder, "folder")
        description, tensors = files.read(folder)
        try:
            model = cls._of_stored(description, tensors, trusted)
            # A trial prediction detects errors that the checks of single fields miss.
            names = [column.name for column in (*model.encoder.columns, *model.other_columns)]
            row = first_row(names, model.reference if columns_of(model.predictor) else ())
            numbers = model.serve(row).table.select_dtypes("number").to_numpy(dtype=np.float64)
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
        fields = arrays.with_arrays(description, tensors)
        predictor = dict(fields["predictor"])
        model = _FIELDS.validate_python(fields)
        validation.check_columns(model.encoder, model.reference, model.environments)
        validation.check_other_columns(model.encoder, model.other_columns)
        validation.check_target(model.task, model.classes, model.target_type, model.scale, model.center)
        width = len(model.encoder.names)
        validation.check_density(model.density, width)
        validation.check_serving(model.serving, model.task)
        validation.check_adaptation(model.adaptation, model.task, len(model.classes))
        return replace(model, predictor=restore(predictor, tensors, model._task(), width, trusted))

    def network(self) -> nn.Module:
        """Return the trained network or linear model in evaluation mode.

        The network maps encoded rows `[rows, width]` to raw outputs.

        Raises:
            EnvariantError: If the model is neither a network nor linear, or this version of the library does
                not know the network's model or algorithm.
        """
        if isinstance(self.predictor, FittedLinear):
            module = self.predictor.module()
        elif isinstance(self.predictor, FittedPredictor):
            method = self.about.get("method", self.predictor.kind)
            raise EnvariantError(f"{method}: is neither a network nor a linear model; use predict instead")
        else:
            module = self.predictor.module(self._task(), len(self.encoder.names), self.environments)
        return module if self.adaptation is None else Adapted(module, self.adaptation).eval()

    def _predict(self) -> Predict:
        """Return a function that maps encoded rows to logits."""
        if not isinstance(self.predictor, FittedPredictor):
            return Evaluator.of_module(self.network(), self._task()).logits
        predict, adaptation = self.predictor.logits, self.adaptation
        return predict if adaptation is None else lambda *inputs: adaptation.apply(predict(*inputs))

    def predict(self, data: Any, *, encoding: str = "utf-8") -> pd.DataFrame:
        """Return a prediction for every row of a table, with the order and index of the input rows.

        Columns are matched by name; additional columns are ignored. Unknown categories are treated as rare
        categories, missing values are imputed, and numbers are clipped to ten standard deviations around the
        mean; `resembles` reports such values. Predictions are computed in float32, even if training used
        another precision. Models trained by ARM use neighboring rows as context: rows of the same environment
        should be adjacent.

        Args:
            data: Path of a table (.csv, .tsv, .txt, .parquet), or pandas, polars or Arrow data frame.
            encoding: Encoding of a text file.

        Returns:
            Data frame with a column `prediction`, which has the type of the target column: class labels, or
            targets in their original unit. For classification, a column `P(…)` per class contains its
            probability.

        Raises:
            EnvariantError: If a column is missing, or a value does not have the type of its column.
        """
        predict, rows = self._predict(), self._read(data, encoding)
        return pd.concat([self._frame(self._outputs(predict, each)[1], index) for index, each in rows])

    def resembles(self, data: Any, *, encoding: str = "utf-8") -> Drift:
        """Compare new rows with the training rows, column by column.

        Args:
            data: Path of a table (.csv, .tsv, .txt, .parquet), or pandas, polars or Arrow data frame.
            encoding: Encoding of a text file.

        Raises:
            EnvariantError: If a column is missing, or a value does not have the type of its column.
        """
        counter = RowCounter(self.reference, self.embedded)
        for _, columns in self._read(data, encoding):
            counter.add(columns)
        return counter.drift(self.environments)

    def serve(
        self, data: Any, *, level: float = 0.9, unlike_level: float = UNLIKE_LEVEL, encoding: str = "utf-8"
    ) -> Served:
        """Predict new rows with calibrated probabilities, prediction sets, flags and estimated accuracy.

        Args:
            data: Path of a table (.csv, .tsv, .txt, .parquet), or pandas, polars or Arrow data frame.
            level: Requested coverage: share of rows whose target is in the prediction set or interval, on
                average over new environments.
            unlike_level: False-positive rate of the flag for unusual rows: among rows that are similar
                to the training rows, the share that is flagged.
            encoding: Encoding of a text file.

        Raises:
            EnvariantError: If a level is not between 0 and 1, a column is missing, or a value does not have
                the type of its column.
        """
        rows = ServedRows(self.serving, self.density, self.classes, level, unlike_level)
        predict, counter = self._predict(), RowCounter(self.reference, self.embedded)
        for index, columns in self._read(data, encoding):
            counter.add(columns)
            inputs, logits = self._outputs(predict, columns)
            logits = logits / rows.temperature
            rows.add(
                self._frame(logits, index), inputs.numpy(), logits.numpy(), self._task(), self.target_type
            )
        return rows.result(counter.drift(self.environments))

    def adapt(self, data: Any, *, encoding: str = "utf-8") -> "SavedModel":
        """Return a copy of the model, adapted to a new environment in which a few rows have labels.

        An intercept, and possibly a slope, of the logits is fitted to the labels and shrunk towards the
        original model, as in `envariant.analysis.recalibrate`. The copy's attribute `adaptation` contains
        cross-validated scores. The copy's prediction sets and estimated accuracy are computed from the same
        labels. An earlier adaptation is replaced.

        Args:
            data: Path or data frame with the input columns and the target column. Rows without a label, or
                with a class that the model does not know, are dropped and counted.
            encoding: Encoding of a text file.

        Raises:
            EnvariantError: If a column is missing, a value does not have the type of its column, or fewer
                than five rows have a usable label.

        Warns:
            EnvariantWarning: If the table has the environment column and the labels come from several
                environments.
        """
        original = replace(self, adaptation=None)
        predict = original._predict()
        labels = LabelColumn(self.target, self.classes, self.target_type, self.environment)
        outputs = [
            (original._outputs(predict, columns)[1].numpy(), labels.read(columns))
            for _, columns in original._read(data, encoding, labels)
        ]
        logits, targets = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
        labels.warn_of_environments()
        adaptation, serving = fit_adaptation(logits, targets, labels, self._task())
        about = {**self.about, "adapted": f"{adaptation.refit}, {adaptation.n_labels} labels"}
        return replace(original, adaptation=adaptation, serving=serving, about=about)

    def to_onnx(self, path: Path | str) -> None:
        """Export a network or linear model to an ONNX file, and the encoding of its inputs to a JSON file.

        The input of the ONNX model is `inputs`, float32 `[rows, width]`, in the order of `encoder.names`. For
        classification, its outputs are `logits` (`[rows]` for two classes, else `[rows, classes]`) and
        `probabilities` `[rows, classes]`; for regression, the output is `prediction` `[rows]` in the original
        unit. The JSON file has the content of the file `model.json` that `save` writes. Its entry `encoder`
        contains the imputed value, center, scale and categories of each column.

        Args:
            path: File to write, ending in .onnx.

        Raises:
            EnvariantError: If a package is missing, the file cannot be written, the model is neither a
                network nor linear, or the network predicts several rows jointly.
        """
        description = files.to_json(self._stored()[0])
        onnx_export.export(self.network(), self._task(), len(self.encoder.names), Path(path), description)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible description of the model, without `encoder`, `reference` and `density`."""
        skipped = ("encoder", "inputs", "reference", "density")
        return {key: value for key, value in self._stored()[0].items() if key not in skipped}

    def _display(self) -> Summary:
        columns = [column.name for column in (*self.encoder.columns, *self.other_columns)]
        task = f"{self.target} ({', '.join((self.task, *self.classes))})"
        return described(self.predictor, task, columns, self.environments, self.about)

    def _stored(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return the content of `model.json`, and the arrays of the predictor."""
        fields = _FIELDS.dump_python(self, mode="json", exclude=dict(arrays.EXCLUDED))
        predictor, tensors = store(self.predictor)
        own = {"schema": files.SCHEMA, "inputs": list(self.encoder.names)}
        return {**own, **fields, "predictor": predictor}, tensors

    def _read(self, data: Any, encoding: str, labels: LabelColumn | None = None) -> Rows:
        columns = (*self.encoder.columns, *self.other_columns)
        target = {} if labels is None else {labels.name: (labels.kind, labels.classes)}
        optional = () if labels is None else (labels.environment,)
        return read_rows(
            data, encoding, columns, self.reference, self.missing_values, target, optional, self.embedded
        )

    def _outputs(self, predict: Predict, columns: Mapping[str, Column]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the encoded rows and their logits."""
        inputs = torch.from_numpy(self.encoder.encode(columns))
        if not (raw := columns_of(self.predictor)):
            return inputs, predict(inputs)
        texts = [column.name for column in self.other_columns if KINDS[column.kind].categorical]
        return inputs, predict(inputs, frame_of((columns[name] for name in raw), texts))

    def _frame(self, logits: torch.Tensor, index: "pd.Index[Any]") -> pd.DataFrame:
        return prediction_frame(logits, self._task(), self.classes, self.target_type, index)

    def _task(self) -> Task:
        if self.task == Regression.name:
            return Regression(scale=self.scale, center=self.center)
        return task_named(self.task, len(self.classes))


_FIELDS = TypeAdapter(SavedModel)
