"""Gradient accumulation: average the gradients of several batches for each update."""

from collections.abc import Callable

import torch

from envariant.training.step_program import StepInputs, StepOutputs, chosen


def accumulated(
    run: Callable[[int, StepInputs], StepOutputs], inputs: Callable[[int], StepInputs], batches: range
) -> StepOutputs:
    """Run a step program on several batches, and average gradients and metrics over the batches.

    Risks, penalties and random numbers are computed for each batch separately. Every batch starts from the
    buffers and the algorithm state that the previous batch returned. If a replica diverges in one of the
    batches, its buffers and state from before the step are restored.

    Args:
        run: Function that runs the step program on one batch, given the batch number and the inputs.
        inputs: Function that maps a batch number to the inputs of the step program.
        batches: Batch numbers of this step, counted from the start of the run.
    """
    first = inputs(batches[0])
    outputs = run(batches[0], first)
    if len(batches) == 1:
        return outputs
    # Copies, because a CUDA graph overwrites its results.
    gradients, metrics = outputs.gradients.clone(), outputs.metrics.clone()
    for batch in batches[1:]:
        later = inputs(batch)._replace(
            buffers={**first.buffers, **outputs.buffers},
            state=outputs.state,
            alive=outputs.alive,
            failed_at=outputs.failed_at,
        )
        outputs = run(batch, later)
        gradients += outputs.gradients
        metrics += outputs.metrics
    alive, count = outputs.alive, len(batches)
    return StepOutputs(
        torch.where(alive[:, None], gradients / count, 0),
        chosen(alive, outputs.buffers, first.buffers),
        chosen(alive, outputs.state, first.state),
        metrics / count,
        alive,
        outputs.failed_at,
    )
