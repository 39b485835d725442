"""`Picture`: a matplotlib figure with a text description, displayed inline in notebooks."""

import base64
import html
from dataclasses import dataclass
from pathlib import Path
from typing import final

from matplotlib.figure import Figure

from envariant.core.files import as_path
from envariant.core.printable import one_line
from envariant.reporting import figures


@final
@dataclass(frozen=True, eq=False, repr=False)
class Picture:
    """Matplotlib figure that notebooks display and `save` writes to a file.

    Attributes:
        figure: Matplotlib figure, which can be modified.
        description: One or two sentences that describe the picture to readers who cannot see it.
    """

    figure: Figure
    description: str

    def save(self, path: Path | str) -> None:
        """Write the picture to a file: as SVG if its name ends in .svg, otherwise as PNG.

        Args:
            path: SVG or PNG file to write. An existing file must be a picture written by Envariant.

        Raises:
            EnvariantError: If the file cannot be written, or a file that Envariant did not write exists at
                the path.
        """
        figures.save(self.figure, as_path(path, "path"))

    def __repr__(self) -> str:
        return f"Picture({one_line(self.description)})"

    def _repr_html_(self) -> str:
        encoded = base64.b64encode(figures.png(self.figure, 110)).decode("ascii")
        text = html.escape(one_line(self.description))
        return f'<img alt="{text}" style="max-width:100%" src="data:image/png;base64,{encoded}">'
