"""`envariant train`: train replicas of one algorithm and evaluate every environment."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from envariant.cli.options import Json, Mnist, Switch, Whole
from envariant.core import specs
from envariant.core.errors import EnvariantError


def train(
    *,
    data: Annotated[str, Parameter(alias="-d")] = "colored-mnist",
    algorithm: Annotated[str, Parameter(alias="-a")] = "erm",
    set_: Annotated[tuple[str, ...], Parameter(name="--set", negative="", show_default=False)] = (),
    model: str | None = None,
    steps: Whole | None = None,
    replicas: Whole = 1,
    seed: Whole = 0,
    batch_size: int | Literal["full"] | None = None,
    learning_rate: Annotated[float | None, Parameter(alias="--lr")] = None,
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
    compile_: Annotated[Switch, Parameter(name="--compile")] = False,
    mnist: Mnist = None,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
    json: Json = False,
) -> None:
    """Train replicas of one algorithm and evaluate every environment.

    Options that are left out take the values suggested by the data for the algorithm: the command without
    options reproduces the ERM baseline on Colored MNIST.

    Parameters
    ----------
    data
        Environments to train on: a name such as colored-mnist, colored-mnist:domainbed or
        "colored-digits(label_noise=0.1)".
    algorithm
        Algorithm from `envariant algorithms`, optionally with hyperparameters: "irm(l2=0.001)",
        "vrex + and-mask".
    set_
        Hyperparameter of the algorithm as KEY=VALUE, such as "coefficient=step(1,1e4,at=190)". Repeatable.
    model
        Network: linear, "mlp(hidden=390)", lenet or mnist-cnn.
    steps
        Number of optimizer updates of each replica.
    replicas
        Number of replicas: independent runs, each with its own data, initialization and batch-order seeds.
    seed
        Base random seed.
    batch_size
        Rows of each training environment per step, drawn with replacement; "full" takes all rows.
    learning_rate
        Learning rate of the optimizer.
    weight_decay
        L2 coefficient applied by the optimizer, after gradient masking.
    optimizer
        Optimizer: adam, adamw or "sgd(momentum=0.9)".
    precision
        Precision of matrix products. auto takes bfloat16 where the processor multiplies it natively and the
        model is large enough; tf32 needs CUDA.
    test_environments
        Name of an environment that is not trained on. May be repeated.
    holdout_fraction
        Share of the rows of every training environment that is kept for validation, in [0, 1).
    evaluate_every
        Number of steps between evaluations; about 25 evaluations by default.
    augmentation
        Augmentation of training images, such as "affine(rotation=15,shear=10,scale=0.2)".
    init
        Pretraining that provides the initial weights: erm, "erm(steps=200)", or rfc for rich features.
    freeze
        "features" trains only the head, on the pretrained features that --init provides.
    device
        Device to train on.
    execution
        How replicas are executed: auto, sequential, stacked or "stacked(group=50)". auto times both for a few
        steps and prints its choice; to repeat a run bit-identically, give that choice.
    memory
        Memory limit of a replica stack, such as 8GB; half of the free memory by default. A resumed run keeps
        its stacks.
    compile_
        Compile each step program, which takes about 20 seconds once; for long runs of small models.
    out
        Folder to store the run in. The same command resumes an interrupted run.
    """
    from envariant import data as sources
    from envariant.cli.show import exit_code, print_json, print_result
    from envariant.training import train as run

    result = run(
        sources.source(data, folder=mnist),
        algorithm,
        hyperparameters=_assignments(set_),
        model=model,
        steps=steps,
        replicas=replicas,
        seed=seed,
        batch_size=batch_size,
        learning_rate=learning_rate,
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
    settings: dict[str, object] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise EnvariantError(f"--set: expected KEY=VALUE; got '{text}'")
        settings[key.strip().replace("-", "_")] = specs.parse_value(value)
    return settings
