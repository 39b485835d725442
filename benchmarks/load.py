"""Measure CPU time and peak memory of `envariant compare` on tables that are extreme in one respect.

    python benchmarks/load.py [CASE ...] [--limit SECONDS] [-- OPTIONS OF COMPARE]

Each case runs in its own process with default options, and nothing else should run beside it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd


def _table(rows: int, environments: int, numbers: int = 6, classes: int = 2) -> pd.DataFrame:
    """Sample a table of standard normal columns; the target is a noisy linear function of three of them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, numbers)).round(4)
    score = x[:, :3].sum(axis=1) + rng.normal(size=rows)
    ranks = np.argsort(np.argsort(score)) * classes // rows
    target = pd.Series(ranks) if classes == 2 else pd.Series([f"class {k}" for k in ranks])
    frame = pd.DataFrame(x, columns=[f"number {k}" for k in range(numbers)])
    return frame.assign(outcome=target, site=[f"site {k % environments}" for k in range(rows)])


def _categories(rows: int = 200_000, categories: int = 100_000) -> pd.DataFrame:
    codes = np.random.default_rng(1).permutation(np.arange(rows) % categories)
    return _table(rows, 4).assign(code=[f"code {k}" for k in codes])


CASES: dict[str, tuple[Callable[[], pd.DataFrame], tuple[str, ...]]] = {
    "200 environments of 20 rows": (lambda: _table(4_000, 200), ("--min-rows", "20")),
    "2,000 columns, 2,000 rows": (lambda: _table(2_000, 4, numbers=2_000), ()),
    "500 classes, 20,000 rows": (lambda: _table(20_000, 4, classes=500), ()),
    "100,000 categories, 200,000 rows": (_categories, ()),
}


def measure(path: Path, options: tuple[str, ...], limit: int) -> dict[str, object]:
    """Run one comparison in its own process; return CPU time, wall time, peak memory and size of the page."""
    out = path.with_suffix("")
    command = [sys.executable, "-m", "envariant", "compare", str(path), "-t", "outcome", "-e", "site"]
    started = time.perf_counter()
    child = subprocess.Popen(
        [*command, "--out", str(out), *options],
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (limit, limit)),
    )
    _, status, used = os.wait4(child.pid, 0)
    pages = [out / name for name in ("report.html", "comparison.json")]
    return {
        "exit code": os.waitstatus_to_exitcode(status),
        "CPU s": round(used.ru_utime + used.ru_stime, 1),
        "wall s": round(time.perf_counter() - started, 1),
        "peak GB": round(used.ru_maxrss / 1e6, 2),
        "page, JSON MB": [round(page.stat().st_size / 1e6, 2) for page in pages if page.exists()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cases", nargs="*", help="parts of the names of cases; default: all")
    parser.add_argument("--limit", type=int, default=1_800, help="CPU seconds after which a case is stopped")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments, options = parser.parse_args(sys.argv[1:end]), sys.argv[end + 1 :]
    with tempfile.TemporaryDirectory() as folder:
        for name, (table, own) in CASES.items():
            if not arguments.cases or any(part in name for part in arguments.cases):
                path = Path(folder) / f"{len(name)}.csv"
                table().to_csv(path, index=False)
                figures = measure(path, (*own, *options), arguments.limit)
                print(json.dumps({"case": name, **figures}), flush=True)


if __name__ == "__main__":
    main()
