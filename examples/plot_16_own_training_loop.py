"""
Use a penalty in your own training loop
=======================================

If you already have a training loop in PyTorch, add one line for the loss. This example
trains a network with ERM, V-REx, and V-REx with AND-mask, in the same loop.
"""

# %%
# The data are colored digits. The label states whether a digit is below five, and 25 %
# of the labels are wrong. The color agrees with the label in 80 % and 90 % of the rows
# of the two training environments, but only in 10 % of the test environment's rows. A
# `Dataset` of the training rows returns inputs, target and environment number.

import pandas as pd
import torch
from torch.utils.data import DataLoader, TensorDataset

import envariant

digits = envariant.data.colored_digits().sample(0)
names = ["flip-0.2", "flip-0.1"]
inputs = torch.cat([digits[name].inputs for name in names]).flatten(1)
targets = torch.cat([digits[name].targets for name in names])
environments = torch.cat(
    [torch.full((len(digits[name]),), k) for k, name in enumerate(names)]
)
dataset = TensorDataset(inputs, targets, environments)
test = digits["flip-0.9"]

# %%
# The sampler gives batches with 256 rows of every environment. The objective is built
# from the name of the method. It increases the weight of the penalty after 150 steps.
# AND-mask combines the gradients of the environments, so it needs `objective.backward`.

STEPS = 400


def train(algorithm):
    torch.manual_seed(1)
    model = torch.nn.Sequential(
        torch.nn.Linear(inputs.shape[1], 64), torch.nn.ReLU(), torch.nn.Linear(64, 1)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    objective = envariant.objective(algorithm, environments=names)
    sampler = envariant.EnvironmentSampler(environments, batch_size=256, batches=STEPS)
    log = []
    for step, (x, y, e) in enumerate(DataLoader(dataset, batch_sampler=sampler)):
        optimizer.zero_grad()
        if "and-mask" in algorithm:
            objective.backward(model, model(x), y, e, step=step)
        else:
            loss = objective(model(x), y, e, model=model, step=step)
            loss.backward()
        optimizer.step()
        if step % 10 == 0:
            with torch.no_grad():
                logits = model(test.inputs.flatten(1))[:, 0]
            accuracy = ((logits > 0) == (test.targets > 0.5)).float().mean().item()
            log.append({"step": step, "test accuracy": accuracy, **objective.metrics()})
    return pd.DataFrame(log)


SWITCH = "step(1, 1e4, at=150)"
logs = {
    "ERM": train("erm(l2=3e-3)"),
    "V-REx": train(f"vrex(coefficient={SWITCH}, l2=3e-3)"),
    "V-REx + AND-mask": train(
        f"vrex(coefficient={SWITCH}, l2=3e-3) + and-mask(threshold=0.5)"
    ),
}
logs["V-REx"].tail(3).round(4)

# %%
# The metrics of the objective include the risk of each environment. V-REx makes the two
# risks equal; then the accuracy in the test environment rises.

import matplotlib.pyplot as plt

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
for name, log in logs.items():
    left.plot(log["step"], log["test accuracy"], label=name)
left.set(xlabel="step", ylabel="accuracy in the test environment", ylim=(0, 1))
left.legend()
for name in names:
    right.plot(logs["V-REx"]["step"], logs["V-REx"][f"risk {name}"], label=name)
right.set(xlabel="step", ylabel="risk in a training batch, V-REx")
right.legend()
figure

# %%
# .. admonition:: When not
#
#    A loop of your own has one replica and no selection rule. A single run, with a
#    coefficient chosen by its score in the test environment, is not evidence. To
#    compare methods, use a study, as in :doc:`plot_03_own_penalty`. Training steps such
#    as MLDG and Fish work only with `envariant.train`.
