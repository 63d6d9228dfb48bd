"""Values of the published code on toy data, to 1e-5 relative, and plain NumPy beside what is short enough to repeat.

The published values were made with batches in index order: eight retained and three forgotten examples at a time.
"""

import copy
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import pytest
import torch
from planted import echo
from torch import nn

import rumlib as rum
from rumlib.algorithms.base import Epoch
from rumlib.algorithms.distill import distillation
from rumlib.algorithms.relabel import saliency_mask
from rumlib.train import Batch, descend


@pytest.fixture(scope="module")
def toy():
    """(model, forget, retain): a linear model on 24 + 6 random images."""
    random = np.random.RandomState(0)
    x = torch.tensor(random.randn(30, 1, 2, 3), dtype=torch.float32)
    data = rum.Examples(x, torch.tensor(random.randint(0, 3, 30)))
    linear, random = nn.Linear(6, 3), np.random.RandomState(1)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(0.5 * random.randn(3, 6)))
        linear.bias.copy_(torch.tensor(0.1 * random.randn(3)))
    return nn.Sequential(nn.Flatten(), linear), data[24:], data[:24]


@dataclass(frozen=True)
class InOrder(Epoch):
    """An epoch whose batches come in index order, three forgotten or eight retained examples at a time."""

    def shuffled(self, examples):
        for rows in torch.arange(len(examples)).split(8 if len(examples) == 24 else 3):
            yield Batch(examples.x[rows], examples.y[rows], rows)


def in_order(algorithm, model, forget, retain):
    """(model, steps): the loss and the epochs of the algorithm, and the one training loop, on ordered batches."""
    original, student = copy.deepcopy(model), copy.deepcopy(model)
    epochs = [InOrder(e, algorithm.epochs, 8, original, torch.Generator()) for e in range(algorithm.epochs)]
    stream = [batch for epoch in epochs for batch in algorithm.batches(forget, retain, epoch)]

    def loss(student, *batch):
        return algorithm.loss(student, original, *batch)

    return descend(student, stream, loss, algorithm.recipe(), steps=len(stream)), len(stream)


def total(model):
    return sum(p.abs().sum().item() for p in model.parameters())


def near(value):
    return pytest.approx(value, rel=1e-5)


def test_the_toy_model_is_the_published_one(toy):
    assert total(toy[0]) == near(8.968206)


def test_entanglement(toy):
    model, forget, retain = toy
    assert rum.entanglement(rum.features(model, retain), rum.features(model, forget)) == near(43.580497)


def test_tow():
    assert rum.tow_from_accuracies(unlearned=(0.70, 0.99, 0.85), retrained=(0.60, 1.00, 0.84)) == near(0.88209)


def test_the_attack_by_confidence():
    random = np.random.RandomState(5)

    def logits(n, shift):
        y = random.randint(0, 4, n)
        x = random.randn(n, 4)
        x[np.arange(n), y] += shift
        return rum.Examples(torch.tensor(x, dtype=torch.float32), torch.tensor(y))

    members, nonmembers, target = logits(200, 3.0), logits(200, 1.5), logits(50, 2.0)
    assert rum.svc_mia(echo(4), members, nonmembers, target) == near(0.46)


@pytest.mark.parametrize("algorithm, weights, size", [
    (rum.Finetune(epochs=1, lr=0.05),
     (0.819001, -0.317145, -0.236678, -0.538158, 0.4407, -1.119022), 8.835785),
    (rum.NegGrad(epochs=1, lr=0.01),
     (0.825335, -0.29865, -0.275522, -0.535432, 0.424719, -1.152832), 9.035684),
    (rum.NegGradPlus(epochs=1, lr=0.05, alpha=0.9),
     (0.83105, -0.309028, -0.250377, -0.537151, 0.43228, -1.123966), 8.913661),
    (rum.L1Sparse(epochs=2, lr=0.05, alpha=0.01),
     (0.820012, -0.35465, -0.197234, -0.539913, 0.442582, -1.057578), 8.555517),
], ids=["Finetune", "NegGrad", "NegGradPlus", "L1Sparse"])
def test_gradient_methods(algorithm, weights, size, toy):
    unlearned, _ = in_order(algorithm, *toy)
    assert unlearned[-1].weight[0].tolist() == [near(w) for w in weights]
    assert total(unlearned) == near(size)


@pytest.mark.parametrize("epochs, max_steps, size, steps", [(1, 5, 8.847452, 5), (2, 5, 8.690891, 10),
                                                            (2, 1, 8.705480, 8)])
def test_scrub(epochs, max_steps, size, steps, toy):
    """The published `msteps` counts epochs from 0 and includes the last: msteps + 1 of them begin with a max pass."""
    scrub = rum.Scrub(epochs=epochs, lr=0.05, max_steps=max_steps, temperature=4.0, beta=0.5, gamma=0.9)
    unlearned, taken = in_order(scrub, *toy)
    assert total(unlearned) == near(size)
    assert taken == steps


def test_the_published_saliency_mask_is_the_other_half(toy):
    """The published mask keeps the 10 of 21 weights with the smallest gradients; ours keeps the largest."""
    model, forget, _ = toy
    published = torch.tensor([[0, 1, 0, 1, 1, 1], [0, 1, 0, 0, 1, 0], [0, 1, 1, 0, 1, 0], [0, 1, 0, 0, 0, 0]]).bool()
    ours = saliency_mask(model, forget, keep=11 / 21)
    assert torch.equal(ours["1.weight"], ~published[:3])
    assert torch.equal(ours["1.bias"], ~published[3, :3])


def test_distillation():
    value = distillation(torch.tensor([[1., 2, 3]]), torch.tensor([[3., 1, 0]]), 4.0)
    assert value.item() == near(2.1545413)


def test_memorization():
    values, _ = rum.memorization_from([[1, 1], [0, 1]], [[True, False], [False, True]])
    assert values.tolist() == [1, 0]


# -- The same by plain NumPy, on other inputs -------------------------------------------------------------------------

seeds = pytest.mark.parametrize("seed", range(5))


@seeds
def test_entanglement_by_numpy(seed):
    random = np.random.RandomState(seed)
    r, s = random.randn(40, 7), random.randn(9, 7) + 1
    middle = (r.mean(0) + s.mean(0)) / 2
    intra = np.mean(np.sum((r - r.mean(0))**2, 1)) + np.mean(np.sum((s - s.mean(0))**2, 1))
    inter = (np.sum((r.mean(0) - middle)**2) + np.sum((s.mean(0) - middle)**2)) / 2
    assert rum.entanglement(torch.tensor(r), torch.tensor(s)) == near(intra / inter)


@seeds
def test_tow_by_numpy(seed):
    u, r = np.random.RandomState(seed).rand(2, 3)
    assert rum.tow_from_accuracies(unlearned=tuple(u), retrained=tuple(r)) == near(np.prod(1 - np.abs(u - r)))


@seeds
def test_memorization_by_numpy(seed):
    random = np.random.RandomState(seed)
    included, correct = random.rand(2, 50, 20) < 0.6
    mean_in, mean_out = (np.where(mask, correct, np.nan) for mask in (included, ~included))
    n_in, n_out = included.sum(0), (~included).sum(0)
    values, stderr = rum.memorization_from(torch.tensor(correct), torch.tensor(included))
    np.testing.assert_allclose(values, np.nanmean(mean_in, 0) - np.nanmean(mean_out, 0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(stderr, np.sqrt(np.nanvar(mean_in, 0, ddof=1) / n_in
                                               + np.nanvar(mean_out, 0, ddof=1) / n_out), rtol=1e-5)


@pytest.mark.parametrize("size", [20, 21])                   # an even and an odd number have different medians
@seeds
def test_selection_by_numpy(seed, size):
    values = np.random.RandomState(seed).rand(size).astype(np.float32)
    order, near_median = np.argsort(values), np.argsort(np.abs(values - np.median(values)))
    score = rum.Score("random", values)

    def picked(n, level):
        return set(score.pick(n, level).nonzero()[:, 0].tolist())

    for n in (2, 6, 9):
        assert picked(n, "low") == set(order[:n])
        assert picked(n, "high") == set(order[-n:])
        assert picked(n, "medium") == set(near_median[:n])
    for third in (2, 3):
        assert picked(3 * third, "mix") == {*order[:third], *order[-third:], *near_median[:third]}


# -- The same algorithms by NumPy -------------------------------------------------------------------------------------


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def slope(theta, x, towards):
    """Gradient by (w, b) of the mean cross-entropy of the linear model with the probabilities `towards`."""
    d = (softmax(x @ theta[0].T + theta[1]) - towards) / len(x)
    return [d.T @ x, d.sum(0)]


def descent(algorithm, theta, forget, retain):
    """The algorithm as in the table of the published code, on batches (x, one-hot labels), in plain NumPy."""
    start, momentum = [t.copy() for t in theta], None

    def kl(x):                                               # T^2 KL: T times the difference of softened probabilities
        t = algorithm.temperature
        p, q = (softmax((x @ th[0].T + th[1]) / t) for th in (start, theta))
        d = t * (q - p) / len(x)
        return [d.T @ x, d.sum(0)]

    def add(*terms):
        return [sum(weight * g[k] for weight, g in terms) for k in range(2)]

    for epoch in range(algorithm.epochs):
        match algorithm:
            case rum.NegGradPlus(alpha=a):
                steps = [lambda r=r, f=f, a=a: add((a, slope(theta, *r)), (a - 1, slope(theta, *f)))
                         for r, f in zip(retain, cycle(forget), strict=False)]
            case rum.NegGrad():
                steps = [lambda f=f: add((-1, slope(theta, *f))) for f in forget]
            case rum.L1Sparse(alpha=a):
                fade = a * (1 - epoch / algorithm.epochs)
                steps = [lambda r=r, fade=fade: add((1, slope(theta, *r)), (fade, [np.sign(t) for t in theta]))
                         for r in retain]
            case rum.Scrub(gamma=c, beta=b):
                climb = forget if epoch < algorithm.max_steps else []
                steps = [lambda f=f: add((-1, kl(f[0]))) for f in climb]
                steps += [lambda r=r, b=b, c=c: add((c, slope(theta, *r)), (b, kl(r[0]))) for r in retain]
            case rum.Finetune():
                steps = [lambda r=r: add((1, slope(theta, *r))) for r in retain]
        for step in steps:
            g = [d + algorithm.weight_decay * t for d, t in zip(step(), theta, strict=True)]
            momentum = g if momentum is None else [algorithm.momentum * m + d for m, d in zip(momentum, g, strict=True)]
            for t, m in zip(theta, momentum, strict=True):
                t -= algorithm.lr * m
    return theta


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("algorithm", [
    rum.Finetune(epochs=2, lr=0.05), rum.NegGrad(epochs=3, lr=0.01), rum.NegGradPlus(epochs=2, lr=0.05, alpha=0.8),
    rum.L1Sparse(epochs=3, lr=0.05, alpha=0.02), rum.Scrub(epochs=3, lr=0.05, max_steps=2, beta=0.3, gamma=0.7),
], ids=lambda algorithm: type(algorithm).__name__)
def test_descent_by_numpy(algorithm, seed):
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(30, 6)), random.integers(0, 3, 30)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).double()
    theta = [p.detach().numpy().copy() for p in model.parameters()]
    data = rum.Examples(torch.tensor(x).view(30, 1, 2, 3), torch.tensor(y))
    found, _ = in_order(algorithm, model, data[24:], data[:24])
    batches = [(x[k:k + size], np.eye(3)[y[k:k + size]]) for start, stop, size in ((24, 30, 3), (0, 24, 8))
               for k in range(start, stop, size)]
    expected = descent(algorithm, theta, batches[:2], batches[2:])
    for p, t in zip(found.parameters(), expected, strict=True):
        assert p.detach().numpy() == pytest.approx(t, rel=1e-9, abs=1e-12)
