"""What the notebooks run: each list once, for the notebooks that run it and for `make plan` that counts it.

    rows, record = rum_variants(study).run(study)            # settings chosen on the tuning seeds, rows of the others
    TABLES["rum"]                                            # all tables of notebook 06_rum

A function here takes a study, uses its forget sets, scores and profile, and returns a `Table`. It runs nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import permutations

import pandas as pd
import torch

from rumlib.algorithms.base import Keep
from rumlib.algorithms.perturb import TopK
from rumlib.algorithms.projection import ClassProjection
from rumlib.audits import HeadOnly
from rumlib.choose import AutoRUM, Calibrated, HeldOut, JensenShannon, Memorized
from rumlib.lab.computations import ForgetSet
from rumlib.lab.profiles import Profile
from rumlib.lab.study import Study
from rumlib.lab.tables import Cell
from rumlib.lab.tuning import ByStep, has_field, vary
from rumlib.proxies import PROXIES
from rumlib.rum import RUM, Refine, Shuffled
from rumlib.scores import Score

LEVELS = ("low", "medium", "high")
COLUMNS = ("level", "algorithm", "epochs")
NOTHING = {"Original": (Keep(), {})}                         # doing nothing: one setting, looked at as all others are
DOWN = (2, 1, 0)                                             # from the most memorized part to the least
PAPER = ("Fine-tune", "L1-sparse", "NegGrad+", "SalUn")      # what the paper refines (section 6)
RELABEL = ("Random label", "SalUn")                          # what trains the forget set toward other labels
MIXES = (("Fine-tune", "SalUn"), ("SalUn", "SalUn"), ("NegGrad+", "SalUn"), ("Random label", "Random label"))
#        of the medium and the high part, where nothing is done to the low one; the first two are the paper's
ORACLE_MIXES = (("Random label", "Random label"), ("SalUn", "Random label"), ("Random label", "SalUn"),
                ("NegGrad+", "SalUn"))                       # what a chooser without the oracle is compared with


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

    def run(self, study: Study, **how) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Choose the settings and report them: rows with the column "looks" (settings tried for that row), and the
        record of the choice."""
        tuned, record = study.tune(self.spaces, **how)
        return study.unlearn(self.cells(tuned, record)), record

    def cells(self, tuned: Mapping[object, Callable], record: pd.DataFrame | None = None) -> list[Cell]:
        """The runs that are reported, given the tuned algorithms by name: what `Study.unlearn` takes."""
        asked = [(name, self.spaces[name][0], algorithm) for name, algorithm in tuned.items()]
        asked += [(name, *fixed) for name, fixed in self.fixed.items()]
        looks = {} if record is None else record["name"].value_counts(sort=False).to_dict()
        counted = {name: {} if record is None else {"looks": looks.get(name, 0)} for name, *_ in asked}
        return [Cell(forget, self.redrawn(algorithm, seed, draw), seed,
                     {**self._labels(name), **more, **counted[name]}, self.mia)
                for name, forget, algorithm in asked for draw, more in enumerate(self.draws) for seed in self.seeds]

    def _labels(self, name: object) -> dict[str, object]:
        return dict(zip(self.columns, name if isinstance(name, tuple) else (name,), strict=True))


def step(p: Profile, name: str, epochs: int | None = None) -> Callable:
    """The algorithm of that name with the epochs of a step of RUM."""
    return vary(p.algorithms[name], epochs=epochs or p.rum_budget)


# -- Memorization and entanglement: what makes unlearning hard --------------------------------------------------------


def candidates(p: Profile, budget: int) -> dict[str, tuple[Callable, Mapping]]:
    """Label -> (algorithm, values to try) of all algorithms of the profile; those that have epochs get that many."""
    known = {name: (algorithm, p.tried.get(name, {"lr": p.grid(name, budget)}))
             for name, algorithm in p.algorithms.items()}
    return {name: (vary(algorithm, epochs=budget) if has_field(algorithm, "epochs") else algorithm, space)
            for name, (algorithm, space) in (known | dict(p.further)).items()}


def of_the_paper(p: Profile, budget: int) -> dict[str, tuple[Callable, Mapping]]:
    """Those of the `candidates` that the paper compares, and doing nothing: its original model."""
    names = (*p.algorithms, *(name for name in ("Influence",) if name in p.further))
    return {name: candidates(p, budget)[name] for name in names} | NOTHING


def on_levels(study: Study, sets: Mapping[str, ForgetSet], ways: Mapping[str, tuple[Callable, Mapping]]) -> Table:
    """Every way of unlearning on every set, by its name."""
    budget = study.profile.budgets[-1]
    spaces = {(level, name, budget): (forget, *way) for name, way in ways.items() for level, forget in sets.items()}
    return Table(spaces, COLUMNS, study.profile.seeds)


def memorization_levels(study: Study) -> Table:
    """Every algorithm at every level of memorization, beside doing nothing, at the largest budget."""
    p, sets = study.profile, study.levels()
    return on_levels(study, {level: sets[level] for level in LEVELS}, candidates(p, p.budgets[-1]) | NOTHING)


def relabel_as_published(study: Study) -> Table:
    """Relabelling at low and high memorization, with the paper's learning rates alone: .01 to .1 (appendix A.2)."""
    table, ends = memorization_levels(study), (0.01, 0.1)
    tried = {name: [rate for rate in space.get("lr", ()) if ends[0] <= rate <= ends[1]]
             for name, (_, _, space) in table.spaces.items() if name[0] != "medium" and name[1] in RELABEL}
    return replace(table, spaces={name: (*table.spaces[name][:2], {**table.spaces[name][2], "lr": tuple(rates)})
                                  for name, rates in tried.items() if rates})


def entanglement_levels(study: Study) -> Table:
    """The algorithms of the paper on its sets of low, medium and high entanglement."""
    return on_levels(study, study.entanglement_sets(), of_the_paper(study.profile, study.profile.budgets[-1]))


def matched_levels(study: Study) -> Table:
    """The same on sets of low, medium and high entanglement with one histogram of memorization."""
    return on_levels(study, study.matched_sets(), of_the_paper(study.profile, study.profile.budgets[-1]))


# -- RUM --------------------------------------------------------------------------------------------------------------


def space(p: Profile, name: str, looks: int) -> dict[str, tuple]:
    """So many settings of an algorithm: learning rates, and a few values of the field that the profile names."""
    field_, values = p.rum_values.get(name, (None, (None,)))
    if field_ is None:
        return {"lr": spaced(p.rum_rates, looks)}
    values = values if looks >= 6 * len(values) else values[1:-1]        # few settings: the inner values alone
    return {"lr": spaced(p.rum_rates, looks // len(values)), field_: values}


def spaced(rates: tuple[float, ...], count: int) -> tuple[float, ...]:
    """So many rates, from the first to the last of these and spaced as they are.

    >>> spaced((0.001, 0.1), 3)
    (0.001, 0.01, 0.1)
    """
    if len(rates) == 1:
        return rates
    places = torch.linspace(0, len(rates) - 1, count, dtype=torch.float64).tolist() if count > 1 else [len(rates) - 1]
    pairs = [(min(int(place), len(rates) - 2), place) for place in places]
    return tuple(float(f"{rates[k] * (rates[k + 1] / rates[k]) ** (place - k):.3g}") for k, place in pairs)


def at_once(study: Study, name: str, forget: ForgetSet, epochs: int | None = None) -> tuple:
    """An algorithm on the whole forget set, with as many settings to look at as a RUM has."""
    return forget, step(study.profile, name, epochs), space(study.profile, name, 3 * study.profile.looks)


def in_parts(study: Study, names: tuple[str, ...], forget: ForgetSet, refine: Callable | None = None, **how) -> tuple:
    """A RUM with a step of each name ("nothing": none), whose settings are chosen step by step. All RUMs have as many
    settings to look at."""
    p = study.profile
    steps = tuple(Keep() if name == "nothing" else step(p, name) for name in names)
    looks = 3 * p.looks // sum(name != "nothing" for name in names)
    spaces = ByStep(None if name == "nothing" else space(p, name, looks) for name in names)
    return forget, RUM(refine or Refine(study.score, parts=3), steps, **how), spaces


def reshuffled(algorithm: Callable, seed: int, draw: int) -> Callable:
    """With random parts that are drawn anew for each seed."""
    shuffled = isinstance(algorithm, RUM) and isinstance(algorithm.refine, Shuffled)
    return replace(algorithm, refine=Shuffled(3, seed=seed)) if shuffled else algorithm


def refinable(p: Profile) -> tuple[str, ...]:
    """The algorithms that RUM is tried with: all of the profile but NegGrad, which cannot repair what it damages."""
    return tuple(name for name in p.algorithms if name != "NegGrad")


def rum_variants(study: Study) -> Table:
    """Every algorithm on RUM's forget set: once, once with three times the epochs, on three random thirds (drawn again
    for each seed), and on three refined thirds in both orders (RUM^F)."""
    p, mix, spaces = study.profile, study.levels()["mix"], {}
    for name in refinable(p):
        spaces |= {(name, "once"): at_once(study, name, mix),
                   (name, "once, 3x epochs"): at_once(study, name, mix, 3 * p.rum_budget),
                   (name, "shuffled"): in_parts(study, (name,) * 3, mix, Shuffled(3)),
                   (name, "RUM^F low to high"): in_parts(study, (name,) * 3, mix),
                   (name, "RUM^F high to low"): in_parts(study, (name,) * 3, mix, order=DOWN)}
    return Table(spaces, ("algorithm", "variant"), p.seeds, redrawn=reshuffled,
                 fixed={("Nothing", "once"): (mix, Keep())})


def watched(study: Study) -> Table:
    """RUM^F by SalUn and by NegGrad+ in both orders, to be watched step by step: for `Study.watch`."""
    table = rum_variants(study)
    spaces = {name: space for name, space in table.spaces.items()
              if name[0] in ("SalUn", "NegGrad+") and name[1].startswith("RUM^F")}
    return replace(table, spaces=spaces, fixed={})


def mixed_rums(study: Study) -> Table:
    """RUMs that leave the low part alone and unlearn the others with two algorithms, in both orders."""
    p, mix = study.profile, study.levels()["mix"]
    pairs = [pair for pair in MIXES if set(pair) <= set(p.algorithms)]
    spaces = {("nothing > " + " > ".join(pair), f"RUM {label}"): in_parts(study, ("nothing", *pair), mix, order=order)
              for pair in pairs for label, order in (("low to high", None), ("high to low", DOWN))}
    return Table(spaces, ("algorithm", "variant"), p.seeds)


def by_proxies(study: Study) -> Table:
    """SalUn and NegGrad+ refined by cheap proxies, as the follow-up study has it (arXiv 2410.16516)."""
    mix, spaces = study.levels()["mix"], {}
    for name in ("NegGrad+", "SalUn"):
        for score in ("confidence", "holdout_retraining"):
            spaces[name, f"RUM^F by {score}"] = in_parts(study, (name,) * 3, mix, Refine(study.proxy(score), parts=3))
    return Table(spaces, ("algorithm", "variant"), study.profile.seeds)


def scores(study: Study) -> dict[str, Score]:
    """What a forget set can be refined by."""
    found = {"memorization": study.score, **{name: study.proxy(name) for name in PROXIES},
             "centrality": Score("centrality", -study.distance(), study.train.index)}
    if "noise" in study.train.info:
        found["planted noise"] = Score("noise", study.train.info["noise"], study.train.index)
    return found


def refined_by(study: Study) -> Table:
    """One RUM (nothing, random label, random label; from high to low), refined by each score and by chance. A profile
    without random label has SalUn."""
    relabel = next(name for name in ("Random label", "SalUn") if name in study.profile.algorithms)
    mix, names = study.levels()["mix"], ("nothing", relabel, relabel)
    cut = {name: Refine(score, parts=3) for name, score in scores(study).items()} | {"chance": Shuffled(3)}
    spaces = {name: in_parts(study, names, mix, parts, order=DOWN) for name, parts in cut.items()}
    return Table(spaces, ("score",), study.profile.seeds, mia=False, redrawn=reshuffled)


# -- Ablations of RUM -------------------------------------------------------------------------------------------------


def orders(study: Study) -> Table:
    """RUM^F of the paper's algorithms in the orders that `rum_variants` has not."""
    mix, names = study.levels()["mix"], Refine(study.score, parts=3).names
    spaces = {(name, " > ".join(names[k] for k in order)): in_parts(study, (name,) * 3, mix, order=order)
              for name in PAPER if name in study.profile.algorithms
              for order in permutations(range(3)) if order not in ((0, 1, 2), DOWN)}
    return Table(spaces, ("algorithm", "variant"), study.profile.seeds, mia=False)


def left_out(study: Study) -> Table:
    """Parts that wait are left out of the retain set, as the official code has it for entanglement."""
    mix, spaces = study.levels()["mix"], {}
    for name in PAPER:
        if name in study.profile.algorithms:
            ways = {"shuffled": {"refine": Shuffled(3)}, "RUM^F low to high": {}, "RUM^F high to low": {"order": DOWN}}
            spaces |= {(name, f"{way}, left out"): in_parts(study, (name,) * 3, mix, waiting="leave_out", **how)
                       for way, how in ways.items()}
    return Table(spaces, ("algorithm", "variant"), study.profile.seeds, mia=False, redrawn=reshuffled)


def one_rate(study: Study) -> Table:
    """RUM^F with one setting for all of its steps, as many settings tried."""
    p, mix, refine = study.profile, study.levels()["mix"], Refine(study.score, parts=3)
    spaces = {(name, f"{way}, one setting"): (mix, RUM(refine, (step(p, name),) * 3, order=order),
                                              space(p, name, 3 * p.looks))
              for name in PAPER if name in p.algorithms
              for way, order in (("RUM^F low to high", None), ("RUM^F high to low", DOWN))}
    return Table(spaces, ("algorithm", "variant"), p.seeds, mia=False)


def large_share(study: Study) -> Table:
    """The comparison of `rum_variants` for a forget set of several times the share, two algorithms."""
    p, spaces = study.profile, {}
    large = study.forget_set("large mix", study.score.pick(3 * p.set_size, "mix"))
    for name in ("Fine-tune", "SalUn"):
        spaces |= {(name, "once, 3x epochs"): at_once(study, name, large, 3 * p.rum_budget),
                   (name, "shuffled"): in_parts(study, (name,) * 3, large, Shuffled(3)),
                   (name, "RUM^F low to high"): in_parts(study, (name,) * 3, large),
                   (name, "RUM^F high to low"): in_parts(study, (name,) * 3, large, order=DOWN)}
    return Table(spaces, ("algorithm", "variant"), p.seeds, mia=False, redrawn=reshuffled)


def high_part(study: Study) -> Table:
    """Random label, Top-K or a projection for the high part; nothing and random label for the others."""
    p, mix, refine = study.profile, study.levels()["mix"], Refine(study.score, parts=3)
    label, common = step(p, "Random label"), dict(batch_size=p.recipe.batch_size, schedule="linear", clip=5.0)
    known, looks = space(p, "Random label", p.looks), spaced(p.rum_rates, p.looks)
    ways = {
        "random label": (label, known),
        "Top-K": (TopK(k=0.1, perturb="gauss_rel", sigma=1.5, tolerance=None, epochs=p.rum_budget, **common),
                  {"lr": looks}),
        "projection": (ClassProjection(30.0, 30.0, samples=None, granularity="examples"),
                       {"alpha_forget": spaced((1.0, 1000.0), p.looks)})}
    spaces = {name: (mix, RUM(refine, (Keep(), label, way), order=DOWN), ByStep((None, known, tried)))
              for name, (way, tried) in ways.items()}
    return Table(spaces, ("high part",), p.seeds)


# -- Without the oracle -----------------------------------------------------------------------------------------------


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
    spaces = {(name, pair, order): (
        forget, RUM(refine, (Keep(), *(step(p, way) for way in pair)), order=order), p.rum_rates[-3:])
        for name, forget in sets.items() for pair in ORACLE_MIXES for order in ((0, 1, 2), DOWN)}
    return Table(spaces, ("set", "pair", "order"), ())


def selectors(study: Study) -> dict[str, Callable]:
    """Label -> what chooses the steps without the oracle, and four ways that choose nothing, two of them in one run."""
    p, refine, validation = study.profile, Refine(study.score, parts=3), study.test[::2]
    slow, fast = p.rum_rates[-3:][0], p.rum_rates[-3:][:2][-1]
    paper = RUM(refine, (Keep(), step(p, "Fine-tune"), step(p, "SalUn")))
    tried = (("Random label", fast), ("Fine-tune", fast), ("Random label", slow))
    choices = tuple(vary(step(p, name), lr=lr) for name, lr in tried)
    judge, auto = Memorized(study.score), partial(AutoRUM, refine, choices, budget=1.1 * p.recipe.epochs)
    return {
        "memorization": auto(judge),
        "memorization, 2 orders": auto(judge, orders=(DOWN, (0, 1, 2))),
        "held-out accuracy": auto(HeldOut(validation)),
        "RF-JSD": auto(JensenShannon(validation)),
        "twin": Calibrated(auto(judge), p.make_model, p.recipe),
        "always random label": RUM(refine, (Keep(), choices[0], choices[0]), order=DOWN),
        "always as the paper": vary(paper, lr=p.rum_rates[-4:][0]),
        "random label once": choices[0],
        "random label once, 2x epochs": vary(choices[0], epochs=2 * p.rum_budget)}  # as many as in two steps


def choosers(study: Study, sets: Mapping[str, ForgetSet], best: Mapping[str, Callable]) -> Table:
    """Every selector on every set, beside the best RUM of the set by its oracle."""
    ways = {(name, label): (forget, way) for name, forget in sets.items()
            for label, way in {"with the oracle": best[name], **selectors(study)}.items()}
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


# -- Label errors -----------------------------------------------------------------------------------------------------


def known_errors(study: Study) -> dict[str, ForgetSet]:
    """What may be known of the wrong labels: as many of the most memorized examples, a random third of them, all."""
    wrong = study.train.info["flipped"]
    order = torch.rand(len(wrong), generator=torch.Generator().manual_seed(12)).masked_fill(~wrong, 2.0).argsort()
    third = torch.isin(torch.arange(len(wrong)), order[:int(wrong.sum()) // 3])
    masks = {"found": study.score.pick(int(wrong.sum()), "high"), "a third": third, "all errors": wrong}
    return {name: study.forget_set(name, mask) for name, mask in masks.items()}


def corrections(study: Study) -> Table:
    """Ways of unlearning what is known of the wrong labels, with every rate, on tuning and up to four reporting seeds:
    the notebook chooses by ToW and by clean labels. RUM keeps its low part; the others have the epochs of its steps."""
    p, refine = study.profile, Refine(study.score, parts=3)
    ways = {name: step(p, name, 2 * p.rum_budget) for name in ("Fine-tune", "NegGrad+", "SalUn")}
    ways["RUM"] = RUM(refine, (Keep(), step(p, "Fine-tune"), step(p, "SalUn")))
    runs = {}
    for which, forget in known_errors(study).items():
        runs |= {(which, name, rate): (forget, vary(way, lr=rate)) for name, way in ways.items()
                 for rate in p.rum_rates[-3:]}
        runs[which, "Nothing", 0.0] = forget, Keep()
    return Table({}, ("set", "algorithm", "rate"), (*p.tuning_seeds, *p.seeds[:4]), mia=False, fixed=runs)


# -- Has it really forgotten? -----------------------------------------------------------------------------------------


def banked(study: Study) -> Table:
    """For the bank: the algorithms of the paper at every level of memorization, tuned as in `memorization_levels`; and
    descent alone, with ascent beside it, and ascent alone, at low and at high entanglement."""
    levels, entangled, ascent = study.levels(), study.entanglement_sets(), ("Fine-tune", "NegGrad+", "NegGrad")
    by_level = _of_bank(study, {level: levels[level] for level in LEVELS}, study.profile.algorithms)
    ascents = _of_bank(study, {name: entangled[name] for name in ("ES low", "ES high")}, ascent)
    return replace(by_level, spaces={**by_level.spaces, **ascents.spaces})


def audited(study: Study, c: int = 3) -> Table:
    """For audits: algorithms, and a control that edits the last layer alone, at high memorization and on a class."""
    return _of_bank(study, {"high": study.levels()["high"], "class": study.class_set(c)},
                    ("Fine-tune", "NegGrad+", "Random label", "SalUn", "Head only"))


def _of_bank(study: Study, sets: Mapping[str, ForgetSet], names: Iterable[str]) -> Table:
    known = candidates(study.profile, study.profile.budgets[-1])
    known["Head only"] = HeadOnly(known["Random label"][0]), known["Random label"][1]
    return replace(on_levels(study, sets, {name: known[name] for name in names if name in known}), seeds=())


DRAWN = (rum_variants, mixed_rums, orders, left_out)         # what 07_rum_ablations runs in every draw of the data

TABLES: dict[str, tuple[Callable[[Study], Table], ...]] = {  # by notebook; without_oracle takes its sets as arguments
    "memorization": (memorization_levels, relabel_as_published),
    "entanglement": (entanglement_levels, matched_levels),
    "rum": (rum_variants, mixed_rums, by_proxies, refined_by, memorization_levels, entanglement_levels),
    "rum_ablations": (one_rate, large_share, high_part),
    "label_errors": (corrections,),
}
