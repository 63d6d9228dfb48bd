"""How deep unlearning went: a generator that shifts the forget set slightly, and the unlearning degree on the result.

    shift = SPDGAN()(original, reference, forget, seed=0)    # trained on the forget set alone, then frozen
    shift.of(forget)                                         # Examples, no pixel changed by more than eps
    sets = probes([shift], {"forget": forget, "test": test, "retain": retain})       # clean, with noise, shifted
    asked = sets["shifted 0"]
    degree = unlearning_degree(original, unlearned, asked["forget"], asked["test"])
    degree.forget, degree.control, degree.adjusted           # the adjusted one is the difference

A model that has unlearned a random part of the data classifies it about as well as new images; shifted images are
meant to show what is left of it. A damaged model fails on them too, so a degree needs controls: the degree of the
retrained model (the ceiling), of other sets, of clean images, of noise of the same size, and of other generators.

Source: arXiv 2401.04385 (IEEE TKDE 2025). Only its abstract is verified: SPD-GAN subtly perturbs the data to be
unlearned, and the degree is the difference of performance on them before and after. The networks, losses and controls
are proposals of this project. The generator never sees an unlearned model; all models classify the same images.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import hypot, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from tqdm.auto import tqdm

from rumlib.data import Examples, as_input
from rumlib.device import as_seed, check_fields, check_values
from rumlib.train import Batch, check_compatible, correct, derive_seed, embed, features, predict, seeded, shuffled


@dataclass(frozen=True)
class SPDGAN:
    """Train a generator that shifts images by at most `eps` per pixel, and return it frozen: a `Shift`.

    A discriminator D minimises BCE(D(x), 1) + BCE(D(x'), 0), with x' the shifted x; the generator minimises

        BCE(D(x'), 1)                          subtle: D cannot tell
        + slight max(0, |x' - x| - tau)        slight: Euclidean norm, tau in units of the largest one, eps sqrt(pixels)
        + move max(0, m - |f(x') - f(x)|)      moved: f the mean over a batch of penultimate features of a reference
                                               model, m = margin times the spread of a class in them
        + keep CE(original(x'), y)             known to the original: what is measured is memorization

    with Adam. The defaults are this project's own. Raises ValueError for settings out of range, and when called for
    images that are no images in [0, 1] of at least 8x8; FloatingPointError if the generator diverges.
    """

    eps: float = 8 / 255
    epochs: int = 50
    lr: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    batch_size: int = 128
    width: int = 8                                           # channels: 8, 16, 32
    blocks: int = 4
    slight: float = 1.0
    tau: float = 0.5
    move: float = 1.0
    margin: float = 0.5
    keep: float = 1.0

    def __post_init__(self):
        if not 0 <= self.eps <= 1:
            raise ValueError(f"eps is the largest change of a pixel in [0, 1]; got {self.eps}. Divide levels by 255")
        check_fields(self, **dict.fromkeys(("epochs", "batch_size", "width"), "int [1, inf)"), blocks="int [0, inf)",
                     lr="(0, inf)", **dict.fromkeys(("slight", "tau", "move", "margin", "keep"), "[0, inf)"))

    def __call__(self, original: nn.Module, reference: nn.Module, forget: Examples, *, seed: int = 0,
                 watch: Callable[[int, Tensor], None] | None = None, quiet: bool = False) -> Shift:
        """A function of models, examples and seed alone.

        original     the model before unlearning
        reference  a model independent of it, trained on other data or anew on the retain set
        watch      called after each epoch as watch(epoch, images) with the first images, at most 16, shifted
        quiet      no progress bar
        """
        check(forget)
        check_compatible(original, forget)
        check_compatible(reference, forget)
        weight = next(original.parameters())
        original, reference = (copy.deepcopy(model).eval().requires_grad_(False) for model in (original, reference))
        reference.to(weight.device)
        margin, first = self.margin * spread(reference, forget), as_input(forget.x[:16], weight)
        with seeded(seed, "SPDGAN") as random:
            shift = self.untrained(forget.x.shape[1]).to(weight.device)
            judge = discriminator(forget.x.shape[1], self.width).to(weight.device)
            judging, shifting = (torch.optim.Adam(m.parameters(), lr=self.lr, betas=self.betas) for m in (judge, shift))
            for epoch in tqdm(range(self.epochs), desc="SPD-GAN", unit="epoch", disable=quiet):
                for batch in shuffled(forget, self.batch_size, random, weight=weight):
                    moved = shift(batch.x)
                    step(judging, says(judge(batch.x), 1) + says(judge(moved.detach()), 0))
                    step(shifting, says(judge(moved), 1) + self.penalty(moved, batch, original, reference, margin))
                if watch is not None:
                    with torch.no_grad():
                        watch(epoch, shift(first).cpu())
        if not all(p.isfinite().all() for p in shift.parameters()):
            raise FloatingPointError(f"the generator diverged (weights are not finite); lower lr={self.lr}")
        return shift.eval().requires_grad_(False)

    def untrained(self, channels: int) -> Shift:
        """A generator of this shape: what a state_dict that was kept is loaded into."""
        return Shift(channels, eps=self.eps, width=self.width, blocks=self.blocks)

    def penalty(self, moved: Tensor, batch: Batch, original: nn.Module, reference: nn.Module,
                margin: float) -> Tensor:
        """The loss of the generator without the part of the discriminator."""
        change = (moved - batch.x).flatten(1)                # (batch, pixels)
        excess = (change.norm(dim=1) - self.tau * self.eps * sqrt(change.shape[1])).clamp(min=0).mean()
        drift = (embed(reference, moved).mean(0) - embed(reference, batch.x).mean(0)).norm()
        return (self.slight * excess + self.move * (margin - drift).clamp(min=0)
                + self.keep * F.cross_entropy(original(moved), batch.y))


# -- Networks ---------------------------------------------------------------------------------------------------------


class Shift(nn.Module):
    """x (n, channels, h, w) in [0, 1] -> clip(x + eps tanh(G(x)), 0, 1), image by image.

    G: convolutions to a quarter of the resolution, residual blocks there, and back up, with instance normalisation, as
    in AdvGAN (Xiao et al., IJCAI 2018). Its state_dict is plain tensors.
    """

    def __init__(self, channels: int, *, eps: float, width: int = 8, blocks: int = 4):
        super().__init__()
        self.eps = eps
        self.body = nn.Sequential(
            convolution(channels, width), convolution(width, 2 * width, stride=2),
            convolution(2 * width, 4 * width, stride=2), *(Residual(4 * width) for _ in range(blocks)),
            nn.Upsample(scale_factor=2), convolution(4 * width, 2 * width),
            nn.Upsample(scale_factor=2), convolution(2 * width, width), nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        way = self.body(x)[..., :x.shape[2], :x.shape[3]]    # a size that 4 does not divide comes back larger
        return (x + self.eps * way.tanh()).clamp(0, 1)

    def of(self, examples: Examples) -> Examples:
        """The same examples with shifted images, float32."""
        check(examples)
        weight = next(self.parameters())
        with torch.no_grad():
            moved = torch.cat([self(as_input(x, weight)) for x in examples.x.split(1024)]).to(examples.x.device)
        return replace(examples, x=moved)


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(convolution(channels, channels), convolution(channels, channels)[:2])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def convolution(a: int, b: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, stride, padding=1, bias=False), nn.InstanceNorm2d(b), nn.ReLU())


def discriminator(channels: int, width: int) -> nn.Sequential:
    """Images -> a logit for each patch, by convolutions with spectral normalisation."""
    widths = (channels, width, 2 * width, 4 * width)
    halving = [layer for a, b in pairwise(widths)
               for layer in (spectral_norm(nn.Conv2d(a, b, 3, 2, padding=1)), nn.LeakyReLU(0.2))]
    return nn.Sequential(*halving, spectral_norm(nn.Conv2d(widths[-1], 1, 1)))


def says(logits: Tensor, truth: int) -> Tensor:
    """Cross-entropy of a discriminator that should give `truth`, 1 or 0, for every patch."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, truth))


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def spread(model: nn.Module, examples: Examples) -> float:
    """Root mean squared distance of the penultimate features to the mean of their class."""
    found = features(model, examples)                        # (n, d)
    one_hot = F.one_hot(examples.y.cpu()).float()
    means = one_hot.T @ found / one_hot.sum(0).clamp(min=1)[:, None]
    return (found - means[examples.y.cpu()]).square().sum(1).mean().sqrt().item()


def check(examples: Examples) -> None:
    """Raise ValueError for what cannot be shifted."""
    x = examples.x
    if not len(x):
        raise ValueError("there is nothing to shift: the set is empty")
    if x.ndim != 4 or min(x.shape[2:]) < 8 or not (x.is_floating_point() or x.dtype == torch.uint8):
        raise ValueError(f"images (n, channels, height, width) of at least 8x8 can be shifted; got {tuple(x.shape)} of "
                         f"{x.dtype}")
    if x.is_floating_point() and not 0 <= x.min() <= x.max() <= 1:
        raise ValueError(f"eps is in units of images in [0, 1]; these lie in [{x.min():.3g}, {x.max():.3g}]. Scale "
                         f"them, and normalise inside the model (rumlib.models.Normalize)")


# -- The degree of unlearning -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Degree:
    """By how much a model does worse than the original on the forget set and on a control set, with standard errors."""

    forget: float
    forget_error: float
    control: float
    control_error: float

    @property
    def adjusted(self) -> float:
        """The degree without what is lost elsewhere too: forget - control."""
        return self.forget - self.control

    @property
    def adjusted_error(self) -> float:
        return hypot(self.forget_error, self.control_error)


def unlearning_degree(original: nn.Module, unlearned: nn.Module, forget: Examples, control: Examples, *,
                      of: str = "accuracy") -> Degree:
    """a(original) - a(unlearned) on a forget set, shifted or not, and on a control set treated alike; 0: equal models.

    of       "accuracy": a is the share classified right; "loss": minus the cross-entropy, in nats. Larger is deeper
    control  the test set: what is lost without having been learned. An original that knows its training data by heart
             has more to lose on them, so that damage is adjusted for in part only; the retain set has as much to lose

    Standard errors are over the examples, for these two models; NaN for a single example. Raises ValueError for sets
    that a model cannot take. The degree follows the abstract of arXiv 2401.04385; its form with the loss and its
    adjustment are proposals of this project.
    """
    check_values("unlearning_degree", of=(of, ("accuracy", "loss")))
    lost = []
    for examples in (forget, control):
        before, after = (performance(model, examples, of) for model in (original, unlearned))
        lost += [(before - after).mean().item(), (before - after).std().item() / sqrt(len(examples))]
    return Degree(*lost)


def performance(model: nn.Module, examples: Examples, of: str) -> Tensor:
    """(n,) 1.0 where the model is right, else 0.0; or minus the loss."""
    check_compatible(model, examples)
    logits, y = predict(model, examples).double(), examples.y.cpu()
    return correct(logits, y).double() if of == "accuracy" else -F.cross_entropy(logits, y, reduction="none")


def probes(shifts: Iterable[Shift], sets: Mapping[str, Examples], *, seed: int = 0) -> dict[str, dict[str, Examples]]:
    """The sets on which every model is compared, by probe and name: "clean" and, for the k-th generator, "shifted k"
    and "noise k". The noise on each image is as large as its shift."""
    asked = {"clean": dict(sets)}
    for k, shift in enumerate(shifts):
        shifted = {name: shift.of(examples) for name, examples in sets.items()}
        asked[f"shifted {k}"] = shifted
        asked[f"noise {k}"] = {name: noisy(examples, shifted[name], seed=derive_seed(seed, "noise", k, name))
                               for name, examples in sets.items()}
    return asked


def noisy(examples: Examples, shifted: Examples, *, seed: int = 0) -> Examples:
    """The examples with Gaussian noise of the Euclidean norm of the shift, image by image; where a pixel would leave
    [0, 1], its noise has the other sign."""
    x = as_input(examples.x)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(as_seed(seed))).to(x)
    length, wanted = (change.flatten(1).norm(dim=1) for change in (noise, shifted.x - x))
    noise *= (wanted / length).view(-1, 1, 1, 1)
    inside = (x + noise).clamp(0, 1) == x + noise
    return replace(examples, x=(x + torch.where(inside, noise, -noise)).clamp(0, 1))
