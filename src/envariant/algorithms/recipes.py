"""Recipes of all built-in algorithms: name, one-sentence summary, and parts with default values.

Hyperparameters are the fields of the parts and are not repeated here. `composing.py` combines recipes.
"""

from collections.abc import Mapping

from envariant.algorithms.composition import Composition
from envariant.algorithms.environment_inference.eiil import EIIL
from envariant.algorithms.gradient_aggregators.and_mask import AndMask
from envariant.algorithms.gradient_aggregators.pcgrad import PCGrad
from envariant.algorithms.gradient_aggregators.sand_mask import SandMask
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
from envariant.algorithms.recipe_base import Recipe
from envariant.algorithms.risk_aggregators.eqrm import EQRM
from envariant.algorithms.risk_aggregators.group_dro import GroupDRO
from envariant.algorithms.risk_aggregators.mm_rex import MMREx
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

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("erm", "Minimize the mean risk over environments.", Composition()),
        Recipe(
            "groupdro",
            "Minimize a weighted risk in which the weights of high-risk environments gradually grow.",
            Composition(GroupDRO()),
        ),
        Recipe("eqrm", "Minimize a quantile of the risks over environments.", Composition(EQRM())),
        Recipe(
            "mm-rex",
            "Minimize the worst risk over affine combinations of environments.",
            Composition(MMREx(), normalize_loss=True),
        ),
        Recipe(
            "risk-interpolation",
            "Minimize the worst risk over mixtures of environments.",
            Composition(WorstCaseRisk()),
        ),
        Recipe(
            "irm",
            "Learn features for which one classifier is optimal in every environment.",
            Composition(penalties=(IRM(),), normalize_loss=True),
        ),
        Recipe(
            "vrex",
            "Penalize differences between the risks of environments.",
            Composition(penalties=(VREx(),), normalize_loss=True),
        ),
        Recipe(
            "coral",
            "Match the mean and covariance of features across environments.",
            Composition(penalties=(CORAL(),)),
        ),
        Recipe(
            "mmd",
            "Match the distribution of features across environments, measured by kernels.",
            Composition(penalties=(MMD(),)),
        ),
        Recipe(
            "causirl-coral",
            "Match features between two random mixtures of environments, using CORAL's distance.",
            Composition(penalties=(CausIRL(distance="coral"),)),
        ),
        Recipe(
            "causirl-mmd",
            "Match features between two random mixtures of environments, using MMD's kernels.",
            Composition(penalties=(CausIRL(distance="mmd"),)),
        ),
        Recipe(
            "sd",
            "Penalize large logits, so that one strong feature does not suppress the others.",
            Composition(penalties=(SpectralDecoupling(),)),
        ),
        Recipe(
            "ib-erm",
            "Penalize the variance of features: an information bottleneck.",
            Composition(penalties=(InformationBottleneck(),)),
        ),
        Recipe(
            "ib-irm",
            "Combine the IRM penalty with an information bottleneck.",
            Composition(penalties=(IRM(), InformationBottleneck()), normalize_loss=True),
        ),
        Recipe(
            "iga",
            "Penalize differences between the gradients of environments.",
            Composition(penalties=(IGA(),)),
        ),
        Recipe(
            "fishr",
            "Match the variance of per-row gradients across environments.",
            Composition(penalties=(Fishr(),), normalize_loss=True),
        ),
        Recipe(
            "rdm",
            "Match the loss distribution of the worst environment to that of all rows.",
            Composition(penalties=(RDM(), LossVariance())),
        ),
        Recipe(
            "clove",
            "Penalize miscalibration in every environment.",
            Composition(penalties=(CLOvE(),), normalize_loss=True),
        ),
        Recipe(
            "cad",
            "Learn features that do not identify the environment, by a contrastive loss.",
            Composition(penalties=(CAD(),)),
        ),
        Recipe(
            "condcad",
            "Learn features that do not identify the environment among rows of one class (contrastive loss).",
            Composition(penalties=(CAD(conditional=True),)),
        ),
        Recipe(
            "selfreg",
            "Make predictions and features similar for rows of the same class, by a contrastive loss.",
            Composition(penalties=(SelfReg(),)),
        ),
        Recipe(
            "and-mask",
            "Update only the weights for which the signs of all environments' gradients agree.",
            Composition(gradient_aggregator=AndMask()),
        ),
        Recipe(
            "sand-mask",
            "Update weights in proportion to the agreement of the environments' gradients in sign and size.",
            Composition(gradient_aggregator=SandMask()),
        ),
        Recipe(
            "pcgrad",
            "Remove from each environment's gradient the components that conflict with other environments.",
            Composition(gradient_aggregator=PCGrad()),
        ),
        Recipe(
            "mixup",
            "Train on convex combinations of rows from two environments.",
            Composition(training_step=Mixup()),
        ),
        Recipe(
            "rsc",
            "Mask, during training, the features that a prediction depends on most.",
            Composition(training_step=RSC()),
        ),
        Recipe(
            "mldg",
            "Take steps on some environments that also reduce the risk of the other environments.",
            Composition(training_step=MLDG()),
        ),
        Recipe(
            "fish",
            "Align the gradients of environments by sequential steps on one environment after another.",
            Composition(training_step=Fish()),
        ),
        Recipe(
            "dann",
            "Learn features from which a discriminator cannot predict the environment.",
            Composition(training_step=DANN()),
        ),
        Recipe(
            "cdann",
            "Learn features from which a discriminator cannot predict the environment given the class.",
            Composition(training_step=DANN(conditional=True)),
        ),
        Recipe(
            "sagnet",
            "Predict the class from features with a random style, and make style uninformative.",
            Composition(training_step=SagNet()),
        ),
        Recipe(
            "transfer",
            "Learn features for which every head near the current one has similar risks in all environments.",
            Composition(training_step=Transfer()),
        ),
        Recipe(
            "mtl",
            "Give the head the mean features of the row's environment as context.",
            Composition(training_step=MTL()),
        ),
        Recipe(
            "arm",
            "Give the model a learned summary of the row's environment as context.",
            Composition(training_step=ARM()),
        ),
        Recipe(
            "trm",
            "Learn features for which a head fitted in one environment transfers to the others.",
            Composition(training_step=TRM()),
        ),
        Recipe(
            "adrmx",
            "Subtract learned features of the environment, so that a discriminator cannot predict it.",
            Composition(training_step=ADRMX()),
        ),
        Recipe(
            "erm++",
            "Minimize the mean risk; train only the head at first, and average the weights over steps.",
            Composition(training_step=ERMPlus()),
        ),
        Recipe(
            "urm",
            "Learn features that a discriminator cannot distinguish from uniform random numbers.",
            Composition(training_step=URM()),
        ),
        Recipe(
            "miro",
            "Fine-tune so that the pretrained features can still be predicted from the fine-tuned features.",
            Composition(training_step=MIRO()),
        ),
        Recipe(
            "eiil",
            "Apply IRM to two environments that are inferred from the errors of a reference model.",
            Composition(penalties=(IRM(),), normalize_loss=True, environment_inference=EIIL()),
        ),
    )
}
