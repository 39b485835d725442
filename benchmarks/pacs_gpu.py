"""Train a ResNet-50 on PACS on a GPU, and compare images per second with a plain loop as in DomainBed.

    python benchmarks/pacs_gpu.py data/PACS [--algorithm erm] [--steps 300] [--test-environment sketch]

Both train the same pretrained ResNet-50 of timm in bfloat16 with DomainBed's augmentation, 32 images of each
training environment per step, and Adam at 5e-5. The plain loop reads files with torchvision in worker
processes and augments on the CPU, as DomainBed does; it is left out if torchvision is missing. Rates leave
out the first steps, evaluation and, for Envariant, the decoding of the files. Needs torchvision and
`pip install 'envariant[vision]'`.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn

# Steps that warm up kernels and readers.
_WARM_UP = 20


class ChannelsLast(nn.Module):
    """Network with inputs and weights in the memory format channels-last."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)

    def forward(self, inputs):
        return self.network(inputs.contiguous(memory_format=torch.channels_last))


def network(architecture: str, pretrained: bool, classes: int) -> nn.Module:
    import timm

    model = timm.create_model(architecture, pretrained=pretrained, num_classes=classes)
    return ChannelsLast(model)


def ours(settings, source, build: Callable[[], nn.Module]) -> dict:
    """Train a network with Envariant; return images per second, the share of waiting, and scores."""
    import envariant
    from envariant.training import replica_stack

    times: list[float] = []
    advance = replica_stack.ReplicaStack.advance

    def timed(self) -> None:
        advance(self)
        if settings.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter())

    replica_stack.ReplicaStack.advance = timed
    result = envariant.train(
        source,
        settings.algorithm,
        model=build,
        test_environments=[settings.test_environment],
        steps=settings.steps,
        evaluate_every=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=5e-5,
        augmentation="domainbed",
        holdout_fraction=0.2,
        precision="bfloat16",
        compile=settings.compile,
        device=settings.device,
    )
    rows = settings.batch_size * sum(role == "train" for role in result.record.roles.values())
    rate = rows * (len(times) - 1 - _WARM_UP) / (times[-1] - times[_WARM_UP])
    scores = {
        f"{row.environment} ({row.role})": round(row.value, 4)
        for row in result.rows
        if row.step == settings.steps and row.metric == result.record.metric
    }
    return {"images per second": rate, "waiting": result.waited / result.seconds, "scores": scores}


def forever(loader) -> Iterator:
    while True:
        yield from loader


def plain(settings, build: Callable[[], nn.Module]) -> dict:
    """Train a network by ERM with a plain loop as in DomainBed; return images per second."""
    from torchvision import datasets, transforms

    normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(settings.size, scale=(0.7, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.3, 0.3, 0.3, 0.3),
            transforms.RandomGrayscale(),
            transforms.ToTensor(),
            normalize,
        ]
    )
    domains = sorted(path for path in settings.folder.iterdir() if path.is_dir())
    loaders = [
        forever(
            torch.utils.data.DataLoader(
                datasets.ImageFolder(str(path), transform=augment),
                batch_size=settings.batch_size,
                shuffle=True,
                drop_last=True,
                num_workers=settings.workers,
                pin_memory=settings.device == "cuda",
            )
        )
        for path in domains
        if path.name != settings.test_environment
    ]
    model = build().to(settings.device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-5)
    start = 0.0
    for step in range(settings.steps):
        if step == _WARM_UP:
            if settings.device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
        batches = [next(loader) for loader in loaders]
        inputs = torch.cat([batch[0] for batch in batches]).to(settings.device, non_blocking=True)
        targets = torch.cat([batch[1] for batch in batches]).to(settings.device, non_blocking=True)
        with torch.autocast(settings.device, torch.bfloat16):
            loss = nn.functional.cross_entropy(model(inputs).float(), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
    rows = settings.batch_size * len(loaders)
    return {"images per second": rows * (settings.steps - _WARM_UP) / (time.perf_counter() - start)}


def compared(settings, source, build: Callable[[], nn.Module]) -> dict:
    """Return the figures of Envariant and of the plain loop, and the ratio of their rates."""
    results: dict = {"envariant": ours(settings, source, build)}
    try:
        results["plain loop"] = plain(settings, build)
        rates = (results[name]["images per second"] for name in ("envariant", "plain loop"))
        results["ratio"] = next(rates) / next(rates)
    except ImportError as error:
        results["plain loop"] = f"not run: {error}"
    return results


def main() -> None:
    from envariant.data import DomainBed

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--algorithm", default="erm")
    parser.add_argument("--architecture", default="resnet50")
    parser.add_argument("--pretrained", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--test-environment", default="sketch")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--storage", choices=("memory", "disk", "files"), default="disk")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda")
    settings = parser.parse_args()
    if settings.steps <= _WARM_UP + 1:
        parser.error(f"--steps must be above {_WARM_UP + 1}")
    if settings.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device")
    classes = len({path.name for path in settings.folder.glob("*/*") if path.is_dir()})
    device = torch.cuda.get_device_name() if settings.device == "cuda" else "cpu"
    source = DomainBed(settings.folder, size=settings.size, storage=settings.storage)
    build = partial(network, settings.architecture, settings.pretrained, classes)
    print(json.dumps({"device": device, **compared(settings, source, build)}, indent=2))


if __name__ == "__main__":
    main()
