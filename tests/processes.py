"""Other processes for tests of killed and parallel runs."""

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# A copy of this process starts at once; a new one imports PyTorch, which takes seconds. Neither CUDA nor
# OpenMP's threads nor the libraries of other systems can be copied.
_CAN_FORK = sys.platform == "linux" and not torch.cuda.is_available() and torch.get_num_threads() == 1
_CONTEXT: Any = multiprocessing.get_context("fork" if _CAN_FORK else "spawn")


def start(function: Callable[..., object], *arguments: object, output: Path = Path(os.devnull)) -> Any:
    """Call a function of a test module in another process, and return the process.

    Args:
        function: Function to call.
        arguments: Its arguments.
        output: File for standard output and standard error.
    """
    process = _CONTEXT.Process(target=_call, args=(function, arguments, output))
    with warnings.catch_warnings():
        # The threads of pytest-xdist only wait for messages.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    return process


def run(function: Callable[..., object], *arguments: object) -> int:
    """Call a function in another process, and return its exit code; a negative one is that of a signal."""
    process = start(function, *arguments)
    process.join()
    return process.exitcode


def _call(function: Callable[..., object], arguments: tuple[object, ...], output: Path) -> None:
    warnings.simplefilter("ignore")
    with output.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        sys.stdout = sys.stderr = file
        function(*arguments)
