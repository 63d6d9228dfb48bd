"""What the published code computes, to 1e-5 relative, beside what it should: its values on toy data, and plain NumPy on
other random inputs."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import rumlib as rum
from rumlib.algorithms.relabel import published_mask, saliency_mask
from rumlib.proxies import curvature, symmetric_kl

seeds = pytest.mark.parametrize("seed", range(5))


def near(value):
    return pytest.approx(value, rel=1e-5)


@pytest.fixture(scope="module")
def toy():
    """(model, forget, retain): a linear model on 24 + 6 random images."""
    return linear_problem(np.random.RandomState(0), np.random.RandomState(1))


def linear_problem(data, weights):
    x = torch.tensor(data.randn(30, 1, 2, 3), dtype=torch.float32)
    examples = rum.Examples(x, torch.tensor(data.randint(0, 3, 30)))
    linear = nn.Linear(6, 3)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(0.5 * weights.randn(3, 6)))
        linear.bias.copy_(torch.tensor(0.1 * weights.randn(3)))
    return nn.Sequential(nn.Flatten(), linear), examples[24:], examples[:24]


def embeddings(toy):
    model, forget, retain = toy
    return rum.features(model, forget), rum.features(model, retain)


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


# -- Entanglement -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size, value", [(8, 43.580490), (10, 40.540512)])
def test_official_entanglement(batch_size, value, toy):
    assert rum.entanglement(*embeddings(toy), compat="official", batch_size=batch_size) == near(value)
    assert rum.entanglement(*embeddings(toy)) == near(43.580497)


@pytest.mark.parametrize("batch_size", [3, 7, 40])
@seeds
def test_official_entanglement_by_numpy(seed, batch_size):
    random = np.random.RandomState(seed)
    r, s = random.randn(40, 7), random.randn(9, 7) + 1
    mean_r, mean_s = (np.mean([part[k:k + batch_size].mean(0) for k in range(0, len(part), batch_size)], 0)
                      for part in (r, s))
    middle = (mean_r + mean_s) / 2
    intra = np.mean(np.sum((r - mean_r)**2, 1)) + np.mean(np.sum((s - mean_s)**2, 1))
    inter = (np.sum((mean_r - middle)**2) + np.sum((mean_s - middle)**2)) / 2
    found = rum.entanglement(torch.tensor(s), torch.tensor(r), compat="official", batch_size=batch_size)
    assert found == near(intra / inter)


@pytest.mark.parametrize("gamma, value", [(1.0, 0.20510517), (0.1, 0.10807174)])
def test_mmd(gamma, value, toy):
    forget, retain = embeddings(toy)
    assert rum.mmd(forget, retain, gamma=gamma) == near(value)


@pytest.mark.parametrize("block", [4, 1000])
@seeds
def test_mmd_by_numpy(seed, block):
    random = np.random.RandomState(seed)
    a, b = random.randn(23, 5), random.randn(11, 5) + 0.5

    def kernel(x, y):
        return np.exp(-0.3 * ((x[:, None] - y[None])**2).sum(-1)).mean()

    expected = kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)
    assert rum.mmd(torch.tensor(a), torch.tensor(b), gamma=0.3, block=block) == near(expected)


def test_the_published_bands():
    """Fifteen bands of two by distance from the centroid: the fourth of the toy's (numbered from 0) is {25, 28}."""
    distance = np.concatenate([np.random.RandomState(3).rand(20), np.random.RandomState(4).rand(10)])
    spread = torch.tensor(np.concatenate([distance, -distance]))[:, None]            # its centroid is 0
    bands = rum.scores.bands(spread, 15)                     # so each band holds both halves
    assert {int(k) % 30 for k in bands[3]} == {25, 28}


@seeds
def test_bands_by_numpy(seed):
    points = np.random.RandomState(seed).randn(31, 4)
    order = np.argsort(np.linalg.norm(points - points.mean(0), axis=1), kind="stable")
    for number, band in enumerate(rum.scores.bands(torch.tensor(points), 5)):
        assert set(band.tolist()) == set(order[6 * number:6 * number + 6])


# -- Proxies ----------------------------------------------------------------------------------------------------------


def test_symmetric_kl():
    p, q = torch.tensor([[.7, .2, .1], [.1, .1, .8]]), torch.tensor([[.5, .3, .2], [.2, .3, .5]])
    assert symmetric_kl(p, q).tolist() == [near(0.08857784), near(0.21501915)]


@seeds
def test_symmetric_kl_by_numpy(seed):
    random = np.random.RandomState(seed)
    p, q = random.dirichlet(np.ones(4), 6), random.dirichlet(np.ones(4), 6)
    expected = ((p * np.log(p / q)).sum(1) + (q * np.log(q / p)).sum(1)) / 2
    np.testing.assert_allclose(symmetric_kl(torch.tensor(p), torch.tensor(q)), expected, rtol=1e-5)
    assert symmetric_kl(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])).isfinite().all()


def test_curvature(toy):
    model, _, retain = toy
    found = curvature(model, retain.x[:3], retain.y[:3], step=0.01)
    # the difference of two nearly equal gradients: in float32 its fourth digit depends on the processor
    assert found.tolist() == pytest.approx([4.47850e-4, 2.637857e-3, 1.180083e-3], rel=2e-4)


@seeds
def test_curvature_by_numpy(seed):
    model, _, retain = linear_problem(np.random.RandomState(seed), np.random.RandomState(seed + 50))
    model = model.double()
    x, y = retain.x.double().flatten(1).numpy(), retain.y.numpy()
    w, b = (p.detach().numpy() for p in model.parameters())

    def slope(x):
        return (softmax(x @ w.T + b) - np.eye(3)[y]) @ w

    way = np.sign(slope(x))
    z = 0.01 * way / (np.linalg.norm(way, axis=1, keepdims=True) + 1e-7)
    expected = np.linalg.norm(slope(x + z) - slope(x), axis=1)
    np.testing.assert_allclose(curvature(model, retain.x.double(), retain.y), expected, rtol=1e-5)


# -- Metrics ----------------------------------------------------------------------------------------------------------


def echo():
    model = nn.Linear(4, 4, bias=False)
    nn.init.eye_(model.weight)
    return model


def logits(random, n, shift):
    y = random.randint(0, 4, n)
    x = random.randn(n, 4)
    x[np.arange(n), y] += shift
    return rum.Examples(torch.tensor(x, dtype=torch.float32), torch.tensor(y))


@pytest.mark.parametrize("feature, value", [("correctness", .16), ("confidence", .46), ("entropy", .46),
                                            ("modified_entropy", .50), ("probabilities", .56)])
def test_the_attack(feature, value):
    random = np.random.RandomState(5)
    sets = [logits(random, 200, 3.0), logits(random, 200, 1.5), logits(random, 50, 2.0)]
    assert round(rum.svc_mia(echo(), *sets, feature, compat="official"), 2) == value
    if feature != "modified_entropy":
        assert round(rum.svc_mia(echo(), *sets, feature), 2) == value


@seeds
def test_attack_features_by_numpy(seed):
    examples = logits(np.random.RandomState(seed), 40, 1.0)
    examples = examples[examples.y != 3]                     # a class that occurs in no label
    z, y = examples.x.double(), examples.y.numpy()
    p, rows = softmax(z.numpy()), np.arange(len(y))
    others = np.where(np.eye(4, dtype=bool)[y], 0, p * np.log(1 - p)).sum(1)
    published = -(np.where(np.isin(np.arange(4), y), 1 - p, p) * np.log(p)).sum(1)
    expected = {"correctness": z.argmax(1).numpy() == y, "confidence": p[rows, y], "probabilities": p,
                "entropy": -(p * np.log(p)).sum(1),
                "modified_entropy": -(1 - p[rows, y]) * np.log(p[rows, y]) - others}
    for feature, values in expected.items():
        np.testing.assert_allclose(rum.metrics.attack_feature(z, examples.y, feature), values, rtol=1e-5)
    found = rum.metrics.attack_feature(z, examples.y, "modified_entropy", compat="official")
    np.testing.assert_allclose(found, published, rtol=1e-5)


# -- Algorithms -------------------------------------------------------------------------------------------------------


def test_influence_unlearning(toy):
    unlearned = rum.InfluenceUnlearning(alpha=5.0)(*toy, seed=0)
    expected = (1.22534, -.178077, -.581477, -.501619, .194613, -1.202307)
    assert unlearned[1].weight[0].tolist() == [near(w) for w in expected]
    assert sum(p.abs().sum().item() for p in unlearned.parameters()) == near(12.398703)


@seeds
def test_influence_unlearning_by_numpy(seed):
    model, forget, retain = linear_problem(np.random.RandomState(seed), np.random.RandomState(seed + 50))
    w, b = (p.detach().double().numpy() for p in model.parameters())

    def gradients(examples):                                 # (n, 21): of the weights, then of the biases
        x, y = examples.x.double().flatten(1).numpy(), examples.y.numpy()
        d = softmax(x @ w.T + b) - np.eye(3)[y]
        return np.concatenate([(d[:, :, None] * x[:, None]).reshape(len(x), -1), d], 1)

    k, o = 6 / 30 * (gradients(forget).mean(0) - gradients(retain).mean(0)), None
    for g in gradients(retain)[:20]:
        if o is None:
            o = g
        else:
            t = o @ g
            k = k - (k @ g) / (9 + t) * o
            o = o - t / (9 + t) * o
    unlearned = rum.InfluenceUnlearning(alpha=3.0, samples=20, n=9, chunk=6)(model, forget, retain)
    found = torch.cat([p.detach().flatten() for p in unlearned.parameters()])
    np.testing.assert_allclose(found, np.concatenate([w.ravel(), b]) + 3 * k, rtol=1e-5, atol=1e-6)


def test_the_published_saliency_mask(toy):
    """It keeps the smaller half; ours the larger."""
    model, forget, _ = toy
    before = copy.deepcopy(model)
    mask = published_mask(model, forget, keep=0.5, batch_size=3)
    assert mask["1.weight"].tolist() == [[0, 1, 0, 1, 1, 1], [0, 1, 0, 0, 1, 0], [0, 1, 1, 0, 1, 0]]
    assert mask["1.bias"].tolist() == [0, 1, 0]
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), model.parameters(), strict=True))
    ours = saliency_mask(model, forget, keep=11 / 21)          # the published code takes int(10.5) weights
    assert all(torch.equal(ours[name], ~mask[name].bool()) for name in mask)


@seeds
def test_the_published_saliency_mask_by_numpy(seed):
    """Gradients of -CE are summed while SGD, momentum 0.9 and weight decay 5e-4, steps along them."""
    model, forget, _ = linear_problem(np.random.RandomState(seed), np.random.RandomState(seed + 50))
    w, b = (p.detach().double().numpy() for p in model.parameters())
    theta, speed, total = np.concatenate([w, b[:, None]], 1), 0, 0
    for rows in (slice(0, 4), slice(4, 6)):
        x, y = forget.x[rows].double().flatten(1).numpy(), forget.y[rows].numpy()
        x = np.concatenate([x, np.ones((len(x), 1))], 1)
        g = -(softmax(x @ theta.T) - np.eye(3)[y]).T @ x / len(x)
        total = total + g
        speed = 0.9 * speed + g + 5e-4 * theta
        theta = theta - 0.01 * speed
    smallest = np.abs(total) <= np.sort(np.abs(total).ravel())[5]
    mask = published_mask(model, forget, keep=6.9 / 21, batch_size=4)            # six: cut off, not rounded
    np.testing.assert_array_equal(torch.cat([mask["1.weight"], mask["1.bias"][:, None]], 1), smallest)


OFFICIAL = rum.SalUn(rum.RandomLabel(epochs=1, lr=0.3, momentum=0.0, weight_decay=0.0, batch_size=3), compat="official")


def moved(before, after):
    """Which weights differ, (21,) bool: without momentum and weight decay, no others than those in the mask."""
    return torch.cat([(a != b).flatten() for a, b in zip(before.parameters(), after.parameters(), strict=True)])


def test_the_published_mask_climbs_at_its_own_rate(toy):
    """The golden mask of rate 0.01, though the inner algorithm learns at 0.3."""
    golden = torch.tensor([[0, 1, 0, 1, 1, 1], [0, 1, 0, 0, 1, 0], [0, 1, 1, 0, 1, 0]]).bool().flatten()
    unlearned = OFFICIAL(*toy, seed=0)
    assert torch.equal(moved(toy[0], unlearned), torch.cat([golden, torch.tensor([False, True, False])]))


def test_the_published_mask_of_a_later_step_is_that_of_the_original(toy):
    model, forget, retain = toy
    meta = rum.RUM(rum.Shuffled(2), (rum.Finetune(epochs=3, lr=0.5), OFFICIAL))
    first, second = meta.stages(model, forget, retain, seed=0)
    masks = [torch.cat([m.flatten().bool() for m in published_mask(m, second.forget, 0.5, 3).values()])
             for m in (model, first.model)]
    assert not torch.equal(*masks) and masks[0].sum() == 10
    assert torch.equal(moved(first.model, second.model), masks[0])
    resumed, = meta.stages(first.model, forget, retain, seed=0, done=1, original=model)
    assert not moved(resumed.model, second.model).any()
    choosing = rum.AutoRUM(rum.Shuffled(2), (OFFICIAL,), lambda model, *_: float(model is not toy[0]), enough=2.0)
    chosen, unlearned = choosing.settle(model, forget, retain, seed=0)
    assert not moved(unlearned, chosen(model, forget, retain, seed=0)).any()
