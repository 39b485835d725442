"""
Statistics with three seeds
===========================

Many papers report three replicas. What can be concluded from them?
"""

# %%
# Differences between methods are paired: replica k of both has the same data, the same
# initial weights and the same batches. In `envariant.analysis`, the tests are simple
# functions of arrays.

import numpy as np

from envariant import analysis

erm = np.array([0.612, 0.655, 0.634])
mine = np.array([0.671, 0.702, 0.699])
print("mean difference", analysis.difference(mine, erm))
print("probability that mine is better", analysis.probability_of_improvement(mine, erm))

# %%
# A signed-rank test of three pairs cannot be significant at 5 %: its smallest p value
# is 2/2³ = 0.25. A paired t test can be significant if the three differences are
# similar.

from scipy import stats

print("signed rank p =", analysis.signed_rank(mine, erm))
print("paired t    p =", round(float(stats.ttest_rel(mine, erm).pvalue), 4))

# %%
# With several methods, p values must be corrected for multiple testing, here by Holm's
# method:

print(analysis.holm([0.012, 0.03, 0.2]))

# %%
# How large must a difference be to be detected? A simulation answers this for replicas
# with a standard deviation of 0.02, as in small studies.

import matplotlib.pyplot as plt

rng = np.random.default_rng(0)
effects = np.linspace(0, 0.12, 13)
figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
for count in (3, 5, 10):
    noise = rng.normal(scale=0.02 * np.sqrt(2), size=(2000, count))
    power = [
        (stats.ttest_1samp(noise + effect, 0, axis=1).pvalue < 0.05).mean()
        for effect in effects
    ]
    axes.plot(effects, power, label=f"{count} replicas")
axes.axhline(0.05, color="gray", lw=0.8, ls="--")
axes.set(xlabel="true difference in accuracy", ylabel="share of studies that find it")
axes.legend(frameon=False)
figure.show()

# %%
# .. admonition:: When not
#
#    Replicas measure the noise of training, not the noise of the rows: with a small
#    test environment, three replicas can agree on the same wrong answer.
#    `envariant.compare` resamples rows as well.
