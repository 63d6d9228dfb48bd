"""Audits of models whose answers are known: closed forms, hand-made networks, and the planted problem."""

from dataclasses import replace

import planted as small
import pytest
import torch
from torch import nn

import rumlib as rum
from rumlib.audits import (
    HeadOnly,
    cka,
    cka_by_layer,
    compared,
    fallen_to,
    linear_probe,
    neighbour_distance,
    prototype_attack,
    quantised,
    relearning,
)

SLOW = replace(small.recipe, epochs=3, lr=0.02, schedule="constant")
relabel = rum.RandomLabel(epochs=20, lr=0.1, batch_size=16, schedule="linear", clip=5.0)


def linear(weight, bias=None):
    model = nn.Linear(len(weight[0]), len(weight), bias=bias is not None)
    model.weight.data = torch.tensor(weight, dtype=torch.float32)
    if bias is not None:
        model.bias.data = torch.tensor(bias, dtype=torch.float32)
    return model.eval()


# -- Does the knowledge come back? ------------------------------------------------------------------------------------


def test_a_relearning_curve_is_that_of_training_on(planted):
    few, rest = planted.forget.split(torch.arange(len(planted.forget)) < 4)
    learn = planted.retain + few
    curve = relearning(planted.oracle, learn, rest, SLOW, seed=5)
    model, expected = planted.oracle, [rum.accuracy(planted.oracle, rest)]
    for epoch in range(3):
        model = rum.fit(model, learn, replace(SLOW, epochs=1), seed=5 + epoch)
        expected.append(rum.accuracy(model, rest))
    assert curve.tolist() == pytest.approx(expected)
    assert relearning(planted.model, planted.retain, rest, SLOW)[0] == 1


def test_what_is_watched_may_not_be_learnt(planted):
    with pytest.raises(ValueError, match="12 of the 12 watched examples are among those that are learnt: split them"):
        relearning(planted.model, planted.train, planted.forget, SLOW)


def test_a_linear_probe_is_least_squares_by_hand():
    """Points on a line, classes by their side; a model whose answers are wrong, and whose features are not."""
    x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    known = rum.Examples(x, [0, 0, 1, 1])
    wrong = linear([[1.0], [-1.0]])
    assert rum.accuracy(wrong, known) == 0 and linear_probe(wrong, known, known) == 1
    flipped = rum.Examples(torch.tensor([[-3.0], [3.0], [0.5], [0.7]]), [0, 1, 1, 0])
    assert linear_probe(wrong, known, flipped) == 0.75       # the last one lies on the other side


def test_a_probe_sees_what_only_the_last_layer_hides(planted):
    """The head alone forgets a class; a new one on the same features, fitted to a few examples, knows it again."""
    gone, kept = planted.train.split_classes(2)
    few, rest = gone.split(torch.arange(len(gone)) % 4 == 0)
    head = HeadOnly(relabel)(planted.model, gone, kept, seed=0)
    probes = [linear_probe(model, kept + few, rest) for model in (head, planted.model)]
    assert rum.accuracy(head, rest) < 0.5 and probes[0] == probes[1] > 0.6


@pytest.mark.parametrize("bits, values", [(2, 3), (3, 7), (4, 15)])
def test_rounded_weights_by_hand(bits, values):
    model = linear([[-1.0, 0.0, 0.3, 1.0], [0.02, -0.01, 0.004, 0.02]], bias=[0.123, 4.56])
    rounded, top = quantised(model, bits), values // 2
    expected = torch.tensor([[-1, 0, round(0.3 * top) / top, 1], [0.02, -round(0.5 * top) / top * 0.02,
                                                                 round(0.2 * top) / top * 0.02, 0.02]])
    assert torch.allclose(rounded.weight, expected)          # a scale for each row
    assert torch.equal(rounded.bias, model.bias) and model.weight[0, 2].item() == pytest.approx(0.3)


def test_many_bits_change_nothing_and_few_much(planted):
    logits = rum.predict(planted.model, planted.test)
    errors = [(rum.predict(quantised(planted.model, bits), planted.test) - logits).abs().max().item()
              for bits in (16, 8, 4, 2)]
    assert errors == sorted(errors) and errors[0] < 0.01 < errors[-1]


# -- Where does it lie? -----------------------------------------------------------------------------------------------


def test_cka_is_that_of_kernels():
    """By the definition, with centred kernel matrices; blind to rotations and scale, 0 for orthogonal columns."""
    a, b = torch.randn(2, 30, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    centre = torch.eye(30, dtype=torch.float64) - 1 / 30
    k, l = (centre @ x @ x.T @ centre for x in (a, b))
    assert cka(a, b) == pytest.approx(((k * l).sum() / (k.norm() * l.norm())).item())
    rotation = torch.linalg.qr(b[:5]).Q
    assert cka(a, -2 * a @ rotation + 7) == pytest.approx(1)
    wave = torch.tensor([[1.0, 1], [-1, 1], [1, -1], [-1, -1]])
    assert cka(wave[:, :1], wave[:, 1:]) == pytest.approx(0)


def test_layers_are_compared_from_the_second_to_the_logits(planted):
    found = cka_by_layer(planted.model, planted.oracle, planted.test)
    assert len(found) == 2 and all(0 < value < 1 for value in found)
    assert cka_by_layer(planted.model, planted.model, planted.test) == pytest.approx([1, 1])
    assert found[0] == pytest.approx(cka(rum.features(planted.model, planted.test),
                                         rum.features(planted.oracle, planted.test)))


# -- Whole classes ----------------------------------------------------------------------------------------------------


def test_a_prototype_brings_a_class_back_by_hand():
    """Features of two dimensions, a class along each and one between; the head has forgotten the last class."""
    x = torch.tensor([[2.0, 0], [0, 2], [-2, -2]]).repeat(4, 1)
    test = rum.Examples(x + 0.1 * torch.randn(12, 2, generator=torch.Generator().manual_seed(0)), [0, 1, 2] * 4)
    forgot = linear([[1.0, 0], [0, 1], [0, 0]], bias=[0.0, 0.0, -50.0])
    few, _ = test.split(torch.arange(12) == 2)
    assert rum.accuracy(forgot, test.split_classes(2)[0]) == 0
    assert prototype_attack(forgot, few, test) == 1
    gone = linear([[1.0, 0], [0, 1], [0, 0]])
    blind = nn.Sequential(linear([[1.0, 0], [0, 0]]), gone)  # the second dimension is lost before the head
    assert prototype_attack(blind, few, test) < 1
    assert torch.equal(forgot.bias, torch.tensor([0.0, 0, -50]))                     # of a copy


def test_where_a_class_falls_to():
    model = small.echo(3)
    shares = fallen_to(model, rum.Examples(torch.eye(3)[[0, 0, 1, 0]], [2, 2, 2, 2]))
    assert shares.tolist() == [0.75, 0.25, 0]
    oracles = [torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.5, 0.3, 0.2])]
    assert neighbour_distance(shares, oracles) == pytest.approx(0.25)                # to (0.5, 0.4, 0.1)


# -- The control, and the verdict -------------------------------------------------------------------------------------


def test_the_control_changes_the_last_layer_alone(planted):
    head = HeadOnly(relabel)(planted.model, planted.forget, planted.retain, seed=0)
    changed = [name for name, value in head.state_dict().items()
               if not torch.equal(value, planted.model.state_dict()[name])]
    last = [name for name, _ in planted.model.named_parameters()][-2:]
    assert changed == last
    assert rum.accuracy(head, planted.forget) < 0.9 and rum.accuracy(head, planted.test) > 0.8
    assert cka_by_layer(head, planted.model, planted.test)[0] == pytest.approx(1)


def test_verdicts_by_welch():
    """Against scipy's own test; small differences are none, however sure."""
    from scipy.stats import ttest_ind

    found, expected = [0.61, 0.70, 0.64, 0.66], [0.5, 0.52, 0.55, 0.49, 0.51]
    told = compared(found, expected)
    theirs = ttest_ind(found, expected, equal_var=False).confidence_interval(0.99)
    assert (told["low"], told["high"]) == pytest.approx((theirs.low, theirs.high)) and told["flagged"]
    assert not compared([0.52, 0.521, 0.519], [0.5, 0.501, 0.499])["flagged"]        # sure, and below the margin
    assert not compared([0.9, 0.1], [0.5, 0.4])["flagged"]                           # large, and unsure
    assert compared([0.1, 0.1], [0.5, 0.5]) == {"difference": -0.4, "low": -0.4, "high": -0.4, "flagged": True}


def test_ten_oracles_pass_and_the_control_is_flagged_by_two_audits():
    """The whole protocol in small: audits of ten oracles set the standard, ten others pass all, the control fails."""
    from rumlib.ensemble import fit_many

    problem = small.problem()
    few, rest = problem.forget.split(torch.arange(12) % 4 == 0)

    def trained(train, first):
        everything = [torch.arange(len(train))] * 10
        return fit_many(small.make_model, train, everything, small.recipe, seeds=list(range(first, first + 10)))

    others = {"original": trained(problem.train, 50)[:2], "oracle": trained(problem.retain, 60)[:2]}
    audits = {
        "probe": lambda m: linear_probe(m, problem.retain + few, rest),
        "relearning": lambda m: relearning(m, problem.retain + few, rest, SLOW)[-1].item(),
        "CKA": lambda m: sum(sign * cka_by_layer(m, other, rest)[0] for sign, kind in ((1, "original"), (-1, "oracle"))
                             for other in others[kind]) / 2}
    models = {"expected": trained(problem.retain, 0), "oracle": trained(problem.retain, 20),
              "control": [HeadOnly(relabel)(m, problem.forget, problem.retain, seed=0)
                          for m in trained(problem.train, 0)]}
    values = {name: {audit: [run(m) for m in group] for audit, run in audits.items()}
              for name, group in models.items()}
    flagged = {name: [audit for audit in audits if compared(found[audit], values["expected"][audit])["flagged"]]
               for name, found in values.items()}
    assert flagged["oracle"] == [] and len(flagged["control"]) >= 2


# -- What is refused --------------------------------------------------------------------------------------------------

X = rum.Examples(torch.eye(3), [0, 1, 2])
REFUSED = {
    "bits": (lambda: quantised(small.echo(3), 1), r"quantised: bits must be a whole number in \[2, 16\]; got bits=1"),
    "cka of other examples": (lambda: cka(torch.zeros(3, 2), torch.zeros(4, 2)), r"the same two or more examples"),
    "cka of a constant": (lambda: cka(torch.ones(3, 2), torch.ones(3, 2)), "same for all examples has no alignment"),
    "two prototypes": (lambda: prototype_attack(small.echo(3), X, X), r"of one class; the few images have \[0, 1, 2\]"),
    "no head": (lambda: HeadOnly(relabel)(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Conv1d(1, 1, 1)), X[:1],
                                          X[1:]), "must end with a nn.Linear|does not take"),
    "a function": (lambda: HeadOnly(rum.Keep()), "HeadOnly needs an Algorithm whose weights it can restrict"),
    "one number": (lambda: compared([0.5], [0.5, 0.6]), "two or more finite numbers.*got 1 and 2"),
    "penalty": (lambda: linear_probe(small.echo(3), X, X, penalty=0), "penalty must be a number above 0; got"),
}


@pytest.mark.parametrize("call, words", REFUSED.values(), ids=REFUSED)
def test_what_is_refused(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()
