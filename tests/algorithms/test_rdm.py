"""RDM: the spec's numbers for both of its terms."""

import torch

from algorithms.spec_values import close, predicted, vector
from envariant.algorithms import RDM, LossVariance
from envariant.algorithms.penalties.rdm import worst_environment
from envariant.core.tasks import Regression

LOSSES = vector(0.2, 0.5, 1.1, 0.1, 0.3, 0.4)
SEEN = predicted(Regression(), LOSSES.sqrt(), torch.zeros_like(LOSSES), (3, 3))


def test_values_of_the_specification():
    assert worst_environment(SEEN).tolist() == [1, 1, 1, 0, 0, 0]
    close(RDM(1.0).penalty(SEEN, {})[0], 0.398454)
    close(SEEN.losses.var(), 0.126667)
    close(LossVariance(1.0).penalty(SEEN, {})[0], 0.336667)


def test_one_environment_has_no_mismatch():
    alone = predicted(Regression(), LOSSES.sqrt(), torch.zeros_like(LOSSES), (6,))
    close(RDM(1.0).penalty(alone, {})[0], 0.0)
