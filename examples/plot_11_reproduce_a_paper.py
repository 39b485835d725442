"""
Reproduce published work
========================

A reproduction is one file: sections that train runs and state claims. A claim holds or fails by its numbers. The course
report that this library began with is one of them.
"""

# %%
# Claims are ordinary objects. This is the shape of a reproduction of your own; `envariant reproduce sjtu-2023` runs the
# built-in one and writes a page like `this one <../reproductions/sjtu-2023/report.html>`__.

from envariant.reproductions.base import Claim, Reproduction, section
from envariant.reproductions.runner import Run
from envariant.reproductions.summaries import gain, show_runs, signed


@section("vrex", "V-REx against ERM")
def vrex(runner):
    """V-REx is more accurate than ERM in the test environment."""
    runs = runner.sweep({name: Run("colored-digits", name, {"steps": 200}) for name in ("erm", "vrex")})
    yield from show_runs(runs, "Accuracy during training.")
    difference = gain(runs["vrex"], over=runs["erm"])
    yield Claim("V-REx is better in the test environment.", difference.low > 0, signed(difference))


mine = Reproduction(
    "mine", "V-REx and ERM", "A small example.", {"quick": "two replicas", "full": "five replicas"}, (vrex,)
)

# %%
# Published figures are loaded from files with their sources, never typed in by hand.

from envariant import published

table = published.table("colored-mnist")
for row in table.rows[:3]:
    print(row)

# %%
# .. admonition:: When not
#
#    A figure that differs from the paper is not yet a failed reproduction: compare intervals, and look first at what the
#    released code does differently (:doc:`../guide/released_code`).
