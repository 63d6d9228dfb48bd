"""A study: its forget sets, its memoized cells, and rows with one number per seed.

    study = Study("laptop")                                  # a profile; nothing is computed yet
    study.score, study.levels(), study.bands()               # memorization; forget sets by it and by entanglement
    rows = study.unlearn([Cell(forget_set, algorithm, seed, {"algorithm": "Fine-tune"}), ...])
    chosen, record = study.tune({name: (forget_set, algorithm, rates)})   # learning rates, on the tuning seeds only

Every cell (the subset models, an original, an oracle, one unlearning run) is written to disk when it is done and read
back when it is asked for again (`rumlib.lab.memo`): resuming is running again.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cache, cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from rumlib.algorithms.base import Keep, Retrain
from rumlib.data import Examples, digest
from rumlib.datasets import load, source
from rumlib.device import pick
from rumlib.lab import engine
from rumlib.lab.memo import FORMAT, Failure, Memoized, digest_of, factory, identify, memoized, notebook
from rumlib.lab.profiles import Profile, profile
from rumlib.lab.results import opened
from rumlib.lab.tuning import FOLDER, search, tuned, write
from rumlib.metrics import Evaluation, accuracies, class_accuracies, class_mia, evaluate, evaluation, jensen_shannon
from rumlib.models import build
from rumlib.proxies import HOLDOUT, PROXIES, TRACED, Curvature, Trace, proxy
from rumlib.rum import RUM, stream
from rumlib.scores import Bank, Score, bands, entanglement, matched, mmd
from rumlib.scores import bank as train_bank
from rumlib.spdgan import SPDGAN, probes, unlearning_degree
from rumlib.stats import tow_between
from rumlib.train import cost, count_examples, derive_seed, features, fit, predict

# -- Forget sets and cells --------------------------------------------------------------------------------------------


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


@dataclass(frozen=True, eq=False)
class Cell:
    """One unlearning run: which set, by what, with which seed; `labels` are columns of its row."""

    forget: ForgetSet
    algorithm: Callable
    seed: int
    labels: Mapping[str, object] = field(default_factory=dict)
    mia: bool = True                                         # also attack: not needed where rates are tuned


def vary(algorithm, **changes):
    """The algorithm with other values for some fields; wrappers and RUMs pass them on to what has them inside."""
    if not is_dataclass(algorithm):
        raise TypeError(f"{algorithm!r} has no fields that could vary; make it a frozen dataclass")
    own = {f.name for f in fields(algorithm)}
    if set(changes) <= own:
        return replace(algorithm, **changes)
    if not own:
        return algorithm                                     # Keep has nothing to vary
    missing = [name for name in changes if not _knows(algorithm, name)]
    if missing:
        raise ValueError(f"{algorithm!r} has no field {', '.join(missing)}")
    if "inner" in own:
        return replace(algorithm, inner=vary(algorithm.inner, **changes))
    return replace(algorithm, steps=tuple(vary(step, **{name: value for name, value in changes.items()
                                                        if _knows(step, name)}) for step in algorithm.steps))


def _knows(algorithm, name: str) -> bool:
    """Whether the algorithm, or one inside it, has that field."""
    own = {f.name for f in fields(algorithm)} if is_dataclass(algorithm) else set()
    inside = [algorithm.inner] if "inner" in own else algorithm.steps if "steps" in own else []
    return name in own or any(_knows(part, name) for part in inside)


def _set(algorithm, setting: Mapping):
    for name, value in setting.items():                      # one by one: a wrapper has some fields, its inner others
        algorithm = vary(algorithm, **{name: value})
    return algorithm


# -- The study --------------------------------------------------------------------------------------------------------


class Study(Memoized):
    """All computations of a profile, memoized under `runs/<profile>`.

    profile  its name, or a Profile
    seeds    number of reporting seeds; None: those of the profile
    quiet    no progress bar

    Where RUM_FROM names a folder of published results (`rumlib.lab.results`), all cells come from it.
    """

    def __init__(self, which: str | Profile, *, seeds: int | None = None, quiet: bool = False,
                 home: str | Path | None = None):
        self.profile = profile(which) if isinstance(which, str) else which
        if seeds is not None:
            if seeds < 1:
                raise ValueError(f"seeds is the number of reporting seeds, at least 1; got {seeds}")
            self.profile = replace(self.profile, seeds=tuple(range(seeds)))
        if set(self.profile.seeds) & set(self.profile.tuning_seeds):
            raise ValueError(f"reporting seeds {self.profile.seeds} and tuning seeds {self.profile.tuning_seeds} "
                             f"overlap; results must be reported on other seeds than rates were chosen on")
        self.device = pick(self.profile.device)
        self.home = Path(home) if home else find_home()
        super().__init__(self.home / "runs" / self.profile.name, workers=self.profile.workers, quiet=quiet)
        self.started = time.time()
        self.splits: dict[str, str] = {}
        self.published = opened(Path(os.environ["RUM_FROM"])) if os.environ.get("RUM_FROM") else None
        engine.engine()
        torch.set_num_threads(1)                             # parallel work is done by processes

    def __reduce__(self):                                    # a task carries the profile, never data
        return _shared, (self.profile, self.home)

    @property
    def figures(self) -> Path:
        """Where its figures go: figures/<profile>, or under RUM_FIGURES."""
        return Path(os.environ.get("RUM_FIGURES") or self.home / "figures") / self.profile.name

    @cached_property
    def _data(self) -> tuple[Examples, Examples]:
        return tuple(part.to(self.device) for part in load(self.profile.data, **self.profile.options))

    @property
    def train(self) -> Examples:
        return self._data[0]

    @property
    def test(self) -> Examples:
        return self._data[1]

    @cached_property
    def identity(self) -> dict:
        """What every cell of this study depends on. Device, dtype and release of torch: the same training rounds
        differently on another kind of device, in another precision, and with the kernels of another release."""
        weight = next(build(self.profile.make_model, 0).parameters())
        return {"data": [self.train.digest, self.test.digest], "model": factory(self.profile.make_model),
                "recipe": repr(self.profile.recipe), "device": self.device.type, "dtype": str(weight.dtype),
                "torch": ".".join(version("torch").split(".")[:2]), "format": FORMAT}

    # -- what is memoized

    @memoized
    def bank(self, numbers: range, fraction: float, how: Retrain) -> dict:
        """Subset models of the memorization estimator."""
        start = time.perf_counter()
        part = train_bank(how.make_model, self.train, how.recipe, numbers, fraction=fraction)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "tensors": {"included": part.included, "correct": part.correct},
                "large": {"margin": part.margin}}

    @memoized
    def original(self, seed: int) -> dict:
        """A model trained on everything, and the trace of its training."""
        trace = Trace(self.train)
        with cost() as spent:
            model = fit(self.profile.make_model, self.train, self.profile.recipe, seed=seed, trace=trace)
        return {**asdict(spent), "trace_seconds": trace.seconds, "large": model.state_dict(),
                "tensors": {name: getattr(trace, name) for name in (*TRACED, "seen")}}

    @memoized
    def probed(self, name: str, seed: int) -> dict:
        """A proxy that needs passes of its own, and the seconds that these took."""
        if name == "loss_curvature":
            probe = Curvature(self.train)
            fit(self.profile.make_model, self.train, self.profile.recipe, seed=seed, probe=probe)
            return {"seconds": probe.seconds, "tensors": {"values": proxy(name, probe).values}}
        start, values = time.perf_counter(), torch.empty(len(self.train))
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(derive_seed(seed, "held out")))
        for tenth in order.tensor_split(10)[:2]:             # the second run scores what the first one held out
            mask = torch.zeros(len(self.train), dtype=torch.bool)
            mask[tenth] = True
            held_out, known = self.train.split(mask)
            model = fit(self.profile.make_model, known, self.profile.recipe, seed=seed)
            recipe = replace(HOLDOUT, batch_size=self.profile.recipe.batch_size, amp=self.profile.recipe.amp)
            scored = proxy(name, model, known, holdout=held_out, recipe=recipe, seed=seed)
            values[~mask] = scored.values
        return {"seconds": time.perf_counter() - start, "tensors": {"values": values}}

    @memoized
    def right(self, seed: int) -> dict:
        """Which examples of the training and of the test data the original model gets right, (n,) bool each."""
        return {"tensors": {part: predict(self.model(seed), examples).argmax(1) == examples.y
                            for part, examples in (("train", self.train), ("test", self.test))}}

    @memoized
    def placed(self, seed: int, count: int) -> dict:
        """Where the training examples lie in the original model's embedding: distance from the centroid, (n,), and the
        positions of so many bands by it."""
        embedding = self._embedding(seed)
        found = {f"band {k}": rows for k, rows in enumerate(bands(embedding, count))}
        return {"tensors": {"distance": (embedding - embedding.mean(0)).norm(dim=1), **found}}

    @memoized
    def alike(self, score: Score, size: int, seed: int) -> dict:
        """Positions of sets that are matched on a score and apart in entanglement (see `rumlib.matched`)."""
        return {"tensors": matched(score.values, self._embedding(seed), size)}

    @memoized
    def apart(self, forget: ForgetSet, seed: int) -> dict:
        """Entanglement score and MMD (the root, as published) of a forget set with the rest, in the original model's
        embedding."""
        embedding, gone = self._embedding(seed), torch.isin(self.train.index, forget.index)
        return {"entanglement": entanglement(embedding[~gone], embedding[gone]),
                "mmd": math.sqrt(max(mmd(embedding[~gone], embedding[gone]), 0))}

    @memoized
    def given(self, call: Callable, arguments: tuple) -> dict:
        """What a function, such as one of a notebook, gives for this study and these arguments."""
        return call(self, *arguments)

    @memoized
    def oracle(self, forget: ForgetSet, seed: int) -> dict:
        """A model retrained without the forget set, with the same seed as the original."""
        gone, kept = self.split(forget)
        with cost() as spent:
            model = fit(self.profile.make_model, kept, self.profile.recipe, seed=seed)
        return {**asdict(spent), **asdict(evaluate(model, gone, kept, self.test)), "large": model.state_dict(),
                "tensors": {"forget": forget.index}}         # its hash alone would not say which

    @memoized
    def run(self, forget: ForgetSet, algorithm: Callable, seed: int, mia: bool) -> dict:
        """One unlearning run beside its oracle."""
        sets, reference = (*self.split(forget), self.test), self.reference(forget, seed)
        self.model(seed)                                     # now: where it has to be trained again is no cost of this
        try:
            with cost() as spent:
                model, chosen = self._unlearned(forget, algorithm, seed)
            logits = [predict(model, examples) for examples in sets]
            found = evaluation(logits, sets, mia=mia)
        except FloatingPointError:                           # a learning rate too large: a result, reported as such
            return {"diverged": True, "tow": None, **asdict(spent)}
        row = {"diverged": False, **tow_between(found, reference), **asdict(spent), **asdict(found)}
        row |= {f"oracle_{name}": value for name, value in asdict(reference).items()}
        for name, given, right in zip(("forget", "retain", "test"), logits, self._answers(forget, seed), strict=True):
            row[f"differs_{name}"] = (given.argmax(1) != right.argmax(1)).float().mean().item()
            apart = jensen_shannon(given.softmax(1), right.softmax(1)).mean().item()
            row[f"similarity_{name}"] = 1 - apart / math.log(2)
        if not set(sets[0].y.tolist()) & set(sets[1].y.tolist()):                # whole classes are gone
            of_classes = class_accuracies(model, self.test, sets[0].y.unique().tolist())
            row |= {f"test_{name}": value for name, value in of_classes.items()}
            row["class_mia"] = class_mia(model, *sets) if mia else math.nan
        row |= {} if chosen is None else {"order": list(chosen.order), "chosen": [repr(step) for step in chosen.steps]}
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}

    @memoized
    def generator(self, forget: ForgetSet, config: SPDGAN, seed: int, number: int) -> dict:
        """A generator that shifts the forget set; its reference is the oracle of a tuning seed."""
        reference, original = self.retrained(forget, self.profile.tuning_seeds[0])[0], self.model(seed)
        with cost() as spent:
            shift = config(original, reference, self.split(forget)[0], seed=number, quiet=True)
        return {"seconds": spent.seconds, "large": shift.state_dict()}

    @memoized
    def degrees(self, forget: ForgetSet, algorithm: Callable, seed: int, config: SPDGAN,
                numbers: tuple[int, ...]) -> dict:
        """How deep an algorithm unlearned: its unlearning degree on each probe, by the generators of these numbers."""
        gone, kept = self.split(forget)
        shifts = []
        for number in numbers:
            shift = config.untrained(gone.x.shape[1])
            shift.load_state_dict(self.large(Study.generator, forget, config, seed, number))
            shifts.append(shift.eval().to(self.device))
        unlearned = self._unlearned(forget, algorithm, seed)[0]
        asked = probes(shifts, {"forget": gone, "test": self.test, "retain": kept})
        rows = []
        for probe, sets in asked.items():
            test, retain = (unlearning_degree(self.model(seed), unlearned, sets["forget"], sets[control])
                            for control in ("test", "retain"))
            rows.append({"probe": probe, "degree": test.forget, "on_test": test.control, "on_retain": retain.control,
                         "adjusted": test.adjusted, "adjusted_retain": retain.adjusted})
        return {"rows": rows}

    @memoized
    def dynamics(self, forget: ForgetSet, algorithm: RUM, seed: int) -> dict:
        """A RUM step by step: accuracies on each part, on retain and test set, before it and after each step."""
        sets = self.split(forget)
        parts = {f"part {k}": part for k, part in enumerate(algorithm.refine(sets[0]))}
        watched = {**parts, "retain": sets[1], "test": self.test}
        models = [(None, self.model(seed)), *((stage.part, stage.model) for stage in algorithm.stages(
            self.model(seed), *sets, seed=seed))]
        oracle = accuracies(self.retrained(forget, seed)[0], watched)
        return {"rows": [{"step": k, "part": part, **accuracies(model, watched)}
                         for k, (part, model) in enumerate(models)], "oracle": oracle}

    @memoized
    def requests(self, forgets: tuple[ForgetSet, ...], algorithm: Callable, seed: int,
                 renew: int | tuple[Callable, float] | None) -> dict:
        """One request for deletion after the other, each beside a model retrained without all that is gone. `renew`:
        retrain after every so many requests, or when a judge expects a ToW below a value, or never."""
        gone = [self.split(forget)[0] for forget in forgets]
        _, rest = self.train.split(torch.isin(self.train.index, torch.cat([forget.index for forget in forgets])))
        original, retrain = self.model(seed), Retrain(self.profile.make_model, self.profile.recipe)

        def due(model, gone, left):
            if isinstance(renew, int):
                return len(seen) % renew == renew - 1
            judge, limit = renew
            return judge(model, original, gone, left) < limit

        seen, rows = [], []
        with cost() as spent:
            for request in stream(algorithm, original, gone, rest, seed=seed, retrain=retrain if renew else None,
                                  renew=due if renew else None):
                seen.append((request, spent.examples))
        for k, (request, examples) in enumerate(seen):
            found = evaluate(request.model, request.gone, request.retain, self.test)
            reference = self.reference(union(forgets[:k + 1]), seed)
            rows.append({"request": k + 1, "renewed": request.renewed, "examples": examples, **asdict(found),
                         **tow_between(found, reference), "oracle_test": reference.test})
        return {"rows": rows, "tensors": {f"forget {k + 1}": forget.index for k, forget in enumerate(forgets)}}

    def _unlearned(self, forget: ForgetSet, algorithm: Callable, seed: int) -> tuple[nn.Module, RUM | None]:
        """The unlearned model, and the RUM that an algorithm has chosen, if it chooses. Where a step of a RUM fails,
        the model after those that are done is kept on disk, and the next try goes on from it."""
        sets, original = self.split(forget), self.model(seed)
        if hasattr(algorithm, "settle"):
            return algorithm.settle(original, *sets, seed=seed)[::-1]
        if not isinstance(algorithm, RUM):
            return algorithm(original, *sets, seed=seed), None
        identity = {"what": "steps", "study": self.identity,
                    "arguments": {"forget": forget.digest, "algorithm": identify(algorithm), "seed": seed}}
        found = self.store.read("steps", digest_of(identity))
        kept = found["values"] if found else {"done": 0, "examples": 0}
        count_examples(kept["examples"])
        model, done = self._rebuild(kept["tensors"]) if kept["done"] else original, kept["done"]
        try:
            with cost() as spent:
                for stage in algorithm.stages(model, *sets, seed=seed, done=done):
                    model, done = stage.model, done + 1
        except FloatingPointError:
            raise
        except Exception:
            self.store.write("steps", identity, {
                "done": done, "examples": kept["examples"] + spent.examples, "tensors": model.state_dict()})
            raise
        if found:
            self.store.remove("steps", digest_of(identity))
        return model, None

    # -- what is made of it

    @cached_property
    def score(self) -> Score:
        """Memorization of every training example."""
        p = self.profile
        chunks = [range(k, min(k + p.score_chunk, p.score_models)) for k in range(0, p.score_models, p.score_chunk)]
        parts = self.ask(Study.bank, [(chunk, p.fraction, p.scored_by) for chunk in chunks], "subset models")
        self.score_seconds = sum(part["seconds"] for part in parts)      # on one core
        return sum((Bank(**part["tensors"]) for part in parts[1:]), start=Bank(**parts[0]["tensors"])).score(
            self.train.index)

    def proxy(self, name: str, seed: int = 0) -> Score:
        """A proxy of memorization from the training of the original model with that seed."""
        if name in PROXIES and name not in TRACED:
            return Score(name, self.probed(name, seed)["tensors"]["values"], self.train.index)
        tensors = self.original(seed)["tensors"]
        trace = Trace(self.train)
        for field_ in (*TRACED, "seen"):
            setattr(trace, field_, tensors[field_])
        return proxy(name, trace)

    def proxy_seconds(self, name: str, seed: int = 0) -> float:
        """What the proxy took beyond the training of the original model."""
        return self.original(seed)["trace_seconds"] if name in TRACED else self.probed(name, seed)["seconds"]

    @lru_cache(maxsize=32)                                   # noqa: B019  few studies, each lives as long as its process
    def model(self, seed: int) -> nn.Module:
        """The original model of that seed."""
        return self._rebuild(self.large(Study.original, seed))

    @lru_cache(maxsize=32)                                   # noqa: B019
    def retrained(self, forget: ForgetSet, seed: int) -> tuple[nn.Module, Evaluation]:
        """The oracle of that set and seed, and its evaluation."""
        return self._rebuild(self.large(Study.oracle, forget, seed)), self.reference(forget, seed)

    def reference(self, forget: ForgetSet, seed: int) -> Evaluation:
        """The evaluation of the oracle of that set and seed."""
        cell = self.oracle(forget, seed)
        return Evaluation(*(cell[f.name] for f in fields(Evaluation)))

    @lru_cache(maxsize=32)                                   # noqa: B019
    def _answers(self, forget: ForgetSet, seed: int) -> list[Tensor]:
        """The logits that the oracle gives to forget, retain and test set."""
        return [predict(self.retrained(forget, seed)[0], s) for s in (*self.split(forget), self.test)]

    def _rebuild(self, weights: Mapping[str, Tensor]) -> nn.Module:
        model = build(self.profile.make_model, 0)
        model.load_state_dict(weights)
        return model.eval().to(self.device)

    @lru_cache(maxsize=1)                                    # noqa: B019
    def _embedding(self, seed: int) -> Tensor:
        """Of the training data by the original model, (n, d)."""
        return features(self.model(seed), self.train)

    @lru_cache(maxsize=16)                                   # noqa: B019
    def split(self, forget: ForgetSet) -> tuple[Examples, Examples]:
        """(forget, retain) of the training data."""
        return self.train.split(torch.isin(self.train.index, forget.index))

    def forget_set(self, name: str, mask: Tensor, **facts: float) -> ForgetSet:
        """The training examples under the mask as a forget set of this study."""
        self.train.split(mask)                               # refuses what is no mask over them
        chosen = ForgetSet(name, self.train.index[mask].sort().values,
                           {"memorization": self.score.values[mask].mean().item(), **facts})
        self.splits[name] = chosen.digest
        return chosen

    def class_set(self, c: int) -> ForgetSet:
        """All of a class as a forget set; memorization is not asked for."""
        gone, _ = self.train.split_classes(c)
        name = self.train.names[c] if c < len(self.train.names) else c
        chosen = ForgetSet(f"class {name}", gone.index.sort().values)
        self.splits[chosen.name] = chosen.digest
        return chosen

    def levels(self) -> dict[str, ForgetSet]:
        """Forget sets of low, medium and high memorization, and RUM's mix of all three."""
        p = self.profile
        return {level: self.forget_set(level, self.score.pick(p.mix if level == "mix" else p.set_size, level))
                for level in ("low", "medium", "high", "mix")}

    def bands(self) -> list[ForgetSet]:
        """Forget sets by distance from the centroid in the original model's embedding, each with its measured
        entanglement score."""
        found = self.placed(self.profile.seeds[0], self.profile.bands)["tensors"]
        return self._entangled({name: found[name] for name in (f"band {k}" for k in range(self.profile.bands))})

    def matched(self) -> list[ForgetSet]:
        """Forget sets of low, medium and high entanglement score and one histogram of memorization."""
        found = self.alike(self.score, self.profile.set_size, self.profile.seeds[0])["tensors"]
        return self._entangled({f"matched {level}": found[level] for level in ("low", "medium", "high")})

    def distance(self) -> Tensor:
        """How far each training example lies from the centroid in the original model's embedding, (n,)."""
        return self.placed(self.profile.seeds[0], self.profile.bands)["tensors"]["distance"]

    def entangled(self, forget: ForgetSet) -> dict[str, float]:
        """Entanglement score and MMD (the root, as published) of a forget set with the rest, in the original model's
        embedding."""
        return self.apart(forget, self.profile.seeds[0])

    def _entangled(self, sets: Mapping[str, Tensor]) -> list[ForgetSet]:
        found = []
        for name, rows in sets.items():
            mask = torch.zeros(len(self.train), dtype=torch.bool)
            mask[rows] = True
            score = self.entangled(ForgetSet(name, self.train.index[mask].sort().values))["entanglement"]
            found.append(self.forget_set(name, mask, entanglement=score))
        return found

    def remember(self, function: Callable, tasks: Iterable[tuple] = ((),)) -> list[dict]:
        """What `function(study, *task)` gives for each task, memoized as cells are, and computed on all cores.

        The function counts with its code, so it stands at the top of a notebook or module; it returns a dictionary of
        plain values, and tensors under "tensors". What its arguments do not say, such as a variable of the notebook,
        is not asked about when results are published, so two calls must differ in their arguments.
        """
        found = [(function, tuple(task)) for task in tasks]
        return self.ask(Study.given, found, function.__name__)

    def originals(self, seeds: Iterable[int]) -> None:
        """Train the original models of these seeds, on all cores; `model` then gives them."""
        self.ask(Study.original, [(seed,) for seed in seeds], "original models")

    def oracles(self, forgets: Iterable[ForgetSet], seeds: Iterable[int]) -> None:
        """Retrain without each of these sets, for each seed, on all cores; `retrained` then gives them."""
        self.ask(Study.oracle, [(forget, seed) for forget in forgets for seed in seeds], "retrained models")

    def unlearn(self, cells: Iterable[Cell]) -> pd.DataFrame:
        """Run all cells, in any order and on all cores; one row each, in their order."""
        cells = list(cells)
        for cell in cells:
            identify(cell.algorithm)                         # refuses what has no identity before anything is trained
        seeds = list(dict.fromkeys(c.seed for c in cells))
        pairs = list(dict.fromkeys((c.forget, c.seed) for c in cells))
        originals = self.attempt(Study.original, [(seed,) for seed in seeds], "original models")
        oracles = self.attempt(Study.oracle, pairs, "retrained models")
        there = {*_done(seeds, originals)}, {*_done(pairs, oracles)}
        runs = [c for c in cells if c.seed in there[0] and (c.forget, c.seed) in there[1]]
        rows = self.attempt(Study.run, [(c.forget, c.algorithm, c.seed, c.mia) for c in runs], "unlearning")
        self.refuse([*originals, *oracles, *rows])
        return pd.DataFrame([{"set": cell.forget.name, "seed": cell.seed, **cell.labels, **row["values"]}
                             for cell, row in zip(cells, rows, strict=True)])

    def watch(self, cells: Iterable[Cell]) -> pd.DataFrame:
        """RUMs step by step: one row for each cell, step (0: before the first) and set watched, with the accuracy of
        the model, and that of the oracle."""
        cells = list(cells)
        self.originals({cell.seed: None for cell in cells})
        self.oracles({cell.forget: None for cell in cells}, {cell.seed: None for cell in cells})
        found = self.ask(Study.dynamics, [(c.forget, c.algorithm, c.seed) for c in cells], "steps")
        return pd.DataFrame([{**cell.labels, "seed": cell.seed, "step": row["step"], "part": row["part"], "of": name,
                              "accuracy": row[name], "oracle": one["oracle"][name]}
                             for cell, one in zip(cells, found, strict=True) for row in one["rows"]
                             for name in one["oracle"]])

    def depth(self, cells: Iterable[Cell], config: SPDGAN, numbers: tuple[int, ...] = (0, 1, 2)) -> pd.DataFrame:
        """Unlearning degrees: one row for each cell and probe (see `rumlib.spdgan.probes`)."""
        cells = list(cells)
        pairs = {(c.forget, c.seed): None for c in cells}
        seeds = {cell.seed: None for cell in cells}
        self.originals(seeds)
        self.oracles({cell.forget: None for cell in cells}, [*seeds, self.profile.tuning_seeds[0]])
        self.ask(Study.generator, [(forget, config, seed, number) for forget, seed in pairs for number in numbers],
                  "generators")
        found = self.ask(Study.degrees, [(c.forget, c.algorithm, c.seed, config, numbers) for c in cells], "degrees")
        return pd.DataFrame([{"set": cell.forget.name, "seed": cell.seed, **cell.labels, **row}
                             for cell, one in zip(cells, found, strict=True) for row in one["rows"]])

    def stream(self, forgets: Iterable[ForgetSet], ways: Mapping[str, tuple], seeds: Iterable[int]) -> pd.DataFrame:
        """Requests for deletion one after the other; `ways` maps a label to (algorithm, when to retrain, see
        `requests`). One row for each way, seed and request."""
        forgets, seeds = tuple(forgets), list(seeds)
        tasks = [(way, seed) for way in ways for seed in seeds]
        self.originals(seeds)
        self.oracles([union(forgets[:k + 1]) for k in range(len(forgets))], seeds)
        found = self.ask(Study.requests, [(forgets, ways[way][0], seed, ways[way][1]) for way, seed in tasks],
                          "requests")
        return pd.DataFrame([{"way": way, "seed": seed, **row} for (way, seed), one in zip(tasks, found, strict=True)
                             for row in one["rows"]])

    def candidates(self, budget: int) -> dict[str, tuple[Callable, Mapping]]:
        """Label -> (algorithm, values to try) of all algorithms of the profile, those that have epochs at that many."""
        p = self.profile
        known = {name: (algorithm, {"lr": p.grid(name, budget)}) for name, algorithm in p.algorithms.items()}
        return {name: (vary(algorithm, epochs=budget) if "epochs=" in repr(algorithm) else algorithm, space)
                for name, (algorithm, space) in (known | dict(p.further)).items()}

    def tune_all(self, *, anew: bool = False) -> tuple[dict, pd.DataFrame]:
        """Every candidate tuned at every level of memorization and every budget; names (level, label, budget).

        What the package has on file for these very forget sets, spaces and seeds is read; else, or with `anew`, it is
        searched. ``record.attrs["source"]`` says which.
        """
        levels = {level: forget for level, forget in self.levels().items() if level != "mix"}
        cells = {(level, name, budget): (forget, *candidate) for budget in self.profile.budgets
                 for name, candidate in self.candidates(budget).items() for level, forget in levels.items()}
        return (None if anew else self._on_file(cells)) or self.tune(cells)

    def _on_file(self, cells: Mapping) -> tuple[dict, pd.DataFrame] | None:
        try:
            entries = tuned(self.profile.name)
        except FileNotFoundError:
            return None
        chosen, tried = {}, []
        for name, (forget, algorithm, space) in cells.items():
            entry = entries.get(name, {})
            record = [({k: v for k, v in trial.items() if k != "tow"}, trial["tow"])
                      for trial in entry.get("search", ())]
            asked = [setting for settings in search(space) for setting in settings]
            if (entry.get("forget"), entry.get("seeds"), [setting for setting, _ in record]) != (
                    forget.digest, list(self.profile.tuning_seeds), asked):
                return None
            chosen[name] = _set(algorithm, entry["values"])
            tried += [{"name": name, "rate": setting.get("lr"), "setting": setting, "forget": forget.digest, "tow": tow,
                       "chosen": setting == entry["values"]} for setting, tow in record]
        record = pd.DataFrame(tried)
        record.attrs["source"] = f"read from rumlib/lab/tuned/{self.profile.name}.json"
        return chosen, record

    def report(self, chosen: Mapping[tuple, Callable], sets: Mapping[str, ForgetSet]) -> pd.DataFrame:
        """Rows of tuned algorithms, named (level, label, budget), and of doing nothing, on the reporting seeds."""
        nothing = {(level, "Nothing", budget): Keep() for level, _, budget in chosen}
        return self.unlearn(Cell(sets[level], algorithm, seed, {"level": level, "algorithm": name, "epochs": budget})
                            for (level, name, budget), algorithm in (dict(chosen) | nothing).items()
                            for seed in self.profile.seeds)

    def tune(self, cells: Mapping[tuple, tuple[ForgetSet, Callable, object]], *,
             trials: int | None = None) -> tuple[dict, pd.DataFrame]:
        """Choose learning rates, or values of other fields, by ToW against the retrained oracle, on the tuning seeds.

        `cells` maps a name to (forget set, algorithm, space): learning rates, or field -> values, or field -> Optuna
        distribution; `trials` bounds the settings tried for each (see `rumlib.lab.tuning`). Returns the algorithms with the
        chosen values under the same names, and the record of all that was tried; in it, `rate` is the learning rate. A
        setting that diverges on any tuning seed is not chosen.
        """
        searches = {name: search(space, trials) for name, (_, _, space) in cells.items()}
        asked = {name: next(searching) for name, searching in searches.items()}
        tried = []
        while asked:
            trial = [(name, setting) for name, settings in asked.items() for setting in settings]
            rows = self.unlearn(Cell(cells[name][0], _set(cells[name][1], setting), seed, {"trial": k}, mia=False)
                                for k, (name, setting) in enumerate(trial) for seed in self.profile.tuning_seeds)
            rows = rows.reindex(columns=["trial", "tow", "diverged"])    # no tow at all if every run diverged
            found = rows.groupby("trial").agg(tow=("tow", lambda tow: tow.mean(skipna=False)),
                                              diverged=("diverged", "sum"))
            tows = dict.fromkeys(asked, ())
            for (name, setting), tow, diverged in zip(trial, found["tow"], found["diverged"], strict=True):
                rate = {"rate": setting["lr"]} if "lr" in setting else {}
                tried.append({"name": name, **rate, "setting": setting, "forget": cells[name][0].digest,
                              "tow": float(tow), "diverged": int(diverged)})
                tows[name] += (float(tow),)
            asked = {}
            for name, told in tows.items():
                with suppress(StopIteration):
                    asked[name] = searches[name].send(list(told))
        record = pd.DataFrame(tried).assign(chosen=False)
        record.attrs["source"] = "searched"
        chosen = {}
        for name, (_, algorithm, _) in cells.items():
            mine = record[[other == name for other in record["name"]]]
            if mine["tow"].isna().all():
                raise FloatingPointError(f"{name}: every setting of {list(mine['setting'])} diverged; try smaller ones")
            best = mine["tow"].idxmax()
            record.loc[best, "chosen"] = True
            chosen[name] = _set(algorithm, mine.loc[best, "setting"])
        return chosen, record

    def publish(self, record: pd.DataFrame, keys: tuple[str, ...] = ("level", "algorithm", "budget"),
                folder: Path = FOLDER) -> Path:
        """Write what `tune` chose, and its search, to a file of the package; `keys` says what its names are made of."""
        entries = {}
        for name in dict.fromkeys(record["name"]):
            mine = record[[other == name for other in record["name"]]]
            best = mine[mine["chosen"]].iloc[0]
            tried = [{**row.setting, "tow": None if math.isnan(row.tow) else round(row.tow, 4)}
                     for row in mine.itertuples()]
            entries[name] = {"values": best["setting"], "tow": round(best["tow"], 4), "forget": best["forget"],
                             "seeds": list(self.profile.tuning_seeds), "search": tried}
        return write(self.profile.name, keys, entries, folder)

    def provenance(self) -> dict:
        """What is needed to say where a figure comes from."""
        package = Path(__file__).parents[1]
        lock = package.parent / "requirements.lock"
        return {
            "profile": self.profile.name,
            "commit": _git(package, "rev-parse", "HEAD"),
            "dirty": bool(_git(package, "status", "--porcelain", "--", ".", "../notebooks", "../requirements.lock")),
            "code": self.codes(),
            "lock": hashlib.sha256(lock.read_bytes()).hexdigest()[:16] if lock.exists() else None,
            "data": {"name": source(self.profile.data, root=self.profile.options.get("root")),
                     "train": self.train.digest, "test": self.test.digest},
            "forget sets": dict(self.splits),
            "seeds": list(self.profile.seeds),
            "tuning seeds": list(self.profile.tuning_seeds),
            "device": self.identity["device"],
            **({"published": self.published.origin()} if self.published else {}),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "versions": {"python": platform.python_version()} | {
                name: version(name) for name in ("torch", "numpy", "scikit-learn", "pandas")},
            "notebook": notebook(),
            "cells": self.count(),
            "seconds": round(time.time() - self.started, 1),
        }


def _done(tasks: list, cells: list) -> list:
    """Those of the tasks whose cells did not fail."""
    return [task for task, cell in zip(tasks, cells, strict=True) if not isinstance(cell, Failure)]


@cache
def _worker_study(key: str) -> dict:
    return {}


def _shared(profile: Profile, home: Path) -> Study:
    """In a worker: one Study for all tasks of a study, so that data and models are loaded once."""
    known = _worker_study(f"{profile}{home}")
    if not known:
        known["study"] = Study(profile, quiet=True, home=home)
    return known["study"]


def find_home() -> Path:
    """The folder of the project: RUM_HOME, or the nearest one above that holds `notebooks`, or the current one."""
    if "RUM_HOME" in os.environ:
        return Path(os.environ["RUM_HOME"])
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "notebooks").is_dir()), here)


def _git(folder: Path, *command: str) -> str | None:
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, check=True,
                              timeout=10).stdout.strip()
    return None
