"""Unlearning that moves the decision boundary over the forget set: BoundaryShrink, BoundaryExpand."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rumlib.algorithms.base import Algorithm, check_movable, count, xent
from rumlib.data import Examples, as_input
from rumlib.graphs import recordable
from rumlib.train import predict, seeded


@dataclass(frozen=True)
class Boundary(Algorithm):
    """Fine-tuning on the forget set alone, under the labels that `prepare` gives it: CE_f of those labels."""

    seed_name = "Boundary"

    def batches(self, forget, retain, epoch):
        for batch in epoch.shuffled(Examples(forget.x, epoch.prepared, forget.index)):
            yield batch, None

    def steps(self, forget, retain):
        return self.epochs * count(forget, self.batch_size)

    @recordable
    def loss(self, model, original, relabelled, _):
        return xent(model, relabelled)


@dataclass(frozen=True)
class BoundaryShrink(Boundary):
    """Give each forgotten example to the wrong class nearest to it.

    That is the wrong class most probable after one signed gradient step that raises the loss of the original model.

    bound  size of that step, in units of the images, at least 0

    Source: Chen et al., CVPR 2023 (arXiv 2303.11570).
    """

    bound: float = 0.1

    seed_name, rules = "BoundaryShrink", dict(bound="[0, inf)")

    def prepare(self, original, forget, retain):
        check_movable(self, forget)
        return nearest_wrong(original, forget, self.bound)


@dataclass(frozen=True)
class BoundaryExpand(Boundary):
    """Give the forget set to a new class, learned as one more output, and take that output away again.

    Raises ValueError where the last linear layer is not the one that gives the logits.

    Source: Chen et al., CVPR 2023 (arXiv 2303.11570).
    """

    seed_name = "BoundaryExpand"

    def unlearn(self, model, forget, retain, *, seed, only=None, start=None):
        if only is not None:
            raise ValueError("BoundaryExpand adds weights, so that a mask over the weights of the model cannot hold")
        name, head = output_layer(model, classes=predict(model, forget[:2]).shape[1])
        with seeded(seed, "new class"):
            wider = nn.Linear(head.in_features, head.out_features + 1, bias=head.bias is not None).to(head.weight)
        expanded = copy.deepcopy(model)
        expanded.set_submodule(name, wider)
        copy_rows(head, wider)
        learned = super().unlearn(expanded, forget, retain, seed=seed)
        unlearned = copy.deepcopy(model).eval()
        unlearned.load_state_dict({key: value for key, value in learned.state_dict().items()
                                   if not key.startswith(f"{name}.")}, strict=False)
        copy_rows(learned.get_submodule(name), unlearned.get_submodule(name))
        return unlearned

    def prepare(self, original, forget, retain):
        return torch.full_like(forget.y, predict(original, forget[:2]).shape[1] - 1)


def nearest_wrong(model: nn.Module, examples: Examples, bound: float) -> Tensor:
    """(n,) for each example the wrong class that `model`, in eval mode, finds most probable within reach of `bound`."""
    weight = next(model.parameters())
    found = []
    for x, y in zip(examples.x.split(256), examples.y.split(256), strict=True):
        x, y = as_input(x, weight).detach().requires_grad_(True), y.to(weight.device)
        slope, = torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)
        with torch.no_grad():
            others = model(x + bound * slope.sign()).scatter(1, y[:, None], -torch.inf)
        found.append(others.argmax(1))
    return torch.cat(found).cpu()


def output_layer(model: nn.Module, classes: int) -> tuple[str, nn.Linear]:
    """The name and the last linear layer, which must give as many outputs as there are classes."""
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear or linear[-1][1].out_features != classes or not linear[-1][0]:
        raise ValueError("the model must end in an nn.Linear layer, inside another module, that gives the logits")
    return linear[-1]


@torch.no_grad()
def copy_rows(source: nn.Linear, target: nn.Linear) -> None:
    """The outputs that both layers have, from one to the other."""
    rows = min(source.out_features, target.out_features)
    for a, b in zip(source.parameters(), target.parameters(), strict=True):
        b[:rows] = a[:rows]
        b.requires_grad_(a.requires_grad)
