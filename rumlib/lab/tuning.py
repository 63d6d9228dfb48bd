"""Which values of its fields an algorithm is tried with, what is chosen, and the record of it on file.

    study.tune({name: (forget_set, algorithm, (0.01, 0.1))})                                   # learning rates
    study.tune({name: (forget_set, algorithm, {"lr": (0.01, 0.1), "alpha": (0.9, 0.99)})})     # a grid
    rates = optuna.distributions.FloatDistribution(0.001, 1, log=True)
    study.tune({name: (forget_set, algorithm, {"lr": rates})}, trials=20)                      # searched by Optuna
    study.tune({name: (forget_set, rum, ByStep((None, (0.01, 0.1), (0.01, 0.1))))})           # of a RUM, step by step
    chosen, record = study.tune(spaces, on_file=True)        # read, if the package has them on file
    publish(study.profile, record)                           # rumlib/lab/tuned/<profile>.json, which the package ships
    tuned("laptop")["low", "Fine-tune", 3]["values"]         # {"lr": 0.05}

All of it is chosen with the retrained oracle, which whoever unlearns does not have. A search knows nothing of models:
it proposes settings, field -> value, and is told how good they were.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import product
from pathlib import Path

import pandas as pd
import torch

from rumlib.lab.profiles import Profile
from rumlib.lab.settings import plain_name
from rumlib.rum import RUM

Setting = dict[str, object]
Search = Generator[list[Setting], list[float], None]

FOLDER = Path(__file__).parent / "tuned"
ROUND = 4                                                    # settings that Optuna proposes before it learns from them
HOW = "chosen with the retrained oracle: largest mean ToW over the tuning seeds"


# -- Settings of an algorithm -----------------------------------------------------------------------------------------


def has_field(algorithm: Callable, name: str) -> bool:
    """Whether the algorithm, or one inside it (of a wrapper, or a step of a RUM), has that field."""
    own = {f.name: getattr(algorithm, f.name) for f in fields(algorithm)} if is_dataclass(algorithm) else {}
    inside = [own["inner"]] if "inner" in own else own.get("steps", ())
    return name in own or any(has_field(part, name) for part in inside)


def vary(algorithm, **changes):
    """The algorithm with other values for some fields; wrappers and RUMs pass them on to what has them inside. Raises
    TypeError for one without fields, ValueError for a field that none has."""
    if not is_dataclass(algorithm):
        raise TypeError(f"{algorithm!r} has no fields that could vary; make it a frozen dataclass")
    own = {f.name for f in fields(algorithm)}
    if set(changes) <= own:
        return replace(algorithm, **changes)
    if not own:
        return algorithm                                     # Keep has nothing to vary
    missing = [name for name in changes if not has_field(algorithm, name)]
    if missing:
        raise ValueError(f"{algorithm!r} has no field {', '.join(missing)}")
    if "inner" in own:
        return replace(algorithm, inner=vary(algorithm.inner, **changes))
    return replace(algorithm, steps=tuple(vary(step, **{name: value for name, value in changes.items()
                                                        if has_field(step, name)}) for step in algorithm.steps))


def apply_setting(algorithm: Callable, setting: Setting) -> Callable:
    """The algorithm with the values of a setting."""
    for name, value in setting.items():                      # one by one: a wrapper has some fields, its inner others
        algorithm = vary(algorithm, **{name: value})
    return algorithm


# -- Searching --------------------------------------------------------------------------------------------------------


def search(space: Iterable[float] | Mapping[str, object], trials: int | None = None) -> Search:
    """A generator of lists of settings; send it the ToW of each (NaN: diverged) for the next list.

    space   learning rates; or field -> values, of which every combination is tried, at most `trials` of them, drawn at
            random; or field -> Optuna distribution, then `trials` says how many are tried
    """
    if not isinstance(space, Iterable):
        raise TypeError(f"{space!r} is no space: give learning rates, or field -> values to try")
    space = space if isinstance(space, Mapping) else {"lr": tuple(space)}
    if trials is not None and trials < 1:
        raise ValueError(f"trials is the number of settings to try, at least 1; got {trials}")
    if all(isinstance(values, Iterable) for values in space.values()):
        return _grid({field: tuple(values) for field, values in space.items()}, trials)
    if trials is None:
        raise ValueError("a space without end needs a budget: trials=")
    return _optuna(space, trials)


def _grid(space: dict[str, tuple], trials: int | None) -> Search:
    settings = [dict(zip(space, values, strict=True)) for values in product(*space.values())]
    if not settings:
        raise ValueError(f"there is nothing to try: {space}")
    if trials is not None and trials < len(settings):
        drawn = torch.randperm(len(settings), generator=torch.Generator().manual_seed(0))[:trials]
        settings = [settings[k] for k in drawn.sort().values]
    yield settings


def _optuna(space: Mapping[str, object], trials: int) -> Search:
    try:
        import optuna
    except ImportError as problem:
        raise ImportError("a space of distributions is searched by Optuna, which is not installed: "
                          "pip install 'rumlib[tune]', or give lists of values") from problem
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    for start in range(0, trials, ROUND):
        asked = [study.ask(dict(space)) for _ in range(min(ROUND, trials - start))]
        found = yield [trial.params for trial in asked]
        for trial, tow in zip(asked, found, strict=True):
            failed = math.isnan(tow)
            study.tell(trial, None if failed else tow, state=optuna.trial.TrialState.FAIL if failed else None)


@dataclass(frozen=True)
class ByStep:
    """Spaces for the steps of a RUM, spaces[k] for part k: its settings are chosen one step after the other, in its
    order, each against the model retrained without the parts that are gone by then. None: nothing to choose.

    Source: arXiv 2406.01257, A.2: the settings of a RUM are adjusted at each step.
    """

    spaces: tuple

    def __post_init__(self):
        object.__setattr__(self, "spaces", tuple(self.spaces))


def choose(cells: Mapping[tuple, tuple], evaluate: Callable[[list[tuple]], pd.DataFrame],
           trials: int | None = None) -> tuple[dict, pd.DataFrame]:
    """Choose settings by their mean ToW against the retrained oracle.

    cells     name -> (forget set, algorithm, space), see `search`; for a RUM the space may be a `ByStep`
    evaluate  gives the "tow" (NaN: diverged) and number "diverged" of each in a list of (forget set, algorithm, steps);
              steps are the first ones of a RUM that are done, None: all that the algorithm does

    Returns the algorithms with the chosen values under the same names, and the record of all that was tried: name,
    part (of a RUM whose steps are chosen one by one), setting, "rate" (the learning rate in it), ToW, and whether it
    was chosen. What a name has cost in looks at the oracle is the number of its rows. A setting that diverges on any
    tuning seed is not chosen. Raises FloatingPointError if every setting of a name diverged.
    """
    running = {name: _tuning(name, *cell, trials) for name, cell in cells.items()}
    asked, chosen, tried = {name: next(one, []) for name, one in running.items()}, {}, {}
    while asked:
        found = iter(evaluate([candidate for candidates in asked.values() for candidate in candidates])
                     [["tow", "diverged"]].itertuples(index=False))
        told, asked = {name: [next(found) for _ in candidates] for name, candidates in asked.items()}, {}
        for name, results in told.items():
            try:
                asked[name] = running[name].send(results)
            except StopIteration as done:
                chosen[name], tried[name] = done.value
    record = pd.DataFrame([row for name in cells for row in tried[name]])
    record.attrs["source"] = "searched"
    return {name: chosen[name] for name in cells}, record


def _tuning(name: object, forget, algorithm: Callable, space, trials: int | None) -> Generator:
    """Yields lists of (forget set, algorithm, steps) to evaluate and is sent their (ToW, diverged); returns the tuned
    algorithm and what was tried."""
    record = []
    for steps, part, values in stages(algorithm, space):
        searching, tried = search(values, trials), []
        settings = next(searching)
        while settings:
            found = yield [(forget, with_setting(algorithm, part, setting), steps) for setting in settings]
            tried += [{"name": name, "part": None if part is None else _names(algorithm)[part], "setting": setting,
                       "rate": setting.get("lr"), "forget": forget.digest, "tow": float(tow), "diverged": int(diverged),
                       "chosen": False} for setting, (tow, diverged) in zip(settings, found, strict=True)]
            try:
                settings = searching.send([float(tow) for tow, _ in found])
            except StopIteration:
                settings = []
        finite = [row for row in tried if not math.isnan(row["tow"])]
        if not finite:
            raise FloatingPointError(f"{name}: every setting of {[row['setting'] for row in tried]} diverged; try "
                                     f"smaller ones")
        best = max(finite, key=lambda row: row["tow"])       # the first of equal ones
        best["chosen"] = True
        algorithm = with_setting(algorithm, part, best["setting"])
        record += tried
    return algorithm, record


def stages(algorithm: Callable, space) -> list[tuple[int | None, int | None, object]]:
    """(steps done, number of the part, space) for each choice that is made, one after the other."""
    if not isinstance(space, ByStep):
        return [(None, None, space)]
    if not isinstance(algorithm, RUM) or len(algorithm.steps) != len(space.spaces):
        raise ValueError(f"ByStep has a space for each step of a RUM; got {len(space.spaces)} spaces for {algorithm!r}")
    order = algorithm.order or range(len(algorithm.steps))
    found = [(k + 1, part, space.spaces[part]) for k, part in enumerate(order) if space.spaces[part] is not None]
    if not found:
        raise ValueError(f"there is nothing to choose in any step of {algorithm!r}")
    return found


def with_setting(algorithm: Callable, part: int | None, setting: Setting) -> Callable:
    """The algorithm with the values of a setting; of a RUM, for the step of that part alone."""
    if part is None:
        return apply_setting(algorithm, setting)
    steps = [apply_setting(step, setting) if k == part else step for k, step in enumerate(algorithm.steps)]
    return replace(algorithm, steps=tuple(steps))


def _names(rum: RUM) -> tuple[str, ...]:
    """What the parts of a RUM are called."""
    return getattr(rum.refine, "names", tuple(f"part {k}" for k in range(1, len(rum.steps) + 1)))


def _of(record: pd.DataFrame, name: tuple) -> pd.DataFrame:
    return record[[other == name for other in record["name"]]]


def below_nothing(record: pd.DataFrame) -> pd.DataFrame:
    """What a search has not found: chosen settings that are worse than doing nothing, on the tuning seeds.

    record  as from `choose`; for every forget set it must hold an algorithm that does nothing, tried with the empty
            space {}. Of a RUM that was tuned by step, the last choice counts

    Returns one line for each such name: ToW of the chosen setting, of doing nothing, and the difference. Raises
    ValueError where a forget set has no line of doing nothing.
    """
    still = record[[not setting for setting in record["setting"]]].set_index("forget")["tow"]
    best = record[record["chosen"]].drop_duplicates("name", keep="last")
    if missing := set(best["forget"]) - set(still.index):
        raise ValueError(f"doing nothing was not tried on {len(missing)} of {best['forget'].nunique()} forget sets; "
                         f"add (forget set, Keep(), {{}}) to what is tuned")
    found = best[["name", "setting", "tow"]].assign(nothing=best["forget"].map(still.groupby(level=0).first()))
    found["difference"] = found["tow"] - found["nothing"]
    return found[found["difference"] < 0].reset_index(drop=True)


# -- On file ----------------------------------------------------------------------------------------------------------


def on_file(p: Profile, cells: Mapping[tuple, tuple], folder: Path = FOLDER) -> tuple[dict, pd.DataFrame] | None:
    """What is on file for these very forget sets, spaces and tuning seeds, as `choose` gives it; None if anything
    differs."""
    try:
        entries = tuned(p.name, folder)
    except FileNotFoundError:
        return None
    chosen, tried = {}, []
    for name, (forget, algorithm, space) in cells.items():
        if isinstance(space, ByStep):
            return None
        entry = entries.get(name, {})
        record = [({k: v for k, v in trial.items() if k != "tow"}, trial["tow"]) for trial in entry.get("search", ())]
        asked = [setting for settings in search(space) for setting in settings]
        if (entry.get("forget"), entry.get("seeds"), [setting for setting, _ in record]) != (
                forget.digest, list(p.tuning_seeds), asked):
            return None
        chosen[name] = apply_setting(algorithm, entry["values"])
        tried += [{"name": name, "rate": setting.get("lr"), "setting": setting, "forget": forget.digest, "tow": tow,
                   "chosen": setting == entry["values"]} for setting, tow in record]
    record = pd.DataFrame(tried)
    record.attrs["source"] = f"read from rumlib/lab/tuned/{p.name}.json"
    return chosen, record


def publish(p: Profile, record: pd.DataFrame, keys: tuple[str, ...] = ("level", "algorithm", "budget"),
            folder: Path = FOLDER) -> Path:
    """Write what was chosen, and its search, to a file of the package; `keys` says what the names are made of."""
    entries = {}
    for name in dict.fromkeys(record["name"]):
        mine = _of(record, name)
        best = mine[mine["chosen"]].iloc[0]
        tried = [{**row.setting, "tow": None if math.isnan(row.tow) else round(row.tow, 4)}
                 for row in mine.itertuples()]
        entries[name] = {"values": best["setting"], "tow": round(best["tow"], 4), "forget": best["forget"],
                         "seeds": list(p.tuning_seeds), "search": tried}
    return write(p.name, keys, entries, folder)


def write(profile: str, keys: tuple[str, ...], entries: Mapping[tuple, dict], folder: Path = FOLDER) -> Path:
    """Write what was chosen to <folder>/<profile>.json; entries with other keys that the file has stay."""
    path = folder / f"{plain_name(profile, 'a profile')}.json"
    known = {tuple(entry[key] for key in keys): entry for entry in json.loads(path.read_text())["entries"]} \
        if path.exists() else {}
    for key, entry in entries.items():
        known[key] = {**dict(zip(keys, key, strict=True)), **entry}
    folder.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f"  {json.dumps(entry)}" for entry in known.values())             # one line each: fit for diffs
    path.write_text(f'{{"profile": {json.dumps(profile)}, "how": {json.dumps(HOW)}, "keys": {json.dumps(keys)}, '
                    f'"entries": [\n{lines}\n]}}\n')
    return path


def tuned(profile: str, folder: Path = FOLDER) -> dict[tuple, dict]:
    """What was chosen for a profile, by (level, algorithm, budget): "values" of fields, their mean "tow", the tuning
    "seeds", the "forget" set's hash, and the whole "search". All of it was chosen with the retrained oracle, which
    whoever unlearns does not have.

    Raises FileNotFoundError, naming those there are, where nothing is on file.
    """
    path = folder / f"{plain_name(profile, 'a profile')}.json"
    if not path.exists():
        there = ", ".join(sorted(file.stem for file in folder.glob("*.json"))) or "none"
        raise FileNotFoundError(f"nothing tuned is on file for profile {profile!r}; there is {there}")
    try:
        found = json.loads(path.read_text())
        return {tuple(entry[key] for key in found["keys"]): entry for entry in found["entries"]}
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise ValueError(f"{path} is damaged ({problem!r}); tune again, or take it from the sources") from problem
