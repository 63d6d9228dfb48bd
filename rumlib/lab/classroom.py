"""What a class plays with: an explorer that needs no kernel, and a bench that unlearns while everybody waits.

    answers = Answers.of(study)                              # what every model says of every training example
    explorer(answers)                                        # linked views, an Altair chart
    bench = Bench(study)
    bench.run(Choice("high", "low", size=40, algorithm="SalUn", rate=0.1, epochs=5)).factors
    bench.picture(Choice(), predicted=0.8)                   # a state as a Figure: what the controls would show
    bench.controls()                                         # the controls, in JupyterLab

All models are trained where they are asked for, which takes seconds with the digits: no result of a study is used but
memorization and the settings on file.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from rumlib.data import Examples
from rumlib.device import check_fields
from rumlib.lab.tuning import apply_setting, tuned, vary
from rumlib.metrics import Evaluation, evaluate
from rumlib.plots import colour
from rumlib.proxies import Trace, proxy
from rumlib.scores import entanglement, neighbours
from rumlib.stats import tow_between
from rumlib.train import features, fit, predict

if TYPE_CHECKING:
    from altair import Chart
    from ipywidgets import VBox
    from matplotlib.figure import Figure

    from rumlib.lab.study import Study

LEVELS = ("low", "medium", "high")
ALGORITHMS = ("Fine-tune", "NegGrad+", "SCRUB", "Random label", "SalUn")
FACTORS = {"ToW": "tow", "1 - dF": "forget", "1 - dR": "retain", "1 - dT": "test"}
SHOWN = 40                                                   # images under the brush
POOL = 3                                                     # examples among which entanglement chooses, in sizes
TRIED = 6                                                    # groups of neighbours, and as many random draws


# -- The explorer -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """What the models of one training seed say.

    models    original, oracle, and the algorithms
    examples  one row per training example: memorization, confidence, label, set (low, medium, high, or other), image
              (a data address); low, medium and high: the classes that the models say where that forget set is
              unlearned, in their order
    factors   one row per level, algorithm and measure: value
    """

    models: tuple[str, ...]
    examples: pd.DataFrame
    factors: pd.DataFrame

    @classmethod
    def of(cls, study: Study, seed: int = 0) -> Answers:
        """Train the original model, and for the forget set of each level the oracle and the unlearned models, with the
        settings on file for the profile or else its middle rate."""
        train, trace = study.train, Trace(study.train)
        model = fit(study.profile.make_model, train, study.profile.recipe, seed=seed, trace=trace)
        examples = pd.DataFrame({
            "memorization": study.score.values.numpy(),
            "confidence": 1 - proxy("confidence", trace).values.cpu().numpy(),      # the proxy is high where it is low
            "label": train.y.cpu().numpy(), "set": "other", "image": [picture(x) for x in train.x]})
        rows, names = [], [name for name in ALGORITHMS if name in study.profile.algorithms]
        for level in LEVELS:
            forget, retain = train.split(mask := study.score.pick(study.profile.set_size, level))
            examples.loc[mask.numpy(), "set"] = level
            oracle = fit(study.profile.make_model, retain, study.profile.recipe, seed=seed)
            says = [said(model, train), said(oracle, train)]
            expected = evaluate(oracle, forget, retain, study.test, mia=False)
            for name in names:
                unlearned = chosen(study, level, name)(model, forget, retain, seed=seed)
                says.append(said(unlearned, train))
                found = compared(evaluate(unlearned, forget, retain, study.test, mia=False), expected)
                rows += [{"level": level, "algorithm": name, "measure": measure, "value": value}
                         for measure, value in found.items()]
            examples[level] = [" ".join(map(str, row)) for row in np.stack(says, axis=1)]
        return cls(("original", "oracle", *names), examples, pd.DataFrame(rows))


def said(model: nn.Module, examples: Examples) -> np.ndarray:
    """The class that the model says for each example, (n,)."""
    return predict(model, examples).argmax(1).cpu().numpy()


def compared(found: Evaluation, expected: Evaluation) -> dict[str, float]:
    """ToW and its three factors, from two evaluations."""
    parts = {name: 1 - abs(getattr(found, field) - getattr(expected, field))
             for name, field in FACTORS.items() if field != "tow"}
    return {"ToW": float(tow_between(found, expected)["tow"]), **{name: float(value) for name, value in parts.items()}}


def chosen(study: Study, level: str, name: str):
    """The algorithm of that name with what was chosen for the level on the tuning seeds."""
    p, budget = study.profile, study.profile.budgets[-1]
    algorithm = vary(p.algorithms[name], epochs=budget)
    try:
        return apply_setting(algorithm, tuned(p.name)[(level, name, budget)]["values"])
    except (FileNotFoundError, KeyError):
        rates = p.grid(name, budget)
        return vary(algorithm, lr=rates[len(rates) // 2])


def picture(x: Tensor) -> str:
    """An image (c, h, w) with values in [0, 1] or bytes as a data address; one of a single channel is dark on light."""
    from PIL import Image

    pixels = x.cpu() if x.dtype == torch.uint8 else (255 * x.cpu().clamp(0, 1)).to(torch.uint8)
    image = Image.fromarray(255 - pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy())
    file = io.BytesIO()
    image.quantize(16).save(file, "PNG", optimize=True)
    return address(file.getvalue())


def address(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def explorer(answers: Answers) -> Chart:
    """Linked views. Drag a brush over the points: the images under it, what each model says of them, and ToW with its
    factors for the forget set that the buttons choose. The chart holds all its data and needs no kernel."""
    import altair as alt

    table = answers.examples.astype({"memorization": float, "confidence": float}).round(3)
    points = alt.NamedData("examples")                       # two views share it, and it is large
    models, oracle = list(answers.models), answers.models.index("oracle")
    level = alt.param("level", value="high", bind=alt.binding_radio(options=list(LEVELS), name="forget set: "))
    brush = alt.selection_interval(name="brush", value={"x": [0.9, 1], "y": [0.3, 1]})
    sets = alt.Color("set:N", title="forget set", scale=alt.Scale(
        domain=[*LEVELS, "other"], range=[*map(colour, LEVELS), "#777777"]))
    known = alt.Chart(points).mark_point(size=18, filled=True).encode(
        alt.X("memorization:Q"), alt.Y("confidence:Q", title="confidence over training"),
        color=alt.condition(brush, sets, alt.value("#cccccc")), tooltip=["label:N", "memorization:Q", "confidence:Q"],
    ).add_params(brush, level).properties(width=230, height=250, title="Drag the brush over the points")

    under = alt.Chart(points).transform_filter(brush).transform_window(place="row_number()").transform_filter(
        f"datum.place <= {SHOWN}").transform_calculate(
        column="(datum.place - 1) % 8", row="floor((datum.place - 1) / 8)",
        oracle=f"split(datum[level], ' ')[{oracle}]", words="datum.label + ' / ' + datum.oracle").encode(
        alt.X("column:Q", axis=None, scale=alt.Scale(domain=[-0.5, 7.5])),
        alt.Y("row:Q", axis=None, scale=alt.Scale(domain=[SHOWN / 8 - 0.3, -0.5])))
    images = (under.mark_image(width=28, height=28, smooth=False).encode(alt.Url("image:N")) + under.mark_text(
        dy=22, fontSize=10).encode(alt.Text("words:N"), color=alt.condition(
            "datum.label == datum.oracle", alt.value("#333333"), alt.value("#B03A00")))
    ).properties(width=290, height=250, title="Under the brush: label / oracle's answer")

    folded = alt.Chart(points).transform_filter(brush).transform_calculate(
        says="split(datum[level], ' ')", model=repr(models), oracle=f"split(datum[level], ' ')[{oracle}]"
    ).transform_flatten(
        ["says", "model"]).transform_calculate(
        to_label="datum.says == datum.label ? 1 : 0", to_oracle="datum.says == datum.oracle ? 1 : 0"
    ).transform_aggregate(groupby=["model"], label="mean(to_label)", oracle="mean(to_oracle)").transform_fold(
        ["label", "oracle"], as_=["with", "share"])
    agree = folded.mark_point(size=60, filled=True, opacity=1).encode(
        alt.X("share:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%"), title="share of brushed images"),
        alt.Y("model:N", sort=models, title=None), alt.Shape("with:N", title="says the same as"),
        alt.Color("with:N", title="says the same as", scale=alt.Scale(range=["#555555", "#0072B2"])),
        tooltip=["model:N", "with:N", alt.Tooltip("share:Q", format=".2f")],
    ).properties(width=150, height=200, title="What the models say of them")

    factors = alt.Chart(alt.Data(values=answers.factors.round(4).to_dict("records"))).mark_line(point=True).encode(
        alt.X("level:O", sort=list(LEVELS), title=None, axis=alt.Axis(labelAngle=-45)),
        alt.Y("value:Q", scale=alt.Scale(zero=False), title=None),
        alt.Color("algorithm:N", scale=alt.Scale(domain=list(ALGORITHMS), range=[*map(colour, ALGORITHMS)]),
                  legend=alt.Legend(columns=3)),
        tooltip=["algorithm:N", "level:N", alt.Tooltip("value:Q", format=".3f")],
    ).properties(width=68, height=170).facet(
        alt.Column("measure:N", sort=list(FACTORS), title="ToW and its factors, by memorization"))
    return alt.vconcat(alt.hconcat(known, images), alt.hconcat(agree, factors).resolve_scale(
        color="independent", shape="independent"), datasets={"examples": table.to_dict("records")},
        config={"font": "sans-serif", "legend": {"orient": "bottom"}}, background="white",
        description="Memorization against confidence of the training examples; the images under the brush; what the "
                    "original model, the oracle and the unlearned models say of them; ToW and its factors by level",
    ).resolve_scale(color="independent", shape="independent")


# -- The bench --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """What is unlearned and how. Raises ValueError for a value that the bench does not have.

    memorized, entangled    low, medium or high;  size: examples in the forget set
    algorithm, rate, epochs the algorithm by its label in the profile, its learning rate and epochs
    """

    memorized: str = "high"
    entangled: str = "medium"
    size: int = 60
    algorithm: str = "Random label"
    rate: float = 0.1
    epochs: int = 5

    def __post_init__(self):
        for name in ("memorized", "entangled"):
            if getattr(self, name) not in LEVELS:
                raise ValueError(f"{name} is one of {', '.join(LEVELS)}; got {getattr(self, name)!r}")
        check_fields(self, size="int [1, inf)", rate="(0, inf)", epochs="int [1, inf)")


@dataclass(frozen=True)
class Outcome:
    """What a choice has led to.

    factors   ToW and its three factors, by name;  seconds: of unlearning and of retraining, by name
    flipped   one row per forgotten example whose answer changed: place (in the forget set), label, original, unlearned,
              oracle
    """

    factors: Mapping[str, float]
    seconds: Mapping[str, float]
    flipped: pd.DataFrame


class Bench:
    """Unlearns and retrains on the spot, beside one original model of a study's profile.

    study    its data, network, training and memorization;  seed: the training seed
    """

    def __init__(self, study: Study, seed: int = 0):
        self.study, self.seed, self._oracles, self._tried = study, seed, {}, {}
        self.algorithms = tuple(name for name in ALGORITHMS if name in study.profile.algorithms)

    @cached_property
    def model(self) -> nn.Module:
        return fit(self.study.profile.make_model, self.study.train, self.study.profile.recipe, seed=self.seed)

    @cached_property
    def embedding(self) -> Tensor:
        return features(self.model, self.study.train)

    @property
    def sizes(self) -> tuple[int, int]:
        """The smallest and the largest forget set."""
        return 10, min(100, len(self.study.train) // (2 * POOL))

    def mask(self, choice: Choice) -> Tensor:
        """The forget set, bool (n,). Of the examples of that memorization, three times as many as asked for, groups of
        neighbours and random draws are measured; the least, the middle or the most entangled is taken. Raises
        ValueError for too large a set."""
        if not choice.size <= self.sizes[1]:
            raise ValueError(f"a forget set has at most {self.sizes[1]} examples here; got {choice.size}")
        if (choice.memorized, choice.size) not in self._tried:
            pool = self.study.score.pick(POOL * choice.size, choice.memorized).nonzero()[:, 0]
            generator = torch.Generator().manual_seed(self.seed)
            points = self.embedding.cpu()[pool]
            groups = [neighbours(points, anchor, choice.size - 1) for anchor in range(0, len(pool), len(pool) // TRIED)]
            groups += [torch.randperm(len(pool), generator=generator)[:choice.size] for _ in range(TRIED)]
            masks = [torch.zeros(len(self.embedding), dtype=torch.bool).index_fill(0, pool[group], True)
                     for group in groups]
            self._tried[choice.memorized, choice.size] = sorted(masks, key=self.entanglement)
        found = self._tried[choice.memorized, choice.size]
        return found[LEVELS.index(choice.entangled) * (len(found) - 1) // 2]

    def entanglement(self, mask: Tensor) -> float:
        """The entanglement score of the examples under the mask with all others."""
        rows = mask.to(self.embedding.device)
        return entanglement(self.embedding[rows], self.embedding[~rows])

    def facts(self, choice: Choice) -> dict[str, float]:
        """Mean memorization and entanglement score of the forget set."""
        mask = self.mask(choice)
        return {"memorization": self.study.score.values[mask].mean().item(), "entanglement": self.entanglement(mask)}

    def run(self, choice: Choice) -> Outcome:
        """Unlearn and retrain. Raises ValueError for an algorithm that the profile does not have."""
        if choice.algorithm not in self.algorithms:
            raise ValueError(f"there is no algorithm {choice.algorithm!r} here; choose one of "
                             f"{', '.join(self.algorithms)}")
        p, test = self.study.profile, self.study.test
        forget, retain = self.study.train.split(self.mask(choice))
        algorithm = vary(p.algorithms[choice.algorithm], epochs=choice.epochs, lr=choice.rate)
        self.model  # noqa: B018                             # trained now: that is no cost of unlearning
        start = time.perf_counter()
        unlearned = algorithm(self.model, forget, retain, seed=self.seed)
        middle = time.perf_counter()
        if forget.digest not in self._oracles:               # the same set again, with another algorithm
            self._oracles[forget.digest] = fit(p.make_model, retain, p.recipe, seed=self.seed)
        oracle, end = self._oracles[forget.digest], time.perf_counter()
        found = compared(*(evaluate(model, forget, retain, test, mia=False) for model in (unlearned, oracle)))
        table = pd.DataFrame({"place": range(len(forget)), "label": forget.y.cpu().numpy()} | {
            name: said(model, forget) for name, model in
            (("original", self.model), ("unlearned", unlearned), ("oracle", oracle))})
        return Outcome(found, {"unlearning": middle - start, "retraining": end - middle},
                       table[table["original"] != table["unlearned"]])

    def picture(self, choice: Choice, predicted: float | None = None) -> Figure:
        """What the bench shows for a choice: ToW and its factors, beside what was `predicted` for ToW, and the first
        forgotten images whose answer has changed."""
        import matplotlib.pyplot as plt

        found, names = self.run(choice), self.study.train.names
        figure = plt.figure(figsize=(8.4, 3.2), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=(1, 1.25))
        ax = left.subplots()
        bars = ax.barh(list(found.factors), list(found.factors.values()), color=["#0072B2", *["#BBBBBB"] * 3])
        ax.bar_label(bars, fmt="%.3f", label_type="edge", padding=-32, color="black")
        if predicted is not None:
            ax.axvline(predicted, color="#D55E00", linewidth=2)
            ax.set_xlabel(f"1: as the oracle; line: ToW as predicted, {predicted:.2f}")
        ax.set(xlim=(0, 1), title=f"ToW {found.factors['ToW']:.3f}: {choice.algorithm}")
        ax.invert_yaxis()
        ax.grid(visible=False)
        forget, _ = self.study.train.split(self.mask(choice))
        grid = right.subplots(2, 6, squeeze=False).ravel()
        for ax in grid:
            ax.axis("off")
        for ax, row in zip(grid, found.flipped.itertuples(), strict=False):
            image = np.moveaxis(forget.x[row.place].cpu().numpy(), 0, -1)
            ax.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray_r", interpolation="nearest")
            ax.set_title(f"{names[row.original]} to {names[row.unlearned]}\noracle {names[row.oracle]}", fontsize=8)
        right.suptitle(f"{len(found.flipped)} of {len(forget)} forgotten images changed their class", fontsize=10)
        return figure

    def controls(self) -> VBox:
        """The controls. Whoever moves one sees which forget set it gives; the answer comes after a prediction."""
        import ipywidgets as widgets
        import matplotlib.pyplot as plt

        wide = {"style": {"description_width": "8em"}, "layout": {"width": "26em"}}
        first = replace(Choice(), size=min(Choice().size, self.sizes[1]))
        one_of = {"memorized": LEVELS, "entangled": LEVELS, "rate": (0.003, 0.01, 0.03, 0.1, 0.2, 0.4)}
        parts = {name: widgets.SelectionSlider(options=values, value=getattr(first, name), description=name, **wide)
                 for name, values in one_of.items()}
        parts["size"] = widgets.IntSlider(first.size, *self.sizes, description="size", **wide)
        parts["epochs"] = widgets.IntSlider(first.epochs, 1, 10, description="epochs", **wide)
        parts["algorithm"] = widgets.Dropdown(options=self.algorithms, value=first.algorithm, description="algorithm",
                                              **wide)
        predicted = widgets.FloatSlider(0.5, min=0, max=1, step=0.01, description="predict ToW", **wide)
        button = widgets.Button(description="Unlearn", button_style="primary")
        told, answer = widgets.HTML(), widgets.HTML()

        def choice() -> Choice:
            return Choice(**{name: part.value for name, part in parts.items()})

        def moved(_=None) -> None:
            facts = self.facts(choice())
            told.value = (f"{choice().size} examples: mean memorization {facts['memorization']:.2f}, entanglement "
                          f"score {facts['entanglement']:.0f}. Predict ToW first, then press <b>Unlearn</b>.")
            answer.value = ""

        def pressed(_=None) -> None:
            start, file = time.perf_counter(), io.BytesIO()
            try:
                figure = self.picture(choice(), predicted.value)
            except FloatingPointError as problem:            # a learning rate too large: a result, reported as such
                answer.value = f"The run diverged: {escape(str(problem))}"
                return
            figure.savefig(file, dpi=110)
            words = figure.axes[0].get_title(loc="left") or figure.axes[0].get_title()
            plt.close(figure)
            answer.value = (f'<img alt="{escape(words)}" src="{address(file.getvalue())}"><br>{escape(words)}, '
                            f"predicted {predicted.value:.2f}, {time.perf_counter() - start:.1f} s")

        for part in parts.values():
            part.observe(moved, "value")
        button.on_click(pressed)
        moved()
        order = ("memorized", "entangled", "size", "algorithm", "rate", "epochs")
        return widgets.VBox([*(parts[name] for name in order), told, predicted, button, answer])
