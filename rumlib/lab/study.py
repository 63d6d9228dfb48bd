"""A study: its data and forget sets, and tables with one row per seed.

    study = Study("laptop")                                  # a profile; nothing is computed yet
    study.score, study.levels(), study.bands()               # memorization; forget sets by it and by entanglement
    rows = study.unlearn([Cell(forget_set, algorithm, seed, {"algorithm": "Fine-tune"}), ...])
    chosen, record = study.tune({name: (forget_set, algorithm, rates)})   # learning rates, on the tuning seeds only
    study.save(figure, "factors", table=rows)                # figures/<profile>/factors.png, .csv and .json

What is computed stands in `rumlib.lab.computations`; each result is written to disk when it is done and read back when
it is asked for again (`rumlib.lab.memo`): resuming is running again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path

import torch

from rumlib.data import Examples
from rumlib.datasets import load
from rumlib.device import pick
from rumlib.lab import computations as made
from rumlib.lab import engine, sets, settings, tables
from rumlib.lab.computations import ForgetSet
from rumlib.lab.memo import FORMAT, Memoized, identify, plain
from rumlib.lab.profiles import Profile, profile
from rumlib.lab.provenance import provenance, save
from rumlib.models import build
from rumlib.proxies import PROXIES, TRACED, Trace, proxy
from rumlib.scores import Bank, Score


class Study(Memoized):
    """All results of a profile, kept under `runs/<profile>`.

    which    the name of a profile, or a Profile
    seeds    number of reporting seeds; None: those of the profile
    quiet    no progress bar
    home     the folder of the project (see `rumlib.lab.settings`)

    Where RUM_FROM names a folder of published results (`rumlib.lab.results`), all results come from it. Raises
    ValueError for seeds that are both for tuning and for reporting.
    """

    def __init__(self, which: str | Profile, *, seeds: int | None = None, quiet: bool = False,
                 home: str | Path | None = None):
        self.profile = profile(which) if isinstance(which, str) else which
        if seeds is not None:
            if type(plain(seeds)) is not int or seeds < 1:
                raise ValueError(f"seeds is the number of reporting seeds, at least 1; got {seeds!r}")
            self.profile = replace(self.profile, seeds=tuple(range(seeds)))
        if both := set(self.profile.seeds) & set(self.profile.tuning_seeds):
            raise ValueError(f"reporting seeds and tuning seeds overlap in {sorted(both)[:10]}; results must be "
                             f"reported on other seeds than settings were chosen on")
        self.device = pick(self.profile.device)
        self.home = Path(home) if home else settings.home()
        super().__init__(self.home / "runs" / self.profile.name, workers=self.profile.workers, quiet=quiet)
        self.started = time.time()
        self.splits: dict[str, str] = {}                     # name -> hash of the forget sets made, for provenance
        if settings.published():
            from rumlib.lab.results import opened  # it packs studies, and so imports this file

            self.published = opened(settings.published())
        engine.engine()                                      # refuses an unknown one before anything is computed
        torch.set_num_threads(1)                             # parallel work is done by processes

    def __reduce__(self):                                    # a task carries the profile, never data
        return _shared, (self.profile, self.home)

    @property
    def figures(self) -> Path:
        """Where its figures go: figures/<profile>, or under RUM_FIGURES."""
        return settings.figures(self.home) / self.profile.name

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
        """What every result of this study depends on. Device, dtype and release of torch: the same training rounds
        differently on another kind of device, in another precision, and with the kernels of another release."""
        weight = next(build(self.profile.make_model, 0).parameters())
        return {"data": [self.train.digest, self.test.digest], "model": identify(self.profile.make_model),
                "recipe": repr(self.profile.recipe), "device": self.device.type, "dtype": str(weight.dtype),
                "torch": ".".join(version("torch").split(".")[:2]), "format": FORMAT}

    @cached_property
    def flips(self) -> Study:
        """The study of the twin with synthetic label errors, of a profile that has one."""
        return Study(self.profile.for_flips(), quiet=self.quiet, home=self.home)

    def drawn(self, number: int) -> Study:
        """The same study of another draw of its data; draw 0 is its own."""
        return Study(self.profile.for_draw(number), quiet=self.quiet, home=self.home) if number else self

    # -- Scores and models

    @cached_property
    def score(self) -> Score:
        """Memorization of every training example."""
        return sum((Bank(**part["tensors"]) for part in self._banks[1:]),
                   start=Bank(**self._banks[0]["tensors"])).score(self.train.index)

    @property
    def score_seconds(self) -> float:
        """What the score took, on one core."""
        return sum(part["seconds"] for part in self._banks)

    @cached_property
    def _banks(self) -> list[dict]:
        p = self.profile
        chunks = [range(k, min(k + p.score_chunk, p.score_models)) for k in range(0, p.score_models, p.score_chunk)]
        return self.compute_many(made.bank, [(chunk, p.fraction, p.scored_by) for chunk in chunks], "subset models")

    def proxy(self, name: str, seed: int = 0) -> Score:
        """A proxy of memorization from the training of the original model with that seed."""
        if name in PROXIES and name not in TRACED:
            return Score(name, made.probed(self, name, seed)["tensors"]["values"], self.train.index)
        tensors = made.original(self, seed)["tensors"]
        trace = Trace(self.train)
        for field_ in (*TRACED, "seen"):
            setattr(trace, field_, tensors[field_])
        return proxy(name, trace)

    def proxy_seconds(self, name: str, seed: int = 0) -> float:
        """What the proxy took beyond the training of the original model."""
        if name in TRACED:
            return made.original(self, seed)["trace_seconds"]
        return made.probed(self, name, seed)["seconds"]

    def originals(self, seeds: Iterable[int]) -> None:
        """Train the original models of these seeds, on all cores; `model` then gives them."""
        self.compute_many(made.original, [(seed,) for seed in seeds], "original models")

    def oracles(self, forgets: Iterable[ForgetSet], seeds: Iterable[int]) -> None:
        """Retrain without each of these sets, for each seed, on all cores; `retrained` then gives them."""
        seeds = list(seeds)
        self.compute_many(made.oracle, [(forget, seed) for forget in forgets for seed in seeds], "retrained models")

    model, retrained, reference, split = made.model, made.retrained, made.reference, made.split

    # -- Forget sets

    forget_set, class_set, levels = sets.forget_set, sets.class_set, sets.levels
    bands, entanglement_sets, matched_sets = sets.bands, sets.entanglement_sets, sets.matched_sets
    distance, entanglement = sets.distance, sets.entanglement

    # -- Tables

    tune, unlearn, watch, depth, stream = tables.tune, tables.unlearn, tables.watch, tables.depth, tables.stream
    provenance, save = provenance, save

    def memoize(self, function: Callable, tasks: Iterable[tuple] = ((),)) -> list[dict]:
        """What `function(study, *task)` gives for each task, kept as all results are, and computed on all cores.

        The function counts with its code, so it stands at the top of a notebook or module; it returns a dictionary of
        plain values, and tensors under "tensors". What its arguments do not say, such as a variable of the notebook,
        is not asked about when results are published, so two calls must differ in their arguments.
        """
        return self.compute_many(made.apply, [(function, tuple(task)) for task in tasks], function.__name__)


@cache
def _worker_study(key: str) -> dict:
    return {}


def _shared(p: Profile, home: Path) -> Study:
    """In a worker: one Study for all tasks of a study, so that data and models are loaded once."""
    known = _worker_study(f"{p}{home}")
    if not known:
        known["study"] = Study(p, quiet=True, home=home)
    return known["study"]
