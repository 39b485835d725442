"""Hyperparameter draws of the DomainBed version that produced the paper's tables (September 2020).

All values of a draw come from one random generator, in a fixed order; today's version has one generator per
hyperparameter. Gulrajani & Lopez-Paz 2020 (arXiv 2007.01434).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from envariant.data.domainbed_split import seed_hash

STEPS = 5001
"""Number of updates of every run."""

Values = Mapping[str, Any]


@final
@dataclass(frozen=True)
class Draw:
    """Training options of one hyperparameter draw.

    Attributes:
        algorithm: Algorithm with its hyperparameters.
        learning_rate: Learning rate of Adam.
        batch_size: Rows of each training environment per update.
        reset: Step at which Adam's running means are cleared; 0 for never.
    """

    algorithm: str
    learning_rate: float
    batch_size: int
    reset: int = 0

    @property
    def optimizer(self) -> str | None:
        """Optimizer as text, or None for the default, which is Adam or the method's own optimizers."""
        return f"adam(reset={self.reset})" if self.reset else None


def values(method: str, draw: int, trial: int) -> dict[str, Any]:
    """Return one draw of a method's hyperparameters for 28×28 images, by their names in DomainBed.

    Args:
        method: Name of the method in the published tables, such as "IRM".
        draw: Number of the draw; draw 0 has the default values.
        trial: Number of the trial.
    """
    own = _OWN.get(method, {})
    if draw == 0:
        return {"lr": 1e-3, "batch_size": 64, **{name: default for name, (default, _) in own.items()}}
    generator = np.random.RandomState(seed_hash(draw, trial))
    # A dropout rate of ResNets is drawn first, although it has no effect on these networks.
    generator.choice([0.0, 0.1, 0.5])
    drawn = {"lr": 10 ** generator.uniform(-4.5, -2.5), "batch_size": int(2 ** generator.uniform(3, 9))}
    return {**drawn, **{name: sample(generator) for name, (_, sample) in own.items()}}


def draw_of(
    method: str,
    draw: int,
    trial: int,
    *,
    steps: int = STEPS,
    most_rows: int | None = None,
    single: bool = False,
) -> Draw:
    """Return the training options of one draw.

    Args:
        method: Name of the method in the published tables.
        draw: Number of the draw; draw 0 has the default values.
        trial: Number of the trial.
        steps: Number of updates of a run. The step at which a penalty sets in is scaled in proportion to it.
        most_rows: Largest permitted batch size; a larger drawn size is reduced to it. Default: no limit.
        single: Whether there is only one training environment. If so, methods that compare environments are
            replaced by ERM.
    """
    own = values(method, draw, trial)
    batch = own["batch_size"] if most_rows is None else min(own["batch_size"], most_rows)
    if method in _PENALIZED:
        name, settings, prefix = _PENALIZED[method]
        at = max(1, round(own[f"{prefix}_penalty_anneal_iters"] * steps / STEPS))
        # A penalty that would set in after the end has its first weight, 1, in all steps.
        weight = f"step(1, {own[f'{prefix}_lambda']!r}, at={at})" if at < steps else "1"
        text = f"{name}(coefficient={weight}, normalize_loss=false{settings})"
        return Draw("erm" if single else text, own["lr"], batch, at if at < steps else 0)
    name, fields = _RECIPES[method]
    if method in ("DANN", "CDANN"):
        # The learning rates of network and discriminator are drawn separately.
        own |= {"lr": own["lr_g"], "rate": own["lr_d"] / own["lr_g"]}
    if single and method in COMPARING:
        return Draw("erm", own["lr"], batch)
    arguments = ", ".join(f"{field}={own.get(key, key)!r}" for field, key in fields.items())
    return Draw(f"{name}({arguments})" if fields else name, own["lr"], batch)


COMPARING = ("IRM", "VREx", "GroupDRO", "MLDG", "CORAL", "MMD", "DANN", "CDANN")
"""Methods that compare environments and need at least two."""

Sample = Callable[[np.random.RandomState], Any]


def _log(low: float, high: float) -> Sample:
    return lambda generator: 10 ** generator.uniform(low, high)


def _uniform(low: float, high: float) -> Sample:
    return lambda generator: generator.uniform(low, high)


def _choice(*options: float) -> Sample:
    return lambda generator: generator.choice(options).item()


def _power(base: float, low: float, high: float) -> Sample:
    return lambda generator: int(base ** generator.uniform(low, high))


_ADVERSARY: Mapping[str, tuple[Any, Sample]] = {
    "lr_g": (1e-3, _log(-4.5, -2.5)),
    "lr_d": (1e-3, _log(-4.5, -2.5)),
    "lambda": (1.0, _log(-2, 2)),
    "weight_decay_d": (0.0, _log(-6, -2)),
    "d_steps_per_g_step": (1, _power(2, 0, 3)),
    "grad_penalty": (0.0, _log(-2, 1)),
    "beta1": (0.5, _choice(0.0, 0.5)),
    "mlp_width": (256, _power(2, 6, 10)),
    "mlp_depth": (3, _choice(3, 4, 5)),
    "mlp_dropout": (0.0, _choice(0.0, 0.1, 0.5)),
}
# Default and distribution of each method's own hyperparameters, in the order in which they are drawn.
_OWN: Mapping[str, Mapping[str, tuple[Any, Sample]]] = {
    "IRM": {
        "irm_lambda": (1e2, _log(-1, 5)),
        "irm_penalty_anneal_iters": (500, _power(10, 0, 4)),
    },
    "VREx": {
        "vrex_lambda": (1e1, _log(-1, 5)),
        "vrex_penalty_anneal_iters": (500, _power(10, 0, 4)),
    },
    "GroupDRO": {"groupdro_eta": (1e-2, _log(-3, -1))},
    # A slip of the program: both limits are −1, so every random draw is 0.1.
    "Mixup": {"mixup_alpha": (0.2, _log(-1, -1))},
    "MLDG": {"mldg_beta": (1.0, _log(-1, 1))},
    "CORAL": {"mmd_gamma": (1.0, _log(-1, 1))},
    "MMD": {"mmd_gamma": (1.0, _log(-1, 1))},
    "DANN": _ADVERSARY,
    "CDANN": _ADVERSARY,
    "MTL": {"mtl_ema": (0.99, _choice(0.5, 0.9, 0.99, 1.0))},
    "SagNet": {"sag_w_adv": (0.1, _log(-2, 1))},
    "RSC": {"rsc_f_drop_factor": (1 / 3, _uniform(0, 0.5)), "rsc_b_drop_factor": (1 / 3, _uniform(0, 0.5))},
}
_PENALIZED = {"IRM": ("irm", ", form=halves", "irm"), "VREx": ("vrex", "", "vrex")}
_DISCRIMINATOR = {
    "weight": "lambda",
    "gradient_penalty": "grad_penalty",
    "discriminator_steps": "d_steps_per_g_step",
    "beta1": "beta1",
    "rate": "rate",
    "width": "mlp_width",
    "depth": "mlp_depth",
}
# Name of each method's recipe, and the hyperparameter of the program that sets each of its fields.
_RECIPES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ERM": ("erm", {}),
    "GroupDRO": ("groupdro", {"rate": "groupdro_eta"}),
    "Mixup": ("mixup", {"alpha": "mixup_alpha"}),
    # In 2020, pairs of single environments were used for the inner and the outer step.
    "MLDG": ("mldg", {"beta": "mldg_beta", "meta_test_environments": 1}),
    "CORAL": ("coral", {"coefficient": "mmd_gamma"}),
    "MMD": ("mmd", {"coefficient": "mmd_gamma"}),
    "DANN": ("dann", _DISCRIMINATOR),
    "CDANN": ("cdann", _DISCRIMINATOR),
    "MTL": ("mtl", {"memory": "mtl_ema"}),
    "SagNet": ("sagnet", {"weight": "sag_w_adv"}),
    "ARM": ("arm", {}),
    "RSC": ("rsc", {"features": "rsc_f_drop_factor", "rows": "rsc_b_drop_factor"}),
}

METHODS: tuple[str, ...] = (
    "ERM", "IRM", "GroupDRO", "Mixup", "MLDG", "CORAL", "MMD", "DANN", "CDANN", "MTL", "SagNet", "ARM",
    "VREx", "RSC",
)  # fmt: skip
"""Methods in the order of the published tables."""
