"""What the notebooks run: each list once, for the notebooks that run it and for `make plan` that counts it.

    table = rum_variants(study)
    tuned, record = study.tune(table.spaces)                 # every algorithm with each setting, on the tuning seeds
    rows = study.unlearn(table.cells(tuned))                 # the chosen ones on the reporting seeds
    TABLES["04"]                                             # all tables of notebook 04

A function here takes a study and returns a `Table`. It uses the forget sets, the scores and the profile of the study,
and runs nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import permutations

import torch

from rumlib.algorithms.base import Keep
from rumlib.algorithms.perturb import TopK
from rumlib.algorithms.projection import ClassProjection
from rumlib.choose import AutoRUM, Calibrated, HeldOut, JensenShannon, Memorized
from rumlib.lab.computations import ForgetSet
from rumlib.lab.profiles import Profile
from rumlib.lab.study import Study
from rumlib.lab.tables import Cell
from rumlib.lab.tuning import has_field, vary
from rumlib.proxies import PROXIES
from rumlib.rum import RUM, Refine, Shuffled
from rumlib.scores import Score

LEVELS = ("low", "medium", "high")
DOWN = (2, 1, 0)                                             # from the most memorized part to the least
FAMILIES = ("Fine-tune", "NegGrad+", "SCRUB", "Random label")            # one algorithm of each family
MIXES = (("Fine-tune", "SalUn"), ("NegGrad+", "SalUn"), ("SCRUB", "Random label"), ("Random label", "Random label"),
         ("SalUn", "Random label"), ("Random label", "SalUn"))           # for the medium and the high part


@dataclass(frozen=True)
class Table:
    """What is run for one table of a notebook.

    spaces   name -> (forget set, algorithm, values tried): what `Study.tune` takes
    columns  the labels that a name gives: a name is a tuple of as many values, or one value
    seeds    the reporting seeds;  mia: whether the unlearned models are also attacked
    fixed    name -> (forget set, algorithm) of what is reported and has nothing to tune
    draws    more labels, one mapping for each time that every seed is run
    redrawn  (algorithm, seed, number of the draw) -> what runs then
    """

    spaces: Mapping[object, tuple[ForgetSet, Callable, object]]
    columns: tuple[str, ...]
    seeds: Iterable[int]
    mia: bool = True
    fixed: Mapping[object, tuple[ForgetSet, Callable]] = field(default_factory=dict)
    draws: tuple[Mapping[str, object], ...] = ({},)
    redrawn: Callable[[Callable, int, int], Callable] = lambda algorithm, seed, draw: algorithm

    def cells(self, tuned: Mapping[object, Callable]) -> list[Cell]:
        """The runs that are reported, given the tuned algorithms by name: what `Study.unlearn` takes."""
        asked = [(name, self.spaces[name][0], algorithm) for name, algorithm in tuned.items()]
        asked += [(name, *fixed) for name, fixed in self.fixed.items()]
        return [Cell(forget, self.redrawn(algorithm, seed, draw), seed, {**self._labels(name), **more}, self.mia)
                for name, forget, algorithm in asked for draw, more in enumerate(self.draws) for seed in self.seeds]

    def _labels(self, name: object) -> dict[str, object]:
        return dict(zip(self.columns, name if isinstance(name, tuple) else (name,), strict=True))


def step(p: Profile, name: str, epochs: int | None = None) -> Callable:
    """The algorithm of that name with the epochs of a step of RUM."""
    return vary(p.algorithms[name], epochs=epochs or p.rum_budget)


# -- Notebook 03: what makes unlearning hard --------------------------------------------------------------------------


def candidates(p: Profile, budget: int) -> dict[str, tuple[Callable, Mapping]]:
    """Label -> (algorithm, values to try) of all algorithms of the profile; those that have epochs get that many."""
    known = {name: (algorithm, {"lr": p.grid(name, budget)}) for name, algorithm in p.algorithms.items()}
    return {name: (vary(algorithm, epochs=budget) if has_field(algorithm, "epochs") else algorithm, space)
            for name, (algorithm, space) in (known | dict(p.further)).items()}


def memorization_levels(study: Study) -> Table:
    """Every algorithm at every level of memorization and every budget, beside doing nothing. Its settings are on
    file: ``study.tune(table.spaces, on_file=True)``."""
    p, sets = study.profile, study.levels()
    spaces = {(level, name, budget): (sets[level], *candidate) for budget in p.budgets
              for name, candidate in candidates(p, budget).items() for level in LEVELS}
    return Table(spaces, ("level", "algorithm", "epochs"), p.seeds, fixed=nothing(spaces))


def entanglement(study: Study, sets: Mapping[str, ForgetSet]) -> Table:
    """The algorithms of the paper on forget sets of low, medium and high entanglement, at the largest budget."""
    p, budget = study.profile, study.profile.budgets[-1]
    spaces = {(level, name, budget): (forget, vary(algorithm, epochs=budget), p.grid(name, budget))
              for name, algorithm in p.algorithms.items() for level, forget in sets.items()}
    return Table(spaces, ("level", "algorithm", "epochs"), p.seeds, fixed=nothing(spaces))


def nothing(spaces: Mapping[tuple, tuple]) -> dict[tuple, tuple[ForgetSet, Keep]]:
    """Doing nothing, once for each level and budget."""
    return {(level, "Nothing", budget): (forget, Keep()) for (level, _, budget), (forget, *_) in spaces.items()}


def entanglement_bands(study: Study) -> dict[str, ForgetSet]:
    """The bands with the lowest, the middle and the highest entanglement score."""
    bands = sorted(study.bands(), key=lambda band: band.facts["entanglement"])
    return dict(zip(LEVELS, (bands[0], bands[len(bands) // 2], bands[-1]), strict=True))


def matched_sets(study: Study) -> dict[str, ForgetSet]:
    """Sets of low, medium and high entanglement score with one histogram of memorization."""
    return dict(zip(LEVELS, study.matched_sets(), strict=True))


# -- Notebook 04: RUM -------------------------------------------------------------------------------------------------


def rum_variants(study: Study) -> Table:
    """Every algorithm but NegGrad on RUM's mix: once, once with three times the epochs, on three random thirds (drawn
    again for each seed), and on three refined thirds in both orders."""
    p, mix, refine = study.profile, study.levels()["mix"], Refine(study.score, parts=3)
    spaces = {}
    for name in p.algorithms:
        if name != "NegGrad":
            one = step(p, name)
            ways = {"once": one, "once, 3x epochs": step(p, name, 3 * p.rum_budget),
                    "shuffled": RUM(Shuffled(3), (one,) * 3), "RUM^F low to high": RUM(refine, (one,) * 3),
                    "RUM^F high to low": RUM(refine, (one,) * 3, order=DOWN)}
            spaces |= {(name, way): (mix, algorithm, p.rum_rates) for way, algorithm in ways.items()}

    def redrawn(algorithm: Callable, seed: int, draw: int) -> Callable:
        shuffled = isinstance(algorithm, RUM) and isinstance(algorithm.refine, Shuffled)
        return vary(algorithm, refine=Shuffled(3, seed=seed)) if shuffled else algorithm

    return Table(spaces, ("algorithm", "variant"), p.seeds, redrawn=redrawn)


def mixed_rums(study: Study) -> Table:
    """RUMs that leave the low part alone and unlearn the others with two algorithms."""
    p, mix, refine = study.profile, study.levels()["mix"], Refine(study.score, parts=3)
    spaces = {"nothing > " + " > ".join(pair): (mix, RUM(refine, (Keep(), *(step(p, name) for name in pair))),
                                                p.rum_rates) for pair in MIXES}
    return Table(spaces, ("algorithm",), p.seeds, draws=({"variant": "mixed RUM"},))


def scores(study: Study) -> dict[str, Score]:
    """What a forget set can be refined by."""
    found = {"memorization": study.score, **{name: study.proxy(name) for name in PROXIES},
             "centrality": Score("centrality", -study.distance(), study.train.index)}
    if "noise" in study.train.info:
        found["planted noise"] = Score("noise", study.train.info["noise"], study.train.index)
    return found


def refined_by(study: Study) -> Table:
    """One RUM (nothing, random label, random label; from high to low), refined by each score and by chance."""
    p, mix, label = study.profile, study.levels()["mix"], step(study.profile, "Random label")
    cut = {name: Refine(score, parts=3) for name, score in scores(study).items()} | {"chance": Shuffled(3)}
    spaces = {name: (mix, RUM(parts, (Keep(), label, label), order=DOWN), p.rum_rates[-3:])
              for name, parts in cut.items()}
    return Table(spaces, ("score",), p.seeds, mia=False)


# -- Notebook 05: ablations of RUM ------------------------------------------------------------------------------------


def ablation(study: Study, ways: Mapping[object, Callable], seeds: Iterable[int] | None = None,
             columns: tuple[str, ...] = ("algorithm", "way"), **more) -> Table:
    """Ways of unlearning RUM's mix, by (algorithm, way), tuned over the three largest rates of the RUM study (there,
    the smallest one was hardly ever the best)."""
    p, mix = study.profile, study.levels()["mix"]
    spaces = {name: (mix, algorithm, p.rum_rates[-3:]) for name, algorithm in ways.items()}
    return Table(spaces, columns, p.seeds if seeds is None else seeds, mia=False, **more)


def orders(study: Study) -> Table:
    """RUM^F in all six orders, on the seeds of the verdict."""
    p, refine = study.profile, Refine(study.score, parts=3)
    ways = {(name, " > ".join(refine.names[k] for k in order)): RUM(refine, (step(p, name),) * 3, order=order)
            for name in FAMILIES for order in permutations(range(3))}
    return ablation(study, ways, range(p.verdict_seeds))


def waiting(study: Study) -> Table:
    """What the orders are compared with: once with three times the epochs, and RUM^F whose waiting parts are left out
    of the retain set."""
    p, refine = study.profile, Refine(study.score, parts=3)
    once = {(name, "once"): step(p, name, 3 * p.rum_budget) for name in FAMILIES}
    left_out = {(name, "left out"): RUM(refine, (step(p, name),) * 3, waiting="leave_out") for name in FAMILIES}
    return ablation(study, once | left_out, range(p.verdict_seeds))


def shuffles(study: Study) -> Table:
    """Three random thirds, tuned on one draw of them and reported on three draws for each seed."""
    ways = {(name, "shuffle 0"): RUM(Shuffled(3), (step(study.profile, name),) * 3) for name in FAMILIES}
    return ablation(study, ways, draws=tuple({"way": f"shuffle {k}"} for k in (1, 2, 3)),
                    redrawn=lambda rum, seed, draw: vary(rum, refine=Shuffled(3, seed=100 * seed + draw + 1)))


def parts(study: Study) -> Table:
    """One to five parts, at about equal epochs in all."""
    p = study.profile
    epochs = {n: max(1, round(3 * p.rum_budget / n)) for n in range(1, 6)}
    return ablation(study, {(name, n): RUM(Refine(study.score, parts=n), (step(p, name, epochs[n]),) * n)
                            for name in ("Fine-tune", "Random label") for n in epochs})


def idle(study: Study) -> Table:
    """RUM^F from high to low where nothing is done to one of the parts."""
    p, refine = study.profile, Refine(study.score, parts=3)
    return ablation(study, {
        (name, left): RUM(refine, tuple(Keep() if part == left else step(p, name) for part in refine.names), order=DOWN)
        for name in ("Fine-tune", "Random label") for left in ("none", *refine.names)})


def watched(study: Study) -> Table:
    """RUMs that are watched step by step: the paper's, and random labels in both orders. For `Study.watch`."""
    p, refine, label = study.profile, Refine(study.score, parts=3), step(study.profile, "Random label")
    ways = {"nothing > fine-tune > SalUn": RUM(refine, (Keep(), step(p, "Fine-tune"), step(p, "SalUn"))),
            "low > medium > high": RUM(refine, (label,) * 3, order=(0, 1, 2)),
            "high > medium > low": RUM(refine, (label,) * 3, order=DOWN)}
    return ablation(study, ways, columns=("way",))


def high_part(study: Study) -> Table:
    """Random label, Top-K or a projection for the high part; nothing and random label for the others."""
    p, mix, refine = study.profile, study.levels()["mix"], Refine(study.score, parts=3)
    label, common = step(p, "Random label"), dict(batch_size=p.recipe.batch_size, schedule="linear", clip=5.0)
    ways = {
        "random label": (label, {}),
        "Top-K": (TopK(k=0.1, perturb="gauss_rel", sigma=1.5, tolerance=None, epochs=p.rum_budget, **common), {}),
        "projection": (ClassProjection(30.0, 30.0, samples=None, granularity="examples"),
                       {"alpha_forget": (3.0, 30.0, 300.0)})}
    spaces = {name: (mix, RUM(refine, (Keep(), label, way), order=DOWN), {"lr": p.rum_rates[-3:]} | space)
              for name, (way, space) in ways.items()}
    return Table(spaces, ("high part",), p.seeds)


# -- Notebook 06: without the oracle ----------------------------------------------------------------------------------


def requests(study: Study) -> dict[str, ForgetSet]:
    """Forget sets as large as RUM's mix: two at random, one with more of three classes, and the examples farthest from
    the centroid and nearest to it."""
    n, size, distance = len(study.train), study.profile.mix, study.distance()
    favoured = torch.isin(study.train.y, torch.arange(int(study.train.y.max()) + 1)[:3])

    def weighted(weights: torch.Tensor, seed: int) -> torch.Tensor:
        mask = torch.zeros(n, dtype=torch.bool)
        mask[torch.multinomial(weights, size, generator=torch.Generator().manual_seed(seed))] = True
        return mask

    masks = {"random 1": weighted(torch.ones(n), 1), "random 2": weighted(torch.ones(n), 2),
             "by class": weighted(torch.where(favoured, 6.0, 1.0), 3),
             "far": distance >= distance.sort().values[-size], "near": distance <= distance.sort().values[size - 1]}
    return {name: study.forget_set(name, mask) for name, mask in masks.items()}


def with_oracle(study: Study, sets: Mapping[str, ForgetSet]) -> Table:
    """Mixed RUMs in two orders, tuned for each set with the retrained oracle: what choosers are compared with."""
    p, refine = study.profile, Refine(study.score, parts=3)
    spaces = {(name, pair, order): (forget, RUM(refine, (Keep(), *(step(p, way) for way in pair)), order=order),
                                    p.rum_rates[-3:])
              for name, forget in sets.items() for pair in (*MIXES[3:], MIXES[1]) for order in ((0, 1, 2), DOWN)}
    return Table(spaces, ("set", "pair", "order"), ())


def selectors(study: Study) -> dict[str, Callable]:
    """Label -> what chooses the steps without the oracle, and two RUMs that choose nothing."""
    p, refine, validation = study.profile, Refine(study.score, parts=3), study.test[::2]
    slow, fast = p.rum_rates[-3:][0], p.rum_rates[-3:][:2][-1]
    choices = tuple(vary(step(p, name), lr=lr) for name, lr in (
        ("Random label", fast), ("Fine-tune", fast), ("Random label", slow)))
    judge, auto = Memorized(study.score), partial(AutoRUM, refine, choices, budget=1.1 * p.recipe.epochs)
    return {
        "memorization": auto(judge),
        "memorization, 2 orders": auto(judge, orders=(DOWN, (0, 1, 2))),
        "held-out accuracy": auto(HeldOut(validation)),
        "RF-JSD": auto(JensenShannon(validation)),
        "twin": Calibrated(auto(judge), p.make_model, p.recipe),
        "always random label": RUM(refine, (Keep(), choices[0], choices[0]), order=DOWN),
        "always as the paper": vary(RUM(refine, (Keep(), step(p, "Fine-tune"), step(p, "SalUn"))), lr=p.rum_rates[0])}


def choosers(study: Study, sets: Mapping[str, ForgetSet], best: Mapping[str, Callable]) -> Table:
    """Every selector on every set, beside the best RUM of the set by its oracle."""
    known = selectors(study)
    ways = {(name, label): (forget, way) for name, forget in sets.items()
            for label, way in {"with the oracle": best[name], **known}.items()}
    return Table({}, ("set", "selector"), study.profile.seeds, fixed=ways)


def deletions(study: Study, count: int = 8) -> tuple[list[ForgetSet], dict[str, tuple]]:
    """Requests for deletion, a tenth of RUM's mix each, and label -> (algorithm, when to retrain). For
    `Study.stream`."""
    n, size = len(study.train), study.profile.mix // 10
    order = torch.randperm(n, generator=torch.Generator().manual_seed(5))[:count * size]
    asked = [study.forget_set(f"request {k + 1}", torch.isin(torch.arange(n), rows))
             for k, rows in enumerate(order.split(size))]
    known = selectors(study)
    first, meta = known["memorization"].candidates[0], known["always random label"]
    return asked, {"random label": (first, None), "RUM": (meta, None), "RUM, retrained every 4": (meta, 4),
                   "RUM, retrained when judged < .93": (meta, (Memorized(study.score), 0.93)),
                   "always retrained": (Keep(), 1)}


# -- Notebook 12: label errors ----------------------------------------------------------------------------------------


def known_errors(study: Study) -> dict[str, ForgetSet]:
    """What may be known of the wrong labels: as many examples of the highest memorization as there are wrong labels,
    some of which are right; a third of the wrong labels, drawn at random; all of them."""
    wrong = study.train.info["flipped"]
    order = torch.rand(len(wrong), generator=torch.Generator().manual_seed(12)).masked_fill(~wrong, 2.0).argsort()
    third = torch.isin(torch.arange(len(wrong)), order[:int(wrong.sum()) // 3])
    masks = {"found": study.score.pick(int(wrong.sum()), "high"), "a third": third, "all errors": wrong}
    return {name: study.forget_set(name, mask) for name, mask in masks.items()}


def corrections(study: Study) -> Table:
    """Ways of unlearning what is known of the wrong labels, each with every rate, on tuning and reporting seeds (four
    at most): settings are chosen in the notebook, by ToW and by accuracy on clean labels. RUM does nothing for its low
    part; the others have the epochs of its two other steps."""
    p, refine = study.profile, Refine(study.score, parts=3)
    ways = {name: step(p, name, 2 * p.rum_budget) for name in ("Fine-tune", "NegGrad+", "SalUn")}
    ways["RUM"] = RUM(refine, (Keep(), step(p, "Fine-tune"), step(p, "SalUn")))
    runs = {}
    for which, forget in known_errors(study).items():
        runs |= {(which, name, rate): (forget, vary(way, lr=rate)) for name, way in ways.items()
                 for rate in p.rum_rates[-3:]}
        runs[which, "Nothing", 0.0] = forget, Keep()
    return Table({}, ("set", "algorithm", "rate"), (*p.tuning_seeds, *p.seeds[:4]), mia=False, fixed=runs)


TABLES: dict[str, tuple[Callable[[Study], Table], ...]] = {  # by notebook; notebook 06 takes its sets as arguments
    "03": (memorization_levels, lambda study: entanglement(study, entanglement_bands(study)),
           lambda study: entanglement(study, matched_sets(study))),
    "04": (rum_variants, mixed_rums, refined_by, memorization_levels),
    "05": (orders, waiting, shuffles, parts, idle, watched, high_part),
    "12": (corrections,),
}
