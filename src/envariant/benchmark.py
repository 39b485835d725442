"""How fast this machine is, how fast the engine is on it, and what share of the possible that makes.

The possible is the rate at which the machine multiplies matrices. A step's products are counted, the step
is timed, and the ratio says what is left to gain. Every case runs in a process of its own, so that its
memory is its own; nothing is downloaded.
"""

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
from envariant.training.allocator import keep_freed_memory
from envariant.training.execution import need, peaks, wait_for
from envariant.training.optimizers import optimizer_config
from envariant.training.precision import native_bfloat16
from envariant.training.replica_stack import ReplicaStack
from envariant.training.replicas import Replica, Seeds
from envariant.training.run_config import RunConfig

_SEED = 0
# Long enough that starting a case does not count, whatever it is.
_STEPS = 10**6


@final
@dataclass(frozen=True)
class Case:
    """One standard piece of work, on random data.

    Attributes:
        name, about: what it is called, and what it stands for.
        algorithm, model: as written on the command line.
        environments, rows, shape: training environments, rows of each, and the shape of one row.
        batch_size: rows of each environment a step; None is all.
        replicas: in one program.
        precision: of the products.
        compiled: whether the program is compiled.
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

    def group(self) -> ReplicaStack:
        """The case, ready for a step."""
        return ReplicaStack(self.data(), self.members(), self.plan())

    def data(self) -> EnvironmentSet:
        """Random rows, the same for all replicas."""
        generator = torch.Generator().manual_seed(_SEED)
        made = tuple(
            Environment(
                f"environment-{e}",
                torch.rand(self.rows, *self.shape, generator=generator),
                (torch.rand(self.rows, generator=generator) > 0.5).float(),
            )
            for e in range(self.environments)
        )
        return EnvironmentSet(self.name, made, Binary())

    def members(self) -> list[Replica]:
        """Replicas with weights, rows and learning rates of their own."""
        algorithm = recipe(self.algorithm).build({})
        return [
            Replica(k, Seeds.of(_SEED, k), algorithm, 1e-4 * (1 + k % 10), 0.0) for k in range(self.replicas)
        ]

    def plan(self) -> RunConfig:
        """What they share."""
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
class Figure:
    """What was measured of one case.

    Attributes:
        case: its name.
        about: what it stands for.
        replicas: in one program.
        precision: of the products.
        seconds: one step of all of them, the median.
        repeats: of which so many were timed.
        flops: multiplications and additions of a step's products.
        products_seconds: what those products take alone, one after another, in their own shapes.
        limit: of the machine at that precision, in FLOP/s.
        bytes_measured: memory the process took beyond what it had before the case was built, holes in its
            heap included; on CUDA, of the device.
        bytes_of_tensors: the most that its tensors hold at one time, counted.
        bytes_predicted: what was expected of that, from groups of two and of four.
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
        """FLOP/s of the products, as if nothing else were done."""
        return self.flops / self.seconds

    @property
    def share(self) -> float:
        """Of the limit."""
        return self.rate / self.limit

    @property
    def share_of_products(self) -> float:
        """Of the step's time: what its products would take if nothing else had to be done."""
        return self.products_seconds / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON wants them."""
        return {
            **{key: getattr(self, key) for key in self.__dataclass_fields__},
            "seconds_per_replica": self.seconds / self.replicas,
            "replica_steps_per_second": self.replicas / self.seconds,
            "rate": self.rate,
            "share": self.share,
            "share_of_products": self.share_of_products,
        }


def limits(device: torch.device, repeats: int = 7) -> dict[str, float]:
    """The device's rate of matrix products by precision, in FLOP/s: the best of several shapes."""
    keep_freed_memory()
    wanted = {"float32": torch.float32} | ({"bfloat16": torch.bfloat16} if native_bfloat16(device) else {})
    shapes = [(2048, 2048, 2048), (8192, 512, 512), (25_000, 392, 390)]
    # A GPU is not filled by those.
    shapes += [(8192, 8192, 8192)] if device.type == "cuda" else []
    return {
        name: max(_product_rate(shape, dtype, repeats, device) for shape in shapes)
        for name, dtype in wanted.items()
    }


def named(names: Sequence[str], device: torch.device) -> list[Case]:
    """The cases of those names on a device; all that it can run where none is given.

    Raises:
        EnvariantError: there is no such case, or this machine cannot run it.
    """
    for name in names:
        if name not in CASES:
            raise unknown_name("case", name, CASES)
    able = native_bfloat16(device)
    if unable := [name for name in names if not able and CASES[name].precision == "bfloat16"]:
        raise EnvariantError(f"case {unable[0]}: this device has no products in bfloat16; choose another")
    chosen = [CASES[n] for n in names] or [c for c in CASES.values() if able or c.precision != "bfloat16"]
    return [replace(case, device=device.type) for case in chosen]


def measured(cases: Sequence[Case], limit: dict[str, float], repeats: int = 15) -> Iterator[Figure]:
    """One figure a case, as they come."""
    for case in cases:
        # A fresh process each: its peak of memory is the case's.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            yield pool.submit(measure, case, limit[case.precision], repeats, torch.get_num_threads()).result()


def measure(case: Case, limit: float, repeats: int, threads: int) -> Figure:
    """One case, in this process."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    small = replace(case, rows=64, batch_size=None if case.batch_size is None else 32, replicas=1)
    # What PyTorch loads when it is first used is nobody's memory but its own.
    seconds_a_step(small.group(), 2)
    data, members, plan = case.data(), case.members(), case.plan()
    before = _start_of_peak(plan.device)
    group = ReplicaStack(data, members, plan)
    group.measure()
    seconds = seconds_a_step(group, repeats)
    taken = max(0, _peak(plan.device) - before)
    products = products_of(group)
    products_seconds = median_seconds(products.again, repeats, plan.device)
    alone = len(members) == 1
    counted = max(peaks(data, members, plan))
    predicted = counted if alone else need(data, members, plan).of(len(members))
    return Figure(
        case.name,
        case.about,
        case.replicas,
        case.precision,
        seconds,
        repeats,
        products.flops,
        products_seconds,
        limit,
        taken,
        counted,
        predicted,
    )


def seconds_a_step(group: ReplicaStack, repeats: int) -> float:
    """The median of some steps, after three to warm up."""
    return median_seconds(group.advance, repeats, group.device, warm=3)


def median_seconds(work: Callable[[], Any], repeats: int, device: torch.device, warm: int = 1) -> float:
    """The median time of some repetitions, each waited for; on CUDA ten at a time.

    A GPU is given work ahead of time; to wait for every step would measure the waiting.
    """
    for _ in range(warm):
        work()
    wait_for(device)
    at_once, seconds = 10 if device.type == "cuda" else 1, list[float]()
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(at_once):
            work()
        wait_for(device)
        seconds.append((time.perf_counter() - started) / at_once)
    return statistics.median(seconds)


@final
class Products(TorchDispatchMode):
    """Takes down every matrix product and convolution, to be counted and done again alone."""

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

    def again(self) -> None:
        """Only the products, with nothing in between."""
        for func, args, kwargs in self._calls:
            func(*args, **kwargs)


def products_of(group: ReplicaStack) -> Products:
    """The matrix products of a step.

    A first step may record the program as well, and would be counted twice; so one is made beforehand.
    """
    group.advance()
    with Products() as products:
        group.advance()
    return products


def _product_rate(
    shape: tuple[int, int, int], dtype: torch.dtype, repeats: int, device: torch.device
) -> float:
    rows, inner, columns = shape
    generator = torch.Generator().manual_seed(_SEED)
    a = torch.randn(rows, inner, generator=generator).to(device, dtype)
    b = torch.randn(inner, columns, generator=generator).to(device, dtype)
    return 2 * math.prod(shape) / median_seconds(lambda: a @ b, repeats, device, warm=2)


def _start_of_peak(device: torch.device) -> int:
    """Bytes in use now, from which the peak is counted anew where the system allows that."""
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
