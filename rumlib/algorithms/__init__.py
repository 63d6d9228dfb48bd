"""Everything that unlearns, one small object per method, under one contract (see `rumlib.algorithms.base`)."""

from rumlib.algorithms.base import Algorithm, Keep, Retrain, xent
from rumlib.algorithms.boundary import BoundaryExpand, BoundaryShrink
from rumlib.algorithms.dampen import SSD, Fisher
from rumlib.algorithms.distill import Scrub
from rumlib.algorithms.gradient import Finetune, L1Sparse, NegGrad, NegGradPlus
from rumlib.algorithms.influence import InfluenceUnlearning
from rumlib.algorithms.layers import LastLayers
from rumlib.algorithms.mislead import UNSIR, BadTeacher
from rumlib.algorithms.perturb import RandomK, RandomTopK, TopK, layers_reached
from rumlib.algorithms.projection import ClassProjection, separability
from rumlib.algorithms.relabel import RandomLabel, SalUn

__all__ = ["SSD", "UNSIR", "Algorithm", "BadTeacher", "BoundaryExpand", "BoundaryShrink", "ClassProjection",
           "Finetune", "Fisher", "InfluenceUnlearning", "Keep", "L1Sparse", "LastLayers", "NegGrad", "NegGradPlus",
           "RandomK", "RandomLabel", "RandomTopK", "Retrain", "SalUn", "Scrub", "TopK", "layers_reached",
           "separability", "xent"]
