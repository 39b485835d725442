"""SWAD: mean of the weights from where the validation loss stops decreasing to where it increases again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from envariant.training.averaging.base import Averaging, State, running_mean

Chosen = tuple[tuple[int, ...], tuple[int, ...], bool]


@final
@dataclass(frozen=True)
class SWAD(Averaging):
    """Mean of the weights from where the validation loss stops decreasing to where it increases again.

    Cha et al. 2021, arXiv 2102.08604. Segment k is the mean of the weights after each update between
    evaluations k − 1 and k; segment 0 contains the initial weights. l_k is the validation loss of the current
    weights at evaluation k, averaged over training environments. The result is the mean of segments
    s, …, e − 1, with equal weights:

    - start s: first k with l_k = min(l_k … l_{k+N_s−1}).
    - threshold ℓ: (1 + r) · mean(l_s … l_{s+N_s−1}).
    - end e: first k > s with min(l_k … l_{k+N_e−1}) > ℓ. When the end is found, training of the replica
      stops. If there is no end, all segments from s on are averaged.

    Before the start is found, the result is the last segment.

    Attributes:
        n_converge: N_s, number of consecutive evaluations from which the start and the threshold are
            determined.
        n_tolerance: N_e, number of consecutive evaluations whose losses must exceed the threshold to mark
            the end.
        tolerance_ratio: r, relative distance of the threshold from the mean loss at the start.
        variant: "paper", or "released" for the rule of the released code. The released code adds segment s
            twice and, if N_e > N_s, up to N_e − N_s − 1 segments before s.
    """

    name: ClassVar[str] = "swad"
    needs_validation: ClassVar[bool] = True
    n_converge: PositiveInt = 3
    n_tolerance: PositiveInt = 6
    tolerance_ratio: NonNegativeFloat = 0.3
    variant: Literal["paper", "released"] = "paper"

    def init(self, params: Float[Tensor, "replicas numbers"]) -> State:
        replicas, numbers = params.shape
        queue = params.new_zeros(replicas, max(self.n_converge, self.n_tolerance) + 1, numbers)
        return {
            "average": params.clone(),
            "confirmed": params.clone(),
            "segment": params.clone(),
            "updates": torch.zeros(replicas, dtype=torch.int64, device=params.device),
            "queue": queue,
            "losses": torch.zeros(replicas, 0, dtype=torch.float64),
        }

    def update(self, state: State, params: Float[Tensor, "replicas numbers"], step: int) -> State:
        del step
        earlier = state["updates"][:, None]
        mean = state["segment"] + (params - state["segment"]) / (earlier + 1)
        segment = torch.where(earlier == 0, params, mean)
        return {**state, "segment": segment, "updates": state["updates"] + 1}

    def evaluate(
        self,
        state: State,
        params: Float[Tensor, "replicas numbers"],
        losses: Float[Tensor, " replicas"],
    ) -> State:
        new = {name: value.clone() for name, value in state.items()}
        new["losses"] = torch.cat([state["losses"], losses.double().cpu()[:, None]], dim=1)
        for k in range(len(params)):
            known, last = _known(new["losses"][k]), new["losses"][k, -1]
            if last != last:
                continue
            queue = torch.cat([state["queue"][k, 1:], state["segment"][k : k + 1]])
            new["queue"][k], new["updates"][k] = queue, 0
            before, after = self.choose(known[:-1])[0], self.choose(known)
            mean = state["confirmed"][k]
            for count in range(len(before), len(after[0])):
                mean = running_mean(mean, queue[after[0][count] - len(known)], count)
            new["confirmed"][k] = mean
            for count, index in enumerate(after[1], len(after[0])):
                mean = running_mean(mean, queue[index - len(known)], count)
            new["average"][k] = mean
        return new

    def ended(self, state: State, replica: int) -> str | None:
        losses = _known(state["losses"][replica])
        if not losses or not self.choose(losses)[2]:
            return None
        return f"swad: the last {self.n_tolerance} validation losses are above its threshold"

    def choose(self, losses: Sequence[float]) -> Chosen:
        """Return the indices of the segments to average, given all validation losses so far.

        Args:
            losses: Validation losses l_0, l_1, …

        Returns:
            Indices of segments that are part of the average no matter how training continues; indices of
            segments that are added to them if training ends now; and whether end e has been found.
        """
        return (self._paper if self.variant == "paper" else self._released)(losses)

    def _start(self, losses: Sequence[float]) -> tuple[int, float]:
        """Return the start and the threshold; −1 if the start is not reached."""
        width = self.n_converge
        for k in range(len(losses) - width + 1):
            if losses[k] == min(losses[k : k + width]):
                return k, (1 + self.tolerance_ratio) * sum(losses[k : k + width]) / width
        return -1, 0.0

    def _paper(self, losses: Sequence[float]) -> Chosen:
        start, threshold = self._start(losses)
        if start < 0:
            return (), (len(losses) - 1,) if losses else (), False
        above = 0
        for k in range(start, len(losses)):
            above = above + 1 if k > start and losses[k] > threshold else 0
            if above == self.n_tolerance:
                return tuple(range(start, k - above + 1)), (), True
        confirmed = len(losses) - above
        return tuple(range(start, confirmed)), tuple(range(confirmed, len(losses))), False

    def _released(self, losses: Sequence[float]) -> Chosen:
        start, threshold = self._start(losses)
        if start < 0:
            return (), (len(losses) - 1,) if losses else (), False
        converged = start + self.n_converge - 1
        added = self._at_convergence(losses, start, threshold)
        for k in range(converged + 1, len(losses)):
            first = max(0, k - self.n_tolerance + 1)
            if first < start:
                continue
            if min(losses[first : k + 1]) > threshold:
                return tuple(added), () if added else (start,), True
            added.append(first)
        # The released code adds the remaining segments of its queue at the end of training.
        rest = [
            k
            for k in range(max(0, len(losses) - self.n_tolerance) + 1, len(losses))
            if min(losses[k:]) <= threshold
        ]
        return tuple(added), tuple(rest) if added or rest else (start,), False

    def _at_convergence(self, losses: Sequence[float], start: int, threshold: float) -> list[int]:
        """Return the segments that the released code adds when it finds the start."""
        further = self.n_tolerance - self.n_converge
        if further <= 0:
            return list(range(start + 1, start + 1 - further))
        last = start + self.n_converge - 1
        first = max(0, last - self.n_tolerance + 1)
        queue = list(range(first, last + 1))[: further + 1]
        high = [place for place, k in enumerate(queue) if losses[k] > threshold]
        return queue[(high[-1] + 1 if high else 0) + 1 :]


def _known(losses: Tensor) -> list[float]:
    """Return the losses of one replica up to its end; later losses are NaN and are omitted."""
    return [loss for loss in losses.tolist() if loss == loss]
