"""The training loop, many models at once, and what is asked of a trained model."""

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
from planted import echo, make_model, make_normed, same, tiny
from torch import nn
from torchvision.models import resnet18 as torchvision_resnet18

import rumlib as rum
from rumlib.data import shuffled
from rumlib.device import derive_seed, seeded
from rumlib.ensemble import Stacked, fits_stacking
from rumlib.models import build, describe, normalizing_one, resnet18
from rumlib.train import descend

short = rum.Recipe(epochs=3, lr=0.1, batch_size=16, schedule="linear")


def with_dropout():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.Dropout(0.5), nn.ReLU(), nn.Linear(32, 3))


def bytewise(examples):
    return rum.Examples((examples.x * 255).round().to(torch.uint8), examples.y, examples.index)


# -- fit --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_model, with_dropout], ids=["mlp", "dropout"])
def test_the_same_seed_trains_the_same_model(make, planted):
    before = torch.random.get_rng_state()
    one = rum.fit(make, planted.train, short, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)                                            # the state of the caller decides nothing
    assert same(one, rum.fit(make, planted.train, short, seed=1))
    assert not same(one, rum.fit(make, planted.train, short, seed=2))


def test_a_given_model_is_trained_on_as_a_copy(planted):
    before = copy.deepcopy(planted.model)
    further = rum.fit(planted.model, planted.retain, short, seed=1)
    assert same(planted.model, before) and not same(further, before)
    assert not any(module.training for module in further.modules())


def test_training_from_a_factory_starts_at_the_weights_of_its_seed(planted):
    started = rum.fit(build(make_model, 5), planted.train, short, seed=5)
    assert same(started, rum.fit(make_model, planted.train, short, seed=5))


def test_the_loop_is_sgd(planted):
    """Against torch's own optimizer, written out, on one batch per epoch; the learning rate falls linearly."""
    options = rum.Recipe(epochs=4, lr=0.1, batch_size=500, momentum=0.9, weight_decay=0.01, schedule="linear")
    ours = rum.fit(make_model, planted.train, options, seed=0)
    theirs = build(make_model, 0).train()
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for rate in (0.1, 0.075, 0.05, 0.025):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        F.cross_entropy(theirs(planted.train.x), planted.train.y).backward()
        optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_bytes_train_as_floats_do(planted):
    coded = bytewise(planted.train)
    scaled = rum.Examples(coded.x / 255, coded.y, coded.index)
    assert same(rum.fit(make_model, coded, short), rum.fit(make_model, scaled, short))
    assert torch.equal(rum.predict(planted.model, coded), rum.predict(planted.model, scaled))


def test_any_finite_float_is_accepted(planted):
    doubled = rum.Examples(planted.train.x.double(), planted.train.y, planted.train.index)
    assert same(rum.fit(make_model, doubled, short), rum.fit(make_model, planted.train, short))


def test_augmented_training_obeys_its_seed_and_differs(planted):
    wide = rum.Examples(F.pad(planted.train.x, (2, 2, 2, 2)), planted.train.y)
    make = partial(rum.models.mlp, shape=(1, 8, 8), classes=3, hidden=(16,))
    once, again = (rum.fit(make, wide, replace(short, augment=True), seed=1) for _ in range(2))
    assert same(once, again) and not same(once, rum.fit(make, wide, short, seed=1))


def test_autocast_leaves_float_weights_near_those_without(planted):
    half, full = (rum.fit(make_model, planted.train, replace(short, amp=amp)) for amp in (True, False))
    for a, b in zip(half.parameters(), full.parameters(), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, atol=0.05, rtol=0)
    assert not same(half, full)


def test_training_that_diverges_says_what_to_lower(planted):
    with pytest.raises(FloatingPointError, match=r"lower lr=1e\+30"):
        rum.fit(make_model, planted.train, replace(short, lr=1e30))


def test_only_the_marked_weights_learn(planted):
    model = copy.deepcopy(planted.model)
    random = torch.Generator().manual_seed(0)
    only = {name: torch.rand(p.shape, generator=random) < 0.5 for name, p in model.named_parameters()}
    batches, options = [(planted.train.x, planted.train.y)] * 3, replace(short, weight_decay=0.1)
    descend(model, batches, lambda m, x, y: F.cross_entropy(m(x), y), options, steps=3, only=only)
    for (name, new), old in zip(model.named_parameters(), planted.model.parameters(), strict=True):
        assert torch.equal(new[~only[name]], old[~only[name]])
        assert (new[only[name]] != old[only[name]]).all()


# -- One example, and tokens ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graphs", ["on", "off"])
@pytest.mark.parametrize("algorithm", [rum.NegGrad(epochs=5, lr=1e-3), rum.NegGradPlus(epochs=1, batch_size=16),
                                       rum.Finetune(epochs=1, batch_size=16)], ids=lambda a: type(a).__name__)
def test_one_example_is_unlearned_from_a_model_with_batch_norm(algorithm, graphs, planted, monkeypatch):
    monkeypatch.setenv("RUM_GRAPHS", graphs)
    data = tiny(planted.train, 60)
    model = rum.fit(make_normed, data, short)
    unlearned = algorithm(model, data[:1], data[1:])
    assert not same(model, unlearned)
    assert all(p.isfinite().all() for p in unlearned.state_dict().values())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in unlearned.modules())


def test_one_example_trains_with_the_running_statistics(planted):
    """As torch's own layers do in eval mode; the statistics stay, and so does the mode of every layer."""
    one, model = tiny(planted.train, 1), build(make_normed, 0)
    trained = rum.fit(make_normed, one, replace(short, epochs=1, batch_size=1))
    theirs = copy.deepcopy(model)
    for layer in theirs.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean += 0.3
    ours = copy.deepcopy(theirs).train()
    seen = []
    with normalizing_one(ours):
        for module in (ours, ours[2].bn1):
            module.register_forward_hook(lambda module, *_: seen.append(module.training))
        logits = ours(one.x)
    expected = theirs.train()
    wide = [layer for layer in expected.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in wide[1:]:                                   # the first sees 2x2 values, which have a variance
        layer.eval()
    torch.testing.assert_close(logits, expected(one.x), rtol=0, atol=0)
    assert all(module.training for module in ours.modules()) and seen == [False, True]
    assert same(ours, expected) and not same(trained, model)


def test_other_batches_are_normalised_as_ever_after_a_batch_of_one(planted):
    data, (ours, theirs) = tiny(planted.train, 9), (build(make_normed, 0).train() for _ in range(2))
    with normalizing_one(ours):
        ours(data.x[:1])
        theirs.load_state_dict(ours.state_dict())
        assert torch.equal(ours(data.x), theirs(data.x)) and same(ours, theirs)
        with pytest.raises(RuntimeError):
            ours(data.x[:1].expand(1, 2, 2, 2))              # fails inside
    assert all(module.training for module in ours.modules())


class Words(nn.Module):
    """Tokens (n, 4) to three classes."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(2000, 8), nn.Linear(8, 3)

    def forward(self, x):
        assert x.dtype in (torch.int32, torch.int64)
        return self.head(self.embedding(x).mean(1))


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_tokens_train_and_unlearn(dtype, amp):
    """A token above 256 names the class: bf16 would not know it from the next one."""
    y = torch.arange(120) % 3
    noise = torch.randint(0, 1000, (120, 4), generator=torch.Generator().manual_seed(0))
    noise[:, 0] = 1501 + y
    data = rum.Examples(noise.to(dtype), y)
    model = rum.fit(Words, data, rum.Recipe(epochs=30, lr=0.5, batch_size=16, amp=amp))
    assert rum.accuracy(model, data) > 0.95 and rum.features(model, data).shape == (120, 8)
    forget, retain = data.split(torch.arange(120) < 6)
    unlearned = rum.NegGradPlus(epochs=2, amp=amp)(model, forget, retain)
    assert rum.predict(unlearned, forget).shape == (6, 3) and not same(unlearned, model)


# -- Factories --------------------------------------------------------------------------------------------------------


def test_a_factory_that_returns_one_model_leaves_it_alone(planted):
    before = copy.deepcopy(planted.model)
    subsets = [torch.arange(9)] * 2
    for make in (lambda: planted.model, lambda: nn.Sequential(planted.model[:3], build(make_model, 1)[3:])):
        with pytest.raises(ValueError, match="same weights each time"):
            rum.fit(make, planted.train, short)
        with pytest.raises(ValueError, match="same weights each time"):
            rum.ensemble.fit_many(make, planted.train, subsets, short, seeds=[1, 2])
    assert same(planted.model, before) and not planted.model.training


def test_a_factory_that_starts_from_a_copy_or_ties_its_weights_is_one(planted):
    def tied():
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 3))
        model[3].weight = model[1].weight
        return model

    def reads():                                             # what the meta device cannot do
        model = build(make_model, 0)
        return model if model[2].weight.sum().item() else None

    for make in (tied, reads, lambda: copy.deepcopy(planted.model)):
        before = torch.random.get_rng_state()
        assert rum.fit(make, planted.train, short)[2] is not planted.model[2]
        assert torch.equal(torch.random.get_rng_state(), before)


# -- Batches ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 50), st.integers(2, 20), st.integers(0, 100))
def test_an_epoch_has_every_example_once_and_no_batch_of_one(n, size, seed):
    examples = rum.Examples(torch.arange(n).float()[:, None], torch.arange(n))
    batches = list(shuffled(examples, size, torch.Generator().manual_seed(seed)))
    assert sorted(torch.cat([batch.rows for batch in batches]).tolist()) == list(range(n))
    assert all(torch.equal(b.x[:, 0], b.rows.float()) and torch.equal(b.y, b.rows) for b in batches)
    assert n == 1 or min(len(b.y) for b in batches) > 1
    assert max(len(b.y) for b in batches) <= size + 1


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 12))
def test_the_schedule_ends_with_the_last_step(n, size):
    """A linear schedule of s steps takes its last step at 1/s of the rate, whatever the last batch was joined to."""
    rates = []

    class Watched(rum.Recipe):
        def rate(self, step, steps):
            rates.append(super().rate(step, steps))
            return rates[-1]

    examples = rum.Examples(torch.zeros(n, 3), torch.zeros(n, dtype=torch.int64))
    rum.fit(echo(3), examples, Watched(epochs=2, lr=1.0, batch_size=size, schedule="linear"))
    assert rates[-1] == pytest.approx(1 / len(rates))


# -- Schedules --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.data())
def test_schedules_have_their_closed_forms(steps, data):
    step = data.draw(st.integers(0, steps - 1))
    done = step / steps
    half_wave = (1 + math.cos(math.pi * done)) / 2
    drops = (done >= 0.5) + (done >= 0.75)

    def rate(**options):
        return rum.Recipe(lr=0.4, **options).rate(step, steps)

    assert rate(schedule="constant") == 0.4
    assert rate(schedule="linear") == pytest.approx(0.4 * (1 - done))
    assert rate(schedule="cosine") == pytest.approx(0.4 * half_wave, abs=1e-6)
    assert rate(schedule="step", milestones=(0.5, 0.75), gamma=0.2) == pytest.approx(0.4 * 0.2**drops)


@given(st.sampled_from(["constant", "linear", "cosine"]), st.floats(0, 0.9), st.integers(1, 200))
def test_warm_up_rises_to_the_rate_and_never_above(schedule, warmup, steps):
    options = rum.Recipe(lr=0.4, schedule=schedule, warmup=warmup)
    rates = [options.rate(step, steps) for step in range(steps)]
    assert all(0 < rate <= 0.4 * (1 + 1e-12) for rate in rates)
    peak = rates.index(max(rates))
    assert rates[:peak + 1] == sorted(rates[:peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_warm_up_is_a_straight_line():
    options = rum.Recipe(lr=1.0, schedule="linear", warmup=0.5)
    assert [options.rate(step, 8) for step in range(8)] == [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]


# -- Many models at once ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("size", [40, 48, 33], ids=["a short last batch", "whole batches", "a last batch of one"])
def test_many_models_are_those_trained_one_by_one(size, clip, planted):
    random = torch.Generator().manual_seed(0)
    subsets = [torch.randperm(len(planted.train), generator=random)[:size] for _ in range(3)]
    options = replace(short, clip=clip, warmup=0.2)
    together = rum.ensemble.fit_many(make_model, planted.train, subsets, options, seeds=[7, 8, 9])
    for model, subset, seed in zip(together, subsets, (7, 8, 9), strict=True):
        alone = rum.fit(make_model, planted.train[subset], options, seed=seed)
        for a, b in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make", [make_normed, with_dropout], ids=["batch norm", "dropout"])
def test_models_that_cannot_be_stacked_are_trained_one_by_one(make, planted):
    assert not fits_stacking(make()) and fits_stacking(make_model())
    data = tiny(planted.train, 60) if make is make_normed else planted.train
    subsets = [torch.arange(30), torch.arange(20, 50)]
    together = rum.ensemble.fit_many(make, data, subsets, short, seeds=[1, 2])
    for model, subset, seed in zip(together, subsets, (1, 2), strict=True):
        assert same(model, rum.fit(make, data[subset], short, seed=seed))


def test_subsets_of_different_sizes_are_trained_as_well(planted):
    subsets = [torch.arange(30), torch.arange(50)]
    together = rum.ensemble.fit_many(make_model, planted.train, subsets, short, seeds=[1, 2])
    assert same(together[1], rum.fit(make_model, planted.train[subsets[1]], short, seed=2))


@given(st.floats(0.01, 100), st.integers(1, 4))
def test_clipping_scales_the_gradient_of_each_model_down_to_the_limit(limit, models):
    random = torch.Generator().manual_seed(0)
    stacked = [torch.zeros(models, 3, 2), torch.zeros(models, 3)]
    weights = [w[0] for w in stacked] if models == 1 else stacked
    for w in weights:
        w.grad = 10 * torch.randn(w.shape, generator=random)
    before = [w.grad.clone() for w in weights]
    clip = nn.utils.clip_grad_norm_ if models == 1 else partial(Stacked.clip_gradients, None)
    clip(weights, limit)
    lead = (1, -1) if models == 1 else (models, -1)
    old, new = (torch.cat([g.reshape(lead) for g in grads], 1) for grads in (before, [w.grad for w in weights]))
    expected = old * (limit / old.norm(dim=1, keepdim=True)).clamp(max=1)
    torch.testing.assert_close(new, expected, rtol=1e-4, atol=1e-5)


# -- Asking -----------------------------------------------------------------------------------------------------------


def test_asking_leaves_every_mode_as_it_was(planted):
    model = build(make_normed, 0).train()
    model[1].eval()
    before, modes = copy.deepcopy(model), [module.training for module in model.modules()]
    rum.predict(model, tiny(planted.test, 20))
    rum.features(model, tiny(planted.test, 20))
    assert [module.training for module in model.modules()] == modes and same(model, before)


def test_predictions_do_not_depend_on_the_chunk(planted):
    whole = rum.predict(planted.model, planted.test)
    assert whole.shape == (90, 3) and whole.dtype == torch.float32 and not whole.requires_grad
    torch.testing.assert_close(rum.predict(planted.model, planted.test, chunk=7), whole)


# -- Cost -------------------------------------------------------------------------------------------------------------


def test_cost_counts_examples_and_steps_exactly(planted):
    with rum.train.cost() as spent:
        rum.fit(make_model, planted.train, short)            # 123 in batches of 16: 8 a epoch
        with rum.train.cost() as inner:
            rum.NegGradPlus(epochs=2, batch_size=50)(planted.model, planted.forget, planted.retain)
        rum.predict(planted.model, planted.test)             # asking is not training
    assert (inner.examples, inner.steps, inner.passes) == (2 * (111 + 3 * 12), 2 * 3, 2)
    assert (spent.examples, spent.steps, spent.passes) == (3 * 123 + inner.examples, 3 * 8 + inner.steps, 3 + 2)
    assert spent.seconds > inner.seconds > 0
    counted = spent.steps
    rum.fit(make_model, planted.train, short)
    assert spent.steps == counted


def test_cost_counts_every_stacked_model(planted):
    with rum.train.cost() as spent:
        rum.ensemble.fit_many(make_model, planted.train, [torch.arange(40)] * 3, short, seeds=[1, 2, 3])
    assert (spent.examples, spent.passes) == (3 * 3 * 40, 3 * 3)


# -- Seeds and names --------------------------------------------------------------------------------------------------


def test_derived_seeds_are_the_same_everywhere():
    assert derive_seed(0, "order") == 53_803_136_683_444_137
    assert len({derive_seed(seed, name, k) for seed in (0, 1) for name in "ab" for k in range(5)}) == 20


@pytest.mark.parametrize("three", [np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor([3])], ids=repr)
def test_a_seed_is_its_number_whatever_holds_it(three, planted):
    assert derive_seed(three, "order", three) == derive_seed(3, "order", 3)
    assert same(build(make_model, three), build(make_model, 3))
    assert same(*(rum.fit(make_model, planted.train, short, seed=seed) for seed in (three, 3)))
    assert torch.equal(rum.datasets.gaussians(5, 5, seed=three)[0].x, rum.datasets.gaussians(5, 5, seed=3)[0].x)
    assert rum.load("digits", n=5, seed=three)[0].digest == rum.load("digits", n=5, seed=3)[0].digest
    assert same(*(rum.ensemble.fit_many(make_model, planted.train, [torch.arange(20)], short, seeds=[seed])[0]
                  for seed in (three, 3)))


def test_negative_and_large_seeds_are_seeds():
    assert len({derive_seed(seed, "order") for seed in (-1, 1, 2**40, 2**64 - 1)}) == 4
    assert not same(build(make_model, -1), build(make_model, 1))


def test_a_seeded_block_leaves_the_random_state_even_when_it_fails():
    before = torch.random.get_rng_state()
    with pytest.raises(KeyError), seeded(0, "task"):
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.random.get_rng_state(), before)


def test_building_leaves_the_random_state_and_obeys_its_seed():
    before = torch.random.get_rng_state()
    assert same(build(make_model, 3), build(make_model, 3)) and not same(build(make_model, 3), build(make_model, 4))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_factory_is_named_by_its_function_and_arguments():
    assert describe(make_model) == "mlp(classes=3, hidden=(64,), shape=(1, 4, 4))"
    one, other = dict(hidden=(2,), classes=4), dict(classes=4, hidden=(2,))
    assert describe(partial(rum.models.mlp, **one)) == describe(partial(rum.models.mlp, **other))
    assert describe(resnet18) == "resnet18()"


# -- Networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make, shape", [
    (partial(rum.models.mlp, shape=(3, 5, 5), classes=4, hidden=(7, 6)), (3, 5, 5)),
    (partial(rum.models.small_resnet, shape=(1, 8, 8), classes=4, widths=(4, 8)), (1, 8, 8)),
    (partial(rum.models.resnet18, classes=4), (3, 32, 32)),
], ids=["mlp", "small_resnet", "resnet18"])
def test_a_network_maps_images_to_logits_and_learns_in_every_part(make, shape):
    model = build(make, 0).train()
    logits = model(torch.rand(2, *shape))
    assert logits.shape == (2, 4)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_with_its_own_stem_resnet18_is_torchvisions():
    ours, theirs = build(partial(resnet18, stem="imagenet"), 3), build(partial(torchvision_resnet18, num_classes=10), 3)
    assert same(ours[1], theirs) and sum(p.numel() for p in ours.parameters()) == 11_181_642
    with pytest.raises(ValueError, match='"cifar" or "imagenet"; got \'small\''):
        resnet18(stem="small")


def test_resnet50_has_the_stem_for_small_images():
    model = build(partial(rum.models.resnet50, classes=100), 0).eval()
    assert sum(p.numel() for p in model.parameters()) == 23_705_252
    seen = []
    model[1].layer4.register_forward_hook(lambda *args: seen.append(args[-1].shape))
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 100) and seen == [(1, 2048, 4, 4)]


def test_vgg16_takes_images_of_its_size():
    model = build(partial(rum.models.vgg16_bn, classes=200, size=64, units=256), 0).eval()
    assert [layer.in_features for layer in model if isinstance(layer, nn.Linear)] == [2048, 256, 256]
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 200)
    with pytest.raises(ValueError, match="multiple of 32; got 40"):
        rum.models.vgg16_bn(size=40)


def test_resnet18_has_the_stem_for_small_images():
    """11.17 million weights, and no pooling before the blocks: 32x32 images reach the last one at 4x4."""
    model = build(resnet18, 0).eval()
    assert sum(p.numel() for p in model.parameters()) == 11_173_962
    seen = []
    model[1].layer4.register_forward_hook(lambda *args: seen.append(args[-1].shape))
    model(torch.rand(1, 3, 32, 32))
    assert seen == [(1, 512, 4, 4)]
