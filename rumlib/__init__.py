"""What makes unlearning hard, and RUM: models, scores, algorithms, metrics and studies.

Start with the notebooks, or with the five lines of the README. The order here is the path that data takes.
"""

from rumlib.algorithms import (
    Algorithm,
    Finetune,
    Keep,
    L1Sparse,
    NegGrad,
    NegGradPlus,
    RandomLabel,
    Retrain,
    SalUn,
    Scrub,
    xent,
)
from rumlib.data import Examples, load
from rumlib.metrics import disagreement, evaluate, svc_mia, tow, tow_from_accuracies, tow_mia
from rumlib.models import build, describe, mlp, resnet18, small_resnet
from rumlib.profiles import Profile, profile
from rumlib.rum import RUM, Refine, Shuffled
from rumlib.scores import Score, Trace, bands, entanglement, memorization, memorization_from, proxy
from rumlib.study import Cell, ForgetSet, Study, contrast, summarise, tow_between, vary
from rumlib.train import Recipe, accuracy, cost, features, fit, fit_many, predict

__all__ = ["RUM", "Algorithm", "Cell", "Examples", "Finetune", "ForgetSet", "Keep", "L1Sparse", "NegGrad",
           "NegGradPlus", "Profile", "RandomLabel", "Recipe", "Refine", "Retrain", "SalUn", "Score", "Scrub",
           "Shuffled", "Study", "Trace", "accuracy", "bands", "build", "contrast", "cost", "describe", "disagreement",
           "entanglement", "evaluate", "features", "fit", "fit_many", "load", "memorization", "memorization_from",
           "mlp", "predict", "profile", "proxy", "resnet18", "small_resnet", "summarise", "svc_mia", "tow",
           "tow_between", "tow_from_accuracies", "tow_mia", "vary", "xent"]
