"""A trained network with everything it takes to use it elsewhere: a table goes in, predictions come out.

It knows how columns become inputs, what its outputs are called, and what the training rows looked like, so
that it can say whether new rows resemble them. On disk it is one safetensors file, nothing pickled, and a
JSON file for people and other programs to read.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, final

import numpy as np
import pandas as pd
import safetensors
import torch
from jaxtyping import Float
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from envariant.analysis.column_sketch import Sketch
from envariant.analysis.drift import Drift
from envariant.core.errors import EnvariantError
from envariant.core.tasks import Regression, Task, task_named
from envariant.data.tables.columns import Column, Kind
from envariant.data.tables.encoding import Encoder
from envariant.data.tables.reading import read_columns
from envariant.data.tables.source import TableSource
from envariant.data.tables.table import TaskName
from envariant.data.validation_split import ValidationSplit
from envariant.training.network import TOGETHER
from envariant.training.result import TrainingResult, rebuilt

SCHEMA = 1

TENSORS, TEXT = "model.safetensors", "model.json"
"""The two files of a folder: all of it, and what of it people read."""

# Under which the text stands in the header of the tensors' file.
_HEADER = "envariant.model"
# Rows that go through the network at a time: a multiple of what models such as ARM's look at side by side.
_BLOCK = 8192
_WEIGHTS, _KNOTS, _COUNTS, _ALONE = "weights/", "knots/", "counts/", "alone/"


@final
@dataclass(frozen=True, eq=False)
class SavedModel:
    """One replica's network, the columns it reads, and what it predicts.

    Attributes:
        encoder: how columns become inputs, as fitted on the training environments.
        task: binary, multiclass or regression.
        classes: what is told apart, in the order of the outputs; none for a regression.
        target: the name of the column that is predicted.
        environment: the name of the column that said where a training row came from; not read any more.
        scale, center: of a regression: predictions are outputs · scale + center, in the target's own unit.
        model: the network's family, such as `mlp(hidden=(32, 32))`.
        algorithm, hyperparameters: that trained it; some change the network.
        weights: parameters and buffers, by name.
        environments: names of those trained on.
        reference: what their rows held, column by column.
        about: more to know about it: the run's data, versions, the command, the date.

    Example:
        >>> from envariant import load_model
        >>> model = load_model("ward-model")  # doctest: +SKIP
        >>> model.predict("new-patients.csv")  # doctest: +SKIP
        >>> model.resembles("new-patients.csv").verdict  # doctest: +SKIP
    """

    encoder: Encoder = field(repr=False)
    task: TaskName
    classes: tuple[str, ...]
    target: str
    environment: str
    scale: float
    center: float
    model: str
    algorithm: str
    hyperparameters: Mapping[str, Any]
    weights: Mapping[str, Tensor] = field(repr=False)
    environments: tuple[str, ...]
    reference: tuple[Sketch, ...] = field(repr=False)
    about: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(
        cls,
        source: TableSource,
        result: TrainingResult,
        replica: int = 0,
        about: Mapping[str, str] | None = None,
    ) -> "SavedModel":
        """The model that a run on a table trained.

        Args:
            source: the table that the run was on; what it held out is taken from the run.
            result: the run.
            replica: whose network.
            about: more to remember, by name.

        Raises:
            EnvariantError: there is no such replica, it has not finished, the network was the user's own, or
                the run was on another table.
        """
        record, settings = result.record, result.record.settings
        if replica in result.checkpoints and replica not in result.finished:
            state = result.checkpoints[replica]
            why = state.failure or f"it made {state.step} of {settings.steps} steps"
            raise EnvariantError(f"replica {replica}: has not finished ({why}); deploy another one")
        network = result.model(replica)
        held = source.with_test_environments(settings.test_environments)
        drawn = ValidationSplit(held, settings.holdout_fraction) if settings.holdout_fraction else held
        seed = record.seeds[0].data
        if drawn.sample(seed).fingerprint() != record.fingerprints["data"]:
            raise EnvariantError(f"{source.label}: is not the table that this run ({settings.data}) was on")
        table, task = held.table, held.task
        trained = [name for name in table.environments if record.roles[name] == "train"]
        places = np.full(len(table.environments), -1)
        places[[table.environments.index(name) for name in trained]] = np.arange(len(trained))
        codes = places[table.environment.values]
        rows = codes >= 0
        columns = {column.name: column for column in table.columns}
        return cls(
            encoder=held.encoder,
            task=table.task,
            classes=table.classes,
            target=table.target.name,
            environment=table.environment.name,
            scale=task.scale if isinstance(task, Regression) else 1.0,
            center=task.center if isinstance(task, Regression) else 0.0,
            model=settings.model,
            algorithm=settings.algorithm,
            hyperparameters=settings.hyperparameters,
            # Copied: a replica's tensors may be views of a whole stack's.
            weights={name: value.detach().cpu().clone() for name, value in network.state_dict().items()},
            environments=tuple(trained),
            reference=tuple(
                Sketch.of(c.name, c.kind, c.values[rows], codes[rows], len(trained), c.categories)
                for c in (columns[encoding.name] for encoding in held.encoder.columns)
            ),
            about={
                "data": settings.data,
                "held out": ", ".join(settings.test_environments),
                "replica": str(replica),
                "seed": str(settings.seed),
                "steps": str(settings.steps),
                "versions": ", ".join(f"{name} {number}" for name, number in record.versions.items()),
                "command": record.command,
                "date": datetime.now(UTC).date().isoformat(),
                **(about or {}),
            },
        )

    def save(self, folder: Path | str) -> None:
        """Stores the model in a folder; a kill at any moment leaves what was there or the new one.

        `model.safetensors` holds all of it; `model.json` says the same without the numbers, for people and
        other programs, and is not read back.

        Raises:
            EnvariantError: it cannot be written there.
        """
        place = Path(folder)
        text = json.dumps(_SIDE.dump_python(self._side(), mode="json"), ensure_ascii=False, indent=1)
        tensors = {f"{_WEIGHTS}{name}": value.contiguous() for name, value in self.weights.items()}
        for k, sketch in enumerate(self.reference):
            tensors[f"{_KNOTS}{k}"] = torch.from_numpy(sketch.knots)
            tensors[f"{_COUNTS}{k}"] = torch.from_numpy(sketch.counts)
            tensors[f"{_ALONE}{k}"] = torch.from_numpy(sketch.alone)
        partial = place / "model.partial"
        try:
            place.mkdir(parents=True, exist_ok=True)
            # The text is in the tensors' header as well, so that a kill between the two writes cannot pair a
            # new file with an old one.
            save_file(tensors, partial, metadata={_HEADER: text})
            partial.replace(place / TENSORS)
            partial.write_text(text + "\n", encoding="utf-8")
            partial.replace(place / TEXT)
        except (OSError, safetensors.SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise EnvariantError(f"{place}: cannot be written ({reason})") from None

    @classmethod
    def load(cls, folder: Path | str) -> "SavedModel":
        """A model that `save` stored.

        Raises:
            EnvariantError: the folder holds none, or a damaged one, or one of another version.
        """
        path = Path(folder) / TENSORS
        if not path.exists():
            raise EnvariantError(
                f"{folder}: holds no model (no {TENSORS}); name one that a model was saved in"
            )
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get(_HEADER)
            tensors = load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise EnvariantError(f"{path}: is damaged ({error}); save the model again") from None
        if text is None:
            raise EnvariantError(f"{path}: holds tensors, but no model of this library's")
        _check_schema(text, path)
        try:
            side = _SIDE.validate_json(text)
            model = _assembled(side, tensors)
            # Whether the weights fit is better said now than when rows wait.
            model.network()
        except (ValueError, KeyError, RuntimeError, TypeError) as error:
            raise EnvariantError(f"{path}: is damaged ({str(error).splitlines()[0]})") from None
        return model

    def network(self) -> nn.Module:
        """The trained network, in evaluation mode: encoded rows in, logits out.

        Raises:
            EnvariantError: this version of the library has no such model.
        """
        task = self._task()
        shape = (len(self.encoder.names),)
        module = rebuilt(
            self.model, self.algorithm, self.hyperparameters, task, shape, len(self.environments)
        )
        module.load_state_dict(dict(self.weights))
        return module.eval()

    def predict(self, data: Any, *, encoding: str = "utf-8") -> pd.DataFrame:
        """A prediction for every row, in the order and under the index of the rows.

        Columns are found by name and may come in any order; others are passed over. A category that training
        never saw counts among its rare ones, a missing value is filled in, and a number far out is taken for
        ten standard deviations: `resembles` says how often. Arithmetic is in float32, whatever precision the
        network was trained in. What ARM trains looks at neighboring rows: keep one environment's together.

        Args:
            data: a path (.csv, .tsv, .txt, .parquet), or a frame of pandas, polars or Arrow.
            encoding: of a text file.

        Returns:
            A column `prediction`: the text of the class, or a number in the target's own unit. For classes,
            also a column `P(…)` with the probability of each.

        Raises:
            EnvariantError: a column is missing, or a value is not of its kind: a word among numbers.
        """
        network = self.network()
        found = [self._frame(network, columns, index) for index, columns in self._read(data, encoding)]
        return pd.concat(found)

    def resembles(self, data: Any, *, encoding: str = "utf-8") -> Drift:
        """Whether new rows look like those of the training environments, column by column.

        Args:
            data: as for `predict`.
            encoding: of a text file.

        Raises:
            EnvariantError: as `predict`.
        """
        tally = _Tally(self.reference)
        for _, columns in self._read(data, encoding):
            tally.add(columns)
        return tally.drift(self.environments)

    def predict_and_compare(self, data: Any, *, encoding: str = "utf-8") -> tuple[pd.DataFrame, Drift]:
        """`predict` and `resembles`, reading the rows once.

        Raises:
            EnvariantError: as `predict`.
        """
        network, tally = self.network(), _Tally(self.reference)
        found: list[pd.DataFrame] = []
        for index, columns in self._read(data, encoding):
            tally.add(columns)
            found.append(self._frame(network, columns, index))
        return pd.concat(found), tally.drift(self.environments)

    def to_onnx(self, path: Path | str) -> None:
        """Writes the network for other runtimes, and beside it how columns become its inputs.

        `model.onnx` takes `inputs`, float32 `[rows, width]`, encoded as `encoder.names` lists them. For
        classes it gives `logits` (`[rows]` for two classes, else `[rows, classes]`) and `probabilities`
        `[rows, classes]`; for a regression `prediction` `[rows]`, in the target's own unit. The JSON file of
        the same name is `model.json` as `save` writes it; its `encoder` says, for each column, how to fill in
        what is missing, what to subtract and divide by, and which categories have a column of 0 and 1.

        Raises:
            EnvariantError: packages are missing, the file cannot be written, or the network looks at several
                rows at a time.
        """
        place = Path(path)
        if place.suffix != ".onnx":
            raise EnvariantError(f"{place}: the name of an ONNX file must end in .onnx")
        for package in ("onnx", "onnxscript"):
            try:
                import_module(package)
            except ImportError:
                raise EnvariantError(f"ONNX needs {package}; pip install onnx onnxscript") from None
        network = self.network()
        if any(getattr(part, TOGETHER, 1) > 1 for part in network.modules()):
            raise EnvariantError(f"{self.algorithm}: its network looks at several rows at once; ONNX cannot")
        task = self._task()
        wrapped = _ForOnnx(network, task).eval()
        example = torch.zeros(2, len(self.encoder.names))
        partial = place.with_suffix(".partial")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with warnings.catch_warnings():
                # PyTorch's exporter warns of what in PyTorch will change.
                warnings.simplefilter("ignore", FutureWarning)
                torch.onnx.export(
                    wrapped,
                    (example,),
                    partial,
                    input_names=["inputs"],
                    output_names=["logits", "probabilities"] if self.classes else ["prediction"],
                    dynamic_shapes=({0: torch.export.Dim("rows")},),
                    dynamo=True,
                    external_data=False,
                    verbose=False,
                )
            partial.replace(place)
            text = json.dumps(_SIDE.dump_python(self._side(), mode="json"), ensure_ascii=False, indent=1)
            partial.write_text(text + "\n", encoding="utf-8")
            partial.replace(place.with_suffix(".json"))
        except OSError as error:
            raise EnvariantError(f"{place}: cannot be written ({error.strerror or error})") from None

    def to_dict(self) -> dict[str, Any]:
        """What the model is, as JSON wants it: `model.json` without the encoder."""
        side = _SIDE.dump_python(self._side(), mode="json")
        return {key: value for key, value in side.items() if key not in ("encoder", "inputs", "reference")}

    def _read(self, data: Any, encoding: str) -> Iterator[tuple["pd.Index[Any]", dict[str, Column]]]:
        kinds: dict[str, Kind] = {column.name: column.kind for column in self.encoder.columns}
        for index, columns in read_columns(data, kinds, encoding=encoding):
            yield index, {s.name: _recognized(columns[s.name], s) for s in self.reference}

    def _frame(
        self, network: nn.Module, columns: Mapping[str, Column], index: "pd.Index[Any]"
    ) -> pd.DataFrame:
        inputs = torch.from_numpy(self.encoder.encode(columns))
        task = self._task()
        with torch.inference_mode():
            blocks = [task.logits(network(block)) for block in inputs.split(_BLOCK) if len(block)]
            shape = (0,) if task.outputs == 1 else (0, task.outputs)
            logits = torch.cat(blocks) if blocks else torch.zeros(shape)
        if isinstance(task, Regression):
            return pd.DataFrame({"prediction": _in_unit(logits, task).numpy()}, index=index)
        chances = _probabilities(logits).numpy()
        predicted = (logits > 0).long() if logits.dim() == 1 else logits.argmax(dim=1)
        names = np.array(self.classes, dtype=object)[predicted.numpy()]
        found = {"prediction": names} | {f"P({c})": chances[:, k] for k, c in enumerate(self.classes)}
        return pd.DataFrame(found, index=index)

    def _task(self) -> Task:
        if self.task == Regression.name:
            return Regression(scale=self.scale, center=self.center)
        return task_named(self.task, len(self.classes))

    def _side(self) -> "_Side":
        return _Side(
            schema=SCHEMA,
            encoder=self.encoder,
            inputs=self.encoder.names,
            task=self.task,
            classes=self.classes,
            target=self.target,
            environment=self.environment,
            scale=self.scale,
            center=self.center,
            model=self.model,
            algorithm=self.algorithm,
            hyperparameters=dict(self.hyperparameters),
            environments=self.environments,
            reference=tuple(_SketchSide(s.name, s.kind, s.categories) for s in self.reference),
            about=dict(self.about),
        )


def load_model(folder: Path | str) -> SavedModel:
    """A model that `SavedModel.save` stored.

    Raises:
        EnvariantError: the folder holds none, or a damaged one, or one of another version.
    """
    return SavedModel.load(folder)


def _recognized(column: Column, sketch: Sketch) -> Column:
    """Return the column with its categories spelled as in training."""
    return Column(column.name, column.kind, column.values, sketch.recognized(column.categories))


@final
class _Tally:
    """Counts of new rows as they are read."""

    def __init__(self, sketches: tuple[Sketch, ...]) -> None:
        self._sketches = sketches
        self._counts = [np.zeros(sketch.bins, dtype=np.int64) for sketch in sketches]
        self._unseen: list[dict[str, int]] = [{} for _ in sketches]
        self._rows = 0

    def add(self, columns: Mapping[str, Column]) -> None:
        for k, sketch in enumerate(self._sketches):
            column = columns[sketch.name]
            self._counts[k] += sketch.tally(column.values, column.categories)
            for name, count in sketch.unseen(column.values, column.categories).items():
                self._unseen[k][name] = self._unseen[k].get(name, 0) + count
        self._rows += len(next(iter(columns.values())))

    def drift(self, environments: tuple[str, ...]) -> Drift:
        return Drift.of(self._sketches, self._counts, self._unseen, self._rows, environments)


@final
class _ForOnnx(nn.Module):
    """The network with what people read beside its logits."""

    def __init__(self, network: nn.Module, task: Task) -> None:
        super().__init__()
        self.network, self.task = network, task

    def forward(self, inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits = self.task.logits(self.network(inputs))
        if isinstance(self.task, Regression):
            return logits * self.task.scale + self.task.center
        return logits, _probabilities(logits)


def _probabilities(logits: Float[Tensor, "rows *c"]) -> Float[Tensor, "rows classes"]:
    # Each by itself and not as 1 less the other, which would lose what is small.
    if logits.dim() == 1:
        return torch.sigmoid(torch.stack([-logits, logits], dim=1))
    return torch.softmax(logits, dim=1)


def _in_unit(logits: Float[Tensor, " rows"], task: Regression) -> Float[Tensor, " rows"]:
    # Doubles: a year or an income is large beside its spread.
    return logits.double() * task.scale + task.center


@final
@dataclass(frozen=True)
class _SketchSide:
    name: str
    kind: Kind
    categories: tuple[str, ...]


@final
@dataclass(frozen=True)
class _Side:
    schema: int
    encoder: Encoder
    inputs: tuple[str, ...]
    task: TaskName
    classes: tuple[str, ...]
    target: str
    environment: str
    scale: float
    center: float
    model: str
    algorithm: str
    hyperparameters: dict[str, Any]
    environments: tuple[str, ...]
    reference: tuple[_SketchSide, ...]
    about: dict[str, str]


_SIDE = TypeAdapter(_Side)


def _assembled(side: _Side, tensors: Mapping[str, Tensor]) -> SavedModel:
    sketches: list[Sketch] = []
    for k, (each, column) in enumerate(zip(side.reference, side.encoder.columns, strict=True)):
        knots, counts, alone = (tensors[f"{what}{k}"].numpy() for what in (_KNOTS, _COUNTS, _ALONE))
        sketch = Sketch(each.name, each.kind, knots, each.categories, counts, alone)
        shape = (len(side.environments), sketch.bins)
        if sketch.name != column.name or counts.shape != shape or alone.shape != shape:
            raise KeyError(f"reference of column '{column.name}'")
        sketches.append(sketch)
    return SavedModel(
        encoder=side.encoder,
        task=side.task,
        classes=side.classes,
        target=side.target,
        environment=side.environment,
        scale=side.scale,
        center=side.center,
        model=side.model,
        algorithm=side.algorithm,
        hyperparameters=side.hyperparameters,
        weights={k.removeprefix(_WEIGHTS): v for k, v in tensors.items() if k.startswith(_WEIGHTS)},
        environments=side.environments,
        reference=tuple(sketches),
        about=side.about,
    )


def _check_schema(text: str, path: Path) -> None:
    """Says first that a file is of another version, whatever else may not fit then."""
    try:
        found = json.loads(text).get("schema")
    except (ValueError, AttributeError):
        return
    if found not in (None, SCHEMA):
        raise EnvariantError(f"{path}: has schema {found}, this version reads {SCHEMA}; save the model again")
