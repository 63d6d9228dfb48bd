"""What makes unlearning hard, and RUM: models, scores, algorithms and metrics.

Start with the notebooks, or with the five lines of the README. The names here are those that most people need. All
others are in the submodules, e.g. `rumlib.metrics.similarity`; studies are in `rumlib.lab`.
"""

import importlib
import warnings


def _homes(names: dict[str, str]) -> dict[str, str]:
    return {name: home for home, listed in names.items() for name in listed.split()}


NAMES = _homes({
    "algorithms": "Algorithm ClassProjection Finetune InfluenceUnlearning Keep L1Sparse NegGrad NegGradPlus RandomK "
                  "RandomLabel RandomTopK Retrain SalUn Scrub TopK xent",
    "choose": "AutoRUM Memorized",
    "data": "Examples",
    "datasets": "load",
    "metrics": "evaluate svc_mia tow tow_from_accuracies tow_mia",
    "proxies": "proxy",
    "rum": "RUM Refine Shuffled",
    "scores": "Score entanglement memorization memorization_from mmd",
    "stats": "contrast summarise",
    "train": "Recipe accuracy features fit predict",
})
# Names that were here until version 0.1, by their new home. They still work, with a warning, for one release.
MOVED = _homes({
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
    "stats": "tow_between",
    "train": "cost",
})
SUBMODULES = {*NAMES.values(), *MOVED.values(), "attacks", "audits", "device", "graphs", "plots"}
__all__ = sorted(NAMES)


def __getattr__(name: str):
    """Imported when it is first asked for: what a study has done can be looked at without waiting for torch."""
    if name in SUBMODULES:
        return importlib.import_module(f"rumlib.{name}")
    home = f"rumlib.{NAMES.get(name) or MOVED.get(name)}"
    if name in MOVED:
        warnings.warn(f"rumlib.{name} is now {home}.{name}; the old name goes away with the next release",
                      DeprecationWarning, stacklevel=2)
    elif name not in NAMES:
        raise AttributeError(f"module 'rumlib' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *NAMES, *SUBMODULES})
