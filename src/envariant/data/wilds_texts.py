"""Text data sets of WILDS (CivilComments and Amazon) as tables, for text features and for `compare`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from envariant.core.errors import EnvariantError, unknown_name
from envariant.data.images.wilds import Table, check_release

if TYPE_CHECKING:
    import pandas as pd

_IDENTITIES = ("male", "female", "LGBTQ", "christian", "muslim", "other_religions", "black", "white")
# Splits of amazon are numbers; −1 is in no split.
_AMAZON_SPLITS = {"0": "train", "1": "val", "2": "id_val", "3": "test", "4": "id_test"}
_BASE = "wilds_table"


def wilds_table(folder: str | Path) -> "pd.DataFrame":
    """Read the texts of civilcomments or amazon as a table: text, target, environment and split.

    In civilcomments, the target is whether at least half of the readers found the comment toxic. For each of
    eight identities, such as male or christian, a column states whether the comment mentions the identity,
    again according to at least half of the readers. The environment is the first of these columns that is
    true, in the order male, female, LGBTQ, christian, muslim, other_religions, black, white. It is "none" if
    all are false.

    In amazon, the target is the number of stars, and the environment is the product category. The column
    `group` contains the reviewer, and `split` is the official split, which is by reviewer.

    Args:
        folder: Folder of the data set, such as `civilcomments_v1.0`.

    Raises:
        EnvariantError: If the folder has another name, or a file or column is missing.
    """
    root = Path(folder).expanduser()
    named = re.fullmatch(r"(?P<name>.+)_v[\d.]+", root.name)
    readers = {"amazon": _amazon, "civilcomments": _civilcomments}
    if named is None or named["name"] not in readers:
        name = root.name if named is None else named["name"]
        raise unknown_name("data set", name, readers, where=f"{_BASE} (folders such as amazon_v2.1)")
    table = readers[named["name"]](root)
    check_release(_BASE, root)
    return table


def _civilcomments(root: Path) -> "pd.DataFrame":
    import pandas as pd

    table = Table(_BASE, root, "all_data_with_identities.csv")
    mentioned = pd.DataFrame({name: pd.Series(table.numbers(name)) >= 0.5 for name in _IDENTITIES})
    first = mentioned.idxmax(axis=1).where(mentioned.any(axis=1), "none")
    toxic = pd.Series(table.numbers("toxicity")) >= 0.5
    columns = {
        "text": table.texts("comment_text"),
        "target": toxic,
        "environment": first,
        "split": table["split"],
    }
    return pd.concat([pd.DataFrame(columns), mentioned], axis=1)


def _amazon(root: Path) -> "pd.DataFrame":
    import pandas as pd

    reviews = Table(_BASE, root, "reviews.csv")
    splits = Table(_BASE, root, "splits/user.csv").numbers("split")
    text = reviews.texts("reviewText")
    if len(splits) != len(text):
        raise EnvariantError(
            f"{_BASE}: {root / 'splits' / 'user.csv'} has {len(splits):,} rows, and reviews.csv has "
            f"{len(text):,}; download the data set again"
        )
    frame = pd.DataFrame(
        {
            "text": text,
            "target": [int(stars) for stars in reviews.numbers("overall")],
            "environment": reviews["category"],
            "group": reviews["reviewerID"],
            "split": [_AMAZON_SPLITS.get(str(int(split)), "") for split in splits],
        }
    )
    return frame[frame["split"] != ""].reset_index(drop=True)
