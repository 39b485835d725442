"""Measure the closed forms on linear models with known causes: coverage, false inclusions, worst-case risks.

    python benchmarks/closed_forms.py [--seeds 200] [--write]

Each seed draws a linear structural equation model of four columns and a target, with random coefficients, and
three environments that shift the means and variances of the columns, not of the target. `--write` writes the
results to closed_forms.md.
"""

import argparse
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from envariant.closed_forms import (
    AnchorRegressor,
    CausalDantzig,
    DRIGRegressor,
    find_causal_subsets,
)
from envariant.core.errors import EnvariantError

HERE = Path(__file__).parent
ALPHA = 0.05
ENVIRONMENTS = 3
GAMMAS = (0.0, 1.0, 4.0, 16.0)

Array = np.ndarray[Any, Any]


@final
@dataclass(frozen=True)
class LinearModel:
    """Columns (root, first parent, second parent, child) and target: root → first → y ← second, y → child.

    Attributes:
        seed: Seed of coefficients, environments and rows.
        strength: Standard deviation of the shifts of the means.
        hidden: Coefficient of a hidden variable that acts on the target and both parents.
    """

    seed: int
    strength: float = 1.5
    hidden: float = 0.0

    @property
    def coefficients(self) -> Array:
        """Causal coefficients of the columns, `[4]`."""
        rng = np.random.default_rng([self.seed, 11])
        first, second = rng.choice([-1, 1], 2) * rng.uniform(0.5, 1.5, 2)
        return np.array([0.0, first, second, 0.0])

    def environments(self) -> tuple[Array, Array]:
        """Return the shifts of the means and the scales of the noise, both `[environments, 4]`."""
        rng = np.random.default_rng([self.seed, 12])
        return self.strength * rng.normal(size=(ENVIRONMENTS, 4)), rng.uniform(0.5, 2, (ENVIRONMENTS, 4))

    def rows(self, shifts: Array, scales: Array, rows: int, stream: int = 0) -> tuple[Array, Array]:
        """Return columns `[rows, 4]` and targets of an environment."""
        rng = np.random.default_rng([self.seed, 13, stream])
        hidden = rng.normal(size=rows)
        noise = shifts + scales * rng.normal(size=(rows, 4))
        root = noise[:, 0]
        first = root + noise[:, 1] + self.hidden * hidden
        second = noise[:, 2] + self.hidden * hidden
        effects = self.coefficients
        y = effects[1] * first + effects[2] * second + 2 * self.hidden * hidden + rng.normal(size=rows)
        child = y + noise[:, 3]
        return np.column_stack([root, first, second, child]), y

    def sample(self, rows: int) -> tuple[Array, Array, Array]:
        """Return columns, targets and environments, with `rows` rows in each environment."""
        parts = [self.rows(*each, rows, k) for k, each in enumerate(zip(*self.environments(), strict=True))]
        site = np.repeat(np.arange(len(parts)), rows)
        return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts]), site


def measure_icp(seeds: int, rows: int, **options: Any) -> dict[str, float]:
    """Return the rates of invariant causal prediction over models with observed parents."""
    results: list[dict[str, float]] = []
    for seed in range(seeds):
        model = LinearModel(seed)
        found, true = find_causal_subsets(*model.sample(rows), alpha=ALPHA, **options), model.coefficients
        parents = {int(j) for j in np.flatnonzero(true)}
        low, high = found.intervals.T
        covered = (low <= true) & (true <= high)
        selected = None if found.parents is None else set(found.parents)
        results.append(
            {
                "false inclusion": float(selected is not None and not selected <= parents),
                "model rejected": float(selected is None),
                "all intervals cover": float(covered.all()),
                "share of covered coefficients": float(covered.mean()),
                "exactly the parents": float(selected == parents),
                "nothing selected": float(selected == set()),
            }
        )
    return {name: float(np.mean([each[name] for each in results])) for name in results[0]}


def anchor_risks(model: LinearModel, gamma: float, rows: int) -> dict[str, float]:
    """Return largest risks over shifts of the means, of strength γ, divided by those of the theory.

    A shift has the direction of one training environment and is √(γ / w) times as long, with its share w of
    the rows: it satisfies vvᵀ ⪯ γ E[AAᵀ] for the anchors A of theorem 1 with equality in that direction.
    """
    shifts, scales = model.environments()
    scales = np.broadcast_to(scales.mean(axis=0), scales.shape)
    parts = [model.rows(*each, rows, k) for k, each in enumerate(zip(shifts, scales, strict=True))]
    x, y = np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])
    site = np.repeat(np.arange(ENVIRONMENTS), rows)
    center = shifts.mean(axis=0)
    directions = np.linalg.svd(shifts - center, full_matrices=False)
    # The anchors' covariance has the singular directions of the centered shifts.
    spans = directions[2][:2] * directions[1][:2, None] / np.sqrt(ENVIRONMENTS)

    def worst(fitted: AnchorRegressor) -> float:
        # The residual is linear in the shift, so the worst shift is √γ · S'r / |S'r| for sensitivity r.
        base = model.rows(center, scales[0], rows, 99)
        moved = [model.rows(center + each, scales[0], rows, 99) for each in spans]
        residual = base[1] - fitted.predict(base[0])
        slopes = np.array([(b - fitted.predict(a) - residual).mean() for a, b in moved])
        direction = slopes / max(np.linalg.norm(slopes), 1e-12)
        tested = [
            model.rows(center + sign * np.sqrt(gamma) * direction @ spans, scales[0], rows, 98)
            for sign in (-1, 1)
        ]
        return max(float(np.square(b - fitted.predict(a)).mean()) for a, b in tested)

    fits = {g: AnchorRegressor(g).fit(x, y, environments=site) for g in {*GAMMAS, gamma}}
    risks = {g: worst(fitted) for g, fitted in fits.items()}
    own = fits[gamma]
    return {
        "risk / theory": risks[gamma] / (own.within_risk_ + gamma * own.between_risk_),
        "risk / least squares": risks[gamma] / risks[1.0],
        "smallest over γ": float(risks[gamma] <= 1.01 * min(risks.values())),
    }


def drig_risks(model: LinearModel, gamma: float, rows: int) -> dict[str, float]:
    """Return risks under shifts of means and variances of strength γ, divided by those of the theory.

    The reference has no shifts and the smallest variances. The test environment has γ times the mean excess
    of the second moments of the shifts.
    """
    calm = np.full(4, 0.5)
    excess = np.square(model.environments()[1])
    environments = [np.sqrt(calm**2 + (k > 0) * excess[k]) for k in range(ENVIRONMENTS)]
    parts = [model.rows(np.zeros(4), scale, rows, k) for k, scale in enumerate(environments)]
    x, y = np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])
    site = np.repeat(np.arange(ENVIRONMENTS), rows)
    mean_excess = excess[1:].sum(axis=0) / ENVIRONMENTS
    test = model.rows(np.zeros(4), np.sqrt(calm**2 + gamma * mean_excess), 4 * rows, 99)

    def risk(fitted: Any) -> float:
        return float(np.square(test[1] - fitted.predict(test[0])).mean())

    fitted = DRIGRegressor(gamma, reference=0).fit(x, y, environments=site)
    training = [float(np.square(b - fitted.predict(a)).mean()) for a, b in parts]
    theory = training[0] + gamma * (float(np.mean(training)) - training[0])
    pooled = risk(DRIGRegressor(1, reference=0).fit(x, y, environments=site))
    anchor = risk(AnchorRegressor(gamma).fit(x, y, environments=site))
    own = risk(fitted)
    return {"risk / theory": own / theory, "risk / pooled": own / pooled, "risk / anchor": own / anchor}


def dantzig_coverage(seeds: int, rows: int, strength: float) -> dict[str, float]:
    """Return the coverage of the causal Dantzig's 95 % intervals with a hidden confounder."""
    covered: list[float] = []
    refused = 0
    for seed in range(seeds):
        model = LinearModel(seed, strength, hidden=1.0)
        x, y, site = model.sample(rows)
        try:
            fitted = CausalDantzig(alpha=ALPHA).fit(x[:, 1:3], y, environments=site)
        except EnvariantError:
            refused += 1
            continue
        low, high = fitted.intervals_.T
        covered += ((low <= model.coefficients[1:3]) & (model.coefficients[1:3] <= high)).tolist()
    return {"coverage": float(np.mean(covered)), "refused": refused / seeds}


def over_seeds(measure: Callable[[int], dict[str, float]], seeds: int) -> dict[str, float]:
    """Return the medians of ratios of risks over seeds, and the means of other values."""
    results = [measure(seed) for seed in range(seeds)]
    return {
        name: float((np.median if name.startswith("risk") else np.mean)([each[name] for each in results]))
        for name in results[0]
    }


def _table(head: list[str], rows: dict[str, dict[str, float]], percent: bool) -> list[str]:
    names = list(next(iter(rows.values())))
    text = (lambda v: f"{100 * v:.1f} %") if percent else (lambda v: f"{v:.3f}")
    lines = [f"| {' | '.join([*head, *names])} |", f"|{' --- |' * (len(names) + 1)}"]
    lines += [f"| {key} | {' | '.join(text(row[name]) for name in names)} |" for key, row in rows.items()]
    return [*lines, ""]


def _paragraph(text: str) -> list[str]:
    return [*textwrap.wrap(text, 110, break_long_words=False), ""]


def page(seeds: int) -> str:
    """Measure everything, and return the results as a Markdown page."""
    icp = {
        f"{rows} rows, {label}": measure_icp(seeds, rows, **options)
        for rows in (50, 200, 1000)
        for label, options in {
            "factor E": {},
            "factor E − 1": {"correction": "comparisons"},
            "exact test": {"test": "exact"},
        }.items()
    }
    anchor = {
        f"γ = {gamma:g}": over_seeds(
            lambda s, g=gamma: anchor_risks(LinearModel(s, hidden=1.0), g, 2000), seeds
        )
        for gamma in GAMMAS
    }
    drig = {
        f"γ = {gamma:g}": over_seeds(
            lambda s, g=gamma: drig_risks(LinearModel(s, hidden=1.0), g, 2000), seeds
        )
        for gamma in (0.0, 1.0, 4.0, 16.0)
    }
    dantzig = {
        f"{rows} rows, {'means and variances' if strength else 'variances only'} shift": dantzig_coverage(
            seeds, rows, strength
        )
        for rows in (200, 2000)
        for strength in (0.0, 1.5)
    }
    return "\n".join(
        [
            "# Closed forms on linear models with known causes",
            "",
            *_paragraph(
                f"This page is written by `python benchmarks/closed_forms.py --write`, with {seeds} "
                "seeds. Each seed draws a model of four columns (root → first parent → y ← second "
                f"parent, y → child) with random coefficients, and {ENVIRONMENTS} environments that "
                "shift the means and variances of the columns."
            ),
            "## Invariant causal prediction",
            "",
            *_paragraph(
                f"Level α = {ALPHA:g}. The guarantee: a false inclusion happens in at most {100 * ALPHA:.0f} "
                "% of the models, and an interval misses its coefficient with probability at most 1.5 "
                "α: α for the tests, which may reject the true set, and α/2 for its interval. Rows are "
                "per environment. A rejected model has no intervals, which counts as not covered."
            ),
            *_table(["setting"], icp, percent=True),
            "## Anchor regression",
            "",
            *_paragraph(
                "A hidden variable confounds the target and both parents; environments shift means "
                "only. *risk / theory* is the largest mean squared error over shifts of strength γ, on "
                "new rows, divided by `within_risk_ + γ · between_risk_`. *smallest over γ* is the "
                "share of models in which no other γ of the table has a risk that is smaller by more "
                "than 1 %. Ratios are medians over models."
            ),
            *_table(["strength"], anchor, percent=False),
            "## DRIG",
            "",
            *_paragraph(
                "The same models, but environments shift variances only. *risk / theory* is the mean "
                "squared error for γ times the mean excess variance, on new rows, divided by R_0 + γ Σ "
                "w_e (R_e − R_0). *pooled* is least squares of all rows, and *anchor* is anchor "
                "regression with the same γ. Ratios are medians over models. Sampling errors of the "
                "R_e are multiplied by γ."
            ),
            *_table(["strength"], drig, percent=False),
            "## Causal Dantzig",
            "",
            *_paragraph(
                "Columns: the two parents, which are confounded with the target. Intervals at level "
                f"{ALPHA:g}. *refused* is the share of models for which the environments differ too "
                "little."
            ),
            *_table(["setting"], dantzig, percent=True),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    text = page(arguments.seeds)
    print(text)
    if arguments.write:
        (HERE / "closed_forms.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
