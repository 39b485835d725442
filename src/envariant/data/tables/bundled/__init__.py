"""Tables that ship with the package, for examples and first trials."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_FOLDER = Path(__file__).parent

NAMES = tuple(sorted(path.stem for path in _FOLDER.glob("*.csv")))
"""Names of the bundled tables. A name can take the place of a path if no file has this name."""


def find(path: Path) -> Path:
    """Return the path of a bundled table if `path` is its name and no such file exists, else `path`."""
    return _FOLDER / f"{path}.csv" if str(path) in NAMES and not path.exists() else path


def heart_disease() -> "pd.DataFrame":
    """Return the heart disease table: 920 patients of four hospitals, 13 columns, `disease` yes or no.

    The column `hospital` has the environments Cleveland, Hungary, Long Beach and Switzerland. The share of
    patients with the disease differs between them (36 % to 93 %), and several columns were not recorded
    everywhere. Source: Janosi, Steinbrunn, Pfisterer and Detrano (1988), UCI Machine Learning Repository,
    doi 10.24432/C52P4X, licensed under CC BY 4.0; `disease` is "yes" where the original `num` exceeds
    0, and cells with "?" are empty.
    """
    # Importing pandas takes longer than everything else in `import envariant.data`.
    import pandas as pd

    return pd.read_csv(_FOLDER / "heart-disease.csv")
