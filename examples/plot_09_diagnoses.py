"""
Read the diagnoses of a run
===========================

A training run can finish without an error and still be useless. `result.diagnoses`
lists possible problems of a run, each with the measured values, a likely cause and a
remedy.
"""

# %%
# Each of the following three runs contains a deliberate mistake. In the first, the
# network ends in a sigmoid although its outputs must be logits. In the second, the
# penalty never takes effect. In the third, the penalty is far too strong.

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
#    A run without a diagnosis may still contain a mistake, because only common mistakes
#    are detected.
