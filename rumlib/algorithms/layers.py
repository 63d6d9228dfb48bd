"""Unlearning in the last layers alone: LastLayers. How a model is divided into layers, and made new."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from rumlib.algorithms.gradient import Finetune
from rumlib.graphs import recordable
from rumlib.train import seeded

NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class LastLayers(Finetune):
    """Train the last k layers on the retain set: from where they are ("catastrophically forgetting", CF-k), or with
    `exact` from new weights ("exact unlearning", EU-k). All else stays as it is, BatchNorm statistics included.

    k      how many layers are trained, at least 1. A layer is a module with weights of its own, together with the
           normalisation after it
    exact  whether they begin from new weights

    Raises ValueError for a model with fewer layers.

    Source: Goel et al., 2022 (arXiv 2201.06640).
    """

    k: int = 1
    exact: bool = False

    seed_name, rules = "LastLayers", dict(k="int [1, inf)")

    def unlearn(self, model, forget, retain, *, seed, only=None, start=None):
        if self.k > len(layers(model)):
            raise ValueError(f"k={self.k} layers were to be trained; the model has {len(layers(model))}")
        student = copy.deepcopy(model)
        divided = layers(student)
        for layer in divided[:-self.k]:
            for module in layer:
                for p in module.parameters(recurse=False):
                    p.requires_grad_(False)
        if self.exact:
            with seeded(seed, "new last layers"):
                for layer in divided[-self.k:]:
                    reset(layer)
        unlearned = super().unlearn(student, forget, retain, seed=seed, only=only)
        for new, old in zip(unlearned.parameters(), model.parameters(), strict=True):
            new.requires_grad_(old.requires_grad)
        return unlearned

    @recordable
    def loss(self, model, original, forget, retain):
        for layer in layers(model)[:-self.k]:
            for module in layer:
                module.eval()                                # frozen statistics: the loop puts all in train mode
        return super().loss(model, original, forget, retain)


def layers(model: nn.Module) -> list[list[nn.Module]]:
    """The modules that hold weights, first to last as they were defined, each with the normalisations that follow."""
    found: list[list[nn.Module]] = []
    for module in model.modules():
        if next(module.parameters(recurse=False), None) is None:
            continue
        if found and isinstance(module, NORMS):
            found[-1].append(module)
        else:
            found.append([module])
    return found


def reset(modules: Iterable[nn.Module]) -> None:
    """Draw their own weights anew, in place, from torch's global random state. Raises TypeError where that is not known
    how."""
    for module in modules:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        elif next(module.parameters(recurse=False), None) is not None:
            raise TypeError(f"{type(module).__name__} has weights and no reset_parameters() that would draw them anew")
