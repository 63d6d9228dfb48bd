"""Many models at once: stacked into one, or side by side on a GPU.

    models = fit_many(make_model, train, subsets, recipe, seeds=seeds)
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rumlib.data import Examples, as_input, batch_count, cut
from rumlib.device import as_seed, cuda_rng_devices, seeded, send
from rumlib.graphs import streams
from rumlib.models import Factory, Normalize, anchor, build, check_new, normalizing_one
from rumlib.train import Descent, Recipe, check_compatible, count_passes, cross_entropy, descend, epochs

AT_ONCE = 8                                                  # side by side on a GPU: by estimate, not measured yet


class Stacked(nn.Module):
    """K models of one architecture as one: each weight has a leading dimension K, and so have inputs and logits.

    Matrix products become batched ones: on a CPU core, hundreds of small MLPs train several times faster than one by
    one (measured in `make bench`). Convolutions gain nothing and BatchNorm keeps state, so `fits_stacking` says which
    models can be stacked.
    """

    stacked = True                                           # its inputs are (K, batch, ...)

    def __init__(self, models: list[nn.Module]):
        super().__init__()
        stacked, _ = torch.func.stack_module_state(models)
        self.names = list(stacked)
        self.weights = nn.ParameterList([p.detach() for p in stacked.values()])
        object.__setattr__(self, "single", copy.deepcopy(models[0]))        # the architecture, not a submodule

    def __len__(self) -> int:
        return len(self.weights[0])

    def clip_gradients(self, weights: list[Tensor], limit: float) -> None:
        """Scale the gradient of each model to a norm of at most `limit`."""
        grads = [p.grad for p in weights if p.grad is not None]
        norm = torch.stack([g.flatten(1).square().sum(1) for g in grads]).sum(0).sqrt()                # (K,)
        for g in grads:
            g.mul_((limit / (norm + 1e-6)).clamp(max=1).view(-1, *[1] * (g.ndim - 1)))

    def forward(self, x: Tensor) -> Tensor:                  # (K, batch, ...) -> (K, batch, classes)
        def one(weights, x):
            return torch.func.functional_call(self.single, weights, (x,))

        return torch.vmap(one)(dict(zip(self.names, self.weights, strict=True)), x)

    def unstack(self) -> list[nn.Module]:
        """The K models as modules of their own."""
        models = []
        for k in range(len(self)):
            model = copy.deepcopy(self.single)
            model.load_state_dict({n: w[k].detach().clone() for n, w in zip(self.names, self.weights, strict=True)})
            models.append(model.eval())
        return models


def fits_stacking(model: nn.Module) -> bool:
    """Whether `model` is made of fully connected layers and activations alone."""
    plain = (nn.Linear, nn.ReLU, nn.GELU, nn.Tanh, nn.Flatten, nn.Sequential, nn.Identity, nn.LayerNorm, Normalize)
    return all(isinstance(module, plain) for module in model.modules())


def fit_many(make_model: Factory, examples: Examples, subsets: list[Tensor], recipe: Recipe, *,
             seeds: list[int], at_once: int | None = None) -> list[nn.Module]:
    """One trained model for each subset and seed, on the device of the examples.

    Model k equals ``fit(make_model, examples[subsets[k]], recipe, seed=seeds[k])`` up to rounding. Models that can be
    stacked are trained together, on subsets of one length; others in turns. Models that draw random numbers (dropout)
    are trained one by one.

    subsets  K tensors of positions in `examples`
    seeds    K whole numbers
    at_once  how many models in turns are side by side; None: AT_ONCE on a GPU, else 1

    Returns K models in eval mode. Raises what `fit` raises, and ValueError for other numbers of seeds than of subsets.
    """
    seeds = [as_seed(seed) for seed in seeds]
    if len(seeds) != len(subsets) or not all(map(len, subsets)) or not seeds:
        raise ValueError(f"give one seed for each subset, and no subset without examples; got {len(seeds)} seeds for "
                         f"subsets of {[len(subset) for subset in subsets][:8]} examples")
    first = build(make_model, seeds[0])
    check_new(first, make_model)
    check_compatible(first, examples)
    if not fits_stacking(first) or recipe.augment or len({len(subset) for subset in subsets}) > 1:
        if at_once is None:
            at_once = AT_ONCE if examples.x.device.type == "cuda" else 1
        at_once = 1 if uses_rng(first, examples) else at_once
        return in_turns(make_model, examples, list(zip(subsets, seeds, strict=True)), recipe, at_once)
    models = [model.to(examples.x.device) for model in (first, *[build(make_model, seed) for seed in seeds[1:]])]
    rows = torch.stack(list(subsets))                                                   # (K, m)
    x, y = as_input(examples.x), examples.y.to(examples.x.device)
    with contextlib.ExitStack() as stack:
        randoms = [stack.enter_context(seeded(seed, "order")) for seed in seeds]

        def batches():
            for _ in range(recipe.epochs):
                count_passes(len(seeds))
                order = torch.stack([torch.randperm(rows.shape[1], generator=random) for random in randoms])
                for part in cut(send(rows.gather(1, order), x.device), recipe.batch_size):           # (K, batch)
                    yield x[part], y[part]

        def loss(model, x, y):                               # the sum over models: their gradients do not mix
            return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum") / y.shape[1]

        steps = recipe.epochs * batch_count(rows.shape[1], recipe.batch_size)
        return descend(Stacked(models), batches(), loss, recipe, steps=steps).unstack()


def in_turns(make_model: Factory, examples: Examples, tasks: list[tuple[Tensor, int]], recipe: Recipe,
             at_once: int) -> list[nn.Module]:
    """`fit` for each (subset, seed), `at_once` of them side by side: by turns each takes a step, on a GPU each on a
    stream of its own, so that small kernels of several models share it."""
    device, trained = examples.x.device, {}

    def lane(own: list[int]) -> Iterator[tuple]:             # one model after the other, in the same memory
        model = build(make_model, tasks[own[0]][1]).to(device)
        with Descent(model, cross_entropy, recipe) as descent:
            for k in own:
                subset, seed = tasks[k]
                part = examples[subset]
                check_compatible(model, part)
                if k != own[0]:                              # it has the weights of the first: drawing takes time
                    descent.restart(build(make_model, seed).state_dict())
                with seeded(seed, "order") as random:
                    yield from descent.steps(epochs(part, recipe, random, anchor(model)),
                                             of=recipe.epochs * batch_count(len(part), recipe.batch_size))
                trained[k] = copy.deepcopy(model).eval()

    count = min(at_once, len(tasks))
    # Seeded blocks that overlap do not leave the random state as it was: one around all of them does.
    with torch.random.fork_rng(cuda_rng_devices()), streams(device, count) as places:
        running = [(lane(list(range(k, len(tasks), count))), place) for k, place in enumerate(places)]
        while running:
            for run, place in tuple(running):
                with place:
                    if next(run, None) is None:
                        running.remove((run, place))
    return [trained[k] for k in range(len(tasks))]


def uses_rng(model: nn.Module, examples: Examples) -> bool:
    """Whether a model, on the CPU, draws random numbers while it trains."""
    model = copy.deepcopy(model).train()
    with torch.random.fork_rng(devices=[]), torch.no_grad(), normalizing_one(model):
        before = torch.random.get_rng_state()
        model(as_input(examples.x[:2], anchor(model)))
        return not torch.equal(before, torch.random.get_rng_state())
