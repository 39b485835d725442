"""
Statistics with three seeds
===========================

Many papers report results of three replicas, that is, of three runs with different
seeds. What can be concluded from so few runs?
"""

# %%
# Differences between methods are paired: replica k of each method has the same data,
# initial weights and batches. The tests in `envariant.analysis` are functions that take
# arrays of scores.

import numpy as np

from envariant import analysis

erm = np.array([0.612, 0.655, 0.634])
mine = np.array([0.671, 0.702, 0.699])
print("mean difference", analysis.difference(mine, erm))
print("probability that mine is better", analysis.probability_of_improvement(mine, erm))

# %%
# A signed-rank test of three pairs is never significant at the 5 % level, because its
# smallest possible p-value is 2/2³ = 0.25. A paired t test can be significant if the
# three differences are similar.

from scipy import stats

print("signed rank p =", analysis.signed_rank(mine, erm))
print("paired t    p =", round(float(stats.ttest_rel(mine, erm).pvalue), 4))

# %%
# If several methods are tested, the p-values must be corrected for multiple testing.
# This example uses Holm's method:

print(analysis.holm([0.012, 0.03, 0.2]))

# %%
# How large must a true difference be to be detected? The following simulation answers
# this question for scores whose standard deviation over replicas is 0.02, a typical
# value in small studies.

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
#    Replicas measure the noise of training, but not the noise from sampling the test
#    rows. If the test environment is small, three replicas can agree on a wrong
#    conclusion. `envariant.compare` therefore also resamples rows.
