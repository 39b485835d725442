"""Conversion of charts to SVG and PNG with `vl_convert`, also in forked processes."""

import json
import os
import subprocess
import sys
from functools import cache, lru_cache
from typing import Any

import vl_convert

_IN_A_NEW_PROCESS = """
import json, sys, vl_convert
name, arguments, options = json.load(sys.stdin)
result = getattr(vl_convert, name)(*arguments, **options)
sys.stdout.buffer.write(result if isinstance(result, bytes) else result.encode())
"""


def svg(document: dict[str, Any]) -> str:
    """Convert a Vega-Lite specification to SVG text."""
    return _converted("vegalite_to_svg", json.dumps(document)).decode()


def png(document: dict[str, Any], scale: float) -> bytes:
    """Convert a Vega-Lite specification to a PNG image."""
    return _converted("vegalite_to_png", json.dumps(document), scale=scale)


@lru_cache(maxsize=128)
def _converted(name: str, document: str, **options: float) -> bytes:
    """Convert a chart to bytes, with the function of vl-convert that has the given name.

    Results are cached, because a reproduction writes all its charts again after every section.
    """
    return _call(name, document, **options)


@cache
def bundle() -> str:
    """Return JavaScript code that defines `window.vegaEmbed`, which draws charts in a browser."""
    return _call("javascript_bundle", "window.vegaEmbed=vegaEmbed;").decode()


@cache
def _first_process() -> int:
    return os.getpid()


def _call(name: str, *arguments: Any, **options: Any) -> bytes:
    """Call a function of vl-convert, and return its result as bytes.

    After a fork, the thread of vl-convert does not exist in the child process, and a call would never return.
    A forked process therefore runs the call in a new Python process.
    """
    if _first_process() == os.getpid():
        result: str | bytes = getattr(vl_convert, name)(*arguments, **options)
        return result if isinstance(result, bytes) else result.encode()
    request = json.dumps([name, arguments, options]).encode()
    command = [sys.executable, "-c", _IN_A_NEW_PROCESS]
    return subprocess.run(command, input=request, capture_output=True, check=True).stdout
