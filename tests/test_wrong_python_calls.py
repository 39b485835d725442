"""Wrong calls in Python: one sentence that says what is wrong, where, and how to fix it.

One row of `WRONG` is a call and the text that its error must contain. Nothing is trained.
"""

# ruff: noqa: F401 - the calls of the table use the names.

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from envariant import (
    Binary,
    EnvariantError,
    Environment,
    EnvironmentSet,
    EnvironmentSource,
    InvariantClassifier,
    InvariantRegressor,
    Multiclass,
    Regression,
    TrainingResult,
    algorithms,
    analysis,
    compare,
    data,
    evaluate,
    load_model,
    models,
    objective,
    published,
    schedules,
    train,
)
from envariant.algorithms import (
    IRM,
    AndMask,
    Composition,
    GradientAggregator,
    Penalty,
    RiskAggregator,
    TrainingStep,
    VREx,
)
from envariant.core import metrics
from envariant.core.schedules import Step
from envariant.core.search_space import Choice, LogUniform, Uniform, UniformInteger
from envariant.core.tasks import Task
from envariant.models import MLP
from envariant.predictors import BoostedTrees
from envariant.studies import study as studies
from envariant.studies.selection import Invariance
from envariant.studies.study import Study
from envariant.training.augmentation import RandomAffine
from envariant.training.optimizers import SGD, Adam

DIGITS, SITE = "colored-digits", ["a", "b"] * 4
X, Y = torch.rand(8, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 1.0] * 4)
A, B = Environment("a", X, Y), Environment("b", X, Y)
SITES = EnvironmentSet("sites", (A, B), Binary())
REGRESSION = EnvironmentSet(
    "numbers", (Environment("a", X, X[:, 0]), Environment("b", X, X[:, 1])), Regression()
)
TABLE = pd.DataFrame({"site": ["a", "b", "c"] * 40, "age": range(120), "died": [0, 1] * 60})
FILE, NOWHERE = Path(__file__), Path("nowhere")
SMALL = {"steps": 2, "model": "linear"}


def compared(table=TABLE, **changes):
    return compare(table, **{"target": "died", "environment": "site", **changes})


def classifier(algorithm="irm", **settings):
    return InvariantClassifier(algorithm, **{**SMALL, **settings})


def regressor(**settings):
    return InvariantRegressor(**{**SMALL, **settings})


class DetachedLoss(Multiclass):
    """Loss without a derivative."""

    def losses(self, logits, targets):
        return super().losses(logits.detach(), targets)


class FailingLoss(Multiclass):
    """Loss that raises an error."""

    def losses(self, logits, targets):
        raise RuntimeError("first\nsecond")


class MeanLoss(Task):
    """Loss of the whole batch in place of one per row."""

    name, metric, higher_is_better, outputs, chance = "mean loss", "accuracy", True, 1, None

    def losses(self, logits, targets):
        return (logits - targets).square().mean()

    scores = residuals = confidence = losses

    def constant_loss(self, targets):
        return 1.0

    def cast(self, targets, where):
        return targets.float()


@dataclass(frozen=True)
class VectorPenalty(Penalty):
    name, paper = "own", "-"
    coefficient: object = schedules.Constant(1.0)

    def penalty(self, predicted, state):
        return predicted.risks, state


class NoState(VectorPenalty):
    def penalty(self, predicted, state):
        return predicted.risks.sum()


class VectorRisk(RiskAggregator):
    name, paper = "own", "-"

    def risk(self, predicted, state):
        return predicted.risks, state


class NoGradient(GradientAggregator):
    name, paper = "own", "-"

    def combine(self, gradients, state, context):
        return {}, state, {}


class ScalarGradients(TrainingStep):
    name, paper = "own", "-"

    def gradients(self, model, params, batch, state, context):
        return {key: value.sum() for key, value in params.items()}, state, {}


class ListSource(EnvironmentSource):
    name = "own"

    def sample(self, seed):
        return [A, B]


BATCH = torch.zeros(4), torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([0, 0, 1, 1])

WRONG = [
    # options of train
    ('train(DIGITS, steps=0)', 'steps must be at least 1; got 0'),
    ('train(DIGITS, steps=-1)', 'steps must be at least 1; got -1'),
    ('train(DIGITS, steps=2.5)', 'steps must be a whole number; got 2.5'),
    ('train(DIGITS, steps="10")', "steps must be a whole number; got '10'"),
    ('train(DIGITS, steps=True)', 'steps must be a whole number; got True'),
    ('train(DIGITS, steps=10**10)', 'steps must be at most 1,000,000,000; got 10000000000'),
    ('train(DIGITS, steps=math.nan)', 'steps must be a whole number; got nan'),
    ('train(DIGITS, steps=10**5000)', 'steps must be at most 1,000,000,000; got a value of type int'),
    ('train(DIGITS, batch_size=0)', 'batch_size must be at least 1; got 0'),
    ('train(DIGITS, batch_size=2.5)', 'batch_size must be a whole number or "full"; got 2.5'),
    ('train(DIGITS, batch_size="all")', 'batch_size must be a whole number or "full"; got \'all\''),
    ('train(DIGITS, batch_size=True)', 'batch_size must be a whole number or "full"; got True'),
    ('train(DIGITS, batch_size=10**12)', 'memory: a step on 2,000,000,000,000 rows would need at least 2,052,000 GB'),
    ('train(DIGITS, learning_rate=0)', 'learning_rate must be a finite number above 0; got 0'),
    ('train(DIGITS, learning_rate=-1e-3)', 'learning_rate must be a finite number above 0; got -0.001'),
    ('train(DIGITS, learning_rate=math.nan)', 'learning_rate must be a number or a schedule; got nan'),
    ('train(DIGITS, learning_rate=math.inf)', 'learning_rate must be a finite number above 0; got inf'),
    ('train(DIGITS, learning_rate=True)', 'learning_rate must be a number or a schedule; got True'),
    ('train(DIGITS, learning_rate="fast")', "learning_rate must be a number or a schedule (unknown schedule 'fast'"),
    ('train(DIGITS, learning_rate=[1e-3])', 'learning_rate must be a number or a schedule; got [0.001]'),
    ('train(DIGITS, learning_rate=10**400)', 'learning_rate must be a number or a schedule; got'),
    ('train(DIGITS, learning_rate=Step(1e-3, -1e-3, at=1))', 'learning_rate must be at least 0 at every step, and not always 0; got Step(before=0.001, after=-0.001, at=1)'),
    ('train(DIGITS, weight_decay=-1)', 'weight_decay must be at least 0; got -1'),
    ('train(DIGITS, weight_decay=math.nan)', 'weight_decay must be a number; got nan'),
    ('train(DIGITS, weight_decay="x")', "weight_decay must be a number; got 'x'"),
    ('train(DIGITS, weight_decay=None)', 'weight_decay must be a number; got None'),
    ('train(DIGITS, weight_decay=True)', 'weight_decay must be a number; got True'),
    ('train(DIGITS, weight_decay=10**400)', 'weight_decay must be a number; got'),
    ('train(DIGITS, optimizer="adm")', "unknown optimizer 'adm'; did you mean 'adam'? known: adam, adamw, sgd"),
    ('train(DIGITS, optimizer=3)', 'optimizer: must be a name, a torch.optim class or functools.partial of one; got 3'),
    ('train(DIGITS, optimizer=torch.optim.LBFGS)', 'optimizer: LBFGS needs a closure at every step; choose an optimizer without one'),
    ('train(DIGITS, optimizer=partial(torch.optim.Adam, lr=1.0))', 'optimizer: Adam must not fix lr; set learning_rate instead'),
    ('train(DIGITS, optimizer=torch.optim.Adam([torch.zeros(1)]))', 'optimizer: must be a name, a torch.optim class or functools.partial of one; got Adam object'),
    ('train(DIGITS, precision="half")', "precision must be auto, float32, bfloat16 or tf32; got 'half'"),
    ('train(DIGITS, precision=16)', 'precision must be auto, float32, bfloat16 or tf32; got 16'),
    ('train(DIGITS, test_environments="nowhere")', "colored-digits: unknown environment 'nowhere'; known: flip-0.1, flip-0.2, flip-0.9"),
    ('train(DIGITS, test_environments=["flip-0.1", "flip-0.1"])', "test_environments must name every environment once; 'flip-0.1' is named twice; got ['flip-0.1', 'flip-0.1']"),
    ('train(DIGITS, test_environments=["flip-0.1", "flip-0.2", "flip-0.9"])', 'colored-digits: all environments are held out; none is left to train on'),
    ('train(DIGITS, test_environments=[1])', 'test_environments must be a list of names; got [1]'),
    ('train(DIGITS, test_environments=3)', 'test_environments must be a list of names; got 3'),
    ('train(DIGITS, test_environments={"flip-0.1": 1})', "test_environments must be a list of names; got {'flip-0.1': 1}"),
    ('train(DIGITS, holdout_fraction=1)', 'holdout_fraction must lie below 1; got 1'),
    ('train(DIGITS, holdout_fraction=-0.1)', 'holdout_fraction must be at least 0; got -0.1'),
    ('train(DIGITS, holdout_fraction="20%")', "holdout_fraction must be a number; got '20%'"),
    ('train(DIGITS, holdout_fraction=True)', 'holdout_fraction must be a number; got True'),
    ('train(DIGITS, steps=2, evaluate_every=0)', 'evaluate_every must be at least 1; got 0'),
    ('train(DIGITS, steps=2, evaluate_every=5)', 'evaluate_every must be at most the number of steps, 2; got 5'),
    ('train(DIGITS, augmentation="rotate")', "unknown augmentation 'rotate'; known: affine"),
    ('train(DIGITS, augmentation=3)', 'augmentation must be a name such as affine(rotation=15); got 3'),
    ('train(DIGITS, augmentation=RandomAffine)', 'augmentation: RandomAffine is a class; pass an instance, as in RandomAffine(…)'),
    ('train(SITES, steps=2, augmentation="affine")', 'affine: requires channels-first images; got inputs of shape (2,)'),
    ('train(DIGITS, init="rcf")', "unknown init 'rcf'; did you mean 'rfc'? known: erm, jtt, linear-probe, rfc"),
    ('train(DIGITS, init=5)', 'init must be a name such as erm(steps=100) or rfc; got 5'),
    ('train(DIGITS, freeze="features")', 'freeze="features" needs pretrained features: set init as well, for example init="rfc"'),
    ('train(DIGITS, freeze="batch-norm")', 'freeze: model FeaturizerAndHead has no BatchNorm layers; leave out "batch-norm"'),
    ('train(DIGITS, freeze=True)', 'freeze must be features, batch-norm or features + batch-norm; got True'),
    ('train(DIGITS, adapt=3)', 'adapt must be a function; got 3'),
    ('train(DIGITS, device="gpu")', "device must be auto, cpu or cuda; got 'gpu'"),
    ('train(DIGITS, device=0)', 'device must be auto, cpu or cuda; got 0'),
    ('train(DIGITS, execution="fast")', "unknown execution 'fast'; known: auto, sequential, stacked"),
    ('train(DIGITS, execution=3)', 'execution must be auto, sequential, stacked or stacked(group=50); got 3'),
    ('train(DIGITS, replicas=2, steps=2, memory="lots", execution="stacked")', "memory: expected an amount such as 8GB or 512MiB; got 'lots'"),
    ('train(DIGITS, memory=0)', "memory: expected an amount such as 8GB or 512MiB; got '0.0'"),
    ('train(DIGITS, memory=True)', 'memory must be a size such as 8GB, or a number of bytes; got True'),
    ('train(DIGITS, memory=-1)', "memory: expected an amount such as 8GB or 512MiB; got '-1.0'"),
    ('train(DIGITS, compile="yes")', "compile must be true or false; got 'yes'"),
    ('train(DIGITS, compile=1)', 'compile must be true or false; got 1'),
    ('train(DIGITS, replicas=0)', 'replicas must be at least 1; got 0'),
    ('train(DIGITS, replicas=1.5)', 'replicas must be a whole number; got 1.5'),
    ('train(DIGITS, replicas="2")', "replicas must be a whole number; got '2'"),
    ('train(DIGITS, replicas=10**9)', 'replicas must be at most 100,000; got 1000000000'),
    ('train(DIGITS, replicas=2, n_seeds=3)', 'replicas and n_seeds are one option; give one of them'),
    ('train(DIGITS, seed=-1)', 'seed must be at least 0; got -1'),
    ('train(DIGITS, seed=2**32)', 'seed must lie below 2³²; got 4294967296'),
    ('train(DIGITS, seed=1.5)', 'seed must be a whole number; got 1.5'),
    ('train(DIGITS, seed=None)', 'seed must be a whole number; got None'),
    ('train(DIGITS, step=5)', "unknown option 'step'; did you mean 'steps'?"),
    ('train(DIGITS, lr=0.1)', "unknown option 'lr'"),
    ('train(None)', 'data must be a name, an EnvironmentSource or an EnvironmentSet; got None'),
    ('train(3)', 'data must be a name, an EnvironmentSource or an EnvironmentSet; got 3'),
    ('train("nothing")', "unknown data set 'nothing'"),
    ('train("")', "cannot read '': expected name or name(key=value, …) for the data"),
    ('train(EnvironmentSet)', 'data: EnvironmentSet is a class; pass an instance, as in EnvironmentSet(…)'),
    ('train(pd.DataFrame({"a": [1]}))', 'data must be a name, an EnvironmentSource or an EnvironmentSet; got DataFrame object'),
    ('train([SITES])', 'data must be a name, an EnvironmentSource or an EnvironmentSet; got list object'),
    ('train(DIGITS, None)', "algorithm must be a name such as 'vrex', a Recipe, a part such as VREx(), or an Algorithm, got None"),
    ('train(DIGITS, 3)', "algorithm must be a name such as 'vrex', a Recipe, a part such as VREx(), or an Algorithm, got 3"),
    ('train(DIGITS, IRM)', 'algorithm: IRM is a class; pass an instance: IRM()'),
    ('train(DIGITS, "imr")', "unknown algorithm 'imr'; did you mean 'irm'?"),
    ('train(DIGITS, "")', "cannot read '': expected name or name(key=value, …) for the algorithm"),
    ('train(DIGITS, "boosted-treess")', "unknown algorithm 'boosted-treess'; did you mean 'boosted-trees'?"),
    ('train(DIGITS, "boosted-trees", learning_rate=0.1)', 'boosted-trees: is fitted without gradient steps, so these options do not apply; remove them: learning_rate'),
    ('train(DIGITS, lambda: None)', "algorithm must be a name such as 'vrex', a Recipe, a part such as VREx(), or an Algorithm, got <function"),
    ('train(DIGITS, nn.Linear(2, 1))', "algorithm must be a name such as 'vrex', a Recipe, a part such as VREx(), or an Algorithm, got"),
    ('train(DIGITS, "irm", hyperparameters=[("coefficient", 1)])', "hyperparameters must be a mapping from names to values; got [('coefficient', 1)]"),
    ('train(DIGITS, "irm", hyperparameters={"coef": 1})', "irm: unknown setting 'coef'; known: coefficient, form, l2, normalize_loss, risk_aggregator"),
    ('train(DIGITS, "irm", hyperparameters={1: 2})', 'hyperparameters must be a mapping from names to values; got {1: 2}'),
    ('train(DIGITS, "irm", hyperparameters={"coefficient": -1})', 'IRM: coefficient must be at least 0, got -1'),
    ('train(DIGITS, BoostedTrees(), hyperparameters={"depth": 1})', 'boosted-trees: takes no hyperparameters; pass a predictor object with the settings you want'),
    ('train(DIGITS, BoostedTrees(learning_rate=-1))', 'boosted-trees: learning_rate must be positive, got -1'),
    ('train(DIGITS, model="mpl")', "unknown model 'mpl'; did you mean 'mlp'? known: efficientnet-lite0, lenet, linear, mlp, mnist-cnn, timm"),
    ('train(DIGITS, model=3)', 'model must be a name, a ModelConfig, a module or a function that returns a new module; got 3'),
    ('train(DIGITS, model=nn.Linear)', "model: cannot be built (Linear.__init__() missing 2 required positional arguments: 'in_features' and"),
    ('train(DIGITS, model=lambda: 3)', 'model: must be a torch.nn.Module, or return one; got int'),
    ('train(DIGITS, model=lambda: None)', 'model: must be a torch.nn.Module, or return one; got NoneType'),
    ('train(DIGITS, model=nn.Linear(3, 1))', 'model Linear: cannot take inputs of shape (2, 8, 8) (mat1 and mat2 shapes cannot be multiplied (32x8 and 3x1))'),
    ('train(DIGITS, model=nn.Flatten())', 'model: has no parameters to train; at least one must require a gradient'),
    ('train(DIGITS, model=nn.Sequential(nn.Flatten(), nn.Linear(128, 2)))', 'model Sequential: must return 1 number per row for binary data; for 2 rows it returned a tensor of shape (2'),
    ('train(DIGITS, "coral", model=nn.Sequential(nn.Flatten(), nn.Linear(128, 1)))', 'model: this algorithm uses features, so the module needs the submodules featurizer and head'),
    ('train(DIGITS, model=MLP(10**9))', 'memory: mlp(hidden=1000000000) for inputs of shape (2, 8, 8), with 1,000,000,131,000,000,001 parameters'),
    ('train(DIGITS, model=lambda: nn.Linear(10**9, 10**9))', 'memory: the network does not fit; use a smaller one'),
    ('train(DIGITS, out="")', "out must be the path of a folder; got ''"),
    ('train(DIGITS, steps=2, out=FILE)', 'test_wrong_python_calls.py: cannot be written (Not a directory)'),
    ('train(DIGITS, steps=2, out=3)', 'out must be the path of a folder; got 3'),
    ('train(DIGITS, steps=2, progress="yes")', 'progress must be true or false; got yes'),
    ('train(SITES, steps=2, test_environments=("a", "b"))', 'sites: all environments are held out; none is left to train on'),
    ('train(SITES, "irm", steps=2, test_environments="a")', "irm: needs at least 2 training environments, but 'sites' leaves 1 (b); use fewer test environments, or erm"),
    ('train(SITES, "clove", steps=2, model="lenet")', 'lenet: requires square, channels-first images [channels, height, width] of at least 12×12 pixels; got inputs of shape (2,) (mlp accepts any shape)'),
    ('train(REGRESSION, "clove", steps=2)', 'clove: needs a classification task, but the task is regression'),
    ('train(REGRESSION, steps=2, init="rfc")', 'rfc: needs a classification task, because it groups rows by correct and wrong predictions; the task is regression'),
    # environments
    ('Environment("a", X, Y[:5])', "environment 'a': 8 rows of inputs need targets of shape (8,); got (5,)"),
    ('Environment("a", X[:0], Y[:0])', "environment 'a': has no rows; leave it out"),
    ('Environment("a", X * math.nan, Y)', "environment 'a': inputs hold NaN or infinity in 8 of 8 rows (first: row 0); fill in or remove them"),
    ('Environment("a", X * math.inf, Y)', "environment 'a': inputs hold NaN or infinity in 8 of 8 rows (first: row 0); fill in or remove them"),
    ('Environment("a", X * 1j, Y)', "environment 'a': inputs must be real numbers of shape [rows, …]; got shape (8, 2)"),
    ('Environment("a", X[:, 0], Y)', "environment 'a': inputs must be real numbers of shape [rows, …]; got shape (8,)"),
    ('Environment("a", [["x"]], [1])', "environment 'a': inputs must be numbers in a tensor, an array or a list; encode words as numbers first"),
    ('Environment("a", None, Y)', "environment 'a': inputs must be numbers in a tensor, an array or a list; encode words as numbers first"),
    ('Environment("a", X, None)', "environment 'a': targets must be numbers in a tensor, an array or a list; encode words as numbers first"),
    ('Environment("worst", X, Y)', "environment 'worst': a name must be one line of text and not * or worst"),
    ('Environment("a\\nb", X, Y)', "environment 'a\\nb': a name must be one line of text and not * or worst"),
    ('Environment("", X, Y)', "environment '': a name must be one line of text and not * or worst"),
    ('Environment(3, X, Y)', "environment '3': a name must be one line of text and not * or worst"),
    ('Environment("a", X, Y, {"color": Y[:3]})', "environment 'a': attribute 'color' has 3 values for 8 rows"),
    ('Environment("a", X, Y, {"weight": -torch.ones(8)})', "environment 'a': weights must be at least 0 and not all 0; correct them or leave them out"),
    ('Environment("a", X, Y, {"weight": torch.zeros(8)})', "environment 'a': weights must be at least 0 and not all 0; correct them or leave them out"),
    ('Environment("a", X, Y, {"weight": ["x"] * 8})', "environment 'a': attribute 'weight' must be numbers in a tensor, an array or a list; encode words as numbers"),
    ('Environment("a", X, Y, {"weight": torch.full((8,), math.nan)})', "environment 'a': weights must be at least 0 and not all 0; correct them or leave them out"),
    ('Environment("a", X, Y, [1, 2])', "environment 'a': attributes must be a mapping from names to values"),
    ('EnvironmentSet("x", (), Binary())', 'x: has no environments'),
    ('EnvironmentSet("x", (A, A), Binary())', "x: environment name 'a' is used twice"),
    ('EnvironmentSet("x", (A, B), Binary)', 'x: task must be Binary(), Multiclass(classes=…) or Regression()'),
    ('EnvironmentSet("x", (A, B), "binary")', 'x: task must be Binary(), Multiclass(classes=…) or Regression()'),
    ('EnvironmentSet("x", (A, Environment("b", torch.zeros(8, 3), Y)), Binary())', "x: environment 'b' has inputs of shape (3,), but 'a' has (2,)"),
    ('EnvironmentSet("x", (A, Environment("b", X, Y + 1)), Binary())', "environment 'b': binary targets must be 0 or 1; got 1, 2 (for more classes use Multiclass(classes=…))"),
    ('EnvironmentSet("x", (A, Environment("b", X, Y + 0.5)), Multiclass(3))', "environment 'b': targets must be whole numbers from 0 to 2; got 0.5, 1.5"),
    ('EnvironmentSet("x", (A, Environment("b", X, Y + 3)), Multiclass(3))', "environment 'b': targets must be whole numbers from 0 to 2; got 3, 4"),
    ('EnvironmentSet("x", (A, Environment("b", X, Y - 1)), Multiclass(3))', "environment 'b': targets must be whole numbers from 0 to 2; got -1, 0"),
    ('EnvironmentSet("x", (A, Environment("b", X, Y * math.nan)), Regression())', "environment 'b': targets hold NaN or infinity; remove those rows"),
    ('EnvironmentSet("x", (A, Environment("b", X, torch.zeros(8, 2))), Regression())', "environment 'b': 8 rows of inputs need targets of shape (8,); got (8, 2)"),
    ('EnvironmentSet("x", (A, "b"), Binary())', 'x: environments must be a tuple of Environment objects'),
    ('EnvironmentSet("x", A, Binary())', 'x: environments must be a tuple of Environment objects'),
    ('EnvironmentSet("x", (A, B), Binary(), test=("c",))', "x: unknown environment 'c'; known: a, b"),
    ('EnvironmentSet("x", (A, B), Binary(), test="b")', "x: test environments must be a tuple of names, as in ('b',)"),
    ('EnvironmentSet("x", (A, B), Binary(), test=("a", "b"))', 'x: all environments are held out; none is left to train on'),
    ('EnvironmentSet("x", (A, B), Binary(), test=("b", "b"))', "x: test environment 'b' is named twice; name it once"),
    ('EnvironmentSet("x", (A, B), DetachedLoss(2))', 'task multiclass: losses must be differentiable in the logits'),
    ('EnvironmentSet("x", (A, B), FailingLoss(2))', 'task multiclass: losses fails: first'),
    ('EnvironmentSet("x", (A, B), MeanLoss())', 'task mean loss: losses must return one number per row, of shape (2,) for 2 rows; got ()'),
    ('EnvironmentSet(3, (A, B), Binary())', 'EnvironmentSet: label must be a word; got 3'),
    ('SITES["c"]', "sites: unknown environment 'c'; known: a, b"),
    ('SITES.roles("b")', "sites: test environments must be a tuple of names, as in ('b',)"),
    ('EnvironmentSet.from_arrays(X, Y[:5], SITE)', 'arrays: lengths must be equal; got 8 inputs, 5 targets, 8 environments'),
    ('EnvironmentSet.from_arrays(X, Y, SITE[:5])', 'arrays: lengths must be equal; got 8 inputs, 8 targets, 5 environments'),
    ('EnvironmentSet.from_arrays(X * math.nan, Y, SITE)', "environment 'a': inputs hold NaN or infinity in 4 of 4 rows (first: row 0); fill in or remove them"),
    ('EnvironmentSet.from_arrays([["x"]] * 8, Y, SITE)', 'arrays: inputs must be numbers in a tensor, an array or a list; encode words as numbers first'),
    ('EnvironmentSet.from_arrays(X, [None] + [1] * 7, SITE)', 'arrays: targets are missing in 1 of 8 rows (first: row 0); fill in or remove them'),
    ('EnvironmentSet.from_arrays(X, torch.ones(8), SITE)', 'arrays: all targets are 1; there is nothing to predict'),
    ('EnvironmentSet.from_arrays(torch.rand(30, 2), [f"word{k}" for k in range(30)], SITE[:2] * 15)', 'arrays: targets hold 30 different strings in 30 rows; use numbers, or set task=Multiclass(30) if they are'),
    ('EnvironmentSet.from_arrays(X, Y, [None] * 8)', 'arrays: environments are missing in 8 of 8 rows (first: row 0); fill in or remove them'),
    ('EnvironmentSet.from_arrays(X, Y, 3)', 'arrays: environments must hold one number or string per row; got shape ()'),
    ('EnvironmentSet.from_arrays(X, Y, SITE, test=["c"])', "arrays: unknown environment 'c'; known: a, b"),
    ('EnvironmentSet.from_arrays(X, Y, SITE, test=["a", "b"])', 'arrays: all environments are held out; none is left to train on'),
    ('EnvironmentSet.from_arrays(X, Y, SITE, names={"c": "C"})', "arrays: unknown environment 'c'; known: a, b"),
    ('EnvironmentSet.from_arrays(X, Y, SITE, names={"a": "B", "b": "B"})', "arrays: environment name 'B' is used twice"),
    ('EnvironmentSet.from_arrays(X, Y, SITE, task=Binary)', 'arrays: task must be Binary(), Multiclass(classes=…) or Regression()'),
    ('EnvironmentSet.from_arrays(X, Y, SITE, task="binary")', 'arrays: task must be Binary(), Multiclass(classes=…) or Regression()'),
    ('EnvironmentSet.from_arrays(X, Y + 1, SITE, task=Binary())', "environment 'b': binary targets must be 0 or 1; got 2 (for more classes use Multiclass(classes=…))"),
    ('EnvironmentSet.from_arrays(X, ["x", "y", "z", "x"] * 2, SITE, task=Binary())', 'arrays: binary targets must be at most 2 classes; got x, y, z'),
    ('EnvironmentSet.from_arrays(X, ["x", "y"] * 4, SITE, task=Regression())', 'arrays: regression targets must be numbers; got x, y'),
    ('EnvironmentSet.from_arrays([], [], [])', 'arrays: targets hold no rows'),
    ('EnvironmentSet.from_arrays(None, None, None)', 'arrays: inputs must be numbers in a tensor, an array or a list; encode words as numbers first'),
    ('EnvironmentSet.from_datasets({})', 'datasets: has no environments'),
    ('EnvironmentSet.from_datasets([[(X[0], 1)]])', 'datasets: datasets must be a mapping from names to datasets'),
    ('EnvironmentSet.from_datasets({"a": []})', "datasets: 'a': has no rows; leave it out"),
    ('EnvironmentSet.from_datasets({"a": [X[0]]})', "datasets: 'a': item 0 must be (input, target); got Tensor"),
    ('EnvironmentSet.from_datasets({"a": [(X[0], 1), (X[0, :1], 0)]})', "datasets: 'a': item 1 has shape (1,), but earlier items have (2,)"),
    ('EnvironmentSet.from_datasets({"a": 3})', "datasets: 'a': must be a dataset of (input, target) pairs; got 3"),
    ('EnvironmentSet.from_huggingface({"x": [1], "y": [0], "e": ["a"]}, inputs="z", target="y", environment="e")', "dataset: unknown column 'z'; known: e, x, y"),
    ('EnvironmentSet.from_huggingface({"x": [1], "y": [0], "e": ["a"]}, inputs=[], target="y", environment="e")', 'dataset: inputs must name at least one column'),
    ('EnvironmentSet.from_huggingface(3, inputs="z", target="y", environment="e")', 'dataset: must be a table with named columns, such as a data frame; got 3'),
    # tasks
    ('Multiclass(1)', 'Multiclass: classes must be at least 2, got 1'),
    ('Multiclass(2.5)', 'Multiclass: classes must be a whole number; got 2.5'),
    ('Multiclass("3")', "Multiclass: classes must be a whole number; got '3'"),
    ('Multiclass(True)', 'Multiclass: classes must be a whole number; got true'),
    ('Regression(scale=0)', 'Regression: scale must be positive, got 0'),
    ('Regression(scale=-1)', 'Regression: scale must be positive, got -1'),
    ('Regression(scale=math.nan)', 'Regression: scale must be positive, got nan'),
    ('Regression(center=math.inf)', 'Regression: center must be a finite number; got inf'),
    # data sources
    ('data.source("nothing")', "unknown data set 'nothing'"),
    ('data.source("")', "cannot read '': expected name or name(key=value, …) for the data"),
    ('data.source(3)', 'expected text such as name or name(key=value, …); got 3 for the data'),
    ('data.source("colored-digits(label_noise=2)")', 'colored-digits: label_noise must lie in [0, 1]; got 2'),
    ('data.ColoredDigits(label_noise=2)', 'colored-digits: label_noise must lie in [0, 1]; got 2'),
    ('data.ColoredDigits(label_noise="x")', 'colored-digits: label_noise must be numbers in [0, 1]; got x'),
    ('data.ColoredDigits(train_flips=0.1)', 'colored-digits: train_flips must be a tuple of numbers in [0, 1], as in (0.2, 0.1); got 0.1'),
    ('data.ColoredDigits(train_flips=(0.1, math.nan))', 'colored-digits: train_flips must lie in [0, 1]; got nan'),
    ('data.ColoredDigits(train_flips=())', 'colored-digits: train_flips must name at least one training environment'),
    ('data.ColoredDigits(gray=1)', 'colored-digits: gray must be true or false; got 1'),
    ('data.ColoredDigits().sample(-1)', 'seed must be at least 0, got -1'),
    ('data.ColoredDigits().sample("x")', 'seed must be a whole number; got x'),
    ('data.ColoredDigits().sample(1.5)', 'seed must be a whole number; got 1.5'),
    ('data.ColoredMNIST("domain")', "colored-mnist: unknown protocol 'domain'; did you mean 'domainbed'?"),
    ('data.ColoredMNIST(3)', "colored-mnist: unknown protocol '3'; known: domainbed, eqrm, irm, thirds"),
    ('data.ColoredMNIST(size=30)', 'colored-mnist: size must be 28, 14 or 7; got 30'),
    ('data.ColorChannels(size=0)', 'colored-mnist-channels: size must be 28, 14 or 7; got 0'),
    ('data.ImageFolders("")', "image-folders: root must be the path of a folder; got ''"),
    ('data.ImageFolders(3)', 'image-folders: root must be the path of a folder; got 3'),
    ('data.ImageFolders("x", size=0)', 'image-folders: size must be a whole number of at least 1; got 0'),
    ('data.ImageFolders("x", size=True)', 'image-folders: size must be a whole number of at least 1; got True'),
    ('data.ImageFolders("x", workers=0)', 'image-folders: workers must be a whole number of at least 1; got 0'),
    ('data.ImageFolders("x", normalize="yes")', 'image-folders: normalize must be true or false; got yes'),
    ('data.ImageFolders("x", test=3)', 'image-folders: test must be a list of names; got 3'),
    ('data.ImageFolders(NOWHERE).sample(0)', 'nowhere (No such file or directory)'),
    ('data.Wilds("x").sample(0)', 'x must have a name such as camelyon17_v1.0, as in WILDS; for other images use metadata-images'),
    # schedules
    ('Step(1, 2, at=-1)', 'step: at must be a step number from 0, or a share of the run such as 40%; got -1'),
    ('Step(1, 2, at=2.5)', 'step: at must be a step number from 0, or a share of the run such as 40%; got 2.5'),
    ('Step(1, 2, at="x")', "step: at must be a number; got 'x'"),
    ('Step("a", 2, at=1)', "step: before must be a number; got 'a'"),
    ('Step(math.nan, 2, at=1)', 'step: before must lie within ±1e+12; got nan'),
    ('Step(True, 2, at=1)', "step: before must be a number; got 'true'"),
    ('schedules.Stages((1, 2), (3, 4))', "stages: 'at' must contain increasing step numbers, one fewer than there are values; got 2 values and at=(3, 4)"),
    ('schedules.Stages((1, 2), (-3,))', 'stages: at must be a step number from 0, or a share of the run such as 40%; got -3'),
    ('schedules.Stages(1, 2)', "stages: values must be several numbers; got '1'"),
    ('schedules.Linear(1, 2, until=0)', "linear: 'until' must exceed 'after'; got 0 and 0"),
    ('schedules.Polynomial(k=math.nan, p=1)', 'poly: k must lie within ±1e+12; got nan'),
    ('schedules.Exponential(1, factor=-1)', 'exp: factor must be positive; got -1'),
    ('schedules.Constant(1e13)', 'constant: value must lie within ±1e+12; got 10000000000000.0'),
    ('schedules.Constant("x")', "constant: value must be a number; got 'x'"),
    ('schedules.schedule("stpe(1, 2, at=3)")', "unknown schedule 'stpe'; did you mean 'step'? known: constant, cosine, cosine-restarts, exp, linear, one-cycle, poly, stages, step"),
    ('schedules.schedule(None)', "constant: value must be a number; got 'none'"),
    ('schedules.schedule([1])', "constant: value must be a number; got '[1]'"),
    ('schedules.schedule("step(1, 2, at=140%)")', 'a percentage must be in [0, 100], got 140%'),
    ('schedules.schedule("step(1, 2, at=40%)")(3)', "step(1, 2, at=40%): the switch point 40% depends on the run's length; call resolve(steps) first"),
    # algorithms
    ('IRM(-1)', 'IRM: coefficient must be at least 0, got -1'),
    ('IRM("step(1, -1, at=3)")', 'IRM: coefficient must be at least 0, got step(1, -1, at=3)'),
    ('IRM(None)', "constant: value must be a number; got 'none'"),
    ('IRM(form="cubed")', 'IRM: form must be squared or halves or dummies; got cubed'),
    ('VREx(pairwise=1)', 'VREx: pairwise must be true or false; got 1'),
    ('VREx(pairwise="yes")', 'VREx: pairwise must be true or false; got yes'),
    ('AndMask(1.7)', 'AndMask: threshold must be in [0, 1], got 1.7'),
    ('AndMask("x")', 'AndMask: threshold must be a number; got x'),
    ('AndMask(math.nan)', 'AndMask: threshold must be in [0, 1], got nan'),
    ('AndMask(True)', 'AndMask: threshold must be a number; got true'),
    ('algorithms.EQRM(1.5)', 'EQRM: quantile must be α in (0, 1), or the negative number log(1 − α); got 1.5'),
    ('algorithms.EQRM(burn_in=2.5)', 'EQRM: burn_in must be a whole number; got 2.5'),
    ('algorithms.GroupDRO(-1)', 'GroupDRO: rate must be at least 0, got -1'),
    ('algorithms.GroupDRO(None)', 'GroupDRO: rate must be a number; got none'),
    ('algorithms.DANN(width=0)', 'DANN: width must be at least 1, got 0'),
    ('algorithms.DANN(depth=10**6)', 'DANN: depth must be at most 100, got 1000000'),
    ('algorithms.DANN(beta1=1)', 'DANN: beta1 must be in [0, 1), got 1'),
    ('algorithms.Mixup(0)', 'Mixup: alpha must be positive, got 0'),
    ('algorithms.CAD(max_rows=0)', 'CAD: max_rows must be at least 1, got 0'),
    ('algorithms.CAD(temperature=0)', 'CAD: temperature must be positive, got 0'),
    ('algorithms.Fish(2)', 'Fish: meta_rate must be in (0, 1], got 2'),
    ('algorithms.EIIL(method="magic")', 'EIIL: method must be exact or ascent; got magic'),
    ('algorithms.MMREx(-1)', 'MMREx: coefficient must be at least 0, got -1'),
    ('algorithms.MMREx.with_minimum_weight(0.9, 2)', 'MMREx: minimum must be at most 1/2, got 0.9'),
    ('Composition(penalties=VREx())', 'Composition: penalties must be a tuple of penalties, as in (VREx(),)'),
    ('Composition(penalties=(AndMask(),))', 'Composition: penalties must be a tuple of penalties, as in (VREx(),)'),
    ('Composition(risk_aggregator=VREx())', 'Composition: risk_aggregator must be a RiskAggregator, got VREx(coefficient=Step(before=1.0, after=10000.0'),
    ('Composition(l2=-1)', 'Composition: l2 must be at least 0, got -1'),
    ('Composition(normalize_loss=1)', 'Composition: normalize_loss must be true or false; got 1'),
    ('Composition(training_step=algorithms.DANN(), penalties=(VREx(),))', 'dann: is a training step and cannot be combined with other parts'),
    ('Composition() + 3', 'mean + 3: only compositions can be composed'),
    ('Composition(penalties=(VREx(),)) + Composition(penalties=(VREx(),))', 'vrex + vrex: the penalty vrex occurs twice'),
    ('algorithms.recipe("imr")', "unknown algorithm 'imr'; did you mean 'irm'?"),
    ('algorithms.recipe("vrex + vrex")', 'vrex + vrex: the penalty vrex occurs twice'),
    ('algorithms.recipe("")', "cannot read '': expected name or name(key=value, …) for the algorithm"),
    ('algorithms.recipe(3)', "algorithm must be a string such as 'vrex + and-mask'; got 3"),
    ('algorithms.as_algorithm(IRM)', 'algorithm: IRM is a class; pass an instance: IRM()'),
    ('algorithms.as_algorithm(3)', "algorithm must be a name such as 'vrex', a Recipe, a part such as VREx(), or an Algorithm, got 3"),
    ('algorithms.as_algorithm(IRM(), {"coefficient": 1})', 'hyperparameters can be passed only with the name of an algorithm or a recipe; for an algorithm object, set them when you construct the object'),
    ('algorithms.RECIPES["irm"].build({"coef": 1})', "irm: unknown setting 'coef'; known: coefficient, form, l2, normalize_loss, risk_aggregator"),
    ('algorithms.RECIPES["irm"].build([1])', 'irm: settings must be a mapping from names to values'),
    # models, optimizers and augmentation
    ('MLP(0)', 'mlp: hidden widths must be whole numbers of at least 1; got 0'),
    ('MLP(-1)', 'mlp: hidden widths must be whole numbers of at least 1; got -1'),
    ('MLP(2.5)', 'mlp: hidden must be a whole number, or several in parentheses; got 2.5'),
    ('MLP(True)', 'mlp: hidden must be a whole number, or several in parentheses; got true'),
    ('MLP("wide")', 'mlp: hidden must be a whole number, or several in parentheses; got wide'),
    ('MLP([8, 8])', 'mlp: hidden must be a whole number, or several in parentheses; got [8, 8]'),
    ('MLP((8, 0))', 'mlp: hidden widths must be whole numbers of at least 1; got (8, 0)'),
    ('MLP((8,) * 2000)', 'mlp: hidden must have at most 1000 widths; got 2,000'),
    ('MLP(8, depth=0)', 'mlp: depth must be at least 1, got 0'),
    ('MLP(8, depth=10**6)', 'mlp: depth must be at most 1,000, got 1000000'),
    ('models.LeNet().build((3,), 1)', 'lenet: requires square, channels-first images [channels, height, width] of at least 12×12 pixels; got inputs of shape (3,) (mlp accepts any shape)'),
    ('models.MNISTCNN().build((4,), 1)', 'mnist-cnn: requires channels-first images [channels, height, width]; got inputs of shape (4,)'),
    ('models.model_config("mpl")', "unknown model 'mpl'; did you mean 'mlp'? known: efficientnet-lite0, lenet, linear, mlp, mnist-cnn, timm"),
    ('models.model_config("mlp(widht=3)")', "mlp: unknown setting 'widht'; known: activation, batch_norm, depth, dropout, dropout_position, hidden, init"),
    ('models.model_config(3)', 'expected text such as name or name(key=value, …); got 3 for the model'),
    ('models.Timm(architecture=3)', 'timm: architecture must be a word; got 3'),
    ('Adam(beta1=2)', 'adam: beta1 must be in [0, 1), got 2'),
    ('SGD(momentum=-1)', 'sgd: momentum must be in [0, 1), got -1'),
    ('RandomAffine(rotation=-1)', 'affine: rotation must be in [0, 180], got -1'),
    # estimators
    ('classifier("imr").fit(X, Y, environments=SITE)', "unknown algorithm 'imr'; did you mean 'irm'?"),
    ('classifier(IRM).fit(X, Y, environments=SITE)', 'algorithm: IRM is a class; pass an instance: IRM()'),
    ('classifier(3).fit(X, Y, environments=SITE)', "algorithm must be a name such as 'vrex', a Recipe, a part such as VREx(), or an Algorithm, got 3"),
    ('classifier(steps=0).fit(X, Y, environments=SITE)', 'steps must be at least 1; got 0'),
    ('classifier(batch_size="half").fit(X, Y, environments=SITE)', 'batch_size must be a whole number or "full"; got \'half\''),
    ('classifier(learning_rate=-1).fit(X, Y, environments=SITE)', 'learning_rate must be a finite number above 0; got -1'),
    ('classifier(model="mpl").fit(X, Y, environments=SITE)', "unknown model 'mpl'; did you mean 'mlp'? known: efficientnet-lite0, lenet, linear, mlp, mnist-cnn, timm"),
    ('classifier(model=MLP).fit(X, Y, environments=SITE[:3])', 'InvariantClassifier: lengths must be equal; got 8 inputs, 8 targets, 3 environments'),
    ('classifier(device="gpu").fit(X, Y, environments=SITE)', "device must be auto, cpu or cuda; got 'gpu'"),
    ('classifier(hyperparameters={"coef": 1}).fit(X, Y, environments=SITE)', "irm: unknown setting 'coef'; known: coefficient, form, l2, normalize_loss, risk_aggregator"),
    ('classifier(hyperparameters=[1]).fit(X, Y, environments=SITE)', 'hyperparameters must be a mapping; got [1]'),
    ('classifier(random_state=-1).fit(X, Y, environments=SITE)', 'Seed must be between 0 and 2**32 - 1'),
    ('classifier(random_state="x").fit(X, Y, environments=SITE)', "'x' cannot be used to seed a numpy.random.RandomState instance"),
    ('classifier().fit(X * math.nan, Y, environments=SITE)', 'Input X contains NaN. InvariantClassifier does not accept missing values encoded as NaN natively. For'),
    ('classifier().fit(X, Y[:5], environments=SITE)', 'Found input variables with inconsistent numbers of samples: [8, 5]'),
    ('classifier().fit(X, torch.ones(8), environments=SITE)', 'y must hold at least two classes; got one class (1.0)'),
    ('classifier().fit(X, Y + 0.3 * torch.arange(8), environments=SITE)', 'Unknown label type: continuous. Maybe you are trying to fit a classifier, which expects discrete classes on a'),
    ('classifier().fit(X, Y, environments=["a"] * 8)', "irm: needs at least 2 environments, but 'environments' contains 1. Pass more, or use algorithm='erm'"),
    ('classifier().fit(X, Y, environments=[None] * 8)', 'InvariantClassifier: environments are missing in 8 of 8 rows (first: row 0); fill in or remove them'),
    ('classifier().fit(X, Y, environments="site")', "environments='site' is a column name, but X is of type Tensor without column names; pass a DataFrame, or one"),
    ('classifier().fit(pd.DataFrame(X.numpy(), columns=["p", "q"]), Y, environments="site")', "environments: unknown column 'site'; known: p, q"),
    ('classifier().fit([["x"]] * 8, Y, environments=SITE)', "could not convert string to float: 'x'"),
    ('classifier().fit(X[:, 0], Y, environments=SITE)', 'Expected 2D array, got 1D array instead: array=[0.49625659 0.08847743 0.30742282 0.49009341 0.45562798'),
    ('regressor().fit(X, ["x"] * 8, environments=SITE)', "could not convert string to float: np.str_('x')"),
    ('regressor().fit(X, Y * math.nan, environments=SITE)', 'Input y contains NaN.'),
    ('FITTED.predict(X[:, :1])', 'X has 1 features, but InvariantClassifier is expecting 2 features as input.'),
    ('FITTED.predict(X * math.nan)', 'Input X contains NaN. InvariantClassifier does not accept missing values encoded as NaN natively. For'),
    ('FITTED.predict(X[0])', 'Expected 2D array, got 1D array instead: array=[0.49625659 0.7682218 ]. Reshape your data either using'),
    ('FITTED.predict_proba([["x", "y"]])', "could not convert string to float: 'x'"),
    # studies
    ('Study((), ("erm",))', 'study: data is empty; give at least one'),
    ('Study(DIGITS, ())', 'study: algorithms is empty; give at least one'),
    ('Study(DIGITS, ("erm", "erm"))', "study: 'erm' occurs twice in algorithms; name it once"),
    ('Study((DIGITS, DIGITS), "erm")', "study: 'colored-digits' occurs twice in data; name it once"),
    ('Study(DIGITS, "ermm")', "unknown algorithm 'ermm'; did you mean 'erm'?"),
    ('Study(DIGITS, 3)', "algorithm must be a name such as 'vrex', a Recipe, a part such as VREx(), or an Algorithm, got 3"),
    ('Study(3, "erm").sources', 'data must be a name, an EnvironmentSource or an EnvironmentSet; got 3'),
    ('Study(DIGITS, "erm", n_trials=0)', 'study: n_trials must be a whole number of at least 1; got 0'),
    ('Study(DIGITS, "erm", n_trials=1.5)', 'study: n_trials must be a whole number of at least 1; got 1.5'),
    ('Study(DIGITS, "erm", replicas=True)', 'study: replicas must be a whole number of at least 1; got True'),
    ('Study(DIGITS, "erm", replicas=10**9)', 'study: 1 data sets × 1 algorithms × 1 trials × 1,000,000,000 replicas are 1,000,000,000 runs; at most 1,000,000'),
    ('Study(DIGITS, "erm", holdout_fraction=0)', 'study: holdout_fraction must be a number above 0 and below 1; got 0'),
    ('Study(DIGITS, "erm", holdout_fraction="x")', "study: holdout_fraction must be a number above 0 and below 1; got 'x'"),
    ('Study(DIGITS, "erm", lr_range=0.5)', 'study: lr_range must be a number of at least 1; got 0.5'),
    ('Study(DIGITS, "erm", lr_range=math.nan)', 'study: lr_range must be a number of at least 1; got nan'),
    ('Study(DIGITS, "erm", seed=-1)', 'study: seed must be a whole number in [0, 2³²); got -1'),
    ('Study(DIGITS, "erm", name=3)', 'study: name must be text; got 3'),
    ('Study(DIGITS, "erm", settings={"step": 5})', "study: unknown setting 'step'; did you mean 'steps'?"),
    ('Study(DIGITS, "erm", settings={"steps": 0})', 'steps must be at least 1; got 0'),
    ('Study(DIGITS, "erm", settings={"model": "mpl"})', "unknown model 'mpl'; did you mean 'mlp'? known: efficientnet-lite0, lenet, linear, mlp, mnist-cnn, timm"),
    ('Study(DIGITS, "erm", settings={"optimizer": 3})', 'optimizer: must be a name, a torch.optim class or functools.partial of one; got 3'),
    ('Study(DIGITS, "erm", settings=[1])', 'study: settings must be a mapping from options to values; got [1]'),
    ('Study(DIGITS, "erm", metric="acc")', "study: unknown metric 'acc'"),
    ('Study(DIGITS, "erm", metric=3)', 'study: metric must be the name of a metric; got 3'),
    ('Study(DIGITS, "erm", metric="RMSE").runs()', "metric 'RMSE' does not apply to binary tasks; use one of accuracy, balanced accuracy, AUROC, log loss"),
    ('Study(DIGITS, "irm", ranges={"erm": {}})', "study: ranges: unknown algorithm 'erm'; did you mean 'irm'? known: irm"),
    ('Study(DIGITS, "irm", ranges={"irm": {"coef": [1]}})', "study: ranges of irm: unknown hyperparameter 'coef'"),
    ('Study(DIGITS, "irm", ranges={"irm": {"coefficient": "uniform(2, 1)"}})', 'study: ranges of irm: coefficient: Uniform: low must lie below high; got 2, 1'),
    ('Study(DIGITS, "irm", ranges={"irm": {"coefficient": []}})', 'study: ranges of irm: coefficient: Choice: needs at least one value'),
    ('Study(DIGITS, "irm", ranges={"irm": {"coefficient": 3}})', 'study: ranges of irm: coefficient: a range must be a list of values or one of uniform(low, high)'),
    ('Study(DIGITS, "irm(coefficient=1)", ranges={"irm(coefficient=1)": {"coefficient": [1]}})', "study: ranges of irm(coefficient=1): coefficient already has a fixed value in the algorithm's name; remove the value or the range"),
    ('Study(DIGITS, "irm", n_trials=3, ranges={"irm": {"coefficient": [-1]}}).runs()', 'study: ranges of irm: IRM: coefficient must be at least 0, got step(1, -1, at=60)'),
    ('Study(DIGITS, "erm", ranges={"erm": {"learning_rate": [-1]}}, n_trials=2).runs()', 'study: ranges of erm: learning_rate must be a finite number above 0; got -1'),
    ('Study(DIGITS, "erm", test_environments="some")', "study: unknown test_environments 'some'; known: each, each-and-pairs, suggested"),
    ('Study(DIGITS, "erm", test_environments=3)', 'study: test_environments must be suggested, each, each-and-pairs or lists of names; got 3'),
    ('Study(DIGITS, "erm", test_environments=[])', 'study: test_environments must be different sets of names; got []'),
    ('Study(DIGITS, "erm", test_environments=[["a"], ["a"]])', "study: test_environments must be different sets of names; got [['a'], ['a']]"),
    ('Study(DIGITS, "erm", test_environments=[["nowhere"]]).runs()', "colored-digits: unknown environment 'nowhere'; known: flip-0.1, flip-0.2, flip-0.9"),
    ('Study(DIGITS, "erm", store_predictions=1)', 'study: store_predictions must be true or false; got 1'),
    ('studies.read(NOWHERE)', 'nowhere: there is no such file'),
    ('studies.of({"data": DIGITS}, "study")', 'study: algorithms is missing; give at least one'),
    ('studies.of({"data": DIGITS, "algorithms": "erm", "trials": 3}, "study")', "study: unknown key 'trials'; did you mean 'n_trials'?"),
    # compare
    ('compared(3)', 'data must be a path or a data frame of pandas, polars or Arrow; got int'),
    ('compared(None)', 'data must be a path or a data frame of pandas, polars or Arrow; got NoneType'),
    ('compared(NOWHERE)', 'nowhere: there is no such file'),
    ('compared(target="dead")', "data frame: lacks target column 'dead' (did you mean 'died'?); its columns: site, age, died"),
    ('compared(target=3)', "data frame: lacks target column '3'; its columns: site, age, died"),
    ('compared(environment="sites")', "data frame: lacks environment column 'sites' (did you mean 'site'?); its columns: site, age, died"),
    ('compared(environment="died")', "data frame: a column can have one role only (target 'died', environment 'died'); name another column"),
    ('compared(TABLE.iloc[:0])', 'data frame: holds no rows under its header'),
    ('compared(task="ranking")', "unknown task 'ranking'; known: binary, multiclass, regression"),
    ('compared(task=3)', "unknown task '3'; known: binary, multiclass, regression"),
    ('compared(algorithms="imr")', "unknown algorithm 'imr'; did you mean 'irm'?"),
    ('compared(algorithms=["irm", "irm"])', "study: 'irm' occurs twice in algorithms; name it once"),
    ('compared(algorithms=[3])', "algorithm must be a name such as 'vrex', a Recipe, a part such as VREx(), or an Algorithm, got 3"),
    ('compared(metric="acc")', "unknown metric 'acc'"),
    ('compared(metric=3)', "unknown metric '3'"),
    ('compared(n_trials=0)', 'study: n_trials must be a whole number of at least 1; got 0'),
    ('compared(replicas=1.5)', 'study: replicas must be a whole number of at least 1; got 1.5'),
    ('compared(exclude="ages")', "data frame: lacks column 'ages' (did you mean 'age'?); its columns: site, age, died"),
    ('compared(exclude=["died"])', "data frame: the target column 'died' cannot be excluded"),
    ('compared(exclude=3)', 'exclude must be a list of names; got 3'),
    ('compared(sample_weight="age2")', "data frame: lacks sample_weight column 'age2' (did you mean 'age'?); its columns: site, age, died"),
    ('compared(min_rows=0)', 'compare: min_rows must be at least 1, got 0'),
    ('compared(min_rows="x")', 'compare: min_rows must be a whole number; got x'),
    ('compared(max_rows="x")', 'compare: max_rows must be a whole number; got x'),
    ('compared(workers=0)', 'compare: workers must be at least 1, got 0'),
    ('compared(budget=-1)', "budget: expected a duration such as 90s, 10m or 1.5h, got '-1'"),
    ('compared(budget="soon")', "budget: expected a duration such as 90s, 10m or 1.5h, got 'soon'"),
    ('compared(budget=True)', "budget: expected a duration such as 90s, 10m or 1.5h, got 'True'"),
    ('compared(seed=-1)', 'study: seed must be a whole number in [0, 2³²); got -1'),
    ('compared(encoding=3)', 'compare: encoding must be a word; got 3'),
    ('compared(executor="slurm")', 'compare: executor must be local or ray; got slurm'),
    ('compared(address="auto")', "compare: the option 'address' requires executor='ray'; set executor, or remove address"),
    ('compared(out="")', "out must be the path of a folder; got ''"),
    ('compared(out=3)', 'out must be the path of a folder; got 3'),
    ('compared(lr=0.1)', "study: unknown setting 'lr'"),
    ('compared(learning_rate=-0.1)', "learning_rate must be a finite number above 0; got -0.1"),
    ('compared(clip="nrm(1)")', "unknown clipping 'nrm'; did you mean 'norm'? known: norm, value"),
    ('train(DIGITS, class_weights=[1, 2, 3], batch_size=8)', "class_weights: needs one weight for each of the 2 classes"),
    ('train(DIGITS, learning_rate={"heda": 0.1, "others": 1})', "belongs to the group 'heda'; did you mean 'head'?"),
    ('compared(test_environments=["a"])', "study: unknown setting 'test_environments'"),
    ('compared(model="mpl")', "unknown model 'mpl'; did you mean 'mlp'? known: efficientnet-lite0, lenet, linear, mlp, mnist-cnn, timm"),
    ('compared(memory="lots")', "memory: expected an amount such as 8GB or 512MiB; got 'lots'"),
    # evaluate
    ('evaluate([0.1, 0.9], [0, 1, 1], ["a", "b", "a"])', 'evaluate: lengths must be equal; got 2 predictions of model, 3 targets'),
    ('evaluate([0.1, 0.9], [0, 1], ["a"])', 'evaluate: lengths must be equal; got 2 targets, 1 environments'),
    ('evaluate([], [], [])', 'evaluate: predictions of model hold no rows'),
    ('evaluate([0.1, None], [0, 1], SITE[:2])', 'evaluate: predictions of model are missing in 1 of 2 rows (first: row 1)'),
    ('evaluate([0.1, 0.9], [0, 1], ["a", None])', 'evaluate: environments are missing in 1 of 2 rows (first: row 1)'),
    ('evaluate([0.1, 0.9], [0, 1], "ab")', "evaluate: environments must hold one identifier per row; got 'ab'"),
    ('evaluate([0.1, 0.9], [0, 1], X[:2])', 'evaluate: environments must hold one identifier per row; got shape (2, 2)'),
    ('evaluate([0.1, 0.9], X[:2], SITE[:2])', 'evaluate: targets must hold one value per row; got shape (2, 2)'),
    ('evaluate([0.1, 1.9], [0, 1], SITE[:2])', 'evaluate: predictions in [0.1, 1.9] are neither classes of the targets (0, 1) nor probabilities; if they are logits, set kind to logits'),
    ('evaluate([0.1, 1.9], [0, 1], SITE[:2], kind="probabilities")', 'evaluate: predictions of model: probabilities must be in [0, 1]; got 1.9 in row 1'),
    ('evaluate([[0.1, 0.3], [0.5, 0.5]], [0, 1], SITE[:2])', 'evaluate: predictions of model: the probabilities of a row must sum to 1; those of row 0 sum to 0.4'),
    ('evaluate([0.1, math.inf], [0, 1], SITE[:2], kind="logits")', 'evaluate: predictions of model must be finite; row 1 is not'),
    ('evaluate(["yse", "yse"], ["yes", "no"], SITE[:2])', "evaluate: no predicted label, such as 'yse' (did you mean 'yes'?), occurs in the targets (no, yes); spell them identically"),
    ('evaluate([0.1, 0.9], ["yes", "yes"], SITE[:2])', 'evaluate: all targets are yes; set classes to the labels of all classes'),
    ('evaluate([0.1, 0.9, 0.3], ["x", "y", "z"], SITE[:3])', 'evaluate: targets hold 3 classes (x, y, z), which need predicted labels, or one probability per class'),
    ('evaluate([[0.2, 0.3, 0.5]] * 2, ["x", "y"], SITE[:2])', 'evaluate: predictions have 3 columns, but targets hold 2 classes (x, y); set classes'),
    ('evaluate(pd.DataFrame({"q": [0.5, 0.5], "r": [0.5, 0.5]}), ["x", "y"], SITE[:2])', 'evaluate: columns q, r are not named for the classes of the targets (x, y); rename them, or set classes'),
    ('evaluate([0.1, 0.9], ["x", "z"], SITE[:2], classes=["x", "y"])', "evaluate: targets hold 'z', which is not one of the classes x, y"),
    ('evaluate([0.1, 0.9], [0, 1], SITE[:2], classes=["x"])', 'evaluate: classes must be at least two different labels; got x'),
    ('evaluate([[0.5, 0.5]] * 2, [0, 1], SITE[:2], classes=[0, 1, 2])', 'evaluate: 2 columns of predictions need 2 classes; got 3'),
    ('evaluate([0.1, 0.9], [0, 1], SITE[:2], kind="probability")', "evaluate: unknown kind of predictions 'probability'; did you mean 'probabilities'?"),
    ('evaluate([0.1, 0.9], [0, 1], SITE[:2], task="ranking")', "evaluate: unknown task 'ranking'; known: binary, multiclass, regression"),
    ('evaluate([0.1, 0.9], [0, 1], SITE[:2], metric="acc")', "unknown metric 'acc'"),
    ('evaluate([0.1, 0.9], [0, 1], SITE[:2], metric="RMSE")', "metric 'RMSE' does not apply to binary tasks"),
    ('evaluate([0, 1], [0, 1], SITE[:2], metric="AUROC")', 'evaluate: AUROC needs probabilities, but predictions are labels'),
    ('evaluate([0.1, 0.9], [0, 1], SITE[:2], metric="AUROC")', 'evaluate: AUROC is undefined in every environment (with a single class, for example); choose another metric'),
    ('evaluate(["a", "b"], [0.5, 1.5], SITE[:2], task="regression")', 'evaluate: predictions of model must be one number per row for a regression'),
    ('evaluate([0.1, 0.9], ["a", "b"], SITE[:2], task="regression")', 'evaluate: targets of a regression must be finite numbers'),
    ('evaluate({}, [0, 1], SITE[:2])', 'evaluate: predictions hold no model; give one array per model'),
    ('evaluate({"erm": {"first": [0, 1]}}, [0, 1], SITE[:2])', 'evaluate: replicas of a model must have whole numbers as keys, such as 0 and 1'),
    ('evaluate([0, 1], [0, 1], SITE[:2], sample_weight=[0, -1])', 'evaluate: sample_weight must be finite numbers of at least 0, and not all 0'),
    ('evaluate([0, 1], [0, 1], SITE[:2], groups=["f"])', 'evaluate: lengths must be equal; got 2 targets, 2 environments, 1 group'),
    ('evaluate([0, 1], [0, 1], SITE[:2], groups={"sex": ["f"], "age": [1, 2]})', 'evaluate: groups: attributes must have equal numbers of rows; got [1, 2]'),
    ('evaluate([0, 1], [0, 1], SITE[:2], clusters=[1])', 'evaluate: lengths must be equal; got 2 targets, 2 environments, 1 clusters'),
    ('evaluate(pd.Series([0, 1], [5, 6]), pd.Series([0, 1], [6, 5]), SITE[:2])', 'evaluate: predictions of model and targets have the same index in different orders, but rows are matched by position'),
    ('evaluate([0, 1], [0, 1], SITE[:2]).report("page.txt")', 'page.txt: the file name of a report must end in .html'),
    ('evaluate([0, 1], [0, 1], SITE[:2]).save("")', "out must be the path of a folder; got ''"),
    # stored results
    ('load_model(NOWHERE)', 'nowhere: holds no model (no model.safetensors); pass the folder of a saved model'),
    ('load_model(3)', 'folder must be the path of a folder; got 3'),
    ('load_model("")', "folder must be the path of a folder; got ''"),
    ('TrainingResult.load(NOWHERE)', 'nowhere: holds no runs (no runs.sqlite); give the folder of a run or a study'),
    ('TrainingResult.load(3)', 'folder must be the path of a folder; got 3'),
    # analysis
    ('analysis.interval([1, 2], level=2)', 'interval: level must be in (0, 1), got 2'),
    ('analysis.interval(["x", "y"])', 'interval: values must be numbers, one per replica'),
    ('analysis.difference([1, 2], [1])', 'difference: both sequences must have the same length, got 2 and 1'),
    ('analysis.bootstrap([1, 2], level=0)', 'bootstrap: level must be in (0, 1), got 0'),
    ('analysis.slope([1, 1], [2, 3])', 'slope: needs values at two or more distinct positions'),
    ('analysis.slope([1, 2], [2])', 'slope: both sequences must have the same length, got 2 and 1'),
    ('analysis.signed_rank([1], [1, 2])', 'signed_rank: both sequences must have the same length, got 1 and 2'),
    ('analysis.probability_of_improvement([1], [1, 2])', 'probability_of_improvement: both sequences must have the same length, got 1 and 2'),
    ('analysis.holm([2.0])', 'holm: p-values must be in [0, 1], got 2.0'),
    ('analysis.friedman([[1, 2], [3, 4]])', 'friedman: needs at least three methods and two data sets'),
    ('analysis.friedman([[1, 2, 3], [3, 4]])', 'friedman: every data set needs one value per method'),
    ('analysis.measure_shift({"a": (X, Y)}, {"b": (X, Y)})', "shift: each of the two groups must have at least 40 rows; the environments are 'a' and 'b'"),
    ('analysis.measure_shift({"a": (X, Y)}, {"b": (X, Y)}, n_trials=0)', 'measure_shift: n_trials must be at least 1, got 0'),
    ('analysis.measure_shift({}, {"b": (X, Y)})', 'measure_shift: each of the two groups needs at least one environment'),
    ('analysis.measure_shift({"a": (X, Y[:3])}, {"b": (X, Y)})', "measure_shift: 'a' has 8 rows of inputs and 3 targets"),
    ('analysis.assess_invariance([1, 2], [1], ["a", "b"])', 'assess_invariance: scores, targets and environments must have equal lengths; got 2, 1 and 2'),
    ('analysis.measure_stability({"x": [1, 2]}, [1], ["a", "b"])', "measure_stability: 'targets' has 1 rows, but 'environments' has 2"),
    ('analysis.leaky_columns({"x": [1, 2]}, [1], task="binary")', "leaky_columns: 'x' has 2 rows, but 'targets' has 1"),
    ('analysis.leaky_columns({"x": [1, 2]}, [1, 0], task="ranking")', "leaky_columns: unknown task 'ranking'; known: binary, multiclass, regression"),
    ('analysis.measure_drift({"x": [1.0, 2.0]}, ["a", "b"], {"z": [1.0]})', "measure_drift: new rows lack column 'x'"),
    ('analysis.measure_drift({"x": [1.0, 2.0]}, ["a"], {"x": [1.0]})', "measure_drift: 'x' has 2 rows, but 'environments' has 1"),
    # published results, metrics, ranges and selection
    ('published.table("nothing")', "unknown entry of tables 'nothing'"),
    ('published.protocol("nothing")', "unknown entry of protocols 'nothing'"),
    ('metrics.metric("acc", Binary())', "unknown metric 'acc'"),
    ('metrics.metric("RMSE", Binary())', "metric 'RMSE' does not apply to binary tasks; use one of accuracy, balanced accuracy, AUROC, log loss"),
    ('Uniform(2, 1)', 'Uniform: low must lie below high; got 2, 1'),
    ('LogUniform(0, 1)', 'LogUniform: low must be positive; got 0'),
    ('UniformInteger(3, 1)', 'UniformInteger: low must not lie above high; got 3, 1'),
    ('Choice(())', 'Choice: needs at least one value'),
    ('Invariance(alpha=2)', 'Invariance: alpha must be in (0, 1), got 2'),
    # objectives for training loops
    ('objective("vrx")', "unknown algorithm 'vrx'; did you mean 'vrex'?"),
    ('objective("mldg")', "mldg: is a training step, which computes its own forward passes; train it with envariant.train(data, algorithm), or use a penalty such as 'vrex'"),
    ('objective("eiil")', "eiil: infers environments before training; train it with envariant.train(data, algorithm), or use 'irm' with environments of your own"),
    ('objective("vrex(coefficient=step(1, 5, at=50%))")', 'vrex coefficient: step(1, 5, at=50%) depends on the length of the run; pass steps=… to envariant.objective'),
    ('objective("vrex", environments=1)', 'vrex: needs at least 2 training environments, got 1'),
    ('objective("vrex", environments="ab")', "objective: environments must be their number or a list of names; got 'ab'"),
    ('objective("vrex", environments=3, sizes=(1, 2))', 'objective: got 2 sizes for 3 environments'),
    ('objective("erm(risk_aggregator=pooled)")', 'pooled: weights environments by their number of training rows; pass sizes=(…) to envariant.objective'),
    ('objective("vrex", loss="focl")', "unknown loss 'focl'; did you mean 'focal'?"),
    ('objective("selfreg")', 'selfreg: trains a network of its own; pass features=WIDTH and loss=Binary(), Multiclass(K) or Regression() to envariant.objective, and objective.parameters() to the optimizer'),
    ('objective("coral")(*BATCH)', "coral: needs the inputs of the model's last layer; pass features=…, [rows, width]"),
    ('objective("iga")(*BATCH)', 'iga: penalizes gradients of the parameters; pass model=model with every batch'),
    ('objective("irm(l2=0.1)")(*BATCH)', 'irm: has l2, a norm of the parameters; pass model=model with every batch'),
    ('objective("irm(l2=0.1)")(*BATCH, model=3)', 'objective: model must be a torch.nn.Module; got 3'),
    ('objective("and-mask")(*BATCH)', "and-mask: combines the environments' gradients, which no loss expresses; call objective.backward(model, logits, targets, environments) instead of loss.backward()"),
    ('objective("and-mask").backward(nn.Linear(1, 1), *BATCH)', 'objective: logits and losses must have gradients; compute them outside of torch.no_grad()'),
    ('objective("irm + and-mask").backward_losses(nn.Linear(1, 1), {0: BATCH[0]})', 'irm: needs logits or features, not only losses; call objective.backward(model, logits, targets, environments)'),
    ('objective("and-mask").backward_losses(nn.Linear(1, 1), [])', 'objective: losses must be a mapping from environment numbers to losses; got []'),
    ('objective("vrex")(BATCH[0].long(), *BATCH[1:])', 'objective: logits must be a tensor of real numbers, [rows] or [rows, outputs]; got int64 of shape (4,)'),
    ('objective("vrex")(BATCH[0], BATCH[1], BATCH[0])', 'objective: environments must be whole numbers, one per row; got float32 of shape (4,)'),
    ('objective("vrex")(BATCH[0], BATCH[1][:3], BATCH[2])', 'objective: lengths must be equal; got 4 logits, 4 environments, 3 targets'),
    ('objective("vrex")(BATCH[0][:0], BATCH[1][:0], BATCH[2][:0])', 'objective: the batch has no rows; leave empty batches out'),
    ('objective("vrex")(*BATCH, step=-1)', 'objective: step must be a whole number of at least 0; got -1'),
    ('objective("vrex", environments=2)(*BATCH[:2], BATCH[2] + 1)', 'objective: environments must be numbers from 0 to 1; got 2'),
    ('objective("vrex", loss=Multiclass(3))(*BATCH)', 'objective: the task multiclass needs 3 logits per row and targets of shape (4,); got logits (4,) and targets (4,)'),
    ('objective("vrex", loss=Binary())(BATCH[0], BATCH[1] + 1, BATCH[2])', 'objective: binary targets must be 0 or 1; got 1, 2'),
    ('objective("vrex")(torch.zeros(4, 3, 2), *BATCH[1:])', 'objective: logits must be [rows] or [rows, outputs], and targets [rows] or [rows, outputs]; got (4, 3, 2) and (4,) (flatten positions into rows)'),
    ('objective("vrex", loss="mse")(torch.zeros(4, 3), *BATCH[1:])', 'objective: 3 logits and one target per row are a classification, but the loss is for numbers; use one logit per row'),
    # objects of other packages
    ('train(SITES, VectorPenalty(), steps=2)', 'own: must return one number and its state; got a tensor of shape (2,)'),
    ('train(SITES, VectorRisk(), steps=2)', 'own: must return one number and its state; got a tensor of shape (2,)'),
    ('train(SITES, NoState(), steps=2)', 'own: must return one number and its state; got Tensor'),
    ('train(SITES, NoGradient(), steps=2)', "own: must return a gradient of shape (64, 2) for parameter 'featurizer.1.weight'; got no gradient"),
    ('train(SITES, ScalarGradients(), steps=2)', "own: must return a gradient of shape (64, 2) for parameter 'featurizer.1.weight'; got ()"),
    ('train(ListSource(), steps=2)', 'data: ListSource.sample must return an EnvironmentSet; got list'),
]  # fmt: skip


@pytest.fixture(scope="module")
def fitted():
    return classifier("erm").fit(X, Y)


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[call[:90] for call, _ in WRONG])
def test_a_wrong_call_is_rejected_in_one_sentence(call, message, fitted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EnvariantError) as error:
        eval(call, {**globals(), "FITTED": fitted})
    text = str(error.value)
    assert message in text
    assert "\n" not in error.value.args[0].replace("'a\nb'", "")
    assert "--" not in text, "the library does not know the command line"
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_the_table_has_at_least_350_different_calls():
    assert len({call for call, _ in WRONG}) >= 350
