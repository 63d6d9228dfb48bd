"""Metrics of a bank of models: hand-computed cases, closed forms for normal margins, and nulls known by simulation."""

import math

import planted as small
import pytest
import torch
from scipy.stats import norm

import rumlib as rum
from rumlib.attacks import (
    contest_epsilon,
    log_odds,
    loss_scores,
    normalised,
    paired_auc,
    roc,
    svc_shares,
    tpr_at,
)
from rumlib.ensemble import fit_many
from rumlib.metrics import forgetting_quality, klom, rmia, ulira_scores
from rumlib.stats import interval


def margins(models, examples=4000, *, mean=0.0, std=1.0, seed=0):
    return mean + std * torch.randn(models, examples, generator=torch.Generator().manual_seed(seed))


def attack(oracles, unlearned):
    """AUC of U-LiRA, (pairs,), fitted to every second model."""
    return paired_auc(*(ulira_scores(oracles[::2], unlearned[::2], bank[1::2]) for bank in (unlearned, oracles)))


def exact(models, mean=0.0, std=1.0):
    """One example whose margins have this mean and standard deviation."""
    x = margins(models, 1).double()
    return mean + std * (x - x.mean()) / x.std()


# -- KLOM -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean, std", [(0, 1), (1, 1), (-2, 1), (0, 2), (1.5, 0.5)])
def test_klom_of_normal_margins_is_the_divergence_of_normal_distributions(mean, std):
    expected = math.log(std) + (1 + mean**2) / (2 * std**2) - 0.5
    assert klom(exact(20), exact(25, mean, std)).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("models, median, upper", [(20, 0.073, 0.36), (30, 0.048, 0.22), (100, 0.014, 0.06)])
def test_the_null_of_klom_is_not_zero(models, median, upper):
    """The values that frontier studies simulated: what a perfect unlearner scores."""
    found = klom(margins(models), margins(models, seed=1))
    assert found.median().item() == pytest.approx(median, abs=0.003)
    assert found.quantile(0.95).item() == pytest.approx(upper, rel=0.08)


@pytest.mark.parametrize("models, power", [(20, 0.74), (30, 0.92)])
def test_klom_sees_a_shift_of_one_standard_deviation(models, power):
    critical = klom(margins(models), margins(models, seed=1)).quantile(0.95)
    found = klom(margins(models, seed=2), margins(models, mean=1.0, seed=3)) > critical
    assert found.double().mean().item() == pytest.approx(power, abs=0.03)


def test_klom_by_histograms():
    """By hand: in two bins a half and a half against a quarter and three; and its null with 20 bins."""
    o, u = torch.zeros(100, 1), torch.zeros(100, 1)
    o[:50], u[:75] = 1, 1
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert klom(o, u, bins=2).item() == pytest.approx(expected, abs=1e-4)
    assert klom(1000 * o, 1000 * u, bins=2).item() == pytest.approx(expected, abs=1e-4)          # clipped at 100
    assert klom(margins(100), margins(100, seed=1), bins=20).median().item() == pytest.approx(0.32, abs=0.01)
    assert klom(o, o, bins=20).item() == 0


# -- The contest ------------------------------------------------------------------------------------------------------


def ranks(shift, models=20):
    return (torch.arange(models) + shift).double()[:, None]


@pytest.mark.parametrize("shift, epsilon, points", [
    (0, 0, 1),                                               # no threshold does better than chance
    (5, math.log(6), 1 / 8),                                 # at best 1 of 20 missed and 14 of 20 false: 0.3 / 0.05
    (50, 50, 0)])                                            # apart: infinite, capped
def test_the_contest_s_score_by_hand(shift, epsilon, points):
    found = contest_epsilon(ranks(0), ranks(shift), double=False).item()
    assert found == pytest.approx(epsilon, abs=1e-3)
    assert forgetting_quality(ranks(0), ranks(shift), double=False) == points
    assert contest_epsilon(ranks(shift), ranks(0), double=False).item() == pytest.approx(found)


@pytest.mark.parametrize("models", [32, 128])
def test_oracles_do_not_score_one_in_the_contest(models):
    pair = margins(models, 1000), margins(models, 1000, seed=1)
    assert contest_epsilon(*pair, double=False).median().item() == pytest.approx(math.log(3), abs=0.13)
    assert 0.3 < forgetting_quality(*pair, double=False) < 0.39
    assert forgetting_quality(*pair) < forgetting_quality(*pair, double=False)       # more attacks, fewer points


def test_two_thresholds_see_a_narrower_bank_with_the_same_median():
    wide, narrow = margins(100, 50, std=10), margins(100, 50, std=2, seed=1)
    assert contest_epsilon(wide, narrow).median() > contest_epsilon(wide, narrow, double=False).median() + 0.3
    assert (contest_epsilon(wide, 0.01 * narrow) == 50).all()        # of less than a hundredth of the range: the cap


# -- Attacks ----------------------------------------------------------------------------------------------------------


def test_rmia_by_hand():
    """Denominators (1.3 * mean + 0.7) / 2: 0.675 for a mean of 0.5, 0.415 for 0.1."""
    out = torch.tensor([[0.5, 0.1], [0.5, torch.nan]])                               # one saw the second example
    population, theirs = torch.tensor([0.5, 0.9, 0.7, 0.2]), torch.full((2, 4), 0.5)
    # r(z) = 0.74, 1.33, 1.04, 0.30;  r(x) = 0.8 / 0.675 = 1.19 outdoes three, 0.1 / 0.415 = 0.24 none
    assert rmia(torch.tensor([0.8, 0.1]), out, population, theirs).tolist() == [0.75, 0.0]
    # with a = 1 the ratio is that of the means alone: 1.6 and 1, against 1, 1.8, 1.4 and 0.4
    assert rmia(torch.tensor([0.8, 0.1]), out, population, theirs, a=1.0).tolist() == [0.75, 0.25]
    both = rmia(torch.tensor([[0.8, 0.1], [0.1, 0.8]]), out, population.expand(2, 4), theirs)
    assert both.tolist() == [[0.75, 0.0], [0.0, 1.0]]        # many models at once


@pytest.mark.parametrize("shift", [0.5, 1.5])
def test_ulira_reaches_what_is_possible_between_two_normal_distributions(shift):
    known = margins(60, 2000), margins(60, 2000, mean=shift, seed=1)
    of_oracles = ulira_scores(*known, margins(30, 2000, seed=2))
    of_unlearned = ulira_scores(*known, margins(30, 2000, mean=shift, seed=3))
    assert paired_auc(of_unlearned, of_oracles).mean().item() == pytest.approx(norm.cdf(shift / 2**0.5), abs=0.015)
    best = norm.cdf(shift - norm.ppf(0.99))
    assert tpr_at(of_unlearned, of_oracles, 0.01) == pytest.approx(best, abs=0.04)      # fitted


def test_ulira_sees_a_narrower_distribution_where_a_threshold_sees_nothing():
    oracles, unlearned = margins(40, 500), margins(40, 500, std=0.3, seed=1)
    assert attack(oracles, unlearned).mean() > 0.75
    assert paired_auc(loss_scores(unlearned), loss_scores(oracles)).mean().item() == pytest.approx(0.5, abs=0.02)


def test_oracles_against_oracles_have_an_auc_of_a_half():
    """Of one hundred splits of the same oracles at least 95 intervals hold 0.5; examples differ in difficulty."""
    difficulty, splits = 3 * torch.randn(100, generator=torch.Generator().manual_seed(7)), 100
    bank = margins(60, 100) + difficulty
    out, theirs = ((margins(8, 100, seed=seed) + shift).sigmoid() for seed, shift in ((5, difficulty), (6, 1)))
    outdone = rmia(bank.sigmoid(), out, margins(60, 100, mean=1, seed=8).sigmoid(), theirs)
    held = {"loss": 0, "RMIA": 0, "U-LiRA": 0}
    for split in range(splits):
        rows = torch.randperm(60, generator=torch.Generator().manual_seed(split))
        a, b = rows[:30], rows[30:]
        aucs = {"loss": paired_auc(loss_scores(bank[a]), loss_scores(bank[b])),
                "RMIA": paired_auc(outdone[a], outdone[b]),
                "U-LiRA": attack(bank[a], bank[b])}
        for name, auc in aucs.items():
            found = interval(auc.tolist(), 0.99)
            held[name] += found["low"] <= 0.5 <= found["high"]
    assert min(held.values()) >= 95


def test_a_roc_curve_by_hand():
    false, true = roc(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 1.0]))
    assert (false.tolist(), true.tolist()) == ([0, 0, 0.5, 1], [0, 0.5, 0.5, 1])
    assert paired_auc(torch.tensor([[3.0, 1.0]]), torch.tensor([[2.0, 1.0]])).tolist() == [0.625]        # 2.5 of 4
    assert tpr_at(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 1.0]), 0.5) == 0.5
    with pytest.raises(ValueError, match=r"rate of 0\.001 needs at least 1000 scores of oracles; got 2"):
        tpr_at(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 1.0]), 0.001)


def test_an_svc_calls_members_what_looks_like_members():
    members, others = margins(3, 60, mean=8), margins(3, 60, seed=1)
    target = torch.cat([margins(3, 30, mean=8, seed=2), margins(3, 10, seed=3) - 2], 1)
    assert svc_shares(members, others, target).tolist() == pytest.approx([0.75] * 3, abs=0.05)


def test_a_normalised_value_is_0_for_the_original_and_1_for_an_oracle():
    assert [normalised(v, original=0.9, oracle=0.5) for v in (0.9, 0.5, 0.3)] == [0, 1, 1.5]
    with pytest.raises(ValueError, match=r"0\.5 for the original and an oracle alike: it has no scale"):
        normalised(0.4, original=0.5, oracle=0.5)


# -- From models to metrics -------------------------------------------------------------------------------------------


def test_a_bank_of_trained_models(planted):
    """Retraining scores as an oracle on every metric, doing nothing as the original, on points known by heart."""
    def bank(train, seeds):
        everything = [torch.arange(len(train))] * len(seeds)
        models = fit_many(small.make_model, train, everything, small.recipe, seeds=list(seeds))
        return torch.stack([log_odds(rum.predict(m, planted.forget), planted.forget.y) for m in models])

    oracles, others, third = (bank(planted.retain, range(k, k + 40)) for k in (0, 100, 200))
    originals = bank(planted.train, range(40))
    for metric in (lambda u: klom(oracles, u).median().item(), lambda u: attack(oracles, u).mean().item(),
                   lambda u: paired_auc(loss_scores(u), loss_scores(oracles)).mean().item()):
        assert 0.9 <= normalised(metric(third), original=metric(originals), oracle=metric(others)) <= 1.1
        assert metric(originals) - metric(others) > 0.3


def test_log_odds_are_finite_where_probabilities_round_to_one():
    logits = torch.tensor([[100.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    assert log_odds(logits, torch.tensor([0, 2])).tolist() == pytest.approx([100 - math.log(2), -math.log(2)])


# -- What is refused --------------------------------------------------------------------------------------------------

BANK = torch.zeros(20, 3)
REFUSED = {
    "klom, small": (lambda: klom(BANK[:19], BANK), "klom needs at least 20 oracles; got 19.*Train more"),
    "klom, small histograms": (lambda: klom(BANK, BANK, bins=20), "at least 100 oracles; got 20.*leave out bins="),
    "klom, one bin": (lambda: klom(BANK, BANK, bins=1), "klom: bins must be a whole number at least 2 or None; got"),
    "other examples": (lambda: klom(BANK, BANK[:, :2]), "same examples; got 3 and 2"),
    "a vector": (lambda: klom(BANK[0], BANK), r"oracles must be \(models, examples\); got shape \(3,\)"),
    "diverged": (lambda: klom(BANK, BANK + torch.nan), "60 margins of unlearned are not finite: leave out the models"),
    "a list": (lambda: klom([[0.0]], BANK), "oracles must be a tensor of margins.*got list"),
    "contest, small": (lambda: forgetting_quality(BANK, BANK[:5]), "at least 20 unlearned; got 5: error rates"),
    "contest, unequal": (lambda: forgetting_quality(BANK, torch.zeros(25, 3)), "as many oracles as.*got 20 and 25"),
    "ulira, small": (lambda: ulira_scores(BANK[:7], BANK, BANK), "U-LiRA needs at least 8 oracles; got 7"),
    "rmia, margins": (lambda: rmia(BANK - 2, BANK, BANK, BANK), r"probabilities in \[0, 1\]; got -2.*sigmoid"),
    "rmia, all seen": (lambda: rmia(BANK, BANK + torch.nan, BANK, BANK), "3 of 3 examples were seen by every ref"),
    "rmia, shapes": (lambda: rmia(BANK, BANK[:, :2], BANK, BANK), r"got \(20, 2\) for \(20, 3\)"),
    "rmia, a": (lambda: rmia(BANK, BANK, BANK, BANK, a=2), r"rmia: a must be a number in \[0, 1\]; got a=2"),
}


@pytest.mark.parametrize("call, words", REFUSED.values(), ids=REFUSED)
def test_what_is_refused(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call()
