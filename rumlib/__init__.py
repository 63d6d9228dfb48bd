"""What makes unlearning hard, and RUM: models, scores, algorithms, metrics and studies.

Start with the notebooks, or with the five lines of the README. The order here is the path that data takes.
"""

from rumlib.algorithms import (
    SSD,
    UNSIR,
    Algorithm,
    BadTeacher,
    BoundaryExpand,
    BoundaryShrink,
    ClassProjection,
    Finetune,
    Fisher,
    InfluenceUnlearning,
    Keep,
    L1Sparse,
    LastLayers,
    NegGrad,
    NegGradPlus,
    RandomLabel,
    Retrain,
    SalUn,
    Scrub,
    separability,
    xent,
)
from rumlib.choose import AutoRUM, Calibrated, HeldOut, JensenShannon, Memorized
from rumlib.data import Examples, gaussians, label_hash, load
from rumlib.metrics import (
    acceleration,
    accuracies,
    attack_feature,
    class_accuracies,
    class_mia,
    confusion,
    disagreement,
    disagreements,
    evaluate,
    flops,
    mia_gap,
    svc_mia,
    tow,
    tow_from_accuracies,
    tow_mia,
    ulira,
    weight_cosine,
    weight_distance,
)
from rumlib.models import build, describe, mlp, resnet18, small_resnet, vgg16_bn, vit_tiny
from rumlib.profiles import Profile, profile
from rumlib.rows import contrast, summarise, tow_between
from rumlib.rum import RUM, Refine, Shuffled, stream
from rumlib.scores import (
    PROXIES,
    Curvature,
    Score,
    Trace,
    bands,
    entanglement,
    matched,
    memorization,
    memorization_from,
    mmd,
    neighbours,
    proxy,
)
from rumlib.study import Cell, ForgetSet, Study, vary
from rumlib.train import Recipe, accuracy, cost, features, fit, fit_many, predict
from rumlib.tune import tuned

__all__ = ["PROXIES", "RUM", "SSD", "UNSIR", "Algorithm", "AutoRUM", "BadTeacher", "BoundaryExpand", "BoundaryShrink",
           "Calibrated", "Cell", "ClassProjection", "Curvature", "Examples", "Finetune", "Fisher", "ForgetSet",
           "HeldOut", "InfluenceUnlearning", "JensenShannon", "Keep", "L1Sparse", "LastLayers", "Memorized",
           "NegGrad", "NegGradPlus", "Profile", "RandomLabel", "Recipe", "Refine", "Retrain", "SalUn", "Score",
           "Scrub", "Shuffled", "Study", "Trace", "acceleration", "accuracies", "accuracy", "attack_feature", "bands",
           "build", "class_accuracies", "class_mia", "confusion", "contrast", "cost", "describe", "disagreement",
           "disagreements", "entanglement", "evaluate", "features", "fit", "fit_many", "flops", "gaussians",
           "label_hash", "load", "matched", "memorization", "memorization_from", "mia_gap", "mlp", "mmd",
           "neighbours", "predict", "profile", "proxy", "resnet18", "separability", "small_resnet", "stream",
           "summarise", "svc_mia", "tow", "tow_between", "tow_from_accuracies", "tow_mia", "tuned", "ulira", "vary",
           "vgg16_bn", "vit_tiny", "weight_cosine", "weight_distance", "xent"]
