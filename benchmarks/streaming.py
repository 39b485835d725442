"""Train on images that do not fit in memory: peak memory, waiting for data, and bits after SIGKILL.

    python benchmarks/streaming.py --images 60000 --folder /data/made-up        (9 GB of images as bytes)

Makes JPEG images of 224×224 pixels (smooth random colors with noise), and runs in a process of its own:

1. `decode`: the cache file is written;
2. `whole`: a small convolutional network, training and evaluation of all environments;
3. `killed`, `resumed`: the same run, killed by SIGKILL and resumed; weights and scores must agree to the bit;
4. `resnet18`: steps of a ResNet-18, whose share of time spent waiting for images is measured;
5. `rates`: images per second of every storage, without training, by threads and by processes.

It removes what it made, and writes the figures as a table.
"""

import argparse
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

DOMAINS, CLASSES = ("art", "photo", "sketch"), 10


def make(folder: Path, images: int, size: int) -> float:
    """Write JPEG images in folders domain/class, and return their bytes."""
    from PIL import Image

    random = np.random.default_rng(0)
    noise = random.normal(0, 12, (2 * size, 2 * size, 3)).astype(np.float32)
    total = 0
    for k in range(images):
        domain, kind = DOMAINS[k % 3], k // 3 % CLASSES
        path = folder / domain / f"class{kind}" / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        coarse[..., kind % 3] = coarse[..., kind % 3] // 2 + 10 * kind
        smooth = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
        y, x = random.integers(0, size, 2)
        pixels = np.clip(smooth + noise[y : y + size, x : x + size], 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, quality=90)
        total += path.stat().st_size
    return total


def small() -> nn.Module:
    """Return a network on a coarse image, to measure data instead of arithmetic."""
    return nn.Sequential(
        nn.AvgPool2d(8), nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(128, CLASSES),
    )  # fmt: skip


class Block(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip
        self.shortcut = (
            nn.Identity()
            if stride == 1 and before == width
            else nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        )

    def forward(self, inputs):
        return torch.relu(self.first(inputs) + self.shortcut(inputs))


def resnet18() -> nn.Sequential:
    """Return a ResNet-18 with random weights (He et al. 2015, arXiv 1512.03385)."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    before = 64
    for width in (64, 128, 256, 512):
        layers += [Block(before, width, 1 if width == 64 else 2), Block(width, width, 1)]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES))


def peak() -> float:
    """Return the largest resident memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def source(settings):
    from envariant.data import ImageFolders

    return ImageFolders(
        settings.folder / "images",
        size=settings.size,
        test=("sketch",),
        storage=settings.storage,
        cache=settings.folder / "cache",
    )


def options(settings, model) -> dict:
    return {
        "model": model,
        "steps": settings.steps,
        "evaluate_every": settings.steps // 2,
        "batch_size": settings.batch_size,
        "augmentation": "domainbed",
        "device": "cpu",
        "progress": False,
    }


def train(settings, out: Path | None) -> dict:
    import envariant
    from envariant.training.store import recorder

    recorder.CHECKPOINT_INTERVAL_S = 1
    result = envariant.train(source(settings), "erm", out=out, **options(settings, small))
    digest = hashlib.blake2b(repr([(r.environment, r.metric, r.value) for r in result.rows]).encode())
    for value in result.checkpoints[0].params.values():
        digest.update(value.numpy().tobytes())
    return {"seconds": result.seconds, "waited": result.waited, "digest": digest.hexdigest()[:16]}


def steps_of_resnet18(settings) -> dict:
    """Time steps on two cores, without evaluation, which would take an hour."""
    torch.set_num_threads(2)
    from envariant.training.engine import ReplicaStack
    from envariant.training.resolution import resolve
    from envariant.training.run import members_of
    from envariant.training.run_spec import RunSpec

    chosen = options(settings, resnet18)
    del chosen["progress"]
    chosen["batch_size"] = settings.resnet_batch
    resolved = resolve(RunSpec(data=source(settings), algorithm="erm", **chosen))
    (member,) = members_of(resolved.spec)
    stack = ReplicaStack(resolved.source, [resolved.replica(0, member.seeds)], resolved.config)
    stack.advance()
    before, start = stack.waited, time.perf_counter()
    for _ in range(settings.resnet_steps):
        stack.advance()
    seconds = time.perf_counter() - start
    rows = 2 * settings.resnet_batch * settings.resnet_steps
    return {"seconds": seconds, "waited": stack.waited - before, "images per second": rows / seconds}


def decode_one(arguments):
    from envariant.data.images.decoding import Preprocessing, decode

    return decode(arguments[0], Preprocessing(arguments[1]))[0][0, 0, 0]


def rates(settings) -> dict:
    """Return images per second of reading batches, without training."""
    from concurrent.futures import ProcessPoolExecutor
    from dataclasses import replace

    from envariant.training.streaming import Reader, StreamedInputs

    found: dict = {}
    own = source(settings)
    count = min(settings.images // 3, 1500)
    for storage in ("disk", "files"):
        sample = replace(own, storage=storage).sample(0)
        streamed = StreamedInputs(
            Reader(torch.device("cpu")), [[e.input_store for e in sample.environments[:1]]], None
        )
        start = time.perf_counter()
        for _ in streamed.split([50] * (count // 50)):
            pass
        found[f"{storage}, threads"] = 50 * (count // 50) / (time.perf_counter() - start)
    files = [(Path(own.root) / file, own.size) for file in own.listing().groups[0].files[:count]]
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(decode_one, files[:4]))
        start = time.perf_counter()
        list(pool.map(decode_one, files, chunksize=50))
        found["files, 2 processes"] = len(files) / (time.perf_counter() - start)
    return found


def child(settings, role: str) -> None:
    outcome: dict = {}
    if role == "decode":
        start = time.perf_counter()
        source(settings).sample(0)
        outcome = {"seconds": time.perf_counter() - start}
    elif role == "resnet18":
        outcome = steps_of_resnet18(settings)
    elif role == "rates":
        outcome = rates(settings)
    else:
        outcome = train(settings, None if role == "whole" else settings.folder / "run")
    print("RESULT " + json.dumps({**outcome, "peak": peak()}))


def start(role: str) -> subprocess.Popen:
    command = [sys.executable, __file__, "--role", role, *sys.argv[1:]]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def outcome_of(role: str) -> dict:
    process = start(role)
    text = process.communicate()[0]
    lines = [line for line in text.splitlines() if line.startswith("RESULT ")]
    if process.returncode or not lines:
        raise SystemExit(f"{role}: ended with {process.returncode}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def kill_at(folder: Path, step: int) -> int:
    """Start the run, and kill it when its checkpoint has reached a step; return the step."""
    process = start("killed")
    reached = 0
    while reached < step:
        if process.poll() is not None:
            raise SystemExit("killed: ended before it was killed; use more steps")
        time.sleep(0.05)
        for path in folder.rglob("replica*.json"):
            try:
                reached = max(reached, json.loads(path.read_text())["step"])
            except (ValueError, OSError):
                continue
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return reached


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="Folder for images, cache and runs.")
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=16, help="Rows per environment.")
    parser.add_argument("--resnet-batch", type=int, default=16, help="Rows per environment of ResNet-18.")
    parser.add_argument("--resnet-steps", type=int, default=8)
    parser.add_argument("--storage", choices=("disk", "files"), default="disk")
    parser.add_argument("--keep", action="store_true", help="Keep images and cache.")
    parser.add_argument("--role", default="")
    settings = parser.parse_args()
    if settings.role:
        child(settings, settings.role)
        return
    if not (settings.folder / "images").exists():
        start_time = time.perf_counter()
        size = make(settings.folder / "images", settings.images, settings.size)
        print(
            f"made {settings.images:,} images, {size / 1e9:.2f} GB, {time.perf_counter() - start_time:.0f} s"
        )
    try:
        results = {role: outcome_of(role) for role in ("decode", "whole")}
        shutil.rmtree(settings.folder / "run", ignore_errors=True)
        step = kill_at(settings.folder / "run", settings.steps // 2 + 1)
        results["resumed"] = outcome_of("resumed")
        results |= {role: outcome_of(role) for role in ("resnet18", "rates")}
    finally:
        if not settings.keep:
            shutil.rmtree(settings.folder, ignore_errors=True)
    print("\n| part | seconds | waiting for data | peak memory |\n| --- | --- | --- | --- |")
    for role, found in results.items():
        share = f"{found['waited'] / found['seconds']:.1%}" if "waited" in found else "–"
        print(f"| {role} | {found.get('seconds', 0):.0f} | {share} | {found['peak'] / 1e9:.2f} GB |")
    same = results["whole"]["digest"] == results["resumed"]["digest"]
    print(f"\nkilled at step {step} of {settings.steps}; resumed bits: {'equal' if same else 'DIFFERENT'}")
    print(f"ResNet-18: {results['resnet18']['images per second']:.1f} images per second")
    for name, rate in results["rates"].items():
        if name != "peak":
            print(f"reading, {name}: {rate:.0f} images per second")
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
