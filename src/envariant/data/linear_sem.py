"""Linear structural equation models of the IRM paper (Arjovsky et al. 2019, section 5.1).

The inputs are the causes x and the effects z of an unobserved variable u. The target is the sum of the
components of u; x, u and z have five components each. With a hidden variable h and standard normal noise N,
environment e has

    h = e N        x = h A + e N        u = x B + h C + σ_u N        z = u D + h G + σ_z N
    inputs = (x, z) S        target y = Σ u

Each N is drawn separately. The matrices A, B, C, D, G and S, and the standard deviations σ_u and σ_z, are
described in `LinearSEM`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from envariant.core import specs
from envariant.core.environments import DefaultSettings, Environment, EnvironmentSet, ReferenceScores
from envariant.core.tasks import Regression
from envariant.data.base import SpecSource

Setup = Literal["FOU", "FOS", "FEU", "FES", "POU", "POS", "PEU", "PES"]
SETUPS: tuple[Setup, ...] = ("FOU", "FOS", "FEU", "FES", "POU", "POS", "PEU", "PES")
DEVIATIONS = (0.2, 2.0, 5.0)
"""Standard deviation e of each environment."""
WIDTH, ROWS = 5, 1000
"""Number of causes, which is also the number of effects; and number of rows per environment."""


@final
@dataclass(frozen=True, eq=False)
class Equations:
    """Coefficients of one model, and the rows drawn from it.

    Attributes:
        x: Inputs of each environment.
        y: Target of each environment.
        scramble: Orthogonal matrix S; the identity if the inputs are not scrambled.
        weights: Weight of each unscrambled input in the equation of the target: B·1 (the row sums of B)
            for the causes, and 0 for the effects.
    """

    x: Float[Tensor, "environments rows inputs"]
    y: Float[Tensor, "environments rows"]
    scramble: Float[Tensor, "inputs inputs"]
    weights: Float[Tensor, " inputs"]


@final
@dataclass(frozen=True)
class LinearSEM(SpecSource):
    """Data source for the linear structural equation models of the IRM paper.

    Environments are `e-0.2`, `e-2` and the test environment `e-5`. Rows are those of the released program
    with the same seed.

    Attributes:
        setup: Three letters, such as "FOU"; for the symbols, see the equations in the module's docstring.
            The first letter is F or P. F: A = I and C = G = 0, so that x has variance 2e². P: h is a
            confounder, and A, C and G have normal entries with standard deviation 1/10. The second letter
            is O or E, with the meanings used in the program; the text of the paper swaps the two. O: σ_u = 1
            and σ_z = e. E: σ_u = e and σ_z = 1. The third letter is U or S. U: the inputs are not scrambled,
            so the matrix S is I. S: the matrix S is random and orthogonal.
        coefficients: "ones" for B = D = I, as in the published results; "normal" for matrices B and D with
            normal entries of standard deviation 1/10.
    """

    base: ClassVar[str] = "linear-sem"
    positional: ClassVar[tuple[str, ...]] = ("setup",)
    setup: Setup = "FOU"
    coefficients: Literal["ones", "normal"] = "ones"

    def __post_init__(self) -> None:
        specs.validate(self, self.base)

    def draw(self, generator: torch.Generator) -> Equations:
        """Draw a model and its rows.

        Args:
            generator: Random number generator; the next call continues its sequence.
        """

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        d, width, (hidden, varying, scrambled) = WIDTH, 2 * WIDTH, self.setup
        b = dd = torch.eye(d)
        if self.coefficients == "normal":
            b, dd = normal(d, d) / width, normal(d, d) / width
        scramble = torch.linalg.qr(normal(width, width)).Q if scrambled == "S" else torch.eye(width)
        a, c, g = torch.eye(d), torch.zeros(d, d), torch.zeros(d, d)
        if hidden == "P":
            a, c, g = (normal(d, d) / width for _ in range(3))
        inputs: list[Tensor] = []
        targets: list[Tensor] = []
        for e in DEVIATIONS:
            of_u, of_z = (e, 1.0) if varying == "E" else (1.0, e)
            h = normal(ROWS, d) * e
            x = h @ a + normal(ROWS, d) * e
            u = x @ b + h @ c + normal(ROWS, d) * of_u
            z = u @ dd + h @ g + normal(ROWS, d) * of_z
            inputs.append(torch.cat((x, z), dim=1) @ scramble)
            targets.append(u.sum(dim=1))
        weights = torch.cat((b.sum(dim=1), torch.zeros(d)))
        return Equations(torch.stack(inputs), torch.stack(targets), scramble, weights)

    def sample(self, seed: int) -> EnvironmentSet:
        drawn = self.draw(torch.Generator().manual_seed(seed))
        names = tuple(f"e-{e:g}" for e in DEVIATIONS)
        environments = map(Environment, names, drawn.x, drawn.y)
        # With a hidden confounder, the risk of the true weights depends on the draw of C.
        noise = DEVIATIONS[-1] if self.setup[1] == "E" else 1.0
        known = ReferenceScores(optimum=WIDTH * noise**2 if self.setup[0] == "F" else None)
        return EnvironmentSet(self.name, tuple(environments), Regression(), names[-1:], known)

    def default_settings(self, algorithm: str) -> DefaultSettings:
        return DefaultSettings(model="linear", steps=2000, learning_rate=1e-2)
