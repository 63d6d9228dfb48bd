"""What a study computes, one function for each kind of result. (`rumlib.lab.study` asks for them, many at a time.)

    original(study, 0)["large"]                              # a model trained on everything, and the trace of it
    oracle(study, forget, 0)                                 # one retrained without the forget set, evaluated
    run(study, forget, algorithm, 0, True)["tow"]            # one unlearning run beside that oracle
    model(study, 0), retrained(study, forget, 0)             # the models themselves, read from disk or trained

A result holds plain values; its "tensors" are kept exactly, "large" ones (weights) in a file of their own. Results are
found by the code that makes them: all that stands here may change one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, lru_cache, partial

import torch
from torch import Tensor, nn

from rumlib.algorithms import Keep, Retrain
from rumlib.data import Examples, digest
from rumlib.lab.keys import digest_of
from rumlib.lab.memo import Computation, Memoized, identify, memoize
from rumlib.metrics import Evaluation, accuracies, class_accuracies, class_mia, evaluate, evaluation, jensen_shannon
from rumlib.models import build, mlp
from rumlib.proxies import HOLDOUT, TRACED, Curvature, Trace, proxy
from rumlib.rum import RUM, stream
from rumlib.scores import Score, bands, matched, memorization, mmd
from rumlib.scores import bank as train_bank
from rumlib.scores import entanglement as entanglement_score
from rumlib.spdgan import SPDGAN, probes, unlearning_degree
from rumlib.stats import tow_between
from rumlib.train import Recipe, cost, count_examples, derive_seed, features, fit, predict

# -- Forget sets ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ForgetSet:
    """A named forget set: the index of its examples, ascending; facts that the figures show; its hash."""

    name: str
    index: Tensor
    facts: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        return digest(self.index)

    def __len__(self) -> int:
        return len(self.index)

    def __eq__(self, other) -> bool:                         # by content: a copy in another process is the same set
        return isinstance(other, ForgetSet) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"ForgetSet({self.name!r}, n={len(self)}, {self.digest})"


def union(forgets: Iterable[ForgetSet]) -> ForgetSet:
    """All that is in any of the forget sets."""
    forgets = list(forgets)
    return ForgetSet(" + ".join(forget.name for forget in forgets), torch.cat([f.index for f in forgets]).unique())


@lru_cache(maxsize=16)
def split(study: Memoized, forget: ForgetSet) -> tuple[Examples, Examples]:
    """(forget, retain) of the training data."""
    return study.train.split(torch.isin(study.train.index, forget.index))


# -- Original models and scores ---------------------------------------------------------------------------------------


@memoize("bank")
def bank(study: Memoized, numbers: range, fraction: float, how: Retrain) -> dict:
    """Subset models of the memorization estimator."""
    start = time.perf_counter()
    part = train_bank(how.make_model, study.train, how.recipe, numbers, fraction=fraction)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "tensors": {"included": part.included, "correct": part.correct},
            "large": {"margin": part.margin}}


@memoize("original")
def original(study: Memoized, seed: int) -> dict:
    """A model trained on everything, and the trace of its training."""
    trace = Trace(study.train)
    with cost() as spent:
        trained = fit(study.profile.make_model, study.train, study.profile.recipe, seed=seed, trace=trace)
    return {**asdict(spent), "trace_seconds": trace.seconds, "large": trained.state_dict(),
            "tensors": {name: getattr(trace, name) for name in (*TRACED, "seen")}}


@lru_cache(maxsize=32)
def model(study: Memoized, seed: int) -> nn.Module:
    """The original model of that seed."""
    return _rebuilt(study, study.large(original, seed))


def _rebuilt(study: Memoized, weights: Mapping[str, Tensor]) -> nn.Module:
    network = build(study.profile.make_model, 0)
    network.load_state_dict(weights)
    return network.eval().to(study.device)


@memoize("original_correct")
def original_correct(study: Memoized, seed: int) -> dict:
    """Which examples of the training and of the test data the original model gets right, (n,) bool each."""
    return {"tensors": {part: predict(model(study, seed), examples).argmax(1) == examples.y
                        for part, examples in (("train", study.train), ("test", study.test))}}


@memoize("probed")
def probed(study: Memoized, name: str, seed: int) -> dict:
    """A proxy that needs passes of its own, and the seconds that these took."""
    if name == "loss_curvature":
        probe = Curvature(study.train)
        fit(study.profile.make_model, study.train, study.profile.recipe, seed=seed, probe=probe)
        return {"seconds": probe.seconds, "tensors": {"values": proxy(name, probe).values}}
    start, values = time.perf_counter(), torch.empty(len(study.train))
    order = torch.randperm(len(study.train), generator=torch.Generator().manual_seed(derive_seed(seed, "held out")))
    for tenth in order.tensor_split(10)[:2]:                 # the second run scores what the first one held out
        mask = torch.zeros(len(study.train), dtype=torch.bool)
        mask[tenth] = True
        held_out, known = study.train.split(mask)
        trained = fit(study.profile.make_model, known, study.profile.recipe, seed=seed)
        recipe = replace(HOLDOUT, batch_size=study.profile.recipe.batch_size, amp=study.profile.recipe.amp)
        values[~mask] = proxy(name, trained, known, holdout=held_out, recipe=recipe, seed=seed).values
    return {"seconds": time.perf_counter() - start, "tensors": {"values": values}}


# -- Entanglement -----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def embedding(study: Memoized, seed: int) -> Tensor:
    """Of the training data by the original model, (n, d)."""
    return features(model(study, seed), study.train)


@memoize("embedding_bands")
def embedding_bands(study: Memoized, seed: int, count: int) -> dict:
    """Where the training examples lie in the original model's embedding: distance from the centroid, (n,), and the
    positions of so many bands by it."""
    points = embedding(study, seed)
    found = {f"band {k}": rows for k, rows in enumerate(bands(points, count))}
    return {"tensors": {"distance": (points - points.mean(0)).norm(dim=1), **found}}


@memoize("matched_sets")
def matched_sets(study: Memoized, score: Score, size: int, seed: int) -> dict:
    """Positions of sets with one histogram of a score and different entanglement (see `rumlib.scores.matched`)."""
    return {"tensors": matched(score.values, embedding(study, seed), size)}


@memoize("entanglement")
def entanglement(study: Memoized, forget: ForgetSet, seed: int) -> dict:
    """Entanglement score and MMD (the root, as published; by the published kernel, and by one as wide as the median
    distance) of a forget set with the rest, in the original model's embedding."""
    points, gone = embedding(study, seed), torch.isin(study.train.index, forget.index)
    score = entanglement_score(forget_features=points[gone], retain_features=points[~gone])
    published, median = (math.sqrt(max(mmd(points[~gone], points[gone], gamma), 0)) for gamma in (1.0, "median"))
    return {"entanglement": score, "mmd": published, "mmd_median": median}


@memoize("plane")
def plane(study: Memoized, seed: int) -> dict:
    """The centred embedding of the training data in the original model, on its first two principal axes, (n, 2)."""
    points = embedding(study, seed)
    centred = (points - points.mean(0)).double()
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -2:].flip(1)
    return {"tensors": {"plane": (centred @ axes).float()}}


# -- Retraining and unlearning ----------------------------------------------------------------------------------------


@memoize("oracle")
def oracle(study: Memoized, forget: ForgetSet, seed: int) -> dict:
    """A model retrained without the forget set, with the same seed as the original."""
    gone, kept = split(study, forget)
    with cost() as spent:
        trained = fit(study.profile.make_model, kept, study.profile.recipe, seed=seed)
    return {**asdict(spent), **asdict(evaluate(trained, gone, kept, study.test)), "large": trained.state_dict(),
            "tensors": {"forget": forget.index}}             # its hash alone would not say which


def reference(study: Memoized, forget: ForgetSet, seed: int) -> Evaluation:
    """The evaluation of the oracle of that set and seed."""
    found = oracle(study, forget, seed)
    return Evaluation(*(found[f.name] for f in fields(Evaluation)))


@lru_cache(maxsize=32)
def retrained(study: Memoized, forget: ForgetSet, seed: int) -> nn.Module:
    """The oracle of that set and seed."""
    return _rebuilt(study, study.large(oracle, forget, seed))


@lru_cache(maxsize=32)
def oracle_logits(study: Memoized, forget: ForgetSet, seed: int) -> list[Tensor]:
    """The logits that the oracle gives to forget, retain and test set."""
    return [predict(retrained(study, forget, seed), part) for part in (*split(study, forget), study.test)]


@memoize("run")
def run(study: Memoized, forget: ForgetSet, algorithm: Callable, seed: int, mia: bool) -> dict:
    """One unlearning run beside its oracle."""
    sets, expected = (*split(study, forget), study.test), reference(study, forget, seed)
    model(study, seed)                                       # now: where it has to be trained again is no cost of this
    try:
        with cost() as spent:
            unlearned, chosen = unlearn(study, forget, algorithm, seed)
        logits = [predict(unlearned, examples) for examples in sets]
        found = evaluation(logits, sets, mia=mia)
    except FloatingPointError:                               # a learning rate too large: a result, reported as such
        return {"diverged": True, "tow": None, **asdict(spent)}
    row = {"diverged": False, **tow_between(found, expected), **asdict(spent), **asdict(found),
           **{f"oracle_{name}": value for name, value in asdict(expected).items()},
           **_distances(logits, oracle_logits(study, forget, seed)), **_of_classes(unlearned, sets, mia)}
    row |= {} if chosen is None else {"order": list(chosen.order), "chosen": [repr(step) for step in chosen.steps]}
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


def _distances(logits: list[Tensor], expected: list[Tensor]) -> dict[str, float]:
    """How far the answers are from those of the oracle, on each set: the share of other classes, and 1 minus the mean
    Jensen-Shannon divergence in bits."""
    row = {}
    for name, ours, theirs in zip(("forget", "retain", "test"), logits, expected, strict=True):
        row[f"differs_{name}"] = (ours.argmax(1) != theirs.argmax(1)).float().mean().item()
        row[f"similarity_{name}"] = 1 - jensen_shannon(ours.softmax(1), theirs.softmax(1)).mean().item() / math.log(2)
    return row


def _of_classes(unlearned: nn.Module, sets: tuple[Examples, Examples, Examples], mia: bool) -> dict[str, float]:
    """Accuracies and attack on whole classes, where those of the forget set are in no other."""
    forget, retain, test = sets
    if set(forget.y.tolist()) & set(retain.y.tolist()):
        return {}
    found = class_accuracies(unlearned, forget, test)
    return {**{f"test_{name}": value for name, value in found.items()},
            "class_mia": class_mia(unlearned, forget, retain, test) if mia else math.nan}


def unlearn(study: Memoized, forget: ForgetSet, algorithm: Callable, seed: int) -> tuple[nn.Module, RUM | None]:
    """The unlearned model, and the RUM that an algorithm has chosen, if it chooses. Where a step of a RUM fails, the
    model after those that are done is kept on disk, and the next try goes on from it."""
    sets, start = split(study, forget), model(study, seed)
    if hasattr(algorithm, "settle"):
        return algorithm.settle(start, *sets, seed=seed)[::-1]
    if not isinstance(algorithm, RUM):
        return algorithm(start, *sets, seed=seed), None
    identity = {"what": "steps", "study": study.identity,
                "arguments": {"forget": forget.digest, "algorithm": identify(algorithm), "seed": seed}}
    found = study.store.read("steps", digest_of(identity))
    kept = found["values"] if found else {"done": 0, "examples": 0}
    count_examples(kept["examples"])
    current, done = _rebuilt(study, kept["tensors"]) if kept["done"] else start, kept["done"]
    try:
        with cost() as spent:
            for stage in algorithm.stages(current, *sets, seed=seed, done=done, original=start):
                current, done = stage.model, done + 1
    except FloatingPointError:
        raise
    except Exception:
        study.store.write("steps", identity, {
            "done": done, "examples": kept["examples"] + spent.examples, "tensors": current.state_dict()})
        raise
    if found:
        study.store.remove("steps", digest_of(identity))
    return current, None


@memoize("stage")
def stage(study: Memoized, parts: tuple[ForgetSet, ...], steps: tuple[Callable, ...], waiting: str, seed: int) -> dict:
    """The weights after the first steps of a RUM: all its parts in their order, and the steps that are done."""
    return {"large": _begun(study, parts, steps, waiting, seed).state_dict(),
            "tensors": {f"part {k}": part.index for k, part in enumerate(parts)}}


@memoize("step")
def step(study: Memoized, parts: tuple[ForgetSet, ...], steps: tuple[Callable, ...], waiting: str, seed: int) -> dict:
    """The last one of the first steps of a RUM, beside the model retrained without the parts that are gone by then."""
    gone = union(parts[:len(steps)])
    sets, expected = (*split(study, gone), study.test), reference(study, gone, seed)
    try:
        with cost() as spent:
            unlearned = _begun(study, parts, steps, waiting, seed)
        found = evaluation([predict(unlearned, examples) for examples in sets], sets, mia=False)
    except FloatingPointError:
        return {"diverged": True, "tow": None, **asdict(spent)}
    return {"diverged": False, "tow": tow_between(found, expected)["tow"], **asdict(spent), "forget": found.forget,
            "retain": found.retain, "test": found.test}


def _begun(study: Memoized, parts: tuple[ForgetSet, ...], steps: tuple[Callable, ...], waiting: str,
           seed: int) -> nn.Module:
    start, done = model(study, seed), len(steps) - 1
    before = _rebuilt(study, study.large(stage, parts, steps[:-1], waiting, seed)) if done else start
    rum = RUM(lambda forget: [split(study, part)[0] for part in parts], (*steps, *[Keep()] * (len(parts) - len(steps))),
              waiting=waiting)
    return next(rum.stages(before, *split(study, union(parts)), seed=seed, done=done, original=start)).model


@memoize("dynamics")
def dynamics(study: Memoized, forget: ForgetSet, algorithm: RUM, seed: int) -> dict:
    """A RUM step by step: accuracies on each part, on retain and test set, before it and after each step."""
    sets = split(study, forget)
    parts = {f"part {k}": part for k, part in enumerate(algorithm.refine(sets[0]))}
    watched = {**parts, "retain": sets[1], "test": study.test}
    models = [(None, model(study, seed)), *((stage.part, stage.model) for stage in algorithm.stages(
        model(study, seed), *sets, seed=seed))]
    expected = accuracies(retrained(study, forget, seed), watched)
    return {"rows": [{"step": k, "part": part, **accuracies(current, watched)}
                     for k, (part, current) in enumerate(models)], "oracle": expected}


@memoize("requests")
def requests(study: Memoized, forgets: tuple[ForgetSet, ...], algorithm: Callable, seed: int,
             renew: int | tuple[Callable, float] | None) -> dict:
    """One request for deletion after the other, each beside a model retrained without all that is gone. `renew`:
    retrain after every so many requests, or when a judge expects a ToW below a value, or never."""
    gone = [split(study, forget)[0] for forget in forgets]
    _, rest = study.train.split(torch.isin(study.train.index, torch.cat([forget.index for forget in forgets])))
    start, retrain = model(study, seed), Retrain(study.profile.make_model, study.profile.recipe)

    def due(current, gone, left):
        if isinstance(renew, int):
            return len(seen) % renew == renew - 1
        judge, limit = renew
        return judge(current, start, gone, left) < limit

    seen, rows = [], []
    with cost() as spent:
        for request in stream(algorithm, start, gone, rest, seed=seed, retrain=retrain if renew else None,
                              renew=due if renew else None):
            seen.append((request, spent.examples))
    for k, (request, examples) in enumerate(seen):
        found = evaluate(request.model, request.gone, request.retain, study.test)
        expected = reference(study, union(forgets[:k + 1]), seed)
        rows.append({"request": k + 1, "renewed": request.renewed, "examples": examples, **asdict(found),
                     **tow_between(found, expected), "oracle_test": expected.test})
    return {"rows": rows, "tensors": {f"forget {k + 1}": forget.index for k, forget in enumerate(forgets)}}


PLANTED = {"isolated": (6.0, 0), "overlapping": (0.0, 120)}              # distance, and how many are retained there


def plant(seed: int, *, clean: int = 600, size: int = 60) -> tuple[Examples, Examples, dict[str, Tensor]]:
    """(train, test, place -> mask): `clean` points in 16 dimensions around four centres, a class each. At each place of
    `PLANTED` lie `size` points that can be forgotten, amid others that are retained. These have random labels: they are
    learned by heart at any place. The places differ in their distance from the centres, and so in entanglement."""
    random, d, sets, masks = torch.Generator().manual_seed(seed), 16, [], {}
    centres = 3 * torch.eye(d)[:4]
    for n in (clean, 400):
        y = torch.arange(n) % 4
        sets.append((centres[y] + 0.7 * torch.randn(n, d, generator=random), y))
    train, test = sets
    for place, (far, around) in PLANTED.items():
        n, before = size + around, len(train[1])
        x = centres.mean(0) + far * torch.eye(d)[4] + torch.randn(n, d, generator=random)
        train = torch.cat([train[0], x]), torch.cat([train[1], torch.randint(0, 4, (n,), generator=random)])
        masks[place] = torch.arange(before, before + size)
    everything = torch.arange(len(train[1]))
    return Examples(*train), Examples(*test), {place: torch.isin(everything, rows) for place, rows in masks.items()}


planted_model = partial(mlp, shape=(16,), classes=4, hidden=(128,))
PLANTED_RECIPE = Recipe(epochs=40, lr=0.1, batch_size=32, schedule="linear", warmup=0.1)


@memoize("planted_facts")
def planted_facts(study: Memoized, seed: int) -> dict:
    """Entanglement score and memorization of the planted forget sets of that draw, one row each."""
    train, _, masks = plant(seed)
    points = features(fit(planted_model, train, PLANTED_RECIPE, seed=seed), train)
    score = memorization(planted_model, train, PLANTED_RECIPE, models=64, seed=seed)
    return {"rows": [{"place": place, "entanglement": entanglement_score(points[mask], points[~mask]),
                      "memorization": score.values[mask].mean().item()} for place, mask in masks.items()]}


@memoize("planted")
def planted(study: Memoized, seed: int, asked: tuple[tuple[str, Callable], ...]) -> dict:
    """Each (place, algorithm) on the data that are drawn with this seed, beside its oracle: one row each."""
    train, test, masks = plant(seed)
    original = fit(planted_model, train, PLANTED_RECIPE, seed=seed)
    known, rows = {}, []
    for place, algorithm in asked:
        gone, kept = train.split(masks[place])
        if place not in known:
            known[place] = evaluate(fit(planted_model, kept, PLANTED_RECIPE, seed=seed), gone, kept, test, mia=False)
        try:
            with cost() as spent:
                unlearned = algorithm(original, gone, kept, seed=seed)
            found = evaluate(unlearned, gone, kept, test, mia=False)
            rows.append({"diverged": False, "tow": tow_between(found, known[place])["tow"], **asdict(spent),
                         **asdict(found), **{f"oracle_{of}": value for of, value in asdict(known[place]).items()}})
        except FloatingPointError:
            rows.append({"diverged": True, "tow": None, **asdict(spent)})
    return {"rows": [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
                     for row in rows]}


# -- The unlearning degree --------------------------------------------------------------------------------------------


@memoize("generator")
def generator(study: Memoized, forget: ForgetSet, config: SPDGAN, seed: int, number: int, reference_seed: int) -> dict:
    """A generator that shifts the forget set; its reference is the oracle of another seed, a tuning seed."""
    with cost() as spent:
        shift = config(model(study, seed), retrained(study, forget, reference_seed), split(study, forget)[0],
                       seed=number, quiet=True)
    return {"seconds": spent.seconds, "large": shift.state_dict()}


@memoize("degrees")
def degrees(study: Memoized, forget: ForgetSet, algorithm: Callable, seed: int, config: SPDGAN,
            numbers: tuple[int, ...], reference_seed: int) -> dict:
    """How deep an algorithm unlearned: its unlearning degree on each probe, by the generators of these numbers."""
    gone, kept = split(study, forget)
    shifts = []
    for number in numbers:
        shift = config.untrained(gone.x.shape[1])
        shift.load_state_dict(study.large(generator, forget, config, seed, number, reference_seed))
        shifts.append(shift.eval().to(study.device))
    unlearned = unlearn(study, forget, algorithm, seed)[0]
    asked = probes(shifts, {"forget": gone, "test": study.test, "retain": kept})
    rows = []
    for probe, sets in asked.items():
        test, retain = (unlearning_degree(model(study, seed), unlearned, sets["forget"], sets[control])
                        for control in ("test", "retain"))
        rows.append({"probe": probe, "degree": test.forget, "on_test": test.control, "on_retain": retain.control,
                     "adjusted": test.adjusted, "adjusted_retain": retain.adjusted})
    return {"rows": rows}


@memoize("apply", whole_module=True)
def apply(study: Memoized, call: Callable, arguments: tuple) -> dict:
    """What a function, such as one of a notebook, gives for this study and these arguments."""
    return call(study, *arguments)


KINDS = {found.kind: found for found in tuple(vars().values()) if isinstance(found, Computation)}
