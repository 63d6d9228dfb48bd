"""Which values of its fields an algorithm is tried with, and what was chosen, on file.

    study.tune({name: (forget_set, algorithm, (0.01, 0.1))})                                   # learning rates
    study.tune({name: (forget_set, algorithm, {"lr": (0.01, 0.1), "alpha": (0.9, 0.99)})})     # a grid
    rates = optuna.distributions.FloatDistribution(0.001, 1, log=True)
    study.tune({name: (forget_set, algorithm, {"lr": rates})}, trials=20)                      # searched by Optuna
    chosen, record = study.tune_all()                        # all algorithms of the profile, levels and budgets
    study.publish(record)                                    # rumlib/lab/tuned/<profile>.json, which the package ships
    tuned("laptop")["low", "Fine-tune", 3]["values"]                                 # {"lr": 0.05}

A search knows nothing of models: it proposes settings, field -> value, and is told how good they were.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterable, Mapping
from itertools import product
from pathlib import Path

import torch

from rumlib.device import plain_name

Setting = dict[str, object]
Search = Generator[list[Setting], list[float], None]

FOLDER = Path(__file__).parent / "tuned"
ROUND = 4                                                    # settings that Optuna proposes before it learns from them
HOW = "chosen with the retrained oracle: largest mean ToW over the tuning seeds"


def search(space: Iterable[float] | Mapping[str, object], trials: int | None = None) -> Search:
    """A generator of lists of settings; send it the ToW of each (NaN: diverged) for the next list.

    space   learning rates; or field -> values, of which every combination is tried, at most `trials` of them, drawn at
            random; or field -> Optuna distribution, then `trials` says how many are tried
    """
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
    found = json.loads(path.read_text())
    return {tuple(entry[key] for key in found["keys"]): entry for entry in found["entries"]}
