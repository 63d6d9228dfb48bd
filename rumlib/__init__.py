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
    RandomK,
    RandomLabel,
    RandomTopK,
    Retrain,
    SalUn,
    Scrub,
    TopK,
    layers_reached,
    separability,
    xent,
)
from rumlib.card import Card, forget_ids
from rumlib.choose import AutoRUM, Calibrated, HeldOut, JensenShannon, Memorized
from rumlib.data import Examples, from_dataset, gaussians, label_hash, load
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
from rumlib.spdgan import SPDGAN, Degree, Shift, probes, unlearning_degree
from rumlib.study import Cell, ForgetSet, Study, vary
from rumlib.train import Recipe, accuracy, cost, features, fit, fit_many, predict
from rumlib.tune import tuned

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
