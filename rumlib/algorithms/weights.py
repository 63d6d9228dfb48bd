"""Weights as named tensors, and gradients of many single examples at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from rumlib.data import Examples, as_input
from rumlib.train import count_examples

Weights = dict[str, Tensor]


def slopes(model: nn.Module, examples: Examples, directions: tuple[Tensor, ...], chunk: int) -> Tensor:
    """(n, directions): the derivative of each example's loss along each direction (weights flattened), exactly, by
    forward differentiation: no gradient of a single example is ever stored."""
    parts = [unflatten(model, direction) for direction in directions]
    along = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}    # (directions, *shape)
    found = []
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)       # torch's own, about torch.jit, at its first jvp
        warnings.filterwarnings("ignore", "There is a performance drop")      # of pooling, not worth a word
        for x, y in chunks(model, examples, chunk):
            def slope(direction, x=x, y=y):
                return jvp(lambda weights: losses(model, weights, x, y), (weights_of(model),), (direction,))[1]

            found.append(vmap(slope)(along).T)
            count_examples(len(directions) * len(y))
    return torch.cat(found)


def weighted_gradient(model: nn.Module, examples: Examples, weights: Tensor, chunk: int) -> Tensor:
    """Flat sum over the examples of weight (n,) times gradient of the loss; memory: two sets of weights."""
    learned = list(trainable(model).values())
    total = torch.zeros(sum(p.numel() for p in learned), dtype=learned[0].dtype, device=learned[0].device)
    parts = unflatten(model, total).values()                 # views
    for (x, y), w in zip(chunks(model, examples, chunk), weights.split(chunk), strict=True):
        with torch.enable_grad():
            each = F.cross_entropy(model(x), y, reduction="none")
            loss = each @ w.to(each)
        for part, g in zip(parts, torch.autograd.grad(loss, learned, materialize_grads=True), strict=True):
            part += g                                        # zeros for a layer that the loss does not reach
        count_examples(len(y))
    return total


def mean_gradient(model: nn.Module, examples: Examples, chunk: int) -> Tensor:
    """Flat mean of the gradients of all examples."""
    return weighted_gradient(model, examples, torch.full((len(examples),), 1 / len(examples)), chunk)


def squared_gradients(model: nn.Module, examples: Examples, chunk: int, *,
                      of: Callable[[Tensor], Tensor] = Tensor.square) -> Weights:
    """Name -> mean over the examples of the squared gradient of each one's loss, or of another function `of` it;
    memory: `chunk` sets of weights."""
    def loss(weights, x, y):
        return losses(model, weights, x[None], y[None])[0]

    total = {name: torch.zeros_like(p) for name, p in weights_of(model).items()}
    for x, y in chunks(model, examples, chunk):
        for name, g in vmap(grad(loss), (None, 0, 0))(weights_of(model), x, y).items():   # (chunk, *shape)
            total[name] += of(g).sum(0) / len(examples)
        count_examples(len(y))
    return total


def losses(model: nn.Module, weights: Weights, x: Tensor, y: Tensor) -> Tensor:
    """(n,) cross-entropy of each example with these weights in place of the model's; the model is in eval mode."""
    return F.cross_entropy(functional_call(model, weights, (x,)), y, reduction="none")


def chunks(model: nn.Module, examples: Examples, chunk: int):
    weight = next(model.parameters())
    for x, y in zip(examples.x.split(chunk), examples.y.split(chunk), strict=True):
        yield as_input(x, weight), y.to(weight.device)


def trainable(model: nn.Module) -> Weights:
    """Name -> parameter, without those that were frozen."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def weights_of(model: nn.Module) -> Weights:
    return {name: p.detach() for name, p in trainable(model).items()}


def unflatten(model: nn.Module, flat: Tensor) -> Weights:
    """A flat vector as tensors of the shapes of the weights."""
    weights = weights_of(model)
    parts = flat.split([p.numel() for p in weights.values()])
    return {name: part.view_as(p) for (name, p), part in zip(weights.items(), parts, strict=True)}
