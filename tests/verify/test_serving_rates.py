"""Coverage, flags and estimated accuracy of served models at new environments: `make verify`."""

import pytest

from benchmarks import conformal

pytestmark = pytest.mark.verify


def test_twenty_made_tables_are_served_at_the_nominal_levels():
    means = conformal.summarize([conformal.measure(k) for k in range(20)])
    print(means)
    for level in conformal.LEVELS:
        assert means[f"coverage {level:.0%}"] == pytest.approx(level, abs=0.02)
    assert means["score interval"] >= 0.93
    assert means["unlike, no shift"] == pytest.approx(0.01, abs=0.004)
    assert means["drift, no shift"] <= 0.05
