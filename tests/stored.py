"""A record of a run, for tests that write a store without training."""

from envariant.training.execution import SEQUENTIAL
from envariant.training.record import EnvironmentRecord, Record
from envariant.training.run_spec import RunSpec

RECORD = Record(
    spec=RunSpec(data="colored-digits", algorithm="erm", steps=5),
    identity="x",
    changed=(),
    defaults="the library's defaults",
    execution=SEQUENTIAL,
    task="binary",
    metric="accuracy",
    higher_is_better=True,
    chance=0.5,
    optimum=None,
    input_shape=(2, 8, 8),
    outputs=1,
    environments=(EnvironmentRecord("a", "train", 8, 0.69), EnvironmentRecord("t", "test", 8, 0.69)),
    fingerprints={},
    seeds=(),
)
