"""The contract for the algorithms beyond plain descent, and what each of them promises."""

import copy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rumlib as rum
from rumlib import algorithms
from rumlib.algorithms import weights
from rumlib.algorithms.base import Epoch
from rumlib.algorithms.boundary import nearest_wrong
from rumlib.algorithms.dampen import importance
from rumlib.algorithms.layers import layers
from rumlib.algorithms.relabel import published_mask, saliency_mask, soft_mask

make_model = partial(rum.models.mlp, shape=(1, 4, 4), classes=3, hidden=(64,))
make_normed = partial(rum.models.small_resnet, shape=(1, 4, 4), classes=3, widths=(4, 8))
recipe = rum.Recipe(epochs=60, lr=0.1, batch_size=16, schedule="linear")


def blobs(n, random):
    y = torch.arange(n) % 3
    x = torch.zeros(n, 1, 4, 4)
    x[torch.arange(n), 0, y] = 0.8
    return (x + 0.25 * torch.randn(x.shape, generator=random)).clamp(0, 1), y


def trained(train, gone, test):
    forget, retain = train.split(gone)
    model, oracle = (rum.fit(make_model, part, recipe, seed=0) for part in (train, retain))
    return SimpleNamespace(train=train, forget=forget, retain=retain, test=test, model=model, oracle=oracle)


@pytest.fixture(scope="module")
def points():
    """Twelve mislabelled points to forget: known by heart, and unknown to the oracle."""
    random = torch.Generator().manual_seed(0)
    (x, y), unseen = blobs(123, random), blobs(90, random)
    wrong = torch.zeros(len(x), dtype=torch.bool)
    wrong[:108:9] = True
    return trained(rum.Examples(x, torch.where(wrong, (y + 1) % 3, y)), wrong, rum.Examples(*unseen))


@pytest.fixture(scope="module")
def whole_class():
    """A class to forget."""
    random = torch.Generator().manual_seed(0)
    (x, y), unseen = blobs(123, random), blobs(90, random)
    return trained(rum.Examples(x, y), y == 0, rum.Examples(*unseen))


@pytest.fixture(scope="module")
def normed(points):
    return rum.fit(make_normed, points.train, replace(recipe, epochs=3), seed=0)


common = dict(batch_size=10, clip=5.0)
relabel = rum.RandomLabel(epochs=10, lr=0.1, **common)
perturb = dict(k=0.1, sigma=0.5, epochs=10, lr=0.3, tolerance=None, **common)
EVERY = {
    "InfluenceUnlearning": rum.InfluenceUnlearning(alpha=10.0),
    "InfluenceUnlearning exact": rum.InfluenceUnlearning(alpha=10.0, exact=True),
    "SSD": algorithms.SSD(batch_size=10),
    "Fisher": algorithms.Fisher(),
    "BadTeacher": algorithms.BadTeacher(epochs=20, lr=0.3, **common),
    "UNSIR": algorithms.UNSIR(epochs=4, lr=0.1, **common),
    "BoundaryShrink": algorithms.BoundaryShrink(epochs=5, lr=0.02, **common),
    "BoundaryExpand": algorithms.BoundaryExpand(epochs=5, lr=0.02, **common),
    "ClassProjection": rum.ClassProjection(30.0, 10.0, samples=None, rows=None, granularity="examples"),
    "ClassProjection sampled": rum.ClassProjection(30.0, 10.0, samples=30, granularity="examples"),
    "CF-1": algorithms.LastLayers(k=1, epochs=10, lr=0.3, **common),
    "EU-2": algorithms.LastLayers(k=2, exact=True, epochs=20, lr=0.1, **common),
    "SalUn official": rum.SalUn(relabel, compat="official"),
    "SalUn sigmoid": rum.SalUn(relabel, mask="sigmoid"),
    "SalUn tanh": rum.SalUn(relabel, mask="tanh"),
    "TopK by layer": rum.TopK(ranking="layer", score="fisher", **perturb),
    "TopK selected": rum.TopK(scope="selected", **perturb),
    "RandomK": rum.RandomK(**perturb),
    "RandomTopK": rum.RandomTopK(**perturb),
    "RandomTopK half": rum.RandomTopK(mix=0.5, **perturb),
}
DETERMINISTIC = {"InfluenceUnlearning", "InfluenceUnlearning exact", "SSD", "ClassProjection"}
every = pytest.mark.parametrize("name", EVERY)


def same(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(v, theirs[k]) for k, v in ours.items())


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# -- The contract -----------------------------------------------------------------------------------------------------


@every
def test_the_original_is_left_as_it_was(name, points, normed):
    model = copy.deepcopy(normed).train()
    model[1].eval()
    before, modes = copy.deepcopy(model), [module.training for module in model.modules()]
    unlearned = EVERY[name](model, points.forget, points.retain, seed=0)
    assert same(model, before)
    assert [module.training for module in model.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in [*model.parameters(), *unlearned.parameters()])
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in unlearned.parameters()}
    assert not any(module.training for module in unlearned.modules())
    assert not same(unlearned, model) and flat(unlearned).isfinite().all()


@every
def test_the_same_seed_gives_the_same_weights_whatever_the_caller_drew(name, points):
    results = []
    for state in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(state)
            before = torch.random.get_rng_state()
            results.append(EVERY[name](points.model, points.forget, points.retain, seed=3))
            assert torch.equal(torch.random.get_rng_state(), before)
    assert same(*results)
    other = EVERY[name](points.model, points.forget, points.retain, seed=4)
    assert same(results[0], other) == (name in DETERMINISTIC)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "Fisher"])    # which claims nothing about points
def test_unlearning_points_moves_towards_the_retrained_model(name, points):
    unlearned = EVERY[name](points.model, points.forget, points.retain, seed=0)
    assert rum.accuracy(points.model, points.forget) == 1 and rum.accuracy(points.oracle, points.forget) == 0
    assert rum.accuracy(unlearned, points.forget) < 0.25
    assert rum.tow(unlearned, points.oracle, points.forget, points.retain, points.test) > 0.7


@pytest.mark.parametrize("name", ["BoundaryShrink", "BoundaryExpand", "EU-2", "SalUn tanh"])
def test_unlearning_a_class_moves_towards_the_retrained_model(name, whole_class):
    p = whole_class
    unlearned = EVERY[name](p.model, p.forget, p.retain, seed=0)
    assert rum.accuracy(p.model, p.forget) == 1
    assert rum.tow(unlearned, p.oracle, p.forget, p.retain, p.test) > 0.9


@every
def test_it_is_a_step_of_rum_like_any_other(name, points):
    algorithm, refine = EVERY[name], rum.Shuffled(parts=2)
    meta = rum.RUM(refine, steps=(algorithm,) * 2)
    first, second = refine(points.forget)
    by_hand = algorithm(points.model, first, points.retain + second, seed=5)
    if name == "SalUn official":                             # its mask is that of the model before the first step
        algorithm = algorithm.within(points.model)
    by_hand = algorithm(by_hand, second, points.retain, seed=6)
    assert same(meta(points.model, points.forget, points.retain, seed=5), by_hand)


@every
def test_its_cost_is_counted(name, points):
    forget, retain = points.forget[:10], points.retain[:110]
    with rum.train.cost() as spent:
        EVERY[name](points.model, forget, retain, seed=0)
    assert spent.examples >= len(forget)
    if isinstance(EVERY[name], rum.Algorithm):
        assert spent.steps == EVERY[name].steps(forget, retain)


@every
def test_a_frozen_layer_stays_as_it_is(name, points):
    model = copy.deepcopy(points.model)
    model[2].requires_grad_(False)
    unlearned = EVERY[name](model, points.forget, points.retain, seed=0)
    assert not unlearned[2].weight.requires_grad
    if name != "EU-2":                                       # which draws its layers anew
        assert torch.equal(unlearned[2].weight, model[2].weight)
    assert not torch.equal(unlearned[-1].weight, model[-1].weight)


@every
def test_what_is_printed_is_what_was_made(name):
    known = {name: getattr(rum, name) for name in rum.__all__} | vars(rum.algorithms)
    assert eval(repr(EVERY[name]), known) == EVERY[name]


@every
def test_an_empty_set_is_refused(name, points):
    with pytest.raises(ValueError, match="forget set is empty"):
        EVERY[name](points.model, points.forget[:0], points.retain, seed=0)


@pytest.mark.parametrize("make, words", [
    (lambda: rum.InfluenceUnlearning(chunk=0), "chunk"),
    (lambda: algorithms.SSD(alpha=0), "alpha"),
    (lambda: algorithms.Fisher(floor=0), "floor"),
    (lambda: algorithms.LastLayers(k=0), "k must be a whole number at least 1"),
    (lambda: rum.SalUn(relabel, mask="smooth"), "hard, sigmoid, tanh"),
    (lambda: rum.SalUn(relabel, compat="upstream"), "official"),
    (lambda: rum.SalUn(relabel, mask="tanh", compat="official"), "hard mask only"),
    (lambda: rum.TopK(k=1.5), "k is a share.*1.5"),
    (lambda: rum.TopK(k=0.0), "k is a share.*0.0"),
    (lambda: rum.TopK(k=-1), "k is a share.*-1"),
    (lambda: rum.TopK(k=True), "k is a share.*True"),
    (lambda: rum.TopK(score="value"), "grad_mean, fisher, abs, ratio.*'value'"),
    (lambda: rum.TopK(chunk=0), "chunk"),
    (lambda: rum.RandomK(ranking="local"), "global, layer.*'local'"),
    (lambda: rum.RandomK(perturb="noise"), "gauss, gauss_rel, zero, reinit.*'noise'"),
    (lambda: rum.RandomK(scope="some"), "all, selected.*'some'"),
    (lambda: rum.RandomK(sigma=-0.1), "sigma"),
    (lambda: rum.RandomK(last=0), "last"),
    (lambda: rum.RandomK(tolerance=0.5, validation=0.0), "validation"),
    (lambda: rum.RandomTopK(factor=0.5), "factor=0.5"),
    (lambda: rum.RandomTopK(mix=50), "mix=50"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_a_wrong_construction_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# -- Influence unlearning ---------------------------------------------------------------------------------------------


def one_at_a_time(model, forget, retain, alpha, samples=1002, n=1000):
    """The recursion as it is written in the specification, with a gradient for each example."""
    model = copy.deepcopy(model).eval()
    weights = list(model.parameters())

    def gradient(x, y):
        loss = F.cross_entropy(model(x[None]), y[None])
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])

    mean_s, mean_r = (sum(gradient(x, y) for x, y in zip(s.x, s.y, strict=True)) / len(s) for s in (forget, retain))
    k, o = len(forget) / (len(forget) + len(retain)) * (mean_s - mean_r), None
    for x, y in zip(retain.x[:samples], retain.y[:samples], strict=True):
        g = gradient(x, y)
        if o is None:
            o = g
            continue
        t = o @ g
        k = k - (k @ g) / (n + t) * o
        o = o - t / (n + t) * o
    return flat(model) + alpha * k


@pytest.mark.parametrize("which", ["mlp", "small_resnet"])
@pytest.mark.parametrize("options", [{}, {"n": 10, "samples": 50, "chunk": 16}], ids=str)
def test_influence_equals_one_example_at_a_time(which, options, points, normed):
    model = points.model if which == "mlp" else normed
    unlearned = rum.InfluenceUnlearning(alpha=5.0, **options)(model, points.forget, points.retain)
    options = {k: v for k, v in options.items() if k != "chunk"}
    expected = one_at_a_time(model, points.forget, points.retain, 5.0, **options)
    torch.testing.assert_close(flat(unlearned), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_the_published_recursion_stays_in_the_direction_of_the_first_gradient(points):
    """It corrects v along one gradient of 1,002: what `exact=True` is there to mend."""
    v = weights.mean_gradient(points.model, points.forget, 64)
    first = weights.mean_gradient(points.model, points.retain[:1], 64)
    correction = rum.InfluenceUnlearning(n=1).recursion(points.model, points.retain, v) - v
    assert F.cosine_similarity(correction, first, dim=0).abs() == pytest.approx(1, abs=1e-5)
    exact = rum.InfluenceUnlearning(n=1).inverse(points.model, points.retain, v) - v
    assert F.cosine_similarity(exact, first, dim=0).abs() < 0.5


def test_exact_influence_is_the_inverse_fisher_information(points):
    """On a quadratic model of the loss the step is known in closed form: (I + sum g g' / n)^-1 v."""
    model, forget, retain = points.model, points.forget, points.retain
    gradients = torch.stack([weights.mean_gradient(model, points.train[k:k + 1], 1) for k in range(123)]).double()
    gone = torch.isin(points.train.index, forget.index)
    g, share = gradients[~gone][:40], len(forget) / 123
    v = share * (gradients[gone].mean(0) - gradients[~gone].mean(0))
    expected = torch.linalg.solve(torch.eye(len(v), dtype=torch.double) + g.T @ g / 7, v)
    unlearned = rum.InfluenceUnlearning(alpha=3.0, samples=40, n=7, exact=True)(model, forget, retain)
    torch.testing.assert_close((flat(unlearned) - flat(model)).double() / 3, expected, rtol=1e-3, atol=1e-6)


def test_exact_influence_is_a_newton_step_where_fisher_and_hessian_agree():
    """Softmax regression at logits 0 with each label once: the Hessian H is the Fisher information, so that the step
    is that of the quadratic problem, (I + H) k = v."""
    x = torch.eye(2).repeat_interleave(2, 0)
    retain = rum.Examples(x, torch.tensor([0, 1, 0, 1]))
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    nn.init.zeros_(model[1].weight)
    forget = rum.Examples(torch.tensor([[1.0, 0.5]]), torch.tensor([0]))
    step = flat(rum.InfluenceUnlearning(alpha=1.0, n=1, exact=True)(model, forget, retain)).double()

    def loss(w):
        return F.cross_entropy(x.double() @ w.view(2, 2).T, retain.y, reduction="sum")

    hessian = torch.autograd.functional.hessian(loss, torch.zeros(4, dtype=torch.double))
    v = weights.mean_gradient(model, forget, 1).double() / 5      # the retain gradients cancel
    torch.testing.assert_close(step, torch.linalg.solve(torch.eye(4).double() + hessian, v), rtol=1e-5, atol=1e-7)


def test_influence_holds_no_gradient_of_a_single_example(points, monkeypatch):
    """Memory: a chunk of examples goes through the model, and vectors of weights are few."""
    seen = []
    original = weights.losses
    monkeypatch.setattr(weights, "losses", lambda model, weights, x, y: (seen.append(len(y)),
                                                                             original(model, weights, x, y))[1])
    rum.InfluenceUnlearning(chunk=10)(points.model, points.forget, points.retain)
    assert max(seen) == 10


ON_THE_EDGE = [
    (rum.L1Sparse, dict(alpha=0)), (rum.NegGradPlus, dict(alpha=0)), (rum.NegGradPlus, dict(alpha=1)),
    (rum.SalUn, dict(inner=relabel, keep=1)), (rum.Scrub, dict(beta=0, gamma=0, max_steps=0, temperature=1e-3)),
    (algorithms.BadTeacher, dict(temperature=1e-3)), (algorithms.BoundaryShrink, dict(bound=0)),
    (algorithms.LastLayers, dict(k=1)),
    (algorithms.UNSIR, dict(impair=0, noise=1, noise_steps=0, penalty=0, share=0)),
    (algorithms.SSD, dict(alpha=1e-9, dampening=0, batch_size=1)),
    (algorithms.Fisher, dict(alpha=0, floor=1e-30, chunk=1)),
    (rum.InfluenceUnlearning, dict(alpha=0, samples=1, n=1, chunk=1)),
    (rum.TopK, dict(k=0, sigma=0, sim_weight=0, last=1, chunk=1)),
    (rum.RandomK, dict(k=1.0, validation=1, tolerance=0)), (rum.RandomTopK, dict(factor=1)),
    (rum.RandomTopK, dict(mix=0)), (rum.RandomTopK, dict(mix=1)),
    (rum.ClassProjection, dict(alpha_retain=1e-9, alpha_forget=1e-9, samples=1, rows=1, scored=1, chunk=1)),
    (rum.Shuffled, dict(parts=1)),
    (rum.AutoRUM, dict(refine=rum.Shuffled(1), candidates=(relabel,), judge=len, budget=float("inf"),
                       enough=float("inf"))),
]


@pytest.mark.parametrize(("kind", "fields"), ON_THE_EDGE, ids=str)
def test_values_on_the_edge_are_accepted(kind, fields):
    assert fields.items() <= vars(kind(**fields)).items()


# -- Saliency ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.1, 0.2, 0.3, 0.4, 0.5])
def test_hard_masks_of_all_published_ratios(keep, points):
    before = flat(points.model)
    ours = saliency_mask(points.model, points.forget, keep)
    published = published_mask(points.model, points.forget, keep, batch_size=len(points.forget))
    sizes = [sum(m.sum() for m in mask.values()) for mask in (ours, published)]
    assert sizes == [round(keep * len(before)), int(keep * len(before))]
    both = torch.cat([(ours[name] & published[name].bool()).flatten() for name in ours])
    assert both.sum() <= 1                                   # the largest and the smallest; the middle one if odd
    unlearned = rum.SalUn(relabel, keep=keep)(points.model, points.forget, points.retain, seed=0)
    moved = (flat(unlearned) != before).float().mean()
    assert moved == pytest.approx(keep, abs=0.01)


def test_weight_decay_moves_masked_weights_in_the_official_way_only(points):
    ours, official = (rum.SalUn(relabel, compat=compat)(points.model, points.forget, points.retain, seed=0)
                      for compat in (None, "official"))
    assert (flat(ours) != flat(points.model)).float().mean() < 0.51
    assert (flat(official) != flat(points.model)).float().mean() > 0.9


def test_soft_masks_rise_with_saliency(points):
    size = torch.cat([s.flatten() for s in saliency_of(points).values()])
    for mask, at_least in (("sigmoid", 0.5), ("tanh", np.tanh(1))):
        factor = torch.cat([s.flatten() for s in soft_mask(points.model, points.forget, 0.3, mask).values()])
        order = size.argsort()
        assert (factor[order].diff() >= 0).all() and factor.min() >= 0 and factor.max() <= 1
        assert (factor >= at_least - 1e-5).float().mean() == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("keep", [0.1, 0.5, 1e-9])
def test_soft_masks_are_in_units_of_the_least_saliency_that_would_be_kept(keep, points):
    """At that unit s = 1: the sigmoid is 1/2, the hyperbolic tangent tanh(1). At least one weight would be kept."""
    n = sum(p.numel() for p in points.model.parameters())
    kept = max(round(keep * n), 1)
    for mask, at_one in (("sigmoid", 0.5), ("tanh", np.tanh(1))):
        found = torch.cat([m.flatten() for m in soft_mask(points.model, points.forget, keep, mask).values()])
        assert found.topk(kept).values[-1].item() == pytest.approx(at_one, rel=1e-6)
        assert (found >= at_one - 1e-6).sum() == kept


def test_soft_masks_where_no_weight_matters(points):
    """All weights would be kept, the least of saliency 0: nothing is divided by it."""
    model = rum.Keep()(points.model, points.forget, points.retain)
    torch.nn.init.zeros_(model[2].weight)                    # ReLU passes nothing on: no gradient reaches the first
    torch.nn.init.constant_(model[2].bias, -1.0)
    found = soft_mask(model, points.forget, 1.0, "tanh")
    assert all(m.isfinite().all() for m in found.values()) and not found["2.weight"].any()
    assert (found["4.bias"] == 1).all()


def saliency_of(points):
    model = copy.deepcopy(points.model)
    F.cross_entropy(model(points.forget.x), points.forget.y, reduction="sum").backward()
    return {name: p.grad.abs() for name, p in model.named_parameters()}


# -- What the others promise ------------------------------------------------------------------------------------------


def test_ssd_dampens_by_its_formula(points):
    model, batch = points.model, 10
    i_f, i_d = (importance(model, s, batch) for s in (points.forget, points.forget + points.retain))
    unlearned = dict(algorithms.SSD(alpha=2.0, dampening=0.5, batch_size=batch)(
        model, points.forget, points.retain).named_parameters())
    for name, p in model.named_parameters():
        ratio = i_d[name].numpy() / np.maximum(i_f[name].numpy(), 1e-38)
        factor = np.where(i_f[name].numpy() > 2.0 * i_d[name].numpy(), np.minimum(0.5 * ratio, 1), 1)
        np.testing.assert_allclose(unlearned[name].detach(), p.detach().numpy() * factor, rtol=1e-5)


def test_ssd_importance_is_the_published_one():
    """A linear model in log space on six examples in batches of four and two."""
    def det(*shape, c):
        return torch.tensor(np.sin(c * np.arange(np.prod(shape), dtype=float)**2).reshape(shape))

    model = nn.Linear(3, 2).double()
    with torch.no_grad():
        model.weight.copy_(det(2, 3, c=0.4))
        model.bias.zero_()
    found = importance(model, rum.Examples(det(6, 3, c=0.29), torch.tensor([0, 1, 0, 1, 1, 0])), 4)
    for row in found["weight"].tolist():
        assert row == [pytest.approx(v, abs=1e-6) for v in (0.048073, 0.086133, 0.009628)]
    assert found["bias"].tolist() == [pytest.approx(0.008712, abs=1e-6)] * 2


def test_fisher_noise_is_weakest_where_the_information_is(points):
    model, retain = points.model, points.retain
    alpha, floor = 1e-3, 1e-6
    fisher = algorithms.Fisher(alpha, floor)
    moves = torch.stack([flat(fisher(model, points.forget, retain, seed=s)) for s in range(60)]) - flat(model)
    drawn = rum.Examples(retain.x, rum.predict(model, retain).argmax(1))          # it is nearly always sure
    information = torch.cat([g.flatten() for g in weights.squared_gradients(model, drawn, 64).values()])
    ratio = moves.std(0) / (alpha * information.clamp(min=floor) ** -0.25)
    assert ratio.median() == pytest.approx(1, abs=0.15)


def test_squared_gradients_are_those_of_single_examples(points):
    part = points.train[:7]
    single = torch.stack([weights.mean_gradient(points.model, part[k:k + 1], 1) for k in range(7)])
    found = torch.cat([g.flatten() for g in weights.squared_gradients(points.model, part, 3).values()])
    torch.testing.assert_close(found, single.square().mean(0))


def test_the_bad_teacher_is_untrained_and_the_good_one_the_original(points):
    taught = algorithms.BadTeacher().prepare(points.model, points.forget, points.retain)
    n = len(points.forget)
    torch.testing.assert_close(taught[n:], rum.predict(points.model, points.retain))
    assert taught[:n].softmax(1).max() < 0.75 < rum.predict(points.model, points.forget).softmax(1).max()


def test_the_noise_of_unsir_is_what_the_model_is_worst_at(whole_class):
    p = whole_class
    frozen = copy.deepcopy(p.model).requires_grad_(False)
    x, y = algorithms.UNSIR(noise=8).prepare(frozen, p.forget, p.retain)
    assert x.shape == (8, 1, 4, 4) and (y == 0).all()
    assert F.cross_entropy(p.model(x), y) > 5 > F.cross_entropy(p.model(p.forget.x), p.forget.y)


def test_unsir_shows_noise_in_its_first_epochs_only(whole_class):
    p, noise = whole_class, algorithms.UNSIR(epochs=3, impair=2, batch_size=20, share=0.2)
    prepared = noise.prepare(copy.deepcopy(p.model).requires_grad_(False), p.forget, p.retain)
    for number in range(3):
        epoch = Epoch(number, 3, 20, p.model, torch.Generator(), prepared)
        shown = torch.cat([batch.y for _, batch in noise.batches(p.forget, p.retain, epoch)])
        assert (shown == 0).sum() == (len(p.retain) // 4 + (len(p.retain) % 4 > 0) if number < 2 else 0)


def test_nearest_wrong_classes_are_wrong_and_near(points):
    model, examples = points.model, points.retain
    found = nearest_wrong(model, examples, bound=0.3)
    assert (found != examples.y).all()
    without = model(examples.x).scatter(1, examples.y[:, None], -torch.inf).argmax(1)
    assert (nearest_wrong(model, examples, bound=0.0) == without).all()


def test_expanding_leaves_no_trace_of_the_new_class(points):
    unlearned = EVERY["BoundaryExpand"](points.model, points.forget, points.retain)
    assert [p.shape for p in unlearned.parameters()] == [p.shape for p in points.model.parameters()]
    with pytest.raises(ValueError, match="mask"):
        rum.SalUn(EVERY["BoundaryExpand"])(points.model, points.forget, points.retain)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_last_layers_alone_move_statistics_included(k, exact, points, normed):
    algorithm = algorithms.LastLayers(k=k, exact=exact, epochs=1, lr=0.1, **common)
    unlearned = algorithm(normed, points.forget, points.retain)
    ours, theirs = layers(normed), layers(unlearned)
    for here, there in zip(ours[:-k], theirs[:-k], strict=True):
        assert all(same(a, b) for a, b in zip(here, there, strict=True))
    assert all(not torch.equal(here[0].weight, there[0].weight)
               for here, there in zip(ours[-k:], theirs[-k:], strict=True))


def test_all_layers_can_be_the_last_ones(points, normed):
    count = len(layers(normed))
    assert [type(layer[0]).__name__ for layer in layers(normed)] == ["Conv2d"] * (count - 1) + ["Linear"]
    options = dict(epochs=1, lr=0.1, **common)
    whole = algorithms.LastLayers(k=count, **options)(normed, points.forget, points.retain)
    with pytest.raises(ValueError, match=f"k={count + 1}.*{count}"):
        algorithms.LastLayers(k=count + 1, **options)(normed, points.forget, points.retain)
    assert all(not torch.equal(a, b) for a, b in zip(whole.parameters(), normed.parameters(), strict=True))


def test_a_module_that_cannot_be_drawn_anew_is_named(points):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.by = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return x * self.by

    model = nn.Sequential(copy.deepcopy(points.model), Scale())
    with pytest.raises(TypeError, match="Scale has weights and no reset_parameters"):
        algorithms.LastLayers(exact=True)(model, points.forget, points.retain)
