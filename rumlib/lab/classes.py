"""What the notebook on unlearning a class shows, beside what it computes: pictures, counts and names.

    regions(models, forget, test)                            # which class each model gives to the points of the plane
    looked_at(search, forget, retain)                        # how many images a projection is given, and for what
    heir([2, 0, 48])                                         # the class that most of the images are given to: (2, 0.96)
    kinds(sets)                                              # what each forget set was chosen by
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from rumlib import plots
from rumlib.algorithms.projection import ClassProjection
from rumlib.data import Examples
from rumlib.metrics import class_accuracies
from rumlib.train import predict

COLOURS = (plots.RED, plots.BLUE, plots.ORANGE, plots.GREEN)                 # the first class stands out


def regions(models: Mapping[str, nn.Module], forget: Examples, test: Examples, *, title: str = "") -> Figure:
    """One panel per model of points in the plane: regions by the class that it predicts, and some test points.

    models  name -> model of x (n, 2) with four classes, of which the first is the one in `forget`
    """
    side = torch.linspace(-2.8, 2.8, 141)
    points = torch.cartesian_prod(side, side)
    figure, axes = plt.subplots(1, len(models), figsize=(3 * len(models), 3.5), sharey=True, squeeze=False)
    for ax, (name, model) in zip(axes[0], models.items(), strict=True):
        given = predict(model, Examples(points, torch.zeros(len(points), dtype=torch.int64))).argmax(1)
        ax.contourf(side, side, given.view(141, 141).T, levels=np.arange(5) - 0.5, colors=COLOURS, alpha=0.3)
        ax.scatter(*test.x[::19].T, c=[COLOURS[y] for y in test.y[::19]], s=6)
        found = class_accuracies(model, forget, test)
        ax.set(title=f"{name}\nforgotten {found['forget']:.1%}\nothers {found['retain']:.1%}", aspect="equal",
               xlabel="$x_1$")
        ax.grid(visible=False)
    axes[0, 0].set_ylabel("$x_2$")
    figure.suptitle(title, fontsize=10.5, x=0.02, ha="left")
    return figure


def looked_at(way: ClassProjection, forget: Examples, retain: Examples) -> dict[str, int]:
    """How many training images a call is given, and for what: "forgotten" and "retained" for the two spaces; "scored
    forgotten" and "scored retained" for each pair of alphas of a search, 0 without one.

    The two purposes draw their images independently, so that some of them can be the same.
    """
    classes = len(retain.y.unique())
    per_class = [int((retain.y == c).sum()) for c in retain.y.unique()]
    share = len(retain) if way.samples is None else way.samples // classes
    most = (way.scored or max(len(forget), len(retain))) if way.searches else 0
    return {"forgotten": len(forget) if way.samples is None else min(way.samples, len(forget)),
            "retained": sum(min(share, n) for n in per_class),
            "scored forgotten": min(most, len(forget)), "scored retained": min(most, len(retain))}


def heir(counts: Sequence[int]) -> tuple[int, float]:
    """The class that most images are given to, and their share. Of equal counts the first.

    >>> heir([2, 0, 48])
    (2, 0.96)
    """
    if not sum(counts):
        raise ValueError("no image was given to any class")
    most = max(range(len(counts)), key=counts.__getitem__)
    return most, counts[most] / sum(counts)


def kinds(names: Sequence[str]) -> list[str]:
    """What the forget sets of a study were chosen by, from their names.

    >>> kinds(["mix", "band 3", "matched low", "class 8"])
    ['memorization', 'distance', 'equal memorization', 'class']
    """
    known = {"band": "distance", "matched": "equal memorization", "class": "class"}
    return [known.get(name.split()[0], "memorization") for name in names]
