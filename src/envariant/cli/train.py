"""`envariant train`: one algorithm, some replicas, every environment measured."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from envariant.cli.options import Json, Mnist, Whole
from envariant.core import specs
from envariant.core.errors import EnvariantError


def train(
    *,
    data: Annotated[str, Parameter(alias="-d")] = "colored-mnist",
    algorithm: Annotated[str, Parameter(alias="-a")] = "erm",
    set_: Annotated[tuple[str, ...], Parameter(name="--set", negative="")] = (),
    model: str | None = None,
    steps: Whole | None = None,
    replicas: Whole = 1,
    seed: Whole = 0,
    batch_size: int | Literal["full"] | None = None,
    lr: float | None = None,
    weight_decay: float = 0.0,
    optimizer: str | None = None,
    precision: Literal["auto", "float32", "bfloat16", "tf32"] = "auto",
    test_environments: Annotated[
        tuple[str, ...] | None, Parameter(negative="", allow_leading_hyphen=True)
    ] = None,
    holdout_fraction: float = 0.0,
    evaluate_every: Whole | None = None,
    augmentation: str | None = None,
    init: str | None = None,
    freeze: str | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    execution: str = "auto",
    memory: str | None = None,
    compile_: Annotated[bool, Parameter(name="--compile", negative="")] = False,
    mnist: Mnist = None,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    json: Json = False,
) -> None:
    """Train replicas of one algorithm and measure every environment.

    What is not given is what the data and the algorithm suggest: the bare command on Colored MNIST
    repeats the paper.

    Parameters
    ----------
    data
        A name such as colored-mnist, colored-mnist:domainbed or colored-digits(label_noise=0.1).
    algorithm
        A name from `envariant algorithms`, settings in brackets if you like: "irm(l2=0.001)".
    set_
        One setting of the algorithm, KEY=VALUE; repeat it for more: --set "coefficient=step(1,1e4,at=190)".
    model
        linear, mlp(hidden=390), lenet or mnist-cnn.
    steps
        Optimizer updates of each replica.
    replicas
        Runs, each with its own data draw, initial weights and batches.
    seed
        From which all of them follow.
    batch_size
        Rows of each training environment a step, or "full".
    lr
        Learning rate.
    weight_decay
        Of the optimizer; it acts after any mask on gradients.
    optimizer
        adam, adamw or sgd(momentum=0.9).
    precision
        Of matrix products; auto takes bfloat16 where the processor multiplies it natively; tf32 is for CUDA.
    test_environments
        Names of environments to hold out; repeat it for more.
    holdout_fraction
        Share of every training environment's rows that is measured and not trained on.
    evaluate_every
        Steps between measurements.
    augmentation
        affine(rotation=15,shear=10,scale=0.2): random affine maps of training images.
    init
        What trains first, for the algorithm to start from: erm, erm(steps=200), or rfc for rich features.
    freeze
        "features" trains the head alone, on the features of --init.
    device
        Where to train.
    execution
        How many replicas train as one program: auto, sequential, stacked or stacked(group=50). Auto
        tries for a few steps and says what it took; ask for that to repeat a run to the last bit.
    memory
        The most that a stack of replicas may need, such as 8GB; half of what is free unless said. A run
        that goes on keeps the stacks it began with.
    compile_
        Compile each program; takes some 20 seconds the first time, for long runs of small models.
    out
        A folder to store the run in; the same command again continues it.
    """
    from envariant import data as sources
    from envariant.cli.show import exit_code, print_json, print_result
    from envariant.training.train import train as run

    result = run(
        sources.source(data, folder=mnist),
        algorithm,
        hyperparameters=_assignments(set_),
        model=model,
        steps=steps,
        replicas=replicas,
        seed=seed,
        batch_size=batch_size,
        learning_rate=lr,
        weight_decay=weight_decay,
        optimizer=optimizer,
        precision=precision,
        test_environments=test_environments or None,
        holdout_fraction=holdout_fraction,
        evaluate_every=evaluate_every,
        augmentation=augmentation,
        init=init,
        freeze=freeze,
        device=device,
        execution=execution,
        memory=memory,
        compile=compile_,
        out=out,
    )
    if json:
        print_json(result.to_dict())
    else:
        print_result(result, out)
    sys.exit(exit_code([result]))


def _assignments(texts: tuple[str, ...]) -> dict[str, object]:
    found: dict[str, object] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise EnvariantError(f"--set: expected KEY=VALUE; got '{text}'")
        found[key.strip().replace("-", "_")] = specs.parse_value(value)
    return found
