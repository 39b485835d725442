"""Pictures and pages of objects of lower layers, which find this module by name (`core.display.views`)."""

from pathlib import Path

from envariant.reporting import study_page
from envariant.training.store import Store


def write_study_page(store: Store, path: Path) -> None:
    """Write the page of a study; see `study_page.write`."""
    study_page.write(store, path)
