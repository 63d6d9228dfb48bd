"""One suite for everything that unlearns: a new algorithm is tested by one more row of the table."""

import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from planted import make_model, make_normed, recipe, same, tiny

import rumlib as rum
from rumlib import algorithms
from rumlib.algorithms.relabel import saliency_mask


@dataclass(frozen=True)
class Uniform(rum.Algorithm):
    """What a user would write: push the forget set towards a uniform prediction."""

    weight: float = 0.5

    def loss(self, model, original, forget, retain):
        logits = model(forget.x)
        uniform = torch.full_like(logits, 1 / logits.shape[1])
        return rum.xent(model, retain) + self.weight * F.kl_div(logits.log_softmax(1), uniform, reduction="batchmean")


def train_on(model, forget, retain, *, seed=0):
    """A plain function is an algorithm too."""
    return rum.fit(model, retain, rum.Recipe(epochs=10, lr=0.3, batch_size=10, clip=5.0), seed=seed)


def table(make_model):
    common = dict(batch_size=10, clip=5.0)
    relabel = rum.RandomLabel(epochs=10, lr=0.2, schedule="linear", **common)
    finetune = rum.Finetune(epochs=10, lr=0.3, **common)
    return {
        "Keep": rum.Keep(),
        "Retrain": rum.Retrain(make_model, replace(recipe, batch_size=10)),
        "Finetune": finetune,
        "L1Sparse": rum.L1Sparse(epochs=10, lr=0.3, alpha=1e-3, **common),
        "NegGrad": rum.NegGrad(epochs=5, lr=0.02, **common),
        "NegGradPlus": rum.NegGradPlus(epochs=5, lr=0.05, **common),
        "RandomLabel": relabel,
        "SalUn": rum.SalUn(relabel),
        "Scrub": rum.Scrub(epochs=5, lr=0.05, max_steps=3, **common),
        "TopK": rum.TopK(k=0.1, sigma=0.5, epochs=10, lr=0.3, tolerance=None, **common),
        "RUM": rum.RUM(rum.Shuffled(3), steps=(rum.Keep(), finetune, rum.SalUn(relabel))),
        "function": train_on,
        "user's own": Uniform(epochs=20, lr=0.3, weight=1.0, **common),
    }


PLAIN, NORMED = table(make_model), table(make_normed)
UNLEARN = [name for name in PLAIN if name != "Keep"]
LOSSES = [name for name, algorithm in PLAIN.items() if isinstance(algorithm, rum.Algorithm)]
everything = pytest.mark.parametrize("name", PLAIN)


@pytest.fixture(scope="session")
def normed(planted):
    return rum.fit(make_normed, tiny(planted.train, 100), replace(recipe, epochs=2), seed=0)


@everything
def test_the_original_is_left_as_it_was(name, planted, normed):
    model = copy.deepcopy(normed).train()
    model[1].eval()                                          # a mode of its own for one part
    before, modes = copy.deepcopy(model), [module.training for module in model.modules()]
    NORMED[name](model, tiny(planted.forget, 11), tiny(planted.retain, 31), seed=0)
    assert same(model, before)
    assert [module.training for module in model.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@everything
def test_the_result_is_a_new_model_in_eval_mode(name, planted):
    model = copy.deepcopy(planted.model).train()
    unlearned = PLAIN[name](model, planted.forget, planted.retain, seed=0)
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in unlearned.parameters()}
    assert not any(module.training for module in unlearned.modules())
    assert all(p.requires_grad and p.grad is None for p in unlearned.parameters())


@everything
def test_the_same_seed_gives_the_same_weights(name, planted):
    one, two = (PLAIN[name](planted.model, planted.forget, planted.retain, seed=3) for _ in range(2))
    assert same(one, two)


@pytest.mark.parametrize("name", UNLEARN)
def test_another_seed_gives_other_weights(name, planted):
    one, two = (PLAIN[name](planted.model, planted.forget, planted.retain, seed=seed) for seed in (3, 4))
    assert not same(one, two)


@everything
def test_the_random_state_of_the_caller_is_left_as_it_was(name, planted):
    before = torch.random.get_rng_state()
    PLAIN[name](planted.model, planted.forget, planted.retain, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)


@everything
def test_the_random_state_of_the_caller_decides_nothing(name, planted):
    results = []
    for state in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(state)
            results.append(PLAIN[name](planted.model, planted.forget, planted.retain, seed=0))
    assert same(*results)


def test_the_planted_points_are_known_by_heart_and_unknown_to_the_oracle(planted):
    assert rum.accuracy(planted.model, planted.forget) == 1
    assert rum.accuracy(planted.oracle, planted.forget) == 0


@pytest.mark.parametrize("name", UNLEARN)
def test_unlearning_moves_towards_the_retrained_model(name, planted):
    unlearned = PLAIN[name](planted.model, planted.forget, planted.retain, seed=0)
    assert rum.accuracy(unlearned, planted.forget) < 0.25
    assert rum.tow(unlearned, planted.oracle, planted.forget, planted.retain, planted.test) > 0.7


def test_keeping_forgets_nothing(planted):
    assert same(rum.Keep()(planted.model, planted.forget, planted.retain), planted.model)


@everything
def test_it_is_a_step_of_rum_like_any_other(name, planted):
    algorithm = PLAIN[name]
    refine = rum.Shuffled(parts=2)
    first, second = refine(planted.forget)
    by_hand = algorithm(planted.model, first, planted.retain + second, seed=5)
    by_hand = algorithm(by_hand, second, planted.retain, seed=6)
    assert same(rum.RUM(refine, steps=(algorithm,) * 2)(planted.model, planted.forget, planted.retain, seed=5), by_hand)


# In batches of ten each of these leaves a last batch of one: of the retain set, of the forget set, of their union.
@pytest.mark.parametrize("sizes", [(12, 31), (11, 32), (11, 30)], ids=str)
@everything
def test_batch_norm_survives_a_last_batch_of_one(name, sizes, planted, normed):
    gone, kept = sizes
    unlearned = NORMED[name](normed, tiny(planted.forget, gone), tiny(planted.retain, kept), seed=0)
    assert all(value.isfinite().all() for value in unlearned.state_dict().values())


@pytest.mark.parametrize("sizes", [(12, 30), (12, 31), (11, 32), (11, 30)], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_it_takes_as_many_steps_as_it_says(name, sizes, planted):
    gone, kept = sizes
    forget, retain = planted.forget[:gone], planted.retain[:kept]
    with rum.train.cost() as spent:
        PLAIN[name](planted.model, forget, retain, seed=0)
    assert spent.steps == PLAIN[name].steps(forget, retain)


@pytest.mark.parametrize("clip", [None, 5.0])
@pytest.mark.parametrize("name", [*LOSSES, "SalUn"])
def test_a_frozen_layer_stays_as_it_is(name, clip, planted):
    model = copy.deepcopy(planted.model)
    model[2].requires_grad_(False)
    unlearned = rum.lab.vary(PLAIN[name], clip=clip)(model, planted.forget, planted.retain, seed=0)
    assert torch.equal(unlearned[2].weight, model[2].weight)
    assert not torch.equal(unlearned[-1].weight, model[-1].weight)


@pytest.mark.parametrize("name", [*(name for name in LOSSES if name != "L1Sparse"), "SalUn"])     # L1 reaches all
def test_a_layer_that_is_never_reached_does_not_matter(name, planted):
    model = copy.deepcopy(planted.model)
    model[0].spare = torch.nn.Linear(2, 2)                   # an auxiliary head, say
    unlearned = PLAIN[name](model, planted.forget, planted.retain, seed=0)
    assert torch.equal(unlearned[0].spare.weight, model[0].spare.weight)
    assert not torch.equal(unlearned[-1].weight, model[-1].weight)


# -- Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in PLAIN if name not in ("Retrain", "function")])
def test_what_is_printed_is_what_was_made(name):
    algorithm = PLAIN[name]
    known = {name: getattr(rum, name) for name in rum.__all__} | vars(rum.algorithms)
    assert eval(repr(algorithm), {**known, "Uniform": Uniform}) == algorithm


@pytest.mark.parametrize("field, value", [("epochs", 7), ("lr", 0.123), ("batch_size", 77), ("momentum", 0.5),
                                          ("weight_decay", 0.25), ("schedule", "cosine"), ("clip", 1.5)])
@pytest.mark.parametrize("name", LOSSES)
def test_every_field_is_in_the_name(name, field, value):
    assert f"{field}={value!r}" in repr(replace(PLAIN[name], **{field: value}))


def test_retraining_is_named_by_its_network_and_its_recipe():
    assert repr(rum.Retrain(make_model, recipe)) == f"Retrain(mlp(classes=3, hidden=(64,), shape=(1, 4, 4)), {recipe})"


@pytest.mark.parametrize("kind", [kind for kind in vars(algorithms).values() if isinstance(kind, type)
                                  and issubclass(kind, rum.Algorithm)], ids=lambda kind: kind.__name__)
def test_the_seeds_of_a_class_derive_from_a_name_of_its_own(kind):
    """Written out in each class, since it must stay when a class is renamed: results on file depend on it."""
    assert vars(kind)["seed_name"] == kind.__name__


def test_renaming_a_class_changes_no_number(planted):
    @dataclass(frozen=True)
    class Renamed(rum.Scrub):
        pass

    options = dict(epochs=1, batch_size=10)
    one, two = (kind(**options)(planted.model, planted.forget, planted.retain) for kind in (rum.Scrub, Renamed))
    assert same(one, two)


@pytest.mark.parametrize("integer", [int, np.int64, np.uint8, torch.tensor], ids=["int", "int64", "uint8", "tensor"])
@pytest.mark.parametrize("name", ["Finetune", "Retrain", "RUM", "TopK"])
def test_seeds_of_all_integer_types_are_one(name, integer, planted):
    results = [PLAIN[name](planted.model, planted.forget, planted.retain, seed=seed) for seed in (7, integer(7))]
    assert same(*results)


# -- What single algorithms promise -----------------------------------------------------------------------------------


def test_the_oracle_is_the_model_trained_on_the_rest(planted):
    retrained = rum.Retrain(make_model, recipe)(planted.model, planted.forget, planted.retain, seed=0)
    assert same(retrained, planted.oracle)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_salun_moves_the_chosen_weights_and_no_others(keep, planted):
    unlearned = rum.SalUn(PLAIN["RandomLabel"], keep=keep)(planted.model, planted.forget, planted.retain, seed=0)
    chosen = saliency_mask(planted.model, planted.forget, keep)
    moved = {name: new != old for (name, new), old in zip(unlearned.named_parameters(), planted.model.parameters(),
                                                           strict=True)}
    assert not any((moved[name] & ~chosen[name]).any() for name in chosen)
    reached = torch.cat([moved[name][chosen[name]] for name in chosen])
    assert reached.float().mean() > 0.99


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.5, 1.0])
def test_salun_chooses_the_share_with_the_largest_gradients(keep, planted):
    model, forget = copy.deepcopy(planted.model), planted.forget
    F.cross_entropy(model(forget.x), forget.y).backward()
    gradients = torch.cat([p.grad.abs().flatten() for p in model.parameters()])
    chosen = torch.cat([m.flatten() for m in saliency_mask(planted.model, forget, keep).values()])
    assert chosen.sum() == round(keep * len(gradients))
    assert keep == 1 or gradients[chosen].min() >= gradients[~chosen].max() * (1 - 1e-4)


def test_salun_that_keeps_everything_is_its_inner_algorithm(planted):
    inner = PLAIN["RandomLabel"]
    wrapped = rum.SalUn(inner, keep=1.0)(planted.model, planted.forget, planted.retain, seed=0)
    assert same(wrapped, inner(planted.model, planted.forget, planted.retain, seed=0))


def test_the_mask_of_salun_is_part_of_its_cost(planted):
    spent = {}
    for name in ("RandomLabel", "SalUn"):
        with rum.train.cost() as spent[name]:
            PLAIN[name](planted.model, planted.forget, planted.retain, seed=0)
    assert spent["SalUn"].examples == spent["RandomLabel"].examples + len(planted.forget)


def test_neggrad_plus_without_ascent_is_fine_tuning_but_for_the_order(planted):
    """Both descend the loss of the retain set alone; with one batch per epoch there is no order left."""
    options = dict(epochs=3, lr=0.1, batch_size=200)
    plus = rum.NegGradPlus(alpha=1.0, **options)(planted.model, planted.forget, planted.retain)
    plain = rum.Finetune(**options)(planted.model, planted.forget, planted.retain)
    for a, b in zip(plus.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_scrub_without_max_steps_never_looks_at_the_forget_set(planted):
    scrub = rum.Scrub(epochs=2, lr=0.05, max_steps=0, batch_size=10)
    other = rum.Examples(1 - planted.forget.x, planted.forget.y, planted.forget.index)
    assert same(scrub(planted.model, planted.forget, planted.retain), scrub(planted.model, other, planted.retain))


def test_false_labels_are_drawn_anew_each_epoch_from_all_classes(planted):
    seen = []

    @dataclass(frozen=True)
    class Watched(rum.RandomLabel):
        def loss(self, model, original, _, mixed):
            seen.append(mixed)
            return super().loss(model, original, _, mixed)

    Watched(epochs=50, batch_size=200)(planted.model, planted.forget, planted.retain)
    false = torch.stack([batch.y[batch.rows.argsort()][:len(planted.forget)] for batch in seen])      # (50, 12)
    true = torch.stack([batch.y[batch.rows.argsort()][len(planted.forget):] for batch in seen])
    assert (true == planted.retain.y).all()
    assert len(false.unique(dim=0)) > 40
    share = false.flatten().bincount(minlength=3) / false.numel()
    assert ((share - 1 / 3).abs() < 0.07).all()              # three standard errors of 600 draws


WRONG = {
    "SalUn of a function": (lambda: rum.SalUn(train_on), TypeError, "SalUn\\(RandomLabel\\(\\)\\)"),
    "SalUn of SalUn": (lambda: rum.SalUn(rum.SalUn(rum.RandomLabel())), TypeError, "Algorithm"),
    "SalUn that keeps nothing": (lambda: rum.SalUn(rum.RandomLabel(), keep=0), ValueError, "0"),
    "SalUn in percent": (lambda: rum.SalUn(rum.RandomLabel(), keep=50), ValueError, "50"),
    "no epochs": (lambda: rum.Finetune(epochs=0), ValueError, "epochs=0"),
    "no batch": (lambda: rum.NegGrad(batch_size=0), ValueError, "batch_size=0"),
    "negative rate": (lambda: rum.Scrub(lr=-0.1), ValueError, "lr=-0.1"),
    "unknown schedule": (lambda: rum.L1Sparse(schedule="exponential"), ValueError, "cosine.*'exponential'"),
    "a trained model to retrain": (lambda: rum.Retrain(make_model(), recipe), TypeError, "factory"),
}


@pytest.mark.parametrize("make, error, words", WRONG.values(), ids=WRONG)
def test_a_wrong_construction_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_an_algorithm_without_a_loss_says_what_is_missing(planted):
    @dataclass(frozen=True)
    class Empty(rum.Algorithm):
        pass

    with pytest.raises(NotImplementedError, match="Empty must define loss"):
        Empty()(planted.model, planted.forget, planted.retain)
