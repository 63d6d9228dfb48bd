"""Which values of its fields an algorithm is tried with, what is chosen, and the record of it on file.

    study.tune({name: (forget_set, algorithm, (0.01, 0.1))})                                   # learning rates
    study.tune({name: (forget_set, algorithm, {"lr": (0.01, 0.1), "alpha": (0.9, 0.99)})})     # a grid
    rates = optuna.distributions.FloatDistribution(0.001, 1, log=True)
    study.tune({name: (forget_set, algorithm, {"lr": rates})}, trials=20)                      # searched by Optuna
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
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from itertools import product
from pathlib import Path

import pandas as pd
import torch

from rumlib.lab.profiles import Profile
from rumlib.lab.settings import plain_name

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


def choose(cells: Mapping[tuple, tuple], evaluate: Callable[[list[tuple]], pd.DataFrame],
           trials: int | None = None) -> tuple[dict, pd.DataFrame]:
    """Choose settings by their mean ToW against the retrained oracle.

    cells     name -> (forget set, algorithm, space), see `search`
    evaluate  gives the "tow" (NaN: diverged) and number "diverged" of each in a list of (forget set, algorithm)

    Returns the algorithms with the chosen values under the same names, and the record of all that was tried; in it,
    "rate" is the learning rate. A setting that diverges on any tuning seed is not chosen. Raises FloatingPointError if
    every setting of a name diverged.
    """
    searches = {name: search(space, trials) for name, (_, _, space) in cells.items()}
    asked = {name: next(searching) for name, searching in searches.items()}
    tried = []
    while asked:
        trial = [(name, setting) for name, settings in asked.items() for setting in settings]
        found = evaluate([(cells[name][0], apply_setting(cells[name][1], setting)) for name, setting in trial])
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
        mine = _of(record, name)
        if mine["tow"].isna().all():
            raise FloatingPointError(f"{name}: every setting of {list(mine['setting'])} diverged; try smaller ones")
        best = mine["tow"].idxmax()
        record.loc[best, "chosen"] = True
        chosen[name] = apply_setting(algorithm, mine.loc[best, "setting"])
    return chosen, record


def _of(record: pd.DataFrame, name: tuple) -> pd.DataFrame:
    return record[[other == name for other in record["name"]]]


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
