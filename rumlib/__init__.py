"""What makes unlearning hard, and RUM: models, scores, algorithms, metrics and studies.

Start with the notebooks, or with the five lines of the README. The order here is the path that data takes.
"""

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
from rumlib.choose import AutoRUM, Calibrated, HeldOut, JensenShannon, Memorized
from rumlib.data import Examples, label_hash
from rumlib.datasets import forget_ids, from_dataset, gaussians, load
from rumlib.ensemble import fit_many
from rumlib.lab.card import Card
from rumlib.lab.computations import ForgetSet
from rumlib.lab.profiles import Profile, profile
from rumlib.lab.study import Study
from rumlib.lab.tables import Cell
from rumlib.lab.tuning import tuned, vary
from rumlib.metrics import (
    acceleration,
    accuracies,
    analytic_acceleration,
    attack_feature,
    class_accuracies,
    class_mia,
    confusion,
    disagreement,
    disagreements,
    evaluate,
    flops,
    forgetting_rate,
    forgetting_rate_calibrated,
    forgetting_rate_mia,
    mia_gap,
    overlap,
    retention,
    similarity,
    svc_mia,
    tow,
    tow_from_accuracies,
    tow_mia,
    ulira,
    weight_cosine,
    weight_distance,
)
from rumlib.models import build, describe, mlp, resnet18, resnet50, small_resnet, vgg16_bn, vit_tiny
from rumlib.proxies import PROXIES, Curvature, Trace, proxy
from rumlib.rum import RUM, Refine, Shuffled, stream
from rumlib.scores import Score, bands, entanglement, matched, memorization, memorization_from, mmd, neighbours
from rumlib.spdgan import SPDGAN, Degree, Shift, probes, unlearning_degree
from rumlib.stats import contrast, summarise, tow_between
from rumlib.train import Recipe, accuracy, cost, features, fit, predict

__all__ = ["PROXIES", "RUM", "SPDGAN", "SSD", "UNSIR", "Algorithm", "AutoRUM", "BadTeacher", "BoundaryExpand",
           "BoundaryShrink", "Calibrated", "Card", "Cell", "ClassProjection", "Curvature", "Degree", "Examples",
           "Finetune", "Fisher", "ForgetSet", "HeldOut", "InfluenceUnlearning", "JensenShannon", "Keep", "L1Sparse",
           "LastLayers", "Memorized", "NegGrad", "NegGradPlus", "Profile", "RandomK", "RandomLabel", "RandomTopK",
           "Recipe", "Refine", "Retrain", "SalUn", "Score", "Scrub", "Shift", "Shuffled", "Study", "TopK", "Trace",
           "acceleration", "accuracies", "accuracy", "analytic_acceleration", "attack_feature", "bands", "build",
           "class_accuracies", "class_mia", "confusion", "contrast", "cost", "describe", "disagreement",
           "disagreements", "entanglement", "evaluate", "features", "fit", "fit_many", "flops", "forget_ids",
           "forgetting_rate", "forgetting_rate_calibrated", "forgetting_rate_mia", "from_dataset", "gaussians",
           "label_hash", "layers_reached", "load", "matched", "memorization", "memorization_from", "mia_gap", "mlp",
           "mmd", "neighbours", "overlap", "predict", "probes", "profile", "proxy", "resnet18", "resnet50",
           "retention", "separability", "similarity", "small_resnet", "stream", "summarise", "svc_mia", "tow",
           "tow_between", "tow_from_accuracies", "tow_mia", "tuned", "ulira", "unlearning_degree", "vary", "vgg16_bn",
           "vit_tiny", "weight_cosine", "weight_distance", "xent"]
