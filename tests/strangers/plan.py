"""Plans and profiles that cannot be."""

from dataclasses import replace

import rumlib as rum
from rumlib.lab.plan import Plan, main

LAPTOP = rum.lab.profile("laptop")

CASES = [
    ("no devices", lambda t: main("smoke", "devices=0"), ValueError, r"devices must be a positive whole.*got '0'"),
    ("half a device", lambda t: main("smoke", "devices=2.5"), ValueError, r"positive whole number; got '2.5'"),
    ("endless speed", lambda t: main("smoke", "tflops=inf"), ValueError, r"tflops must be a positive.*got 'inf'"),
    ("no speed", lambda t: main("smoke", "tflops=fast"), ValueError, r"tflops must be a positive number; got 'fast'"),
    ("an option of another program", lambda t: main("smoke", "gpus=2"), ValueError, r"unknown option gpus; there are"),
    ("an unknown profile", lambda t: main("cifar"), ValueError, r"unknown profile 'cifar'; choose one of"),
    ("a plan for nobody", lambda t: Plan(LAPTOP, None, 0), ValueError,
     r"devices must be a whole number at least 1; got devices=0"),
    ("a profile in another folder", lambda t: replace(LAPTOP, name="../mine"), ValueError, r"cannot be '../mine'"),
    ("no seeds", lambda t: replace(LAPTOP, seeds=()), ValueError, r"seeds must be different ones.*got \(\)"),
    ("a seed twice", lambda t: replace(LAPTOP, seeds=(1, 1)), ValueError, r"seeds must be different.*got \(1, 1\)"),
    ("no tuning seeds", lambda t: replace(LAPTOP, tuning_seeds=()), ValueError, r"tuning_seeds must be different ones"),
    ("no workers", lambda t: replace(LAPTOP, workers=0), ValueError, r"workers must be .* or -1: one per core"),
    ("no epochs in a step", lambda t: replace(LAPTOP, rum_budget=0), ValueError,
     r"rum_budget must be a whole number at least 1"),
    ("an empty forget set", lambda t: replace(LAPTOP, set_size=0), ValueError,
     r"set_size must be a whole number at least 1"),
    ("subsets of everything", lambda t: replace(LAPTOP, fraction=1.0), ValueError,
     r"fraction must be a number in \(0, 1\); got fraction=1.0"),
    ("a budget without rates", lambda t: LAPTOP.grid("Fine-tune", 7), ValueError, r"no rates for a budget of 7 epochs"),
]
