"""
Your own data and network in a study
====================================

Everything that a study takes by name it also takes as an object: data, network,
algorithm, optimizer.
"""

# %%
# Three sensors measure short signals. The frequency tells the class everywhere. The
# offset tells it too, but not in the third sensor.

import torch
from torch import nn

from envariant import Environment, EnvironmentSet, Multiclass
from envariant.studies import Study


def sensor(name, rows, agreement, seed):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (rows,), generator=generator)
    hint = torch.where(
        torch.rand(rows, generator=generator) < agreement, label, (label + 1) % 3
    )
    time = torch.linspace(0, 6.28, 24)
    signal = torch.sin(time * (1 + label[:, None])) + 0.9 * torch.randn(
        rows, 24, generator=generator
    )
    return Environment(name, (signal + hint[:, None] - 1)[..., None], label)


signals = EnvironmentSet(
    "signals",
    (
        sensor("first", 400, 0.95, 0),
        sensor("second", 400, 0.8, 1),
        sensor("third", 400, 0.1, 2),
    ),
    Multiclass(3),
    test=("third",),
)
signals

# %%
# The network is any `torch.nn.Module`; pass a function that returns a new one. Its
# outputs are logits.


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.GRU(1, 16, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, inputs):
        outputs, _ = self.cells(inputs)
        return self.head(outputs.mean(dim=1))


study = Study(
    data=(signals,),
    algorithms=("erm", "vrex", "irm"),
    replicas=2,
    settings={"model": Recurrent, "steps": 250},
)
results = study.run()
results.table()

# %%

chart = results.plot()
chart

# %%
# .. admonition:: When not
#
#    Two training environments in which the offset agrees with the class in 95 % and 80
#    % of the rows are enough for a penalty to notice. If both had 95 %, no method could
#    know that the offset is spurious.
