"""What makes unlearning hard, and RUM: models, scores, algorithms and metrics.

Start with the notebooks, or with the five lines of the README. The names here are those that most people need. All
others are in the submodules, e.g. `rumlib.metrics.similarity`; studies are in `rumlib.lab`.
"""

import importlib
import warnings

from rumlib.algorithms.base import Algorithm, Keep, Retrain, xent
from rumlib.algorithms.distill import Scrub
from rumlib.algorithms.gradient import Finetune, L1Sparse, NegGrad, NegGradPlus
from rumlib.algorithms.influence import InfluenceUnlearning
from rumlib.algorithms.perturb import RandomK, RandomTopK, TopK
from rumlib.algorithms.projection import ClassProjection
from rumlib.algorithms.relabel import RandomLabel, SalUn
from rumlib.choose import AutoRUM, Memorized
from rumlib.data import Examples
from rumlib.datasets import load
from rumlib.metrics import evaluate, svc_mia, tow, tow_from_accuracies, tow_mia
from rumlib.proxies import proxy
from rumlib.rum import RUM, Refine, Shuffled
from rumlib.scores import Score, entanglement, memorization, memorization_from, mmd
from rumlib.train import Recipe, accuracy, features, fit, predict

__all__ = ["RUM", "Algorithm", "AutoRUM", "ClassProjection", "Examples", "Finetune", "InfluenceUnlearning", "Keep",
           "L1Sparse", "Memorized", "NegGrad", "NegGradPlus", "RandomK", "RandomLabel", "RandomTopK", "Recipe",
           "Refine", "Retrain", "SalUn", "Score", "Scrub", "Shuffled", "TopK", "accuracy", "entanglement", "evaluate",
           "features", "fit", "load", "memorization", "memorization_from", "mmd", "predict", "proxy", "summarise",
           "svc_mia", "tow", "tow_from_accuracies", "tow_mia", "xent"]

# Imported when they are first asked for: `import rumlib` needs neither pandas nor matplotlib nor the lab for itself.
SUBMODULES = ("lab", "plots", "spdgan", "stats")

# Names that were here until version 0.1, by their new home. They still work, with a warning, for one release.
MOVED = {name: home for home, names in {
    "algorithms": "BadTeacher BoundaryExpand BoundaryShrink Fisher LastLayers SSD UNSIR layers_reached separability",
    "choose": "Calibrated HeldOut JensenShannon",
    "data": "label_hash",
    "datasets": "forget_ids from_dataset gaussians",
    "ensemble": "fit_many",
    "lab": "Card Cell ForgetSet Profile Study profile tuned vary",
    "metrics": "acceleration accuracies analytic_acceleration attack_feature class_accuracies class_mia confusion "
               "disagreement disagreements flops forgetting_rate forgetting_rate_calibrated forgetting_rate_mia "
               "mia_gap overlap retention similarity ulira weight_cosine weight_distance",
    "models": "build describe mlp resnet18 resnet50 small_resnet vgg16_bn vit_tiny",
    "proxies": "Curvature PROXIES Trace",
    "rum": "stream",
    "scores": "bands matched neighbours",
    "spdgan": "Degree SPDGAN Shift probes unlearning_degree",
    "stats": "contrast tow_between",
    "train": "cost",
}.items() for name in names.split()}


def __getattr__(name: str):
    if name in SUBMODULES:
        return importlib.import_module(f"rumlib.{name}")
    if name == "summarise":
        return importlib.import_module("rumlib.stats").summarise
    if name not in MOVED:
        raise AttributeError(f"module 'rumlib' has no attribute {name!r}")
    home = f"rumlib.{MOVED[name]}"
    warnings.warn(f"rumlib.{name} is now {home}.{name}; the old name goes away with the next release",
                  DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *SUBMODULES})
