"""Where a figure comes from, and the files that it is kept in: what `Study.provenance` and `Study.save` do."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import subprocess
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from rumlib.datasets import source
from rumlib.lab import settings
from rumlib.lab.codehash import PACKAGE
from rumlib.lab.settings import plain_name
from rumlib.lab.store import put

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rumlib.lab.study import Study


def provenance(study: Study) -> dict:
    """What is needed to say where a figure comes from. Without git, "commit" and "dirty" are None: unknown."""
    package = Path(__file__).parents[1]
    lock = package.parent / "requirements.lock"
    ours = _git(package, "ls-files", "--error-unmatch", "__init__.py")           # None: the repository is another's
    status = ours and _git(package, "status", "--porcelain", "--", ".", "../notebooks", "../requirements.lock")
    return {
        "profile": study.profile.name,
        "commit": ours and _git(package, "rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "code": PACKAGE.whole,
        "lock": hashlib.sha256(lock.read_bytes()).hexdigest()[:16] if lock.exists() else None,
        "data": {"name": source(study.profile.data, root=study.profile.options.get("root")),
                 "train": study.train.digest, "test": study.test.digest},
        "forget sets": dict(study.splits),
        "seeds": list(study.profile.seeds),
        "tuning seeds": list(study.profile.tuning_seeds),
        "device": study.identity["device"],
        **({"published": study.published.origin()} if study.published else {}),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version()} | {
            name: version(name) for name in ("torch", "numpy", "scikit-learn", "pandas")},
        "notebook": settings.notebook(),
        "results": study.count(),
        "seconds": round(time.time() - study.started, 1),
    }


def save(study: Study, figure: Figure | Axes, name: str, *, table: pd.DataFrame, folder: Path | None = None):
    """Write <name>.png, <name>.csv (the numbers behind it) and <name>.json (where they come from) to the figures of the
    study, each whole or not at all. Returns the picture for the notebook to show, which so is the file itself, with
    its titles and labels as the alternative text. Raises ValueError for a name that would leave the folder, OSError for
    a full disk.
    """
    import matplotlib.pyplot as plt
    from IPython.display import Image

    plain_name(name, "a figure")
    figure, path, picture = getattr(figure, "figure", figure), (folder or study.figures) / name, io.BytesIO()
    figure.savefig(picture, metadata={"Software": None})
    numbers = table.to_csv(index=not isinstance(table.index, pd.RangeIndex), float_format="%.6g")
    put(path.with_suffix(".png"), picture.getvalue())
    put(path.with_suffix(".csv"), numbers.encode())
    put(path.with_suffix(".json"), f"{json.dumps({'figure': name, **study.provenance()}, indent=1)}\n".encode())
    plt.close(figure)
    return Image(path.with_suffix(".png"), width=round(100 * figure.get_figwidth()), alt=described(figure))


def described(figure: Figure) -> str:
    """What a figure says in words: its title, and title and axes of each panel."""
    panels = ["; ".join(filter(None, (ax.get_title(loc="left") or ax.get_title(), " against ".join(
        filter(None, (ax.get_ylabel(), ax.get_xlabel())))))) for ax in figure.axes]
    words = [figure.get_suptitle(), *panels, figure.get_supylabel(), figure.get_supxlabel()]
    return ". ".join(dict.fromkeys(" ".join(part.split()) for part in words if part))


def _git(folder: Path, *command: str) -> str | None:
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, check=True,
                              timeout=10).stdout.strip()
    return None
