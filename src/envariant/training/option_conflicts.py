"""Checks for training options that exclude one another."""

from envariant.core.errors import EnvariantError
from envariant.training.parameter_groups import ByGroup
from envariant.training.run_spec import RunSpec


def check_full_batch(requested: RunSpec) -> None:
    """Check that a run with full batches has no option that requires minibatches.

    Args:
        requested: Options of a run with full batches.

    Raises:
        EnvariantError: If an option requires minibatches.
    """
    if requested.accumulate > 1 and requested.augmentation is None:
        raise EnvariantError(
            'accumulate: batch_size is "full", so all batches of an update would be equal; set a batch_size'
        )
    if requested.class_weights is not None:
        raise EnvariantError(
            'class_weights: weights act through the sampling of minibatches, but batch_size is "full"; set '
            "a batch_size"
        )


def check_own_updates(name: str, requested: RunSpec) -> None:
    """Check that no optimizer option is set for an algorithm that updates the weights without the optimizer.

    Args:
        name: Name of the algorithm.
        requested: Options of the run.

    Raises:
        EnvariantError: If an optimizer option is set.
    """
    given = {
        "optimizer": requested.optimizer is not None,
        "weight_decay": requested.weight_decay or requested.decay_weights_only,
        "learning rates by group": isinstance(requested.learning_rate, ByGroup),
        "clip": requested.clip is not None,
        "accumulate": requested.accumulate > 1,
    }
    if any(given.values()):
        out = list(dict.fromkeys(["optimizer", "weight_decay", *(key for key in given if given[key])]))
        raise EnvariantError(
            f"{name}: has a built-in optimizer, which uses the run's learning rate; remove "
            f"{', '.join(out[:-1])} and {out[-1]}"
        )
