"""Tables that are part of the package, for examples and first experiments."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_FOLDER = Path(__file__).parent

NAMES = tuple(sorted(path.stem for path in _FOLDER.glob("*.csv")))
"""Names of the bundled tables. A name can be used instead of a path, unless a file has this name."""


def find(path: Path) -> Path:
    """Return the path of a bundled table if `path` is its name; otherwise, return `path`.

    An existing file takes precedence over a bundled table of the same name.
    """
    return _FOLDER / f"{path}.csv" if str(path) in NAMES and not path.exists() else path


def heart_disease() -> "pd.DataFrame":
    """Load the heart disease table: 920 patients from four hospitals, with the target `disease` (yes or no).

    The environments are in column `hospital`: Cleveland, Hungary, Long Beach and Switzerland. The share of
    patients with the disease differs between hospitals (36 % to 93 %), and some hospitals did not record
    several columns. Source: Janosi, Steinbrunn, Pfisterer and Detrano (1988), UCI Machine Learning
    Repository, doi 10.24432/C52P4X, licensed under CC BY 4.0. Changes: `disease` is "yes" if the original
    `num` is above 0, and cells with "?" are empty.
    """
    # Importing pandas takes longer than everything else in `import envariant.data`.
    import pandas as pd

    return pd.read_csv(_FOLDER / "heart-disease.csv")
