"""The generator that shifts the forget set, and the degree of unlearning with its controls."""

import copy
import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import echo, same
from torch import nn

import rumlib as rum
from rumlib.metrics import confidence
from rumlib.spdgan import noisy, spread

make_model = partial(rum.models.mlp, shape=(1, 8, 8), hidden=(64,))
recipe = rum.Recipe(epochs=15, lr=0.1, batch_size=32, schedule="linear", warmup=0.1)
quick = rum.spdgan.SPDGAN(eps=32 / 255, epochs=4, lr=1e-3, batch_size=32)


def images(n, channels=1, h=8, w=8, seed=0, classes=3):
    random = torch.Generator().manual_seed(seed)
    x = torch.rand(n, channels, h, w, generator=random)
    return rum.Examples(torch.where(x < 0.3, 0.0, x), torch.arange(n) % classes)         # many pixels at the border


def untrained(channels, eps, seed=0):
    return rum.models.build(partial(rum.spdgan.SPDGAN(eps=eps).untrained, channels), seed).eval()


@pytest.fixture(scope="module")
def digits():
    """A source that knows 500 digits by heart, 100 of them to be forgotten; a model trained on the rest."""
    train, test = rum.load("digits", n=500)
    forget, retain = train.split(torch.arange(500) % 5 == 0)
    source, oracle, reference = (rum.fit(make_model, part, recipe, seed=seed)
                                 for part, seed in ((train, 0), (retain, 0), (retain, 1)))
    return SimpleNamespace(forget=forget, retain=retain, test=test, source=source, oracle=oracle, reference=reference)


@pytest.fixture(scope="module")
def shift(digits):
    return quick(digits.source, digits.reference, digits.forget, seed=0, quiet=True)


def damaged(model, sets, sigma=0.2):
    """Noise on all weights: worse at everything, and no unlearning."""
    noise = rum.RandomK(k=1.0, sigma=sigma)
    return noise.disturb(model, noise.select(model, *sets), seed=0)


# -- The shift: S6 ----------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(eps=st.floats(0, 1), channels=st.sampled_from([1, 3]), h=st.integers(8, 14), w=st.integers(8, 14),
       seed=st.integers(0, 50))
def test_no_pixel_changes_by_more_than_eps_or_leaves_the_range(eps, channels, h, w, seed):
    before = images(5, channels, h, w, seed)
    after = untrained(channels, eps, seed).of(before)
    assert after.x.shape == before.x.shape and torch.equal(after.y, before.y) and torch.equal(after.index, before.index)
    assert (after.x - before.x).abs().max() <= eps + 1e-6
    assert after.x.min() >= 0 and after.x.max() <= 1


def test_a_trained_shift_keeps_its_bounds_on_all_data_and_moves(shift, digits):
    for part in (digits.forget, digits.retain, digits.test):
        change = shift.of(part).x - part.x
        assert change.abs().max() <= quick.eps + 1e-6 and change.abs().mean() > quick.eps / 10


def test_without_eps_nothing_is_shifted_and_the_degree_is_the_gap_of_accuracies(digits):
    off = replace(quick, eps=0.0, epochs=1)(digits.source, digits.reference, digits.forget, quiet=True)
    assert torch.equal(off.of(digits.forget).x, digits.forget.x)
    degree = rum.spdgan.unlearning_degree(digits.source, digits.oracle, off.of(digits.forget), off.of(digits.test))
    gaps = [rum.accuracy(digits.source, part) - rum.accuracy(digits.oracle, part)
            for part in (digits.forget, digits.test)]
    assert [degree.forget, degree.control] == [pytest.approx(gap, abs=1e-6) for gap in gaps]


def test_every_image_is_shifted_by_itself(shift, digits):
    whole = shift.of(digits.test).x
    torch.testing.assert_close(torch.cat([shift.of(digits.test[k:k + 1]).x for k in range(20)]), whole[:20])


def test_bytes_are_shifted_as_floats_are(shift, digits):
    coded = rum.Examples((digits.test.x * 255).round().to(torch.uint8), digits.test.y)
    scaled = rum.Examples(coded.x.float() / 255, coded.y)
    assert torch.equal(shift.of(coded).x, shift.of(scaled).x)


def test_colour_images_of_32_pixels_as_bytes():
    make = partial(rum.models.small_resnet, shape=(3, 32, 32), classes=3, widths=(4, 8))
    data = images(6, 3, 32, 32)
    data = rum.Examples((data.x * 255).to(torch.uint8), data.y)
    models = rum.models.build(make, 0), rum.models.build(make, 1)
    shifted = rum.spdgan.SPDGAN(epochs=1)(*models, data, quiet=True).of(data)
    assert shifted.x.shape == (6, 3, 32, 32) and (shifted.x - data.x / 255).abs().max() <= 8 / 255 + 1e-6


# -- Training ---------------------------------------------------------------------------------------------------------


def test_the_generator_is_a_function_of_models_examples_and_seed(shift, digits):
    given = digits.source, digits.reference
    before, modes = [copy.deepcopy(m) for m in given], [m.training for model in given for m in model.modules()]
    state = torch.random.get_rng_state()
    again = quick(*given, digits.forget, seed=0, quiet=True)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same(again, shift) and not same(quick(*given, digits.forget, seed=1, quiet=True), shift)
    assert all(same(a, b) for a, b in zip(given, before, strict=True))
    assert [m.training for model in given for m in model.modules()] == modes
    assert all(p.requires_grad and p.grad is None for model in given for p in model.parameters())
    assert not any(p.requires_grad for p in shift.parameters()) and not any(m.training for m in shift.modules())


def test_it_can_be_kept_as_plain_tensors(shift, digits):
    kept = safetensors.torch.load(safetensors.torch.save(shift.state_dict()))
    rebuilt = quick.untrained(channels=1)
    rebuilt.load_state_dict(kept)
    assert torch.equal(rebuilt.of(digits.test).x, shift.of(digits.test).x)


def test_the_same_images_are_shown_after_every_epoch(digits):
    seen = []
    shift = quick(digits.source, digits.reference, digits.forget, quiet=True, watch=lambda *shown: seen.append(shown))
    assert [epoch for epoch, _ in seen] == [0, 1, 2, 3]
    assert all(x.shape == (16, 1, 8, 8) and x.min() >= 0 and x.max() <= 1 for _, x in seen)
    assert torch.equal(seen[-1][1], shift.of(digits.forget[:16]).x) and not torch.equal(seen[0][1], seen[-1][1])


def moved(shift, digits):
    """How far the mean features of the reference move, and how long the shift is, in units of the largest one."""
    shifted = shift.of(digits.forget)
    way = rum.features(digits.reference, shifted).mean(0) - rum.features(digits.reference, digits.forget).mean(0)
    return way.norm().item(), (shifted.x - digits.forget.x).flatten(1).norm(dim=1).mean().item() / (8 * shift.eps)


def test_each_loss_does_what_it_is_there_for(digits):
    longer = replace(quick, epochs=25, lr=3e-3)
    options = {"none": dict(slight=0, move=0, keep=0), "move": dict(slight=0, move=10, margin=5, keep=0),
               "slight": dict(slight=100, tau=0, move=0, keep=0), "keep": dict(slight=0, move=0, keep=10)}
    shifts = {name: replace(longer, **change)(digits.source, digits.reference, digits.forget, quiet=True)
              for name, change in options.items()}
    far = {name: moved(shift, digits) for name, shift in shifts.items()}
    assert far["move"][0] > 1.5 * far["none"][0]
    assert far["slight"][1] < 0.2 * far["none"][1]
    known = {name: confidence(rum.predict(digits.source, shift.of(digits.forget)), digits.forget.y).mean()
             for name, shift in shifts.items()}
    assert known["keep"] > known["none"] and known["keep"] > known["move"]


def test_the_penalty_by_hand():
    """Linear models on 64 pixels; the reference's penultimate features are the pixels themselves."""
    random = torch.Generator().manual_seed(0)
    x, moved = torch.rand(2, 5, 1, 8, 8, generator=random)
    y, W = torch.tensor([0, 1, 2, 0, 1]), torch.randn(3, 64, generator=random)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3, bias=False))
    model[1].weight.data = W
    config = rum.spdgan.SPDGAN(eps=0.5, tau=0.25, slight=2.0, move=3.0, keep=0.5)
    found = config.penalty(moved, SimpleNamespace(x=x, y=y), model, model, margin=4.0)
    change = (moved - x).flatten(1).numpy()
    excess = np.maximum(np.sqrt((change**2).sum(1)) - 0.25 * 0.5 * 8, 0).mean()
    drift = np.sqrt((change.mean(0) ** 2).sum())
    logits = moved.flatten(1).numpy() @ W.numpy().T
    loss = (np.log(np.exp(logits).sum(1)) - logits[range(5), y]).mean()
    assert found.item() == pytest.approx(2 * excess + 3 * (4 - drift) + 0.5 * loss, rel=1e-5)


def test_the_spread_of_a_class_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))     # its penultimate features are the images
    examples = rum.Examples(torch.tensor([[0.0, 0], [2, 0], [5, 5], [5, 9]]), torch.tensor([0, 0, 1, 1]))
    assert spread(model, examples) == pytest.approx(math.sqrt((1 + 1 + 4 + 4) / 4))


# -- The degree -------------------------------------------------------------------------------------------------------


def test_the_degree_by_hand():
    """Of four forgotten images the source knows three and the unlearned model one; of two others both and one."""
    def answers(*classes):
        return 5 * torch.eye(3)[list(classes)]

    forget, control = rum.Examples(answers(0, 1, 2, 0), [0, 1, 2, 1]), rum.Examples(answers(0, 1), [0, 1])
    other = echo(3)
    other.weight.data = torch.eye(3)[[0, 2, 1]]              # calls 1 what is 2, and the other way round
    degree = rum.spdgan.unlearning_degree(echo(3), other, forget, control)
    assert (degree.forget, degree.control, degree.adjusted) == (0.5, 0.5, 0)
    assert degree.forget_error == pytest.approx(np.std([0, 1, 1, 0], ddof=1) / 2)
    assert degree.adjusted_error == pytest.approx(math.hypot(degree.forget_error, degree.control_error))
    loss = rum.spdgan.unlearning_degree(echo(3), other, forget, control, of="loss")
    assert loss.forget == pytest.approx(2.5)                 # logits of 5 against 0, for two of four


@pytest.mark.parametrize("of", ["accuracy", "loss"])
def test_equal_models_have_degree_0(of, shift, digits):
    asked = rum.spdgan.probes([shift], {"forget": digits.forget, "test": digits.test})
    for sets in asked.values():
        twin = copy.deepcopy(digits.source)
        degree = rum.spdgan.unlearning_degree(digits.source, twin, sets["forget"], sets["test"], of=of)
        assert (degree.forget, degree.control, degree.adjusted, degree.adjusted_error) == (0, 0, 0, 0)


def test_damage_looks_deep_and_its_adjusted_degree_is_0(digits):
    """Sets that the source never saw: what it loses on the one it loses on the other."""
    gone, control = digits.test[:250], digits.test[250:]
    worse = damaged(digits.source, (gone, digits.retain))
    shift = quick(digits.source, digits.reference, gone, quiet=True)
    for sets in rum.spdgan.probes([shift], {"forget": gone, "test": control}).values():
        degree = rum.spdgan.unlearning_degree(digits.source, worse, sets["forget"], sets["test"])
        assert degree.forget > 0.1 > degree.adjusted_error
        assert abs(degree.adjusted) < 2 * degree.adjusted_error


def test_what_was_known_by_heart_is_adjusted_for_by_the_retain_set(shift, digits):
    """A source that memorizes has more to lose on its training data: damage is deeper than retraining, and the test set
    takes only a part of that away; the retain set all of it, and nothing from the retrained model."""
    worse = damaged(digits.source, (digits.forget, digits.retain))
    sets = {name: getattr(digits, name) for name in ("forget", "test", "retain")}
    asked = rum.spdgan.probes([shift], sets)["shifted 0"]

    def degree(model, control):
        return rum.spdgan.unlearning_degree(digits.source, model, asked["forget"], asked[control])

    assert degree(worse, "test").forget > degree(digits.oracle, "test").forget > 0.1              # the trap
    assert degree(worse, "test").adjusted > 2 * degree(worse, "test").adjusted_error
    assert abs(degree(worse, "retain").adjusted) < 2 * degree(worse, "retain").adjusted_error
    for control in ("test", "retain"):
        found = degree(digits.oracle, control)
        assert found.adjusted > 3 * found.adjusted_error


def test_noise_is_as_long_as_the_shift_and_stays_in_range(shift, digits):
    sets = {"forget": digits.forget, "test": digits.test}
    asked = rum.spdgan.probes([shift, untrained(1, 0.1)], sets)
    assert list(asked) == ["clean", "shifted 0", "noise 0", "shifted 1", "noise 1"]
    assert all(torch.equal(asked["clean"][name].x, part.x) for name, part in sets.items())
    for k in range(2):
        for name, part in sets.items():
            noise, way = ((asked[f"{kind} {k}"][name].x - part.x).flatten(1) for kind in ("noise", "shifted"))
            torch.testing.assert_close(noise.norm(dim=1), way.norm(dim=1), rtol=1e-3, atol=1e-4)
            assert (asked[f"noise {k}"][name].x - 0.5).abs().max() <= 0.5
            assert torch.nn.functional.cosine_similarity(noise, way).abs().mean() < 0.5
    again = rum.spdgan.probes([shift], sets)["noise 0"]["forget"]
    assert torch.equal(again.x, asked["noise 0"]["forget"].x)
    other = noisy(digits.forget, shift.of(digits.forget), seed=1)
    assert not torch.equal(other.x, again.x)


# -- Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make, words", [
    (lambda: rum.spdgan.SPDGAN(eps=8), r"eps.*8.*by 255"),
    (lambda: rum.spdgan.SPDGAN(eps=-0.1), "eps.*-0.1"),
    (lambda: rum.spdgan.SPDGAN(epochs=0), "epochs"),
    (lambda: rum.spdgan.SPDGAN(lr=0), "lr"),
    (lambda: rum.spdgan.SPDGAN(keep=-1), "at least 0"),
], ids=["eps", "sign", "epochs", "lr", "keep"])
def test_a_wrong_construction_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("change, words", [
    (lambda e: rum.Examples(e.x[..., :4, :4], e.y), r"8x8.*\(100, 1, 4, 4\)"),
    (lambda e: rum.Examples(e.x.flatten(1), e.y), r"8x8.*\(100, 64\)"),
    (lambda e: rum.Examples(2 * e.x - 1, e.y), r"\[0, 1\].*Normalize"),
    (lambda e: e[:0], "empty"),
], ids=["small", "rows", "range", "empty"])
def test_images_that_cannot_be_shifted_are_refused(change, words, digits):
    with pytest.raises(ValueError, match=words):
        quick(digits.source, digits.reference, change(digits.forget), quiet=True)


def test_a_degree_of_something_else_is_refused(digits):
    with pytest.raises(ValueError, match="'f1'"):
        rum.spdgan.unlearning_degree(digits.source, digits.source, digits.forget, digits.test, of="f1")
