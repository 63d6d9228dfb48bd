"""Top-K, Random-k and their mixture: which weights are chosen, what happens to them, and what is measured of it."""

import copy
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import echo, make_model, make_normed, recipe, same, tiny
from torch import nn

import rumlib as rum
from rumlib.algorithms.layers import layers
from rumlib.algorithms.perturb import flatten, layer_of, marked, shares, top
from rumlib.data import Batch
from rumlib.train import MaskedParameter, descend, seeded

options = dict(batch_size=10, clip=5.0, tolerance=None)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def det(*shape, c=0.37, ph=0.0):
    return np.sin(c * np.arange(np.prod(shape), dtype=float) ** 2 + ph).reshape(shape)


def regression(W, X, y):
    """Softmax regression with biases 0, and its examples, in double precision."""
    model = nn.Linear(W.shape[1], W.shape[0]).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor(W))
        model.bias.zero_()
    return model, rum.Examples(torch.tensor(X), torch.tensor(y))


def single_gradients(W, X, y):
    """(n, weights) by NumPy: W row by row, then the biases."""
    logits = X @ W.T
    p = np.exp(logits - logits.max(1, keepdims=True))
    error = p / p.sum(1, keepdims=True) - np.eye(len(W))[y]                              # (n, classes)
    return np.concatenate([(error[:, :, None] * X[:, None, :]).reshape(len(X), -1), error], 1)


@pytest.fixture(scope="module")
def golden():
    """The problem of the specification (S1) with its forget set; the retain set is other data."""
    W, X, y = det(3, 4, c=0.21, ph=0.3), det(6, 4, ph=0.1), np.array([0, 1, 2, 0, 1, 2])
    model, forget = regression(W, X, y)
    assert F.cross_entropy(model(forget.x), forget.y).item() == pytest.approx(1.154972, abs=1e-6)
    return model, forget, rum.Examples(torch.tensor(det(9, 4, c=0.53, ph=0.7)), torch.arange(9) % 3)


@pytest.fixture(scope="session")
def normed(planted):
    return rum.fit(make_normed, tiny(planted.train, 100), replace(recipe, epochs=2), seed=0)


@pytest.fixture(scope="module")
def wide():
    """A model of 200,000 weights, untrained: enough for statistics."""
    model = rum.models.build(partial(rum.models.mlp, shape=(1, 20, 20), classes=10, hidden=(488,)), 0)
    random = torch.Generator().manual_seed(0)
    examples = rum.Examples(torch.rand(12, 1, 20, 20, generator=random), torch.arange(12) % 10)
    return model, examples[:6], examples[6:]


# -- Which weights: S1 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score, chosen", [("grad_mean", {8, 4, 10, 9}), ("fisher", {13, 12, 14, 7}),
                                           ("abs", {12, 14, 13, 3})])
def test_the_weights_of_the_specification_are_chosen(score, chosen, golden):
    assert set(rum.TopK(k=4, score=score).select(*golden).tolist()) == chosen


def test_the_mean_gradient_has_its_golden_values(golden):
    expected = (.038421, .043463, .013850, .102902, .130953, .068651, .105130, .058407, .169374, .112114, .118980,
                .044495, .048441, .047544, .000897)
    assert rum.TopK().values(*golden).tolist() == pytest.approx(expected, abs=1e-6)


def test_weights_are_chosen_by_their_gradients_and_not_by_their_values(golden):
    """A third party's code compares the weights with the threshold of the squared gradients: eight of them for k=4."""
    model, forget, retain = golden
    squared = np.sort(rum.TopK().values(*golden).numpy() ** 2)
    by_value = set(np.flatnonzero(flat(model).numpy() >= squared[-4]))
    assert by_value == {0, 1, 2, 3, 6, 8, 10, 11}
    chosen = rum.TopK(k=4).select(model, forget, retain)
    assert len(chosen) == 4 and set(chosen.tolist()) != by_value
    negated = copy.deepcopy(model)
    with torch.no_grad():
        negated.weight.mul_(-1)
    mirrored = rum.Examples(-forget.x, forget.y)             # the same logits, so the same sizes of all gradients
    assert torch.equal(rum.TopK(k=4).select(negated, mirrored, retain), chosen)


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("seed", range(3))
def test_scores_by_numpy(seed, chunk):
    random = np.random.RandomState(seed)
    W, X, Z = random.randn(3, 5), random.randn(7, 5), random.randn(11, 5)
    y, z = random.randint(0, 3, 7), random.randint(0, 3, 11)
    model, forget = regression(W, X, y)
    g, r = single_gradients(W, X, y), single_gradients(W, Z, z)
    expected = {"grad_mean": np.abs(g.mean(0)), "abs": np.abs(g).mean(0), "fisher": (g**2).mean(0),
                "ratio": (g**2).mean(0) / ((r**2).mean(0) + 1e-8)}
    for score, values in expected.items():
        found = rum.TopK(score=score, chunk=chunk).values(model, forget, rum.Examples(torch.tensor(Z), torch.tensor(z)))
        np.testing.assert_allclose(found, values, rtol=1e-6)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.data())
def test_the_largest_are_taken_and_of_equal_ones_the_first(values, data):
    n = data.draw(st.integers(0, len(values)))
    found = top(torch.tensor(values).float(), n)
    expected = sorted(np.argsort(-np.array(values), kind="stable")[:n])
    assert found.tolist() == expected


@given(st.lists(st.integers(1, 500), min_size=1, max_size=20), st.data())
def test_shares_are_in_proportion_and_nothing_is_lost(sizes, data):
    count = data.draw(st.integers(0, sum(sizes)))
    found = shares(count, sizes)
    assert sum(found) == count
    assert all(0 <= n <= size and abs(n - count * size / sum(sizes)) < 1 for n, size in zip(found, sizes, strict=True))


@pytest.mark.parametrize("algorithm", [rum.TopK(), rum.RandomK(), rum.RandomTopK(), rum.RandomTopK(mix=0.5)], ids=repr)
@pytest.mark.parametrize("k", [0, 1, 7, 0.0001, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("ranking", ["global", "layer"])
def test_exactly_k_weights_are_chosen(ranking, k, algorithm, planted):
    chosen = replace(algorithm, k=k, ranking=ranking).select(planted.model, planted.forget, planted.retain)
    size = len(flat(planted.model))
    assert len(chosen) == (k if isinstance(k, int) else max(round(k * size), 1))
    assert (chosen.diff() > 0).all() and (not len(chosen) or (chosen[0] >= 0 and chosen[-1] < size))


def test_every_layer_gives_as_large_a_share(planted, normed):
    """A layer is a convolution or a linear map, with the normalisation that follows it."""
    sets = tiny(planted.forget, 11), tiny(planted.retain, 31)
    layer = torch.cat([torch.full((p.numel(),), layer_of(normed)[name]) for name, p in normed.named_parameters()])
    chosen = rum.TopK(k=0.2, ranking="layer").select(normed, *sets)
    shares = layer[chosen].bincount(minlength=len(layers(normed))) / layer.bincount()
    assert (layer.diff() >= 0).all() and len(shares) == len(layers(normed))
    assert ((shares - 0.2).abs() * layer.bincount() <= 1).all()
    values = rum.TopK().values(normed.eval(), *sets)
    for number in range(len(layers(normed))):
        mine = torch.zeros(len(layer), dtype=torch.bool).index_fill(0, chosen, True)[layer == number]
        of_layer = values[layer == number]
        assert of_layer[mine].min() >= of_layer[~mine].max()
    assert not torch.equal(chosen, rum.TopK(k=0.2).select(normed, *sets))


def test_biases_and_scales_can_be_left_out(planted, normed):
    sets = tiny(planted.forget, 11), tiny(planted.retain, 31)
    flags = torch.cat([torch.full((p.numel(),), p.ndim > 1) for p in normed.parameters()])
    for algorithm in (rum.TopK(), rum.RandomK(), rum.RandomTopK(mix=0.3), rum.TopK(ranking="layer")):
        algorithm = replace(algorithm, k=1.0)
        chosen = replace(algorithm, biases=False).select(normed, *sets)
        assert torch.equal(chosen, flags.nonzero()[:, 0])
        assert len(algorithm.select(normed, *sets)) == len(flags)


@pytest.mark.parametrize("last", [1, 2])
def test_noise_on_the_last_layers_alone(last, planted):
    algorithm = rum.RandomK(k=1.0, last=last, epochs=1, **options)
    chosen = algorithm.select(planted.model, planted.forget, planted.retain)
    disturbed = algorithm.disturb(planted.model, chosen)
    changed = [not torch.equal(a, b) for a, b in zip(disturbed.parameters(), planted.model.parameters(), strict=True)]
    assert changed == [False] * (4 - 2 * last) + [True] * (2 * last)
    with pytest.raises(ValueError, match=r"last=3.*has 2"):
        replace(algorithm, last=3).select(planted.model, planted.forget, planted.retain)


def test_frozen_weights_are_not_among_those_that_are_counted(planted):
    model = copy.deepcopy(planted.model)
    model[2].requires_grad_(False)
    chosen = rum.RandomK(k=1.0).select(model, planted.forget, planted.retain)
    assert len(chosen) == sum(p.numel() for p in model[-1].parameters())
    with pytest.raises(ValueError, match=rf"k=196 weights.*{len(chosen)} can be"):
        rum.RandomK(k=196).select(model, planted.forget, planted.retain)
    with pytest.raises(ValueError, match="frozen"):
        rum.RandomK().select(copy.deepcopy(planted.model).requires_grad_(False), planted.forget, planted.retain)


def test_random_selections_overlap_as_chance_has_it(wide):
    """Two random shares k have an expected Jaccard index of k / (2 - k)."""
    k = 0.1
    one, again, other = (rum.RandomK(k=k).select(*wide, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    spread = math.sqrt(k * (1 - k) / len(one)) * 2 / (2 - k) ** 2       # of the index, from that of the common share
    assert rum.metrics.overlap(one, other) == pytest.approx(k / (2 - k), abs=4 * spread)
    assert rum.metrics.overlap(one, one) == 1


def test_random_selection_is_uniform(planted):
    size, counts = len(flat(planted.model)), 0
    for seed in range(200):
        chosen = rum.RandomK(k=0.5).select(planted.model, planted.forget, planted.retain, seed=seed)
        counts = counts + torch.zeros(size).index_fill(0, chosen, 1)
    z = (counts - 100) / math.sqrt(50)
    assert z.abs().max() < 5 and z.square().mean() == pytest.approx(1, abs=0.15)


def test_the_mixtures_lie_between_both(planted):
    sets = planted.model, planted.forget, planted.retain
    chosen = {k: set(rum.TopK(k=k).select(*sets).tolist()) for k in (50, 100, 400)}
    drawn = set(rum.RandomTopK(k=100, factor=4.0).select(*sets).tolist())
    assert drawn < chosen[400] and drawn != chosen[100]
    half = set(rum.RandomTopK(k=100, mix=0.5).select(*sets).tolist())
    assert chosen[50] < half and len(half) == 100 and not half <= chosen[400]
    for whole in (rum.RandomTopK(k=100, factor=1.0), rum.RandomTopK(k=100, mix=1.0)):
        assert set(whole.select(*sets).tolist()) == chosen[100]


def test_selection_costs_one_pass_over_what_it_looks_at(planted):
    n, m = len(planted.forget), len(planted.retain)
    for algorithm, expected in ((rum.TopK(), n), (rum.TopK(score="fisher"), n), (rum.TopK(score="ratio"), n + m),
                                (rum.RandomK(), 0)):
        with rum.train.cost() as spent:
            algorithm.select(planted.model, planted.forget, planted.retain)
        assert (spent.examples, spent.steps, spent.passes) == (expected, 0, 0)


# -- What happens to them: S2, S3 -------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(k=st.integers(1, 1283), perturb=st.sampled_from(["gauss", "gauss_rel", "zero", "reinit"]),
       seed=st.integers(0, 100), kind=st.sampled_from([rum.TopK, rum.RandomK, rum.RandomTopK]))
def test_the_chosen_weights_change_and_no_others(k, perturb, seed, kind, planted):
    algorithm = kind(k=k, perturb=perturb)
    chosen = algorithm.select(planted.model, planted.forget, planted.retain, seed=seed)
    before, after = flat(planted.model), flat(algorithm.disturb(planted.model, chosen, seed=seed))
    assert torch.equal((before != after).nonzero()[:, 0], chosen)


def test_positions_do_not_depend_on_the_layout_in_memory(planted, normed):
    """The convolutions of `small_resnet` are laid out channels-last."""
    sets = tiny(planted.forget, 11), tiny(planted.retain, 31)
    plain = copy.deepcopy(normed).to(memory_format=torch.contiguous_format)
    assert not all(p.is_contiguous() for p in normed.parameters())
    algorithm = rum.TopK(k=0.1, scope="selected", epochs=2, lr=0.1, **options)
    chosen = [algorithm.select(model, *sets) for model in (normed, plain)]
    assert torch.equal(*chosen)
    assert torch.equal(*(flat(algorithm.disturb(model, chosen[0])) for model in (normed, plain)))
    learned = algorithm(normed, *sets)
    torch.testing.assert_close(flat(learned), flat(algorithm(plain, *sets)), rtol=1e-3, atol=1e-5)
    untouched = torch.ones(len(flat(normed)), dtype=torch.bool).index_fill(0, chosen[0], False)
    assert torch.equal(flat(learned)[untouched], flat(normed)[untouched])


def test_no_weights_no_change(planted):
    for algorithm in (rum.TopK(k=0), rum.RandomK(k=0, scope="selected"), rum.RandomTopK(k=0)):
        assert same(algorithm(planted.model, planted.forget, planted.retain), planted.model)


def test_all_weights_are_global_noise(wide):
    model = wide[0]
    algorithm = rum.RandomK(k=1.0, sigma=0.1)
    moved = flat(algorithm.disturb(model, algorithm.select(*wide))) - flat(model)
    assert (moved != 0).float().mean() > 0.999               # a rounded sum may be what it was
    assert moved.std() == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize("kind", [rum.TopK, rum.RandomK])
def test_noise_has_its_mean_and_its_deviation(kind, wide):
    K, sigma = 100_000, 0.3
    algorithm = kind(k=K, sigma=sigma)
    chosen = algorithm.select(*wide)
    noise = (flat(algorithm.disturb(wide[0], chosen)) - flat(wide[0]))[chosen]
    assert len(chosen) == K
    assert abs(noise.mean()) < 4 * sigma / math.sqrt(K) and noise.std() == pytest.approx(sigma, rel=0.02)


def test_relative_noise_is_in_units_of_each_parameter(wide):
    model = copy.deepcopy(wide[0])
    with torch.no_grad():
        model[2].weight.mul_(50)
        model[2].bias.fill_(3)                               # no spread, no noise
    algorithm = rum.RandomK(k=1.0, perturb="gauss_rel", sigma=0.5)
    disturbed = algorithm.disturb(model, algorithm.select(model, *wide[1:]))
    for layer in (2, 4):
        noise = disturbed[layer].weight - model[layer].weight
        assert noise.std().item() == pytest.approx(0.5 * model[layer].weight.std().item(), rel=0.05)
    assert torch.equal(disturbed[2].bias, model[2].bias)


def test_zero_is_zero_and_new_weights_are_drawn_like_those_of_a_new_model(wide):
    model = copy.deepcopy(wide[0])
    with torch.no_grad():
        for p in model.parameters():
            p.add_(10)
    zero, fresh = rum.RandomK(k=1000, perturb="zero"), rum.RandomK(k=1.0, perturb="reinit")
    chosen = zero.select(model, *wide[1:])
    assert (flat(zero.disturb(model, chosen))[chosen] == 0).all()
    drawn = fresh.disturb(model, fresh.select(model, *wide[1:]), seed=1)
    bound = 1 / math.sqrt(400)                               # torch's own: uniform within 1 / sqrt(inputs)
    assert drawn[2].weight.abs().max() <= bound
    assert drawn[2].weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not same(drawn, fresh.disturb(model, fresh.select(model, *wide[1:]), seed=2))


# -- Repair: S4 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranking", ["global", "layer"])
@pytest.mark.parametrize("kind", [rum.TopK, rum.RandomK, rum.RandomTopK])
def test_repair_of_the_selected_weights_leaves_all_others_bit_identical(kind, ranking, planted):
    algorithm = kind(k=0.05, ranking=ranking, scope="selected", epochs=3, lr=0.1, weight_decay=0.1, **options)
    assert algorithm.momentum == 0.9
    sets = planted.forget, planted.retain
    unlearned = algorithm(planted.model, *sets, seed=1)
    chosen = algorithm.select(planted.model, *sets, seed=1)
    disturbed = algorithm.disturb(planted.model, chosen, seed=1)
    assert torch.equal((flat(unlearned) != flat(planted.model)).nonzero()[:, 0], chosen)
    assert (flat(unlearned) != flat(disturbed))[chosen].float().mean() > 0.5     # no gradient passes a dead unit
    everything = replace(algorithm, scope="all")(planted.model, *sets, seed=1)
    assert (flat(everything) != flat(planted.model)).float().mean() > 0.9


@pytest.mark.parametrize("clip", [None, 0.05])
def test_descent_on_some_weights_is_sgd_with_all_else_put_back(clip, planted):
    """Against torch's own optimizer over all weights, with gradients masked and the others restored after each step."""
    random = torch.Generator().manual_seed(0)
    only = {name: torch.rand(p.shape, generator=random) < 0.2 for name, p in planted.model.named_parameters()}
    only["4.bias"].zero_()                                   # a parameter of which nothing may learn
    batches = [(x, y) for x, y in zip(planted.train.x.split(41), planted.train.y.split(41), strict=True)] * 3
    settings = rum.Recipe(epochs=3, lr=0.2, momentum=0.9, weight_decay=0.05, schedule="constant", clip=clip)
    ours, theirs = copy.deepcopy(planted.model), copy.deepcopy(planted.model).train()
    descend(ours, batches, lambda m, x, y: F.cross_entropy(m(x), y), settings, steps=len(batches), only=only)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.2, momentum=0.9, weight_decay=0.05)
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(theirs(x), y).backward()
        for name, p in theirs.named_parameters():
            p.grad.mul_(only[name])
        if clip:
            nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        optimizer.step()
        with torch.no_grad():
            for (name, p), start in zip(theirs.named_parameters(), planted.model.parameters(), strict=True):
                p.copy_(torch.where(only[name], p, start))
    for (name, a), b, start in zip(ours.named_parameters(), theirs.parameters(), planted.model.parameters(),
                                   strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        assert torch.equal(a[~only[name]], start[~only[name]])
    assert all(p.requires_grad and p.grad is None for p in ours.parameters())


def test_a_step_moves_as_many_numbers_as_there_are_weights_to_learn(wide):
    """What makes it cheap: the optimizer holds the selected weights and no others."""
    model = wide[0]
    mask = marked(model, rum.TopK(k=50).select(*wide))
    parts = [MaskedParameter(p, mask[name]) for name, p in model.named_parameters()]
    assert sum(part.learned.numel() for part in parts) == 50
    for part in parts:
        part.release()
    assert all(p.requires_grad for p in model.parameters())


def test_a_scalar_weight_can_be_selected_and_learn(planted):
    class Scaled(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.by = model, nn.Parameter(torch.tensor(1.0))

        def forward(self, x):
            return self.by * self.model(x)

    model = Scaled(copy.deepcopy(planted.model))
    unlearned = rum.RandomK(k=1.0, scope="selected", epochs=1, lr=0.1, **options)(model, planted.forget, planted.retain)
    assert unlearned.by.shape == () and unlearned.by != 1


def test_without_noise_the_repair_is_fine_tuning_but_for_the_order(planted):
    settings = dict(epochs=3, lr=0.1, batch_size=200)
    repaired = rum.TopK(k=0.1, sigma=0.0, tolerance=None, **settings)(planted.model, planted.forget, planted.retain)
    plain = rum.Finetune(**settings)(planted.model, planted.forget, planted.retain)
    torch.testing.assert_close(flat(repaired), flat(plain), rtol=1e-4, atol=1e-5)


def test_it_stops_where_the_accuracy_is_back(planted):
    """Undamaged, it takes no epoch; damaged, as many as bring the watched examples back; beyond repair, all."""
    sets, passes = (planted.model, planted.forget, planted.retain), {}
    common = dict(epochs=20, batch_size=10, clip=5.0, validation=0.5)
    for name, sigma, lr in (("unharmed", 0.0, 0.1), ("harmed", 1.0, 0.1), ("lost", 1.0, 1e-6)):
        algorithm = rum.RandomK(k=0.5, sigma=sigma, lr=lr, **common)
        with rum.train.cost() as spent:
            unlearned = algorithm(*sets)
        passes[name] = spent.passes
        assert spent.steps == spent.passes * 11 and spent.examples == spent.passes * len(planted.retain)
        goal = rum.accuracy(planted.model, planted.retain) - algorithm.tolerance
        assert (rum.accuracy(unlearned, planted.retain) > goal - 0.1) == (name != "lost")
    assert passes["unharmed"] == 0 < passes["harmed"] < 20 == passes["lost"]


def test_with_no_tolerance_all_epochs_are_run(planted):
    with rum.train.cost() as spent:
        rum.TopK(sigma=0.0, epochs=3, **options)(planted.model, planted.forget, planted.retain)
    assert spent.passes == 3


@pytest.mark.parametrize("held_out", [False, True])
def test_the_validation_set_is_a_seeded_part_of_the_retain_set(held_out, planted):
    algorithm = rum.TopK(validation=0.2, held_out=held_out)
    drawn = []
    for seed in (0, 0, 1):
        with seeded(seed, "validation"):
            drawn.append(algorithm.prepare(planted.model, planted.forget, planted.retain))
    (kept, watched, goal), (_, again, _), (_, other, _) = drawn
    assert len(watched) == round(0.2 * len(planted.retain))
    assert torch.isin(watched.index, planted.retain.index).all()
    assert torch.equal(watched.index, again.index) and not torch.equal(watched.index, other.index)
    assert torch.isin(watched.index, kept.index).all() != held_out
    assert len(kept) + held_out * len(watched) == len(planted.retain)
    assert goal == rum.accuracy(planted.model, watched) - 0.005


def test_nothing_to_train_on_is_refused(planted):
    with pytest.raises(ValueError, match=r"1 of 1 retain examples.*held_out=False"):
        rum.TopK(held_out=True)(planted.model, planted.forget, planted.retain[:1])


def test_similarity_to_the_source_opposes_forgetting(planted):
    """The third party's term, default 0: with a large weight, what should be forgotten is remembered."""
    settings = dict(k=0.1, sigma=0.5, epochs=10, lr=0.1, **options)
    plain, tied = (rum.TopK(sim_weight=weight, **settings)(planted.model, planted.forget, planted.retain)
                   for weight in (0.0, 5.0))
    assert rum.accuracy(plain, planted.forget) == 0 and rum.accuracy(tied, planted.forget) == 1


def test_the_loss_of_the_repair_by_hand(planted):
    """CE_r + sim_weight (KL(original, model) + KL(model, original)), of the predictions for the forget set."""
    model, original = rum.models.build(make_model, 1), planted.model
    forget, retain = (Batch(part.x, part.y, part.index) for part in (planted.forget, planted.retain))
    p, q = (m(forget.x).double().softmax(1) for m in (original, model))
    kl = (p * (p / q).log() + q * (q / p).log()).sum(1).mean()
    found = rum.TopK(sim_weight=0.3).loss(model, original, forget, retain)
    assert found.item() == pytest.approx((rum.xent(model, retain) + 0.3 * kl).item(), rel=1e-4)
    assert rum.TopK().loss(model, original, None, retain) == rum.xent(model, retain)


def test_it_chooses_its_weights_itself(planted):
    with pytest.raises(ValueError, match="scope='selected'"):
        rum.SalUn(rum.TopK())(planted.model, planted.forget, planted.retain)


# -- As steps of RUM --------------------------------------------------------------------------------------------------


def test_the_weights_that_steps_of_rum_touched_are_found_again(planted):
    """How much two steps overlap: each is asked for its selection, at the model and with the sets that it was given."""
    step, refine = rum.TopK(k=60, scope="selected", epochs=2, lr=0.1, **options), rum.Shuffled(2)
    parts = refine(planted.forget)
    both = rum.RUM(refine, steps=(step, step)).stages(planted.model, planted.forget, planted.retain, seed=4)
    stages = {stage.part: stage.model for stage in both}
    first = step.select(planted.model, parts[0], planted.retain + parts[1], seed=4)
    second = step.select(stages[0], parts[1], planted.retain, seed=5)
    touched = (flat(stages[1]) != flat(planted.model)).nonzero()[:, 0]
    assert torch.equal(touched, torch.cat([first, second]).unique())
    assert rum.metrics.overlap(first, second) == pytest.approx((120 - len(touched)) / len(touched))


def test_layers_reached(planted):
    size = len(flat(planted.model))
    assert rum.algorithms.layers_reached(planted.model, torch.tensor([], dtype=torch.int64)) == 0
    assert rum.algorithms.layers_reached(planted.model, torch.tensor([0])) == 0.5
    assert rum.algorithms.layers_reached(planted.model, torch.tensor([0, size - 1])) == 1


def test_the_flat_vector_is_the_weights_in_their_order(planted):
    weights = dict(planted.model.named_parameters())
    chosen = torch.tensor([0, 17, 1100])
    assert torch.equal(flatten(weights), flat(planted.model))
    mask = marked(planted.model, chosen)
    assert {name: m.shape for name, m in mask.items()} == {name: p.shape for name, p in weights.items()}
    assert torch.equal(torch.cat([m.flatten() for m in mask.values()]).nonzero()[:, 0], chosen)


# -- What is measured: S5 ---------------------------------------------------------------------------------------------

share = st.floats(0, 1)


def test_forgetting_and_retention_have_their_hand_values():
    assert rum.metrics.forgetting_rate(1.0, 0.8) == pytest.approx(0.2)
    assert rum.metrics.forgetting_rate_calibrated(1.0, 0.8, 0.9) == pytest.approx(2.0)
    assert rum.metrics.forgetting_rate_mia(20 / 100, 50 / 100) == pytest.approx(0.375)      # BT = 80, BF = 20, AF = 50
    assert rum.metrics.retention(0.97, 0.95) == pytest.approx(0.979381, abs=1e-6)


@given(st.floats(1e-3, 1), share, share)
def test_forgetting_and_retention_keep_their_promises(a, u, r):
    assert 0 <= rum.metrics.forgetting_rate(a, u) <= 1
    assert rum.metrics.forgetting_rate(a, a) == 0 and rum.metrics.forgetting_rate(a, 0) == 1
    assert rum.metrics.forgetting_rate(a, u) == pytest.approx(max(1 - rum.metrics.retention(a, u), 0), abs=1e-9)
    if abs(a - r) > 1e-6:
        assert rum.metrics.forgetting_rate_calibrated(a, r, r) == pytest.approx(1)
        assert rum.metrics.forgetting_rate_calibrated(a, a, r) == 0
    assert rum.metrics.forgetting_rate_mia(u, u) == 0 or u == 1
    assert u == 1 or rum.metrics.forgetting_rate_mia(u, 1.0) == pytest.approx(1)


def test_what_cannot_be_divided_is_refused_or_not_a_number():
    assert math.isnan(rum.metrics.forgetting_rate_calibrated(0.9, 0.5, 0.9))
    assert math.isnan(rum.metrics.forgetting_rate_mia(1.0, 0.5))
    for rate in (rum.metrics.forgetting_rate, rum.metrics.retention):
        with pytest.raises(ValueError, match="there is nothing"):
            rate(0.0, 0.0)
        with pytest.raises(ValueError, match=r"95.*by 100"):
            rate(0.9, 95)


def test_similarity_of_the_same_and_of_disjoint_predictions(planted):
    sure = rum.Examples(1000 * torch.eye(3), [0, 1, 2])      # one-hot probabilities
    other = echo(3)
    other.weight.data = torch.eye(3)[[1, 2, 0]]
    assert rum.metrics.similarity(echo(3), echo(3), sure) == 1
    assert rum.metrics.similarity(echo(3), other, sure) == pytest.approx(0, abs=1e-12)
    assert rum.metrics.similarity(planted.oracle, planted.oracle, planted.test) == pytest.approx(1)
    found = rum.metrics.similarity(planted.model, planted.oracle, planted.test)
    assert found == pytest.approx(rum.metrics.similarity(planted.oracle, planted.model, planted.test)) and 0 < found < 1
    broken = echo(3)
    broken.weight.data.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="NaN"):
        rum.metrics.similarity(broken, echo(3), sure)


@pytest.mark.parametrize("seed", range(3))
def test_similarity_by_scipy(seed):
    from scipy.spatial.distance import jensenshannon

    random = torch.Generator().manual_seed(seed)
    data, other = rum.Examples(3 * torch.randn(20, 4, generator=random), torch.zeros(20).long()), echo(4)
    other.weight.data = torch.randn(4, 4, generator=random)
    p, q = (rum.predict(model, data).double().softmax(1).numpy() for model in (echo(4), other))
    expected = 1 - np.mean(jensenshannon(p, q, base=2, axis=1) ** 2)
    assert rum.metrics.similarity(echo(4), other, data) == pytest.approx(expected, abs=1e-9)


def test_acceleration_by_hand():
    # 20 epochs of 900 against a scoring pass over 100 and 3 epochs of 900
    assert rum.metrics.analytic_acceleration(100, 900, retraining=20, repair=3) == pytest.approx(18000 / 2800)
    assert rum.metrics.analytic_acceleration(100, 900, retraining=20, repair=3, scored=False) == pytest.approx(20 / 3)
    # no weight gradients in half of the layers: (1 + 1 + 1/2) / 3 of an epoch
    found = rum.metrics.analytic_acceleration(100, 900, retraining=20, repair=3, scored=False, reached=0.5)
    assert found == pytest.approx(8)
    assert rum.metrics.analytic_acceleration(100, 900, retraining=20, repair=0, scored=False) == math.inf
    with pytest.raises(ValueError, match="reached must be"):
        rum.metrics.analytic_acceleration(100, 900, retraining=20, repair=3, reached=50)


@pytest.mark.parametrize("kind, scored", [(rum.TopK, True), (rum.RandomK, False)])
def test_analytic_acceleration_is_that_of_examples(kind, scored, planted):
    algorithm = kind(epochs=3, **options)
    sizes = len(planted.forget), len(planted.retain)
    with rum.train.cost() as spent:
        algorithm(planted.model, planted.forget, planted.retain)
    with rum.train.cost() as reference:
        rum.fit(planted.model, planted.retain, replace(recipe, epochs=20))
    expected = rum.metrics.analytic_acceleration(*sizes, retraining=20, repair=3, scored=scored)
    assert rum.metrics.acceleration(spent, reference, of="examples") == pytest.approx(expected)
    assert rum.metrics.acceleration(spent, reference, of="passes") == pytest.approx(20 / 3)


def test_overlap_by_hand():
    a, b = torch.tensor([1, 2, 3, 4]), torch.tensor([3, 4, 5])
    assert rum.metrics.overlap(a, b) == rum.metrics.overlap(b, a) == 0.4
    assert rum.metrics.overlap(a, torch.tensor([9])) == 0
    with pytest.raises(ValueError, match="empty"):
        rum.metrics.overlap(a[:0], b[:0])
