"""
Reproduce published work
========================

A reproduction is one file with several sections. Each section trains runs and tests
claims of a publication; whether a claim holds is computed from the results. For
example, the command ``envariant reproduce sjtu-2023`` tests the claims of a course
report and writes :doc:`this report <../reproductions/sjtu-2023/report>`.
"""

# %%
# A section is a function that declares named runs and yields figures and checked
# claims. Its docstring states the claim of the paper that the section tests.

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
# `envariant reproduce` trains and stores all runs of a reproduction and writes an HTML
# report. In Python, a section can be run by itself: its method `find` yields its
# findings, such as figures and claims.

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
# Published figures are loaded from data files that state the source of each figure.
# They are never copied into code by hand.

from envariant import published

table = published.table("rfc_colored_mnist")
print(table.metric, "in", table.unit, "from", published.source(table.source))
for algorithm, row in table.rows.items():
    print(f"{algorithm:8}", dict(zip(table.columns, row.mean, strict=True)))

# %%
# .. admonition:: When not
#
#    If a figure differs from the paper, the reproduction has not necessarily failed.
#    First compare confidence intervals, and check how the released code differs from
#    the paper (:doc:`../guide/released_code`).
