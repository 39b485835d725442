"""Terminal output in which control characters from data and files are escaped."""

import io
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any, TextIO, cast, final

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from envariant.core.printable import printable


@final
class SafeConsole(Console):
    """Console that prints text literally.

    Markup and emoji codes are not interpreted; control characters are escaped.

    Args:
        stderr: Whether to print to standard error instead of standard output.
        options: Keyword arguments passed to `rich.console.Console`.
    """

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        file = sys.stderr if stderr else sys.stdout
        # Colors of the console must not be escaped, so it writes to the stream below `_SafeStream`.
        while hasattr(file, "rich_proxied_file"):
            file = getattr(file, "rich_proxied_file")  # noqa: B009
        super().__init__(file=file, markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Convert a string to `rich` text, with control characters escaped."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render an object, such as a progress bar, with control characters escaped."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


@final
class _SafeStream:
    """Text stream that escapes control characters."""

    def __init__(self, stream: TextIO) -> None:
        # Consoles of rich look for this name, and write to the stream of that name.
        self.rich_proxied_file = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)

    def write(self, text: str) -> int:
        self.rich_proxied_file.write(printable(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)


@contextmanager
def safe_output() -> Generator[None]:
    """Escape control characters in all output of a `with` block, on standard output and standard error."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_safe, streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def _safe(stream: TextIO | None) -> TextIO:
    if isinstance(stream, io.TextIOWrapper):
        # Characters that the encoding of the terminal lacks are escaped too, instead of raising an error.
        stream.reconfigure(errors="backslashreplace")
    # A process started without a terminal may have no stream.
    return cast("TextIO", _SafeStream(stream or io.StringIO()))
