"""Protocol of the EQRM code (Eastwood et al. 2022), with tests on MNIST's test file.

The training file is shuffled. Its first 50,000 rows are the training environments. The other 10,000 rows are
the environments that the code logs during training. The test environments are the 10,000 digits of MNIST's
test file, which no other protocol uses as a separate test set.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from envariant.core.environments import Environment
from envariant.data.colored import construction
from envariant.data.colored.construction import Flips
from envariant.data.colored.mnist import MNIST

Draw = Callable[[str, np.ndarray, np.ndarray, float, torch.Generator], Environment]
"""Function of an environment's name, images, digits, flip probability and generator; it colors the images."""

LOGGED: Flips = (0.1, 0.2, 0.5, 0.9)
"""Color flip probabilities of the environments that the EQRM code logs during training."""

_TRAINING_ROWS = 50_000


def sample(
    train_flips: Flips, test_flips: Flips, digits: MNIST, seed: int, draw: Draw
) -> Iterator[Environment]:
    """Sample the training, test and logged environments, in this order.

    In the EQRM code, the colors of the test digits depend on how many random numbers training has used. Here,
    the generator is reset to the seed before the test digits are colored. The data therefore depend only on
    the seed.

    Args:
        train_flips: Color flip probability of each training environment.
        test_flips: Color flip probability of each test environment.
        digits: Content of the MNIST files.
        seed: Seed of the data draw.
        draw: Function that colors images.
    """
    parts = len(train_flips)
    generator = torch.Generator().manual_seed(seed)
    names = construction.names(train_flips, test_flips)
    order = torch.randperm(len(digits.train_images), generator=generator).numpy()
    training, held_out = order[:_TRAINING_ROWS], order[_TRAINING_ROWS:]
    for i, (name, flip) in enumerate(zip(names[:parts], train_flips, strict=True)):
        rows = training[i::parts]
        yield draw(name, digits.train_images[rows], digits.train_labels[rows], flip, generator)
    logged = [
        draw(
            f"logged-flip-{flip:g}",
            digits.train_images[held_out],
            digits.train_labels[held_out],
            flip,
            generator,
        )
        for flip in LOGGED
    ]
    generator.manual_seed(seed)
    # The code opens the data a second time, which draws a permutation of the training file again.
    torch.randperm(len(digits.train_images), generator=generator)
    rows = torch.randperm(len(digits.test_images), generator=generator).numpy()
    for name, flip in zip(names[parts:], test_flips, strict=True):
        yield draw(name, digits.test_images[rows], digits.test_labels[rows], flip, generator)
    yield from logged
