"""Bad hyper-parameters of every algorithm, sets that overlap, and what RUM and AutoRUM cannot use."""

import re
from functools import partial

import torch
from planted import make_model, recipe

import rumlib as rum
from rumlib import algorithms
from rumlib.algorithms.relabel import saliency_mask
from rumlib.choose import AutoRUM, Calibrated
from rumlib.rum import RUM, Refine, Shuffled, stream

NaN, inf = float("nan"), float("inf")
NO_SHARE, NO_SIZE, NO_NUMBER = (-0.1, 1.1, NaN, "0.5", True), (-1.0, inf, NaN, None, "1"), (0, 2.5, NaN, "3", True)
label = rum.RandomLabel(epochs=1)

# Algorithm -> field -> values that it refuses. What `rumlib.Recipe` holds is refused by it, in every algorithm.
BAD = {
    partial(rum.L1Sparse): {"alpha": NO_SIZE},
    partial(rum.NegGradPlus): {"alpha": NO_SHARE},
    partial(rum.Scrub): {"beta": NO_SIZE, "gamma": NO_SIZE, "max_steps": (-1, 2.5, "3"), "temperature": (0, *NO_SIZE)},
    partial(rum.SalUn, label): {"keep": (0, *NO_SHARE), "mask": ("soft", None), "compat": ("Official", True)},
    partial(algorithms.BadTeacher): {"temperature": (0, *NO_SIZE)},
    partial(algorithms.UNSIR): {"impair": (-1, 0.5), "noise": NO_NUMBER, "noise_steps": (-1, 0.5), "penalty": NO_SIZE,
                         "share": (1.0, *NO_SHARE)},
    partial(algorithms.BoundaryShrink): {"bound": NO_SIZE},
    partial(algorithms.LastLayers): {"k": NO_NUMBER},
    partial(rum.InfluenceUnlearning): {"alpha": (inf, NaN, "10"), "samples": NO_NUMBER, "n": NO_NUMBER,
                                       "chunk": NO_NUMBER},
    partial(algorithms.SSD): {"alpha": (0, *NO_SIZE), "dampening": NO_SIZE, "batch_size": NO_NUMBER},
    partial(algorithms.Fisher): {"alpha": NO_SIZE, "floor": (0, *NO_SIZE), "chunk": NO_NUMBER},
    partial(rum.TopK): {"k": (0.0, 1.1, -1, NaN, True, "0.1", None), "sigma": NO_SIZE, "sim_weight": NO_SIZE,
                        "ranking": ("local",), "perturb": ("noise",), "scope": ("some",), "last": NO_NUMBER,
                        "validation": (0, *NO_SHARE), "tolerance": (1.0, -0.1, NaN), "score": ("value",),
                        "chunk": NO_NUMBER},
    partial(rum.RandomK): {"sigma": NO_SIZE},
    partial(rum.RandomTopK): {"factor": (0.5, inf, NaN, "4"), "mix": NO_SHARE},
    partial(rum.ClassProjection): {"alpha_retain": (0, -1.0, NaN, inf, "100", (), (1.0, 0.0)),
                                   "alpha_forget": (0, NaN, None), "samples": NO_NUMBER, "rows": NO_NUMBER,
                                   "scored": NO_NUMBER, "chunk": NO_NUMBER, "granularity": ("class",),
                                   "compat": ("published",)},
    partial(Shuffled): {"parts": NO_NUMBER},
    partial(AutoRUM, Shuffled(2), (rum.Keep(),), len): {"budget": (0, -1, NaN, "3"), "enough": (NaN, "1"),
                                                        "waiting": ("drop",)},
}
EVERY = (rum.Keep(), rum.Retrain(make_model, recipe), rum.Finetune(), rum.L1Sparse(), rum.NegGrad(), rum.NegGradPlus(),
         label, rum.SalUn(label), rum.SalUn(label, compat="official"), rum.Scrub(), algorithms.BadTeacher(),
         algorithms.UNSIR(), algorithms.BoundaryShrink(), algorithms.BoundaryExpand(), algorithms.LastLayers(),
         rum.InfluenceUnlearning(), algorithms.SSD(), algorithms.Fisher(), rum.TopK(), rum.RandomK(),
         rum.RandomTopK(), rum.ClassProjection(granularity="examples"),
         RUM(Shuffled(3), (rum.Keep(),) * 3), AutoRUM(Shuffled(3), (rum.Finetune(),), len))


def scored(t):
    return rum.Score("position", torch.arange(len(t.train)).float(), t.train.index)


def unlearn(t, algorithm, **changes):
    return algorithm(**{"model": t.model, "forget": t.forget, "retain": t.retain, **changes})


def judged(t, value):
    return AutoRUM(Shuffled(1), (rum.Finetune(epochs=1),), lambda *_: value)(t.model, t.forget, t.retain)


def other_model(t):
    return rum.models.build(partial(rum.models.mlp, shape=(1, 4, 4), classes=3, hidden=(8,)), 0)


CASES = [
    *[(f"{make.func.__name__} with {field}={value!r}", lambda t, make=make, field=field, value=value:
       make(**{field: value}), ValueError, rf"{field}.*{re.escape(str(value))}")
      for make, fields in BAD.items() for field, values in fields.items() for value in values],

    # sets that overlap: by all of the training data, by one example
    *[(f"{type(algorithm).__name__} {number} with the forget set in the retain set", lambda t, algorithm=algorithm:
       unlearn(t, algorithm, retain=t.train), ValueError, r"retain set still holds.*split\(mask\)")
      for number, algorithm in enumerate(EVERY)],
    ("one example in both sets", lambda t: unlearn(t, rum.Finetune(), retain=t.retain + t.forget[:1]), ValueError,
     r"retain set still holds"),
    ("requests that overlap", lambda t: list(stream(rum.Keep(), t.model, [t.forget[:5], t.forget[4:]], t.retain)),
     ValueError, "retain set still holds"),
    ("a request that is still retained", lambda t: list(stream(rum.Keep(), t.model, [t.forget], t.train)), ValueError,
     "retain set still holds"),
    ("parts that overlap", lambda t: RUM(lambda s: [s[:6], s[5:]], (rum.Keep(),) * 2)(t.model, t.forget, t.retain),
     ValueError, "each example of the forget set once; they hold 13"),
    ("parts that leave an example out", lambda t: RUM(lambda s: [s[:6], s[7:]], (rum.Keep(),) * 2)(
        t.model, t.forget, t.retain), ValueError, "they hold 11 examples.*the forget set 12"),

    # sets and models that are none
    ("pairs in place of Examples", lambda t: unlearn(t, rum.Keep(), forget=(t.forget.x, t.forget.y)), TypeError,
     r"forget set must be Examples.*Examples\(x, y\); got a tuple"),
    ("no retain set", lambda t: unlearn(t, algorithms.SSD(), retain=None), TypeError,
     "retain set must be Examples.*NoneType"),
    ("no request for deletion in a request", lambda t: list(stream(rum.Keep(), t.model, [t.forget[:0]], t.retain)),
     ValueError, "forget set is empty|is empty"),
    ("a trained model to retrain", lambda t: rum.Retrain(t.model, recipe), TypeError, "factory"),
    ("the name of a network to retrain", lambda t: rum.Retrain("mlp", recipe), TypeError, "factory.*str"),
    ("retraining without a recipe", lambda t: rum.Retrain(make_model, None), TypeError, "Recipe.*None"),
    ("a factory that returns the trained model", lambda t: unlearn(t, rum.Retrain(lambda: t.model, recipe)),
     ValueError, "does not make a new model"),
    ("a mask of another model", lambda t: rum.Finetune().unlearn(
        other_model(t), t.forget, t.retain, seed=0, only=saliency_mask(t.model, t.forget, 0.5)), ValueError,
     r"mask is that of another model.*\(8, 16\)"),
    ("positions in another model", lambda t: rum.TopK().disturb(other_model(t), torch.tensor([0, 1200])), ValueError,
     r"0\.\.162.*0 to 1200"),
    ("layers reached by a mask", lambda t: algorithms.layers_reached(t.model, torch.ones(1283)), ValueError, "float32"),
    ("a seed that is none", lambda t: rum.Finetune()(t.model, t.forget, t.retain, seed=None), TypeError,
     "seed.*None"),
    ("half a seed for a RUM", lambda t: RUM(Shuffled(1), (rum.Keep(),))(t.model, t.forget, t.retain, seed=0.5),
     TypeError, "seed.*0.5"),
    ("a seed by name for a stream", lambda t: list(stream(rum.Keep(), t.model, [], t.retain, seed="a")), TypeError,
     "seed.*'a'"),
    ("half a seed for a shuffle", lambda t: Shuffled(3, seed=0.5), TypeError, "seed.*0.5"),

    # SalUn, TopK and masks of their own
    ("SalUn of a function", lambda t: rum.SalUn(print), TypeError, r"SalUn\(RandomLabel\(\)\)"),
    ("SalUn of what chooses its weights itself", lambda t: unlearn(t, rum.SalUn(rum.TopK())), ValueError, "scope="),
    ("SalUn of what adds weights", lambda t: unlearn(t, rum.SalUn(algorithms.BoundaryExpand())), ValueError,
     "adds weights"),
    ("an official step without the first model", lambda t: list(RUM(Shuffled(2), (rum.SalUn(
        label, compat="official"),) * 2).stages(t.model, t.forget, t.retain, done=1)), ValueError, "original="),

    # parts, steps and orders
    *[(f"Refine into {parts!r}", lambda t, parts=parts: Refine(scored(t), parts), error, words)
      for parts, error, words in (("3", ValueError, "parts.*'3'"), (2.5, ValueError, "parts.*2.5"),
                                  (True, ValueError, "parts.*True"), (0, ValueError, "at least 1.*parts=0"),
                                  (None, ValueError, "parts.*None"), (("0.2", "0.8"), TypeError, r"parts.*'0\.2'"),
                                  ((0.8, 0.2), ValueError, r"ascend.*0\.8"), ((0.2, NaN), ValueError, "nan"),
                                  ((inf,), ValueError, "finite.*inf"))],
    ("an order of floats", lambda t: RUM(Shuffled(2), (rum.Keep(),) * 2, order=(0.0, 1.0)), ValueError,
     r"order.*\(0\.0, 1\.0\)"),
    ("an order that is a number", lambda t: RUM(Shuffled(1), (rum.Keep(),), order=0), ValueError, "order.*0"),
    ("a step without a comma", lambda t: RUM(Shuffled(1), (rum.Keep())), TypeError, r"tuple of algorithms.*Keep\(\)"),
    ("a class as a step", lambda t: RUM(Shuffled(1), (rum.Finetune,)), TypeError, "algorithms.*Finetune"),
    ("parts in place of a refinement", lambda t: RUM(Shuffled(1)(t.forget), (rum.Keep(),)), TypeError,
     "refine.*Refine"),
    ("a number for waiting", lambda t: RUM(Shuffled(1), (rum.Keep(),), waiting=None), ValueError,
     "retain, leave_out.*None"),
    ("an order of floats to try", lambda t: AutoRUM(Shuffled(2), (rum.Keep(),), len, orders=((0.0, 1.0),)), ValueError,
     "order"),
    ("a judge that gives NaN", lambda t: judged(t, NaN), ValueError, "judge.*NaN"),
    ("a twin chosen by a RUM", lambda t: Calibrated(RUM(Shuffled(1), (rum.Keep(),)), make_model, recipe), TypeError,
     "AutoRUM"),
]
