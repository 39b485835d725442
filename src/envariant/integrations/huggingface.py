"""Mixin for the `Trainer` of Hugging Face transformers, and a collator that keeps the environment column.

Nothing is imported from transformers: the trainer is the other base class of your class.
"""

from abc import ABC
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, final

import torch
from torch.utils.data import Sampler

from envariant.core.conversion import column_of_table, text_of
from envariant.core.errors import EnvariantError, shown, unknown_name
from envariant.core.files import read_tensors, write_tensors
from envariant.integrations.requirement import required
from envariant.integrations.step_loss import as_objective, recorded_features, step_loss
from envariant.objectives import EnvironmentSampler, Objective

_FILE = "objective.safetensors"
_UNKNOWN = -1


@final
class EnvironmentCollator:
    """Collator that keeps the environment column, which most collators cannot convert to a tensor.

    Rows of environments that are not listed, such as test environments, get the number −1.

    Args:
        collator: Collator of the other columns.
        environments: Names of the training environments, in the order of their numbers.
        column: Name of the environment column.
    """

    def __init__(
        self, collator: Callable[[list[Any]], Any], environments: Sequence[str], column: str = "environment"
    ) -> None:
        self.collator, self.column = collator, column
        self._numbers = {name: number for number, name in enumerate(environments)}

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the batch of the other columns and a tensor with the environment numbers, `[rows]`."""
        others = [{key: value for key, value in row.items() if key != self.column} for row in rows]
        batch = dict(self.collator(others))
        if all(self.column in row for row in rows):
            given = [row[self.column] for row in rows]
            plain = [value.item() if isinstance(value, torch.Tensor) else value for value in given]
            numbers = [self._numbers.get(text_of(value), _UNKNOWN) for value in plain]
            batch[self.column] = torch.tensor(numbers)
        return batch


class ObjectiveMixin(ABC):
    """Mixin that makes a `transformers.Trainer` minimize an objective on batches from all environments.

    Name it before the trainer: `class InvariantTrainer(ObjectiveMixin, Trainer)`. The option
    `per_device_train_batch_size` is the number of rows of all environments together. Evaluation uses the
    model's own loss. Checkpoints contain the state of the algorithm; `train(resume_from_checkpoint=…)`
    restores it and continues with the next batch.

    Args:
        arguments: Positional arguments of the trainer.
        objective: Objective of training.
        environment: Name of the environment column in the training data.
        head: Name of the model's last layer, whose inputs are the features. Default: the `torch.nn.Linear`
            that the model lists last.
        options: Other arguments of the trainer; `train_dataset` is required.

    Raises:
        EnvariantError: If an argument is not valid, or the objective lacks an environment of the data.

    Example:
        >>> from transformers import Trainer  # doctest: +SKIP
        >>> class InvariantTrainer(ObjectiveMixin, Trainer): ...  # doctest: +SKIP
        >>> objective = envariant.objective("vrex")  # doctest: +SKIP
        >>> trainer = InvariantTrainer(model, args, train_dataset=rows, objective=objective)  # doctest: +SKIP
    """

    # Attributes of the trainer.
    args: Any
    model: Any
    state: Any
    data_collator: Any
    label_names: Any
    _signature_columns: Any

    def __init__(
        self,
        *arguments: Any,
        objective: Objective,
        environment: str = "environment",
        head: str | None = None,
        **options: Any,
    ) -> None:
        self.objective = as_objective(objective)
        super().__init__(*arguments, **options)
        self._column, self._head, self._cleared_at = environment, head, -1
        self.objective.to(self.args.device)
        self._environments = _column_of(options.get("train_dataset"), environment)
        present = EnvironmentSampler(self._environments, 1).names
        names = self.objective.environments or present
        for name in present:
            if name not in names:
                raise unknown_name("environment", name, names, where="trainer: training data")
        self.data_collator = EnvironmentCollator(self.data_collator, names, environment)
        # The loss is a mean over a batch; the trainer divides it by the number of accumulated batches.
        self.loss_is_scaled_for_ga = self.model_accepts_loss_kwargs = False

    def train(self, resume_from_checkpoint: Any = None, *arguments: Any, **options: Any) -> Any:
        """Train the model; see `transformers.Trainer.train`.

        Args:
            resume_from_checkpoint: Folder of a checkpoint, or True for the last one in the output folder.
            arguments: Other positional arguments of the trainer's method.
            options: Other keyword arguments of the trainer's method.

        Raises:
            EnvariantError: If there is no checkpoint, or it lacks the state of the algorithm.
        """
        if resume_from_checkpoint is True:
            trainer_utils = required("transformers.trainer_utils", "huggingface")
            resume_from_checkpoint = trainer_utils.get_last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise EnvariantError(
                    f"{self.args.output_dir}: contains no checkpoint to resume from; train without resuming"
                )
        if resume_from_checkpoint:
            path = Path(resume_from_checkpoint) / _FILE
            _, state = read_tensors(path, "resume from a checkpoint that this trainer saved")
            self.objective.load_state_dict(state)
        return cast("Any", super()).train(resume_from_checkpoint, *arguments, **options)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **options: Any
    ) -> Any:
        """Return the loss of a batch, and the outputs of the model if requested.

        Args:
            model: Model, which the trainer may have wrapped.
            inputs: Batch with the environment numbers and the labels.
            return_outputs: Whether to return the outputs as well.
            options: Other arguments of the trainer's method; used in evaluation only.
        """
        environments: Any = inputs.pop(self._column, None)
        if not model.training:
            return cast("Any", super()).compute_loss(model, inputs, return_outputs, **options)
        if environments is None or bool((environments == _UNKNOWN).any()):
            raise EnvariantError(
                f"trainer: a training batch has rows without a known environment; check the column "
                f"'{self._column}' of the training data"
            )
        labels = inputs.pop(self.label_names[0])
        if self.state.global_step != self._cleared_at:
            # The trainer clears the gradients of the model only.
            self.objective.zero_grad()
            self._cleared_at = self.state.global_step
        with recorded_features(self.objective, self.model, self._head) as features:
            outputs = model(**inputs)
        loss = step_loss(
            self.objective,
            self.model,
            outputs["logits"],
            labels,
            environments,
            features=features.values,
            step=self.state.global_step,
        )
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """Log values; those of training include the metrics of the objective for the last batch.

        Args:
            logs: Values by name.
            arguments: Other positional arguments of the trainer's method.
            options: Other keyword arguments of the trainer's method.
        """
        if "loss" in logs:
            logs = {**logs, **{k: v for k, v in self.objective.metrics().items() if k != "loss"}}
        cast("Any", super()).log(logs, *arguments, **options)

    def create_optimizer(self, *arguments: Any, **options: Any) -> Any:
        """Create the optimizer of the model and of the algorithm's own networks.

        Args:
            arguments: Positional arguments of the trainer's method.
            options: Keyword arguments of the trainer's method.
        """
        optimizer = cast("Any", super()).create_optimizer(*arguments, **options)
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        networks = [p for p in self.objective.parameters() if id(p) not in known]
        if networks:
            optimizer.add_param_group({"params": networks})
        return optimizer

    def _set_signature_columns_if_needed(self) -> None:
        cast("Any", super())._set_signature_columns_if_needed()
        if self._column not in self._signature_columns:
            self._signature_columns.append(self._column)

    def _get_train_sampler(self, *_: Any) -> Sampler[int]:
        rows, environments = self.args.train_batch_size, len(EnvironmentSampler(self._environments, 1).names)
        if rows % environments:
            raise EnvariantError(
                f"trainer: per_device_train_batch_size must be a multiple of the {environments} training "
                f"environments; got {rows}"
            )
        # Accelerate divides the batches among the processes, so each process samples whole batches.
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        batches = EnvironmentSampler(self._environments, rows // environments, seed=seed, processes=1, rank=0)
        return _RowSampler(batches, rows, lambda: int(self.state.epoch or 0))

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            write_tensors(folder / _FILE, self.objective.state_dict(), {})
        cast("Any", super())._save_checkpoint(*arguments, **options)


@final
class _RowSampler(Sampler[int]):
    """Rows of the batches of an `EnvironmentSampler`, one by one, because the trainer forms batches itself.

    Args:
        batches: Sampler of batches.
        rows: Number of rows of each batch.
        epoch: Function that returns the number of the current epoch. The trainer calls `set_epoch` of a
            sampler in some cases only.
    """

    def __init__(self, batches: EnvironmentSampler, rows: int, epoch: Callable[[], int]) -> None:
        self._batches, self._rows, self._epoch = batches, rows, epoch

    def __len__(self) -> int:
        return len(self._batches) * self._rows

    def __iter__(self) -> Iterator[int]:
        self._batches.set_epoch(self._epoch())
        for batch in self._batches:
            yield from batch


def _column_of(data: Any, column: str) -> Any:
    """Return a column of a data set: a table with named columns, or a PyTorch data set of dictionaries."""
    if hasattr(data, "column_names"):
        return column_of_table(data, column, "trainer: train_dataset")
    try:
        return [data[index][column] for index in range(len(data))]
    except KeyError:
        raise unknown_name("column", column, data[0], where="trainer: train_dataset") from None
    except TypeError:
        raise EnvariantError(
            f"trainer: train_dataset must be a data set of dictionaries with a length; got {shown(data)}"
        ) from None
