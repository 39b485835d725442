"""Extract the network of one replica from a finished run, to save it as a model."""

from envariant.core.errors import EnvariantError
from envariant.data.tables.source import TableSource
from envariant.data.validation_split import ValidationSplit
from envariant.data.with_loss import named_loss
from envariant.models import model_config
from envariant.saved_model.network import SavedNetwork
from envariant.training.result import TrainingResult


def network_of(
    source: TableSource, result: TrainingResult, replica: int
) -> tuple[TableSource, SavedNetwork, tuple[str, ...], dict[str, str]]:
    """Rebuild the trained network of one replica.

    Args:
        source: Table on which the run was trained.
        result: Result of the run.
        replica: Index of the replica to save.

    Returns:
        Four values: `source` with its test environments set to those of the run, the network, the names of
        the training environments, and the provenance.

    Raises:
        EnvariantError: If the replica does not exist or has not finished, the network cannot be rebuilt
            because the model was not given by name, or the run used another table.
    """
    record, settings = result.record, result.record.spec
    if replica in result.checkpoints and replica not in result.finished:
        state = result.checkpoints[replica]
        why = state.failure or f"{state.trained or state.step} of {settings.steps} steps completed"
        raise EnvariantError(f"replica {replica}: has not finished ({why}); choose a finished replica")
    network = result.model(replica)
    try:
        model_config(settings.model)
    except EnvariantError:
        raise EnvariantError(
            f"model '{settings.model}': is not a built-in model, so it cannot be rebuilt from a saved "
            f"folder; train a built-in model"
        ) from None
    source = source.with_test_environments(settings.test_environments)
    split = ValidationSplit(source, settings.holdout_fraction) if settings.holdout_fraction else source
    sample = split.sample(record.seeds[0].data)
    if sample.fingerprint() != record.fingerprints["data"]:
        raise EnvariantError(
            f"{source.label}: is not the table that this run ({settings.data}) was trained on"
        )
    saved = SavedNetwork(
        settings.model,
        settings.algorithm,
        settings.hyperparameters,
        # Clone tensors, because they may be views of the whole replica stack.
        {name: value.detach().cpu().clone() for name, value in network.state_dict().items()},
        named_loss(sample.task, settings.loss, record.fingerprints.get("loss")),
    )
    environments = tuple(name for name in source.table.environments if record.roles[name] == "train")
    return (
        source,
        saved,
        environments,
        {
            "data": settings.data,
            "test environments": ", ".join(settings.test_environments or ()),
            "replica": str(replica),
            "seed": str(settings.seed),
            "steps": str(result.checkpoints[replica].step),
            "versions": ", ".join(f"{name} {number}" for name, number in record.versions.items()),
            "command": record.command,
        },
    )
