"""
Read the diagnoses of a run
===========================

A training run can end without an error and still be worthless. `result.diagnoses` lists
possible problems, with the measured values, a likely cause and a remedy.
"""

# %%
# Each of three runs contains a deliberate mistake: a network that ends in a sigmoid
# although logits are expected, a penalty that never takes effect, and a penalty that is
# far too strong.

import torch

import envariant
from envariant.reporting.charts import curves

digits = envariant.data.colored_digits()
inputs = digits.sample(0).input_shape


def squashed():
    width = int(torch.tensor(inputs).prod())
    return torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(width, 1),
        torch.nn.Sigmoid(),
        torch.nn.Flatten(0),
    )


mistakes = {
    "sigmoid": envariant.train(digits, "erm", model=squashed, steps=150),
    "late": envariant.train(
        digits,
        "vrex",
        hyperparameters={"coefficient": "step(0, 100, at=500)"},
        model="linear",
        steps=100,
    ),
    "strong": envariant.train(
        digits,
        "irm",
        hyperparameters={"coefficient": 1e6},
        model="mlp(hidden=32)",
        steps=150,
    ),
}
for name, run in mistakes.items():
    for diagnosis in run.diagnoses:
        print(f"{name}: {diagnosis}\n")

# %%

chart = curves(list(mistakes.values()), list(mistakes))
chart

# %%
# .. admonition:: When not
#
#    A run without a diagnosis may still be wrong: only common mistakes are recognized.
