"""Small problems whose answers are known before anything is trained."""

from functools import partial
from types import SimpleNamespace

import torch
from torch import nn

import rumlib as rum

make_model = partial(rum.models.mlp, shape=(1, 4, 4), classes=3, hidden=(64,))
make_normed = partial(rum.models.small_resnet, shape=(1, 2, 2), classes=3, widths=(4, 8))  # its last BatchNorm sees 1x1
recipe = rum.Recipe(epochs=60, lr=0.1, batch_size=16, schedule="linear")


def blobs(n: int, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 1, 4, 4) whose bright row is their class, one of three, and the classes."""
    y = torch.arange(n) % 3
    x = torch.zeros(n, 1, 4, 4)
    x[torch.arange(n), 0, y] = 0.8
    return (x + 0.25 * torch.randn(x.shape, generator=random)).clamp(0, 1), y


def problem() -> SimpleNamespace:
    """Twelve mislabelled points are the forget set: learned by heart, and unknown to a model retrained without them."""
    random = torch.Generator().manual_seed(0)
    (x, y), unseen = blobs(123, random), blobs(90, random)
    wrong = torch.zeros(len(x), dtype=torch.bool)
    wrong[:108:9] = True
    train = rum.Examples(x, torch.where(wrong, (y + 1) % 3, y))
    forget, retain = train.split(wrong)
    model, oracle = (rum.fit(make_model, part, recipe, seed=0) for part in (train, retain))
    return SimpleNamespace(train=train, test=rum.Examples(*unseen), wrong=wrong, forget=forget, retain=retain,
                           model=model, oracle=oracle)


def tiny(examples: rum.Examples, n: int) -> rum.Examples:
    """The first n examples as 2x2 images."""
    return rum.Examples(examples.x[:n, :, :2, :2].contiguous(), examples.y[:n], examples.index[:n])


def echo(classes: int) -> nn.Module:
    """A model that gives back its input: examples hold the logits to test with."""
    model = nn.Linear(classes, classes, bias=False)
    nn.init.eye_(model.weight)
    return model.eval()


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two models have the same weights and buffers, bit by bit."""
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(value, theirs[name]) for name, value in ours.items())
