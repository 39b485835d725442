"""Train 20 algorithms on frozen features of rotated MNIST, as a sweep of DomainBed's shape.

    python benchmarks/frozen_features.py FOLDER [--jobs 1] [--write]
    python benchmarks/frozen_features.py FOLDER --whole

Six environments of rotated digits (70,000 rows) pass once through EfficientNet-Lite0 with ImageNet weights.
Then 20 algorithms × 20 trials × 3 replicas × 6 test environments train a head on the features: 7,200 runs.
A job is the 20 trials of one algorithm, replica and test environment, trained as one stack; every algorithm
has 18. The script trains `--jobs` random ones of each and extrapolates; `--whole` trains all with two
processes. Runs are stored in FOLDER and resume. `--write` writes the figures of both to frozen_features.md.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import nn

from envariant.core.environments import Environment, EnvironmentSet
from envariant.core.input_store import ByteStore
from envariant.core.tasks import Multiclass
from envariant.data.colored import mnist
from envariant.features import Features
from envariant.models import EfficientNetLite0
from envariant.studies.study import Study
from envariant.studies.study_results import StudyResults
from envariant.training.execution import Execution
from envariant.training.store import Store

HERE = Path(__file__).parent
ANGLES = (0, 15, 30, 45, 60, 75)
SIZE, COMPONENTS = 64, 128
ALGORITHMS = (
    "erm", "irm", "vrex", "groupdro", "mixup", "mldg", "coral", "mmd", "mtl", "sagnet", "arm", "rsc", "sd",
    "and-mask", "sand-mask", "fish", "fishr", "ib-erm", "ib-irm", "iga",
)  # fmt: skip
TRIALS, REPLICAS = 20, 3
HEAD, STEPS, BATCH = "mlp(hidden=64, depth=1)", 300, 32


def rotated_mnist() -> EnvironmentSet:
    """Return DomainBed's RotatedMNIST: 70,000 digits in random order, one sixth rotated by each angle."""
    digits = mnist.load()
    images = np.concatenate([digits.train_images, digits.test_images])
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    order = np.random.default_rng(0).permutation(len(images))

    def rotated(image: np.ndarray, angle: int) -> np.ndarray:
        return np.asarray(Image.fromarray(image).rotate(angle, resample=Image.Resampling.BILINEAR))

    environments = []
    for k, angle in enumerate(ANGLES):
        rows = order[k :: len(ANGLES)]
        pixels = np.stack([rotated(image, angle) for image in images[rows]])[:, None]
        targets = torch.from_numpy(labels[rows].astype(np.int64))
        environments.append(Environment(str(angle), ByteStore(torch.from_numpy(pixels)), targets))
    return EnvironmentSet("rotated-mnist", tuple(environments), Multiclass(10))


def features(cache: Path) -> Features:
    """Return the features of rotated MNIST, from the cache if they are stored."""
    return Features(
        rotated_mnist(), "efficientnet-lite0", size=SIZE, components=COMPONENTS, batch_size=256, cache=cache
    )


def study(
    source: Features, algorithms: tuple[str, ...], tests: tuple[int, ...], replicas: int, seed: int
) -> Study:
    """Return the study of some algorithms and test environments, with the settings of the sweep."""
    return Study(
        (source,),
        algorithms,
        n_trials=TRIALS,
        replicas=replicas,
        test_environments=tuple((str(angle),) for angle in tests),
        holdout_fraction=0.2,
        seed=seed,
        settings={"model": HEAD, "steps": STEPS, "batch_size": BATCH, "evaluate_every": STEPS},
    )


def measured_jobs(source: Features, folder: Path, jobs: int) -> dict[str, dict[str, float]]:
    """Train random jobs of every algorithm; return seconds per job, and accuracy of the best trial."""
    rng = np.random.default_rng(0)
    places = [(angle, replica) for angle in ANGLES for replica in range(REPLICAS)]
    results: dict[str, dict[str, float]] = {}
    for algorithm in ALGORITHMS:
        wall = cpu = 0.0
        accuracies = []
        for k in rng.permutation(len(places))[:jobs]:
            angle, replica = places[k]
            source.with_test_environments((str(angle),)).sample(0)
            start, used = time.perf_counter(), time.process_time()
            part = study(source, (algorithm,), (angle,), 1, replica)
            out = folder / f"{algorithm}-{angle}-{replica}"
            part.run(out, execution=Execution("stacked", TRIALS, "measured before"), progress=False)
            wall, cpu = wall + time.perf_counter() - start, cpu + time.process_time() - used
            with Store(out) as store:
                rows = store.history()
            last = rows[(rows["step"] == STEPS) & (rows["role"] == "test") & (rows["metric"] == "accuracy")]
            accuracies.append(float(last["value"].max()))
        results[algorithm] = {"wall": wall / jobs, "cpu": cpu / jobs, "best": statistics.fmean(accuracies)}
        print(algorithm, results[algorithm], flush=True)
    return results


def end_to_end(source: EnvironmentSet, steps: int = 3) -> dict[str, float]:
    """Measure steps of ERM that trains the whole backbone on the same batches, without evaluation."""
    module = EfficientNetLite0().build((3, SIZE, SIZE), 10)
    optimizer = torch.optim.Adam(module.parameters(), lr=5e-5)
    rows = BATCH * (len(ANGLES) - 1)
    inputs = source.environments[0].inputs[:rows].expand(-1, 3, -1, -1)
    inputs = torch.nn.functional.interpolate(inputs, (SIZE, SIZE), mode="bilinear")
    targets = source.environments[0].targets[:rows]
    seconds, used = [], []
    for _ in range(steps + 1):
        start, before = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(inputs), targets).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        used.append(time.process_time() - before)
    return {"wall": statistics.median(seconds[1:]), "cpu": statistics.median(used[1:])}


def extraction_rate(
    source: EnvironmentSet, rows: int = 1024, backbone: str | nn.Module = "efficientnet-lite0"
) -> dict[str, float]:
    """Measure the extraction of some rows without cache, in rows per second of time and of CPU time."""
    part = EnvironmentSet("part", (source.environments[0].select(torch.arange(rows)),), source.task)
    with tempfile.TemporaryDirectory() as cache:
        start, used = time.perf_counter(), time.process_time()
        Features(part, backbone, size=SIZE, batch_size=256, standardize=False, cache=cache).sample(0)
        wall, cpu = time.perf_counter() - start, time.process_time() - used
    return {"wall": rows / wall, "cpu": rows / cpu}


def whole_sweep(folder: Path) -> tuple[str, list[str]]:
    """Return the measured time of the whole sweep, and its scores by two selection rules as a section."""
    if not (folder / "whole.json").exists():
        return "not measured", []
    measured = json.loads((folder / "whole.json").read_text())
    stored = StudyResults.load(folder / "whole")
    done = int((stored.runs.drop_duplicates("run")["state"] == "done").sum())
    lines = [
        "",
        "## Results of the whole sweep",
        "",
        "Mean accuracy over the six test environments, each left out of training in turn. Mean ± standard "
        "deviation over three replicas (divisor n − 1), which differ in split, initialization, batches and "
        "trials. The trial and the step are selected by training-domain validation or, for comparison only, "
        "by the test labels (oracle).",
        "",
        "| algorithm | training-domain validation | worst test environment | oracle |",
        "| --- | --- | --- | --- |",
    ]
    values, oracle = (stored.table(rule).values for rule in ("training-domain validation", "oracle"))
    for name, environments in values.items():
        worst = min(environments, key=lambda each: statistics.fmean(environments[each].values()))
        cells = [mean_sd(environments), f"{statistics.fmean(environments[worst].values()):.3f} ({worst}°)"]
        lines.append(f"| {name} | {' | '.join(cells)} | {mean_sd(oracle[name])} |")
    lines += ["", f"By training-domain validation: {stored.compare().verdict}"]
    return f"{done:,} runs finished in {measured['minutes']:.0f} min; {measured['conditions']}", lines


def mean_sd(environments: Mapping[str, Mapping[int, float]]) -> str:
    """Return mean ± standard deviation over replicas of the mean over environments."""
    means = [statistics.fmean(each[k] for each in environments.values()) for k in range(REPLICAS)]
    return f"{statistics.fmean(means):.3f} ± {statistics.stdev(means):.3f}"


def page(results: dict[str, Any], whole_time: str, whole_scores: list[str]) -> str:
    """Return the page with all figures."""
    jobs, whole, e2e = results["jobs"], len(ANGLES) * REPLICAS, results["end_to_end"]
    cpu, wall = (sum(job[key] for job in jobs.values()) * whole for key in ("cpu", "wall"))
    runs = len(ALGORITHMS) * TRIALS * whole
    whole_e2e = e2e["cpu"] * STEPS * runs
    lines = [
        "# Frozen features: a sweep of DomainBed's shape",
        "",
        "Written by `python benchmarks/frozen_features.py FOLDER --write`.",
        "",
        f"Rotated MNIST: 70,000 digits, six environments (rotations by {', '.join(map(str, ANGLES))} "
        f"degrees). EfficientNet-Lite0 with ImageNet weights computes 1,280 features of each digit at "
        f"{SIZE}×{SIZE} pixels; the {COMPONENTS} largest principal components, fitted on the training "
        f"environments, are the inputs. Head: `{HEAD}`, {STEPS} steps, {BATCH} rows of each training "
        f"environment per step, Adam, a validation split of 20 %, evaluation of all rows before the first "
        f"and after the last step.",
        "",
        "| what | figure |",
        "| --- | --- |",
        f"| extraction of all rows | {results['extraction']} |",
        f"| extraction, 1,024 rows, one core | {results['rate']['cpu']:,.0f} rows per CPU second "
        f"({results['rate']['wall']:,.0f} per second of time) |",
        f"| runs of the sweep | {len(ALGORITHMS)} algorithms × {TRIALS} trials × {REPLICAS} replicas × "
        f"{len(ANGLES)} test environments = {runs:,} |",
        f"| measured part | {results['jobs_each']} of {whole} jobs of every algorithm, chosen at random: "
        f"{len(ALGORITHMS) * results['jobs_each'] * TRIALS:,} runs |",
        f"| whole sweep, measured, two processes on two cores | {whole_time} |",
        f"| whole sweep, extrapolated, CPU time on two cores | {cpu / 120:,.0f} min |",
        f"| whole sweep, extrapolated, time on two cores at the load of the measurement | "
        f"{wall / 120:,.0f} min |",
        f"| step of end-to-end ERM on the same batch | {e2e['cpu']:.2f} s CPU |",
        f"| the same {runs:,} runs end to end, only their steps, estimated | {whole_e2e / 7200:,.0f} h on "
        f"two cores: {whole_e2e / cpu:,.0f} times as long |",
        "",
        f"Conditions: {results['conditions']}",
        "",
        "| algorithm | CPU s per job of 20 trials | time s | best trial's accuracy in the test environment |",
        "| --- | --- | --- | --- |",
        *(f"| {name} | {j['cpu']:.1f} | {j['wall']:.1f} | {j['best']:.3f} |" for name, j in jobs.items()),
        "",
        "Not included: the extraction, and the principal components, fitted once for each test environment "
        "and process in a few seconds. End to end, evaluation is not counted.",
        "",
        "The last column is oracle selection on the measured jobs only; it shows that the heads learn, not "
        "which algorithm is best. `dann`, `cdann` and `adrmx` are not in the list: their discriminators are "
        "larger than the head, and their widths differ between trials, so that trials cannot be stacked.",
        *whole_scores,
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", type=int, default=1, help="jobs of each algorithm, of 18; 0: measure none")
    parser.add_argument("--whole", action="store_true", help="train all 7,200 runs with two processes")
    parser.add_argument("--write", action="store_true", help="write frozen_features.md")
    parser.add_argument("--conditions", default="not stated.", help="machine and load, for the page")
    options = parser.parse_args()
    if options.jobs or options.whole:
        measure(options.folder, options.jobs, options.whole, options.conditions)
    if options.write:
        results = json.loads((options.folder / "results.json").read_text())
        (HERE / "frozen_features.md").write_text(
            page(results, *whole_sweep(options.folder)), encoding="utf-8"
        )


def measure(folder: Path, jobs: int, whole: bool, conditions: str) -> None:
    """Measure the whole sweep, or a part of it and the steps of end-to-end training; store the figures."""
    source = features(folder / "cache")
    source.sample(0)
    print(source.extraction, flush=True)
    log = folder / "extraction.txt"
    if source.extraction.rows:
        log.write_text(str(source.extraction).removeprefix("features: ").partition(";")[0])
    if whole:
        start = time.perf_counter()
        study(source, ALGORITHMS, ANGLES, REPLICAS, 0).run(
            folder / "whole", workers=2, execution=Execution("stacked", TRIALS, "measured before")
        )
        minutes = (time.perf_counter() - start) / 60
        (folder / "whole.json").write_text(json.dumps({"minutes": minutes, "conditions": conditions}))
        print(f"{minutes:.1f} min")
        return
    digits = cast("EnvironmentSet", source.source)
    results = {
        "extraction": log.read_text() if log.exists() else "from the cache",
        "rate": extraction_rate(digits),
        "end_to_end": end_to_end(digits),
        "jobs_each": jobs,
        "conditions": conditions,
    }
    print(json.dumps(results), flush=True)
    results["jobs"] = measured_jobs(source, folder / "jobs", jobs)
    (folder / "results.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
