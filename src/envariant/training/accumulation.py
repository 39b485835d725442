"""Gradient accumulation: one update from the mean gradient of several batches."""

from collections.abc import Callable

import torch

from envariant.training.step_program import StepInputs, StepOutputs, chosen


def accumulated(
    run: Callable[[int, StepInputs], StepOutputs], inputs: Callable[[int], StepInputs], batches: range
) -> StepOutputs:
    """Run the program of a step on several batches, and average gradients and metrics.

    Each batch has its own risks, penalties and random numbers. Buffers and the state of the algorithm pass
    from batch to batch. A replica that diverges in one of the batches keeps those from before the step.

    Args:
        run: Function that runs the program for the number of a batch and its inputs.
        inputs: Function that returns the inputs for the number of a batch.
        batches: Numbers of the batches of this step.
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
