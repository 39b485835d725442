"""`envariant bench`: what this machine can do, and how much of it the engine uses."""

import sys
from typing import Annotated, Literal

from cyclopts import Parameter

from envariant.cli.options import Json, Whole
from envariant.core.errors import EnvariantError


def bench(
    *,
    case: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    repeats: Whole = 15,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    json: Json = False,
) -> None:
    """Measure matrix products on this machine, then steps of the standard cases.

    Nothing is downloaded; the data are random. The share is of the rate of matrix products alone: what a
    step would take if nothing but its products had to be done.

    Parameters
    ----------
    case
        A case to measure, such as small-mlp-x100; repeat it for more. All of them unless said.
    repeats
        Steps timed of each, on CUDA ten times as many; the median is shown.
    device
        auto takes a CUDA GPU if there is one.
    """
    if repeats < 1:
        raise EnvariantError(f"repeats must be at least 1; got {repeats}")
    from rich.console import Console
    from rich.progress import track

    from envariant import benchmark
    from envariant.cli.show import print_json, print_table
    from envariant.reporting.tables import TextTable
    from envariant.training import provenance
    from envariant.training.run_spec import device_named

    where = device_named(device)
    cases = benchmark.named(case, where)
    limits = benchmark.limits(where)
    figures = list(
        track(
            benchmark.measured(cases, limits, repeats),
            "measuring",
            total=len(cases),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
    )
    hardware = provenance.hardware(where)
    if json:
        print_json(
            {
                "limits": limits,
                "cases": [figure.to_dict() for figure in figures],
                "hardware": hardware,
                "versions": provenance.versions(),
            }
        )
        return
    print_table(
        TextTable(
            (
                "case", "replicas", "precision", "ms a step", "ms a replica", "replica steps/s",
                "GFLOP/s", "of the limit", "products alone", "memory MB", "tensors MB",
            ),
            tuple(
                (
                    figure.case,
                    str(figure.replicas),
                    figure.precision,
                    f"{1e3 * figure.seconds:.3g}",
                    f"{1e3 * figure.seconds / figure.replicas:.3g}",
                    f"{figure.replicas / figure.seconds:,.0f}",
                    f"{figure.rate / 1e9:,.0f}",
                    f"{figure.share:.0%}",
                    f"{figure.share_of_products:.0%}",
                    f"{figure.bytes_measured / 1e6:,.0f}",
                    f"{figure.bytes_of_tensors / 1e6:,.0f}",
                )
                for figure in figures
            ),
            (
                "limit: " + ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {p}" for p, rate in limits.items())
                + "; the best of several shapes of matrix product",
                "products alone: the share of a step's time that its own products take with nothing between",
                f"median of {repeats} steps",
                "memory: what the process took beyond its start, its heap's holes included; tensors at most",
                ", ".join(f"{key} {value}" for key, value in hardware.items()),
            ),
        )
    )  # fmt: skip
