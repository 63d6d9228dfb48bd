"""One request for deletion: a forget set of one example works for every algorithm, on models with BatchNorm too."""

from dataclasses import replace

import pytest
import test_algorithms
import test_more_algorithms
import torch
from planted import make_normed, recipe, same, tiny

import rumlib as rum

ALL = {**test_algorithms.NORMED, **test_more_algorithms.EVERY}
every = pytest.mark.parametrize("name", ALL)


@pytest.fixture(scope="module")
def normed(planted):
    """A model whose last BatchNorm sees one value per channel and image."""
    return rum.fit(make_normed, tiny(planted.train, 100), replace(recipe, epochs=2), seed=0)


def requested(name, planted):
    """One example; as many as there are parts for a RUM, so that each step is given one."""
    return tiny(planted.forget, 3 if name == "RUM" else 1)


@every
def test_one_example_is_forgotten_by_a_model_with_batch_norm(name, planted, normed):
    before = {key: value.clone() for key, value in normed.state_dict().items()}
    unlearned = ALL[name](normed, requested(name, planted), tiny(planted.retain, 31), seed=0)
    assert all(value.isfinite().all() for value in unlearned.state_dict().values())
    assert all(torch.equal(value, before[key]) for key, value in normed.state_dict().items())
    assert same(unlearned, normed) == (name == "Keep")


@pytest.mark.parametrize("name", [name for name in ALL if hasattr(ALL[name], "batch_size")])
def test_batches_of_one_are_no_hindrance(name, planted, normed):
    one = rum.vary(ALL[name], batch_size=1)
    unlearned = one(normed, tiny(planted.forget, 2), tiny(planted.retain, 3), seed=0)
    assert all(value.isfinite().all() for value in unlearned.state_dict().values())


@every
def test_one_example_of_a_network_in_half_precision(name, planted, normed):
    """bf16 weights: noise, teachers and masks come in the type of the model."""
    if isinstance(ALL[name], rum.Retrain) or name == "function":
        pytest.skip("it trains a model of its own")
    half = rum.Keep()(normed, tiny(planted.forget, 1), tiny(planted.retain, 31)).bfloat16()
    unlearned = ALL[name](half, requested(name, planted), tiny(planted.retain, 31), seed=0)
    assert {p.dtype for p in unlearned.parameters()} == {torch.bfloat16}
