"""Algorithms: risk aggregators, penalties, gradient aggregators, training steps, compositions and recipes."""

from envariant.algorithms.base import (
    Algorithm,
    EnvironmentInference,
    GradientAggregator,
    GradientPenalty,
    Model,
    Part,
    Penalty,
    RiskAggregator,
    TrainContext,
    TrainingStep,
)
from envariant.algorithms.composing import all_recipes, as_algorithm, compose, recipe, settings_of, terms
from envariant.algorithms.composition import Composition
from envariant.algorithms.environment_inference.eiil import EIIL
from envariant.algorithms.gradient_aggregators.and_mask import AndMask
from envariant.algorithms.gradient_aggregators.mean import MeanGradient
from envariant.algorithms.gradient_aggregators.pcgrad import PCGrad
from envariant.algorithms.gradient_aggregators.sand_mask import SandMask
from envariant.algorithms.hyperparameters import rescale, rescaled_step, resolve_schedules
from envariant.algorithms.identity import identity
from envariant.algorithms.penalties.bottleneck import InformationBottleneck
from envariant.algorithms.penalties.cad import CAD
from envariant.algorithms.penalties.causirl import CausIRL
from envariant.algorithms.penalties.clove import CLOvE
from envariant.algorithms.penalties.coral import CORAL
from envariant.algorithms.penalties.fishr import Fishr
from envariant.algorithms.penalties.iga import IGA
from envariant.algorithms.penalties.irm import IRM
from envariant.algorithms.penalties.loss_variance import LossVariance
from envariant.algorithms.penalties.mmd import MMD
from envariant.algorithms.penalties.rdm import RDM
from envariant.algorithms.penalties.sd import SpectralDecoupling
from envariant.algorithms.penalties.selfreg import SelfReg
from envariant.algorithms.penalties.vrex import VREx
from envariant.algorithms.recipe_base import Hyperparameter, Recipe
from envariant.algorithms.recipes import RECIPES
from envariant.algorithms.risk_aggregators.eqrm import EQRM
from envariant.algorithms.risk_aggregators.group_dro import GroupDRO
from envariant.algorithms.risk_aggregators.mean import MeanRisk, PooledMean
from envariant.algorithms.risk_aggregators.mm_rex import MMREx
from envariant.algorithms.risk_aggregators.sum import SumRisk
from envariant.algorithms.risk_aggregators.worst import WorstCaseRisk
from envariant.algorithms.training_steps.adrmx import ADRMX
from envariant.algorithms.training_steps.arm import ARM
from envariant.algorithms.training_steps.dann import DANN
from envariant.algorithms.training_steps.erm_plus import ERMPlus
from envariant.algorithms.training_steps.fish import Fish
from envariant.algorithms.training_steps.miro import MIRO
from envariant.algorithms.training_steps.mixup import Mixup
from envariant.algorithms.training_steps.mldg import MLDG
from envariant.algorithms.training_steps.mtl import MTL
from envariant.algorithms.training_steps.rsc import RSC
from envariant.algorithms.training_steps.sagnet import SagNet
from envariant.algorithms.training_steps.transfer import Transfer
from envariant.algorithms.training_steps.trm import TRM
from envariant.algorithms.training_steps.urm import URM

__all__ = [
    "ADRMX",
    "ARM",
    "CAD",
    "CORAL",
    "DANN",
    "EIIL",
    "EQRM",
    "IGA",
    "IRM",
    "MIRO",
    "MLDG",
    "MMD",
    "MTL",
    "RDM",
    "RECIPES",
    "RSC",
    "TRM",
    "URM",
    "Algorithm",
    "AndMask",
    "CLOvE",
    "CausIRL",
    "Composition",
    "ERMPlus",
    "EnvironmentInference",
    "Fish",
    "Fishr",
    "GradientAggregator",
    "GradientPenalty",
    "GroupDRO",
    "Hyperparameter",
    "InformationBottleneck",
    "LossVariance",
    "MMREx",
    "MeanGradient",
    "MeanRisk",
    "Mixup",
    "Model",
    "PCGrad",
    "Part",
    "Penalty",
    "PooledMean",
    "Recipe",
    "RiskAggregator",
    "SagNet",
    "SandMask",
    "SelfReg",
    "SpectralDecoupling",
    "SumRisk",
    "TrainContext",
    "TrainingStep",
    "Transfer",
    "VREx",
    "WorstCaseRisk",
    "all_recipes",
    "as_algorithm",
    "compose",
    "identity",
    "recipe",
    "rescale",
    "rescaled_step",
    "resolve_schedules",
    "settings_of",
    "terms",
]
