"""
Causes and worst cases in a table
=================================

Which columns are causes of the target, and how accurate are predictions if the next
site differs more than the known ones? Closed forms answer both without training.
"""

# %%
# A drug dose causes the response; a marker is an effect of the response, and each site
# measures it with another offset. A hidden variable, such as age, raises both dose and
# response. The sites differ in their usual dose.

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import envariant

rng = np.random.default_rng(0)


def site_rows(name, usual_dose, offset, rows=300, hidden_effect=0.0):
    hidden = rng.normal(size=rows)
    dose = usual_dose + hidden_effect * hidden + rng.normal(size=rows)
    response = 1.5 * dose + 2 * hidden_effect * hidden + rng.normal(size=rows)
    marker = response + offset + rng.normal(size=rows)
    return pd.DataFrame(
        {"dose": dose, "marker": marker, "site": name, "response": response}
    )


SITES = {"north": (0.0, 0.0), "south": (2.0, 2.0), "east": (-2.0, 1.0)}
table = pd.concat([site_rows(name, *where) for name, where in SITES.items()])
inputs, response = table[["dose", "marker", "site"]], table["response"]

# %%
# Invariant causal prediction tests every set of columns. Only the regression on the
# dose has the same residuals at all sites.

icp = envariant.InvariantCausalPrediction().fit(inputs, response, environments="site")
print(icp.conclusion())
icp.summary()

# %%
# For predictions at a new site, the marker is useful as long as its offset is usual.
# Anchor regression weighs the shifts between sites γ times: the larger γ, the less it
# relies on the marker. The curves show the mean squared error at new sites whose
# offset is increasingly unusual.

offsets = np.linspace(-8, 10, 25)
new = [site_rows("new", 0.0, offset, rows=2000) for offset in offsets]
figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
for gamma in (1, 4, 20, 1000):
    model = envariant.AnchorRegressor(gamma)
    model.fit(inputs, response, environments="site")
    errors = [
        np.square(model.predict(rows[["dose", "marker"]]) - rows["response"]).mean()
        for rows in new
    ]
    label = "γ = 1 (least squares)" if gamma == 1 else f"γ = {gamma}"
    axes.plot(offsets, errors, label=label)
axes.set(
    xlabel="offset of the marker at the new site", ylabel="mean squared error", ylim=0
)
axes.legend(frameon=False)
figure.show()

# %%
# With a hidden variable, least squares overestimates the effect of the dose. The sites
# shift the dose, but nothing else, so they are instruments: two-stage least squares
# and the causal Dantzig estimate the effect, 1.5.

confounded = pd.concat(
    [site_rows(n, d, 0.0, hidden_effect=1.0) for n, (d, _) in SITES.items()]
)
dose, answer = confounded[["dose", "site"]], confounded["response"]
for estimator in (
    envariant.AnchorRegressor(gamma=1),
    envariant.KClassRegressor("tsls"),
    envariant.CausalDantzig(),
):
    fitted = estimator.fit(dose, answer, environments="site")
    print(f"{type(estimator).__name__:16} {fitted.coef_[0]:.2f}")

# %%
# .. admonition:: When not
#
#    Invariant causal prediction is wrong if a cause is not observed, and often selects
#    nothing if there are few sites. Anchor regression protects against shifts of the
#    means only. With many columns and unknown causes, use `envariant.compare`.
