"""
Reproduce published work
========================

A reproduction is one file with sections that train runs and test claims. Whether a
claim holds is computed from the results. One reproduction tests the course report with
which this library began; it is run by ``envariant reproduce sjtu-2023``: :doc:`its page
<../reproductions/sjtu-2023/report>`.
"""

# %%
# A section declares runs by name and yields figures and claims. Its docstring states
# the claim of the publication.

import tempfile
from pathlib import Path

from envariant.reproductions.base import CaptionedFigure, Claim, Reproduction, section
from envariant.reproductions.runner import Run, Runner
from envariant.reproductions.summaries import gain, show_runs, signed


@section("vrex", "V-REx against ERM")
def vrex(runner):
    """V-REx is more accurate than ERM in the test environment."""
    runs = runner.sweep(
        {name: Run("colored-digits", name, {"steps": 200}) for name in ("erm", "vrex")}
    )
    yield from show_runs(runs, "Accuracy during training.")
    difference = gain(runs["vrex"], over=runs["erm"])
    yield Claim(
        "V-REx is better in the test environment.",
        difference.low > 0,
        signed(difference),
    )


conditions = {"quick": "two replicas, 200 steps", "full": "five replicas, 200 steps"}
mine = Reproduction("mine", "V-REx and ERM", "A small example.", conditions, (vrex,))

# %%
# `envariant reproduce` trains and stores all runs and writes the page. In Python, a
# loop over the findings of a section is enough.

findings = list(vrex.find(Runner(Path(tempfile.mkdtemp()), "quick")))
for claim in findings:
    if isinstance(claim, Claim):
        print(claim.verdict, "|", claim.text, "|", claim.numbers)

# %%

chart = next(
    finding.figure for finding in findings if isinstance(finding, CaptionedFigure)
)
chart

# %%
# Published figures are loaded from files that name their sources; they are never typed
# in by hand.

from envariant import published

table = published.table("rfc_colored_mnist")
print(table.metric, "in", table.unit, "from", published.source(table.source))
for algorithm, row in table.rows.items():
    print(f"{algorithm:8}", dict(zip(table.columns, row.mean, strict=True)))

# %%
# .. admonition:: When not
#
#    A figure that differs from the paper is not yet a failed reproduction: compare
#    intervals, and look first at what the released code does differently
#    (:doc:`../guide/released_code`).
