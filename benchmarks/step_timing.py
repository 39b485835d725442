"""Time training steps of standard cases and compare them with the machine's matrix-product rate.

    python benchmarks/step_timing.py [CASE ...] [--repeats 15] [--device cuda]

The matrix products of a step are counted and the step is timed; the ratio to the machine's best rate shows
what is left to gain. Each case runs in its own process, so that peak memory belongs to that case. The data
are random; nothing is downloaded. Results are printed as one JSON object.
"""

import argparse
import json
import math
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from envariant.algorithms import recipe
from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.errors import EnvariantError, unknown_name
from envariant.core.tasks import Binary
from envariant.models import model_config
from envariant.training import provenance
from envariant.training.allocator import keep_freed_memory
from envariant.training.execution import need, peaks, wait_for
from envariant.training.optimizers import optimizer_config
from envariant.training.precision import native_bfloat16
from envariant.training.replica_stack import ReplicaStack
from envariant.training.replicas import Replica, Seeds
from envariant.training.run_config import RunConfig

_SEED = 0
# So many steps that the cost of recording the step program is worth paying in every case.
_STEPS = 10**6


@final
@dataclass(frozen=True)
class Case:
    """Standard workload on random data.

    Attributes:
        name: Name of the case.
        about: Workload that the case represents.
        algorithm: Algorithm specification, such as "irm".
        model: Model specification, such as "mlp(hidden=64)".
        environments: Number of training environments.
        rows: Rows per environment.
        shape: Shape of one input row.
        batch_size: Rows per environment and step; None uses all rows.
        replicas: Number of replicas in one stack.
        precision: Precision of matrix products.
        compiled: Whether to compile the step program.
        device: "cpu" or "cuda".
    """

    name: str
    about: str
    algorithm: str
    model: str
    environments: int
    rows: int
    shape: tuple[int, ...]
    batch_size: int | None
    replicas: int = 1
    precision: str = "float32"
    compiled: bool = False
    device: str = "cpu"

    def stack(self) -> ReplicaStack:
        """Build the replica stack, ready for a step."""
        return ReplicaStack(self.data(), self.build_replicas(), self.run_config())

    def data(self) -> EnvironmentSet:
        """Build an environment set of random rows, shared by all replicas."""
        generator = torch.Generator().manual_seed(_SEED)
        environments = tuple(
            Environment(
                f"environment-{e}",
                torch.rand(self.rows, *self.shape, generator=generator),
                (torch.rand(self.rows, generator=generator) > 0.5).float(),
            )
            for e in range(self.environments)
        )
        return EnvironmentSet(self.name, environments, Binary())

    def build_replicas(self) -> list[Replica]:
        """Build replicas that differ in seeds and learning rate."""
        algorithm = recipe(self.algorithm).build({})
        return [
            Replica(k, Seeds.of(_SEED, k), algorithm, 1e-4 * (1 + k % 10), 0.0) for k in range(self.replicas)
        ]

    def run_config(self) -> RunConfig:
        """Build the configuration that all replicas share."""
        return RunConfig(
            model=model_config(self.model).build,
            optimizer=optimizer_config("adam"),
            steps=_STEPS,
            batch_size=self.batch_size,
            evaluate_every=_STEPS,
            precision=self.precision,
            augmentation=None,
            test=None,
            device=torch.device(self.device),
            compiled=self.compiled,
        )


_FULL = Case(
    "irm-full-batch",
    "IRM on Colored MNIST as in the paper: full batches, two hidden layers of 390",
    "irm", "mlp(hidden=390)", 2, 25_000, (392,), None,
)  # fmt: skip
_SMALL = Case(
    "small-mlp",
    "a table of 20 columns, two hidden layers of 64",
    "erm",
    "mlp(hidden=64)",
    3,
    2_000,
    (20,),
    64,
)
_LINEAR = Case("linear", "a linear model, full batches", "erm", "linear", 3, 10_000, (10,), None)
_CNN = Case("mnist-cnn", "DomainBed's network for digits", "erm", "mnist-cnn", 2, 2_000, (2, 28, 28), 64)

CASES: dict[str, Case] = {
    case.name: case
    for case in (
        replace(_FULL, name="irm-full-batch-bfloat16", precision="bfloat16"),
        _FULL,
        _SMALL,
        replace(_SMALL, name="small-mlp-x100", about=f"{_SMALL.about}; 100 replicas", replicas=100),
        _LINEAR,
        replace(_LINEAR, name="linear-x20", about=f"{_LINEAR.about}; 20 replicas", replicas=20),
        replace(_LINEAR, name="linear-irm-x20", about="the same with IRM", algorithm="irm", replicas=20),
        replace(_CNN, name="mnist-cnn-bfloat16", precision="bfloat16"),
        _CNN,
    )
}


@final
@dataclass(frozen=True)
class StepTiming:
    """Time, operation count and memory of one case.

    Attributes:
        case: Name of the case.
        about: Workload that the case represents.
        replicas: Number of replicas in the stack.
        precision: Precision of matrix products.
        seconds: Median time of one step of the whole stack, in seconds.
        repeats: Number of timed steps.
        flops: Multiplications and additions in the matrix products of one step.
        products_seconds: Time of those products alone, run one after another in the same shapes, in seconds.
        limit: Matrix-product rate of the machine at that precision, in FLOP/s.
        bytes_measured: Peak memory beyond the memory in use before the case was built, heap fragmentation
            included; on CUDA, device memory.
        bytes_of_tensors: Peak memory held by tensors, counted.
        bytes_predicted: Prediction of `bytes_of_tensors` from stacks of two and of four replicas.
    """

    case: str
    about: str
    replicas: int
    precision: str
    seconds: float
    repeats: int
    flops: int
    products_seconds: float
    limit: float
    bytes_measured: int
    bytes_of_tensors: int
    bytes_predicted: int

    @property
    def rate(self) -> float:
        """Matrix-product rate over the whole step, in FLOP/s."""
        return self.flops / self.seconds

    @property
    def share(self) -> float:
        """Matrix-product rate as a fraction of `limit`."""
        return self.rate / self.limit

    @property
    def share_of_products(self) -> float:
        """Fraction of the step's time that its matrix products take alone."""
        return self.products_seconds / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and derived rates in JSON types."""
        return {
            **{key: getattr(self, key) for key in self.__dataclass_fields__},
            "seconds_per_replica": self.seconds / self.replicas,
            "replica_steps_per_second": self.replicas / self.seconds,
            "rate": self.rate,
            "share": self.share,
            "share_of_products": self.share_of_products,
        }


def matrix_product_rates(device: torch.device, repeats: int = 7) -> dict[str, float]:
    """Measure the best matrix-product rate over several shapes, by precision, in FLOP/s."""
    keep_freed_memory()
    dtypes = {"float32": torch.float32} | ({"bfloat16": torch.bfloat16} if native_bfloat16(device) else {})
    shapes = [(2048, 2048, 2048), (8192, 512, 512), (25_000, 392, 390)]
    # The shapes above do not saturate a GPU.
    shapes += [(8192, 8192, 8192)] if device.type == "cuda" else []
    return {
        name: max(_product_rate(shape, dtype, repeats, device) for shape in shapes)
        for name, dtype in dtypes.items()
    }


def select_cases(names: Sequence[str], device: torch.device) -> list[Case]:
    """Return the named cases on a device, or all cases that the device supports if `names` is empty.

    Raises:
        EnvariantError: If a case is unknown or the device does not support its precision.
    """
    for name in names:
        if name not in CASES:
            raise unknown_name("case", name, CASES)
    supported = native_bfloat16(device)
    for name in names:
        if CASES[name].precision == "bfloat16" and not supported:
            raise EnvariantError(f"case {name}: this device does not support bfloat16; choose another case")
    cases = [CASES[n] for n in names] or [
        case for case in CASES.values() if supported or case.precision != "bfloat16"
    ]
    return [replace(case, device=device.type) for case in cases]


def measure_cases(cases: Sequence[Case], rates: dict[str, float], repeats: int = 15) -> Iterator[StepTiming]:
    """Measure each case in its own process and yield the timings in order."""
    for case in cases:
        # A new process per case: its peak memory belongs to that case.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            yield pool.submit(
                measure_case, case, rates[case.precision], repeats, torch.get_num_threads()
            ).result()


def measure_case(case: Case, limit: float, repeats: int, threads: int) -> StepTiming:
    """Measure one case in this process.

    Args:
        case: Workload to measure.
        limit: Matrix-product rate of the machine at the case's precision, in FLOP/s.
        repeats: Number of timed steps.
        threads: Number of PyTorch threads.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    small = replace(case, rows=64, batch_size=None if case.batch_size is None else 32, replicas=1)
    # Memory that PyTorch allocates on first use must not be counted.
    time_steps(small.stack(), 2)
    data, replicas, config = case.data(), case.build_replicas(), case.run_config()
    before = _reset_peak(config.device)
    stack = ReplicaStack(data, replicas, config)
    stack.measure()
    seconds = time_steps(stack, repeats)
    measured = max(0, _peak(config.device) - before)
    products = record_products(stack)
    products_seconds = median_seconds(products.replay, repeats, config.device)
    counted = max(peaks(data, replicas, config))
    predicted = counted if len(replicas) == 1 else need(data, replicas, config).of(len(replicas))
    return StepTiming(
        case.name,
        case.about,
        case.replicas,
        case.precision,
        seconds,
        repeats,
        products.flops,
        products_seconds,
        limit,
        measured,
        counted,
        predicted,
    )


def time_steps(stack: ReplicaStack, repeats: int) -> float:
    """Return the median time of a training step in seconds, after three warm-up steps."""
    return median_seconds(stack.advance, repeats, stack.device, warm=3)


def median_seconds(work: Callable[[], Any], repeats: int, device: torch.device, warm: int = 1) -> float:
    """Return the median time of `work` in seconds.

    Every repetition is synchronized; on CUDA, ten calls form one repetition, because a GPU queues work and
    synchronizing after every call would measure the synchronization.
    """
    for _ in range(warm):
        work()
    wait_for(device)
    calls, seconds = 10 if device.type == "cuda" else 1, list[float]()
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(calls):
            work()
        wait_for(device)
        seconds.append((time.perf_counter() - started) / calls)
    return statistics.median(seconds)


@final
class MatrixProducts(TorchDispatchMode):
    """Recorder of matrix products and convolutions, which counts them and can replay them alone."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self._calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.flops += int(count(*args, **(kwargs or {}), out_val=result))
            self._calls.append((func, args, kwargs or {}))
        return result

    def replay(self) -> None:
        """Run the recorded products again, with nothing in between."""
        for func, args, kwargs in self._calls:
            func(*args, **kwargs)


def record_products(stack: ReplicaStack) -> MatrixProducts:
    """Record the matrix products of one step.

    A warm-up step comes first: the first step may also record the step program, which would count every
    product twice.
    """
    stack.advance()
    with MatrixProducts() as products:
        stack.advance()
    return products


def _product_rate(
    shape: tuple[int, int, int], dtype: torch.dtype, repeats: int, device: torch.device
) -> float:
    rows, inner, columns = shape
    generator = torch.Generator().manual_seed(_SEED)
    a = torch.randn(rows, inner, generator=generator).to(device, dtype)
    b = torch.randn(inner, columns, generator=generator).to(device, dtype)
    return 2 * math.prod(shape) / median_seconds(lambda: a @ b, repeats, device, warm=2)


def _reset_peak(device: torch.device) -> int:
    """Reset the peak-memory counter where the system allows it and return the bytes in use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return _peak(device)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the named cases, or all of them, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("case", nargs="*", help=f"one of {', '.join(CASES)}; default: all of them")
    parser.add_argument(
        "--repeats", type=int, default=15, help="timed steps per case (ten times more on CUDA)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    cases, rates = select_cases(options.case, device), matrix_product_rates(device)
    timings = [timing.to_dict() for timing in measure_cases(cases, rates, options.repeats)]
    conditions = {"hardware": provenance.hardware(device), "versions": provenance.versions()}
    print(json.dumps({"limits": rates, "cases": timings, **conditions}, indent=1))


if __name__ == "__main__":
    main()
