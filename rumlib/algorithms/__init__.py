"""Everything that unlearns, one small object per method, under one contract (see `rumlib.algorithms.base`)."""

from rumlib.algorithms.base import Algorithm, Keep, Retrain, xent
from rumlib.algorithms.distill import Scrub
from rumlib.algorithms.gradient import Finetune, L1Sparse, NegGrad, NegGradPlus
from rumlib.algorithms.relabel import RandomLabel, SalUn

__all__ = ["Algorithm", "Finetune", "Keep", "L1Sparse", "NegGrad", "NegGradPlus", "RandomLabel", "Retrain", "SalUn",
           "Scrub", "xent"]
