"""Training rules: parts (weightings, penalties, gradient combinations), compositions, named recipes."""

from envariant.algorithms.composition import Composition
from envariant.algorithms.contract import (
    Algorithm,
    Combination,
    GradientPenalty,
    Inference,
    Model,
    Part,
    Penalty,
    Procedure,
    Setting,
    Weighting,
)
from envariant.algorithms.gradients.and_mask import AndMask
from envariant.algorithms.gradients.mean import MeanGradient
from envariant.algorithms.gradients.pcgrad import PCGrad
from envariant.algorithms.gradients.sand_mask import SandMask
from envariant.algorithms.inference.eiil import EIIL
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
from envariant.algorithms.procedures.adrmx import ADRMX
from envariant.algorithms.procedures.arm import ARM
from envariant.algorithms.procedures.dann import DANN
from envariant.algorithms.procedures.erm_plus import ERMPlus
from envariant.algorithms.procedures.fish import Fish
from envariant.algorithms.procedures.mixup import Mixup
from envariant.algorithms.procedures.mldg import MLDG
from envariant.algorithms.procedures.mtl import MTL
from envariant.algorithms.procedures.rsc import RSC
from envariant.algorithms.procedures.sagnet import SagNet
from envariant.algorithms.procedures.transfer import Transfer
from envariant.algorithms.procedures.trm import TRM
from envariant.algorithms.procedures.urm import URM
from envariant.algorithms.recipes import RECIPES, Hyperparameter, Recipe, all_recipes, recipe, settings_of
from envariant.algorithms.weightings.eqrm import EQRM
from envariant.algorithms.weightings.group_dro import GroupDRO
from envariant.algorithms.weightings.mean import Mean
from envariant.algorithms.weightings.mm_rex import MMREx
from envariant.algorithms.weightings.sum import Sum
from envariant.algorithms.weightings.worst import Worst

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
    "Combination",
    "Composition",
    "ERMPlus",
    "Fish",
    "Fishr",
    "GradientPenalty",
    "GroupDRO",
    "Hyperparameter",
    "Inference",
    "InformationBottleneck",
    "LossVariance",
    "MMREx",
    "Mean",
    "MeanGradient",
    "Mixup",
    "Model",
    "PCGrad",
    "Part",
    "Penalty",
    "Procedure",
    "Recipe",
    "SagNet",
    "SandMask",
    "SelfReg",
    "Setting",
    "SpectralDecoupling",
    "Sum",
    "Transfer",
    "VREx",
    "Weighting",
    "Worst",
    "all_recipes",
    "recipe",
    "settings_of",
]
