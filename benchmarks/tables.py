"""Measure time and memory of `envariant compare` for several numbers of rows (50 columns, 10 environments).

    python benchmarks/tables.py FOLDER [ROWS ...] [--budget 15m]
    python benchmarks/tables.py FOLDER 5000 --environments 5 --budget none

Only the results for 10 environments are written to tables.json.

The table is sampled from a known model: 20 numeric columns, 8 of them predictive everywhere; one spurious
column, whose relation to the target is reversed in one environment; 14 columns of noise; 10 categorical,
3 boolean and 2 date columns; and missing values.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from envariant.training import provenance

HERE = Path(__file__).parent
ENVARIANT = (sys.executable, "-m", "envariant")
ENVIRONMENTS = 10
_CHUNK = 100_000


def write(path: Path, rows: int, environments: int = ENVIRONMENTS) -> None:
    """Write the table as CSV, in chunks."""
    rng = np.random.default_rng(0)
    flips = np.linspace(0.05, 0.35, environments)
    flips[-1] = 0.9
    for start in range(0, rows, _CHUNK):
        n = min(_CHUNK, rows - start)
        site = rng.integers(environments, size=n)
        numbers = rng.normal(size=(n, 20))
        score = numbers[:, :8].sum(axis=1) / np.sqrt(8)
        target = (score + 0.7 * rng.normal(size=n) > 0).astype(int)
        spurious = (
            np.where(rng.random(n) < flips[site], 1 - target, target) * 2 - 1 + 0.5 * rng.normal(size=n)
        )
        columns = {f"number {k}": numbers[:, k].round(4) for k in range(20)}
        columns["turned"] = spurious.round(4)
        columns |= {f"noise {k}": rng.normal(size=n).round(4) for k in range(14)}
        columns |= {f"category {k}": rng.choice([f"c{v}" for v in range(3 + 2 * k)], n) for k in range(10)}
        columns |= {f"boolean {k}": rng.choice(["yes", "no"], n) for k in range(3)}
        columns |= {
            f"date {k}": (np.datetime64("2015-01-01") + rng.integers(3000, size=n)).astype(str)
            for k in range(2)
        }
        for name in ("number 3", "noise 1", "category 2"):
            values = pd.Series(columns[name], dtype=object)
            values[rng.random(n) < 0.1] = None
            columns[name] = values
        columns |= {"outcome": target, "site": [f"site {k}" for k in site]}
        pd.DataFrame(columns).to_csv(path, index=False, header=start == 0, mode="w" if start == 0 else "a")


def measure(folder: Path, rows: int, environments: int, budget: str) -> dict[str, object]:
    """Run one comparison in its own process and return its time, peak memory and outcome."""
    path, out = folder / f"rows-{rows}-{environments}.csv", folder / f"out-{rows}-{os.getpid()}"
    if not path.exists():
        write(path, rows, environments)
    command = [*ENVARIANT, "compare", str(path), "--target", "outcome", "--environment", "site"]
    command += [] if budget == "none" else ["--budget", budget]
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*command, "--out", str(out), "--json"], capture_output=True, text=True, check=False
    )
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stderr)
    comparison = json.loads(done.stdout)
    listed = subprocess.run(
        [*ENVARIANT, "runs", "list", str(out), "--json"], capture_output=True, text=True, check=True
    )
    runs = json.loads(listed.stdout)["runs"]
    return {
        "rows": rows,
        "megabytes": round(path.stat().st_size / 1e6),
        "budget": budget,
        "seconds": round(seconds, 1),
        # Of all processes; does not depend on what else runs as much as the wall time does.
        "CPU seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        # The maximum over all child processes so far; sizes are measured in increasing order.
        "peak memory, GB": round(after.ru_maxrss / 1e6, 2),
        "runs done": sum(run["state"] == "done" for run in runs),
        "trials": 1 + max(run["trial"] for run in runs if run["state"] == "done"),
        "recommended": comparison["recommended"],
        "verdict": comparison["verdict"],
        "missing": comparison["missing"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--environments", type=int, default=ENVIRONMENTS)
    parser.add_argument("--budget", default="15m", help="time budget, or none")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    import torch

    report = {
        "hardware": provenance.hardware(torch.device("cpu")),
        "versions": provenance.versions(),
        "cases": [],
    }
    for rows in sorted(arguments.rows):
        report["cases"].append(measure(arguments.folder, rows, arguments.environments, arguments.budget))
        print(json.dumps(report["cases"][-1], indent=1), flush=True)
    if arguments.environments == ENVIRONMENTS:
        (HERE / "tables.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
