"""Provenance of results: software versions, hardware and command line."""

import functools
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch

_PACKAGES = ("envariant", "torch", "numpy", "scipy", "pandas", "scikit-learn", "safetensors")


def versions() -> dict[str, str]:
    """Return the versions of Python and of all packages that affect results."""
    return {"python": platform.python_version()} | _package_versions()


def hardware(device: torch.device) -> dict[str, str | int]:
    """Return facts about the hardware, by name.

    The names are "system", "processor", "cores", "threads" (of PyTorch) and "device". On a CUDA device, there
    is also "accelerator".
    """
    description: dict[str, str | int] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "device": str(device),
    }
    if device.type == "cuda":
        description["accelerator"] = torch.cuda.get_device_name(device)
    return description


def described(hardware: Mapping[str, str | int]) -> str:
    """Describe hardware in one line.

    Args:
        hardware: Facts returned by the function `hardware`.

    Returns:
        String such as "Linux x86_64, AMD EPYC, 2 cores, 1 PyTorch thread, device cpu".
    """
    threads = hardware["threads"]
    accelerator = f" ({hardware['accelerator']})" if "accelerator" in hardware else ""
    return (
        f"{hardware['system']}, {hardware['processor']}, {hardware['cores']} cores, {threads} PyTorch "
        f"thread{'' if threads == 1 else 's'}, device {hardware['device']}{accelerator}"
    )


def command() -> str:
    """Return the `envariant` command line that started this process; "" for other programs."""
    program, *arguments = sys.argv or [""]
    path = Path(program)
    ours = path.stem == "envariant" or path.parts[-2:] == ("envariant", "__main__.py")
    # Arguments of other programs may be private, and reports are shared.
    return shlex.join(["envariant", *arguments]) if ours else ""


@functools.cache
def _package_versions() -> dict[str, str]:
    return {name: version(name) for name in _PACKAGES}


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    facts: Mapping[str, str] = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    named = facts.get("model name") or platform.processor() or platform.machine()
    native = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in facts.get("flags", "").split()]
    return f"{named} ({', '.join(native)})" if native else named
