"""The option `adapt`: test-time adaptation enters a run like any other option."""

import envariant
from envariant.training.resolution import resolve
from envariant.training.run_spec import RunSpec


def negate(forward, params, buffers, inputs):
    return {name: -value for name, value in params.items()}, buffers


def test_adaptation_changes_predictions_and_is_recorded():
    options = {"data": "colored-digits", "steps": 2, "model": "linear", "precision": "float32"}
    plain, adapted = (envariant.train(**options, adapt=adapt) for adapt in (None, negate))
    for name in plain.record.roles:
        # Negated weights of a linear model negate its logits: right answers become wrong ones.
        (score,), (opposite,) = (run.final(name, "accuracy").values for run in (plain, adapted))
        assert abs(score + opposite - 1) < 0.02
    assert "adapt" in adapted.record.changed
    assert adapted.record.spec.adapt == "negate"


def test_adaptation_is_part_of_the_identity():
    plain, adapted = (RunSpec(data="colored-digits", adapt=adapt) for adapt in (None, negate))
    assert resolve(plain).identity != resolve(adapted).identity
