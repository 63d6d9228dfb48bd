"""The numbered notebooks, executed headless by papermill: what `make paper` runs.

    python -m rumlib.paper laptop                            # into runs/laptop/, figures into figures/laptop/

The sources are never written to. Finished cells of a study are remembered, so that running again resumes.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rumlib.profiles import profile
from rumlib.study import find_home

SIDE_BY_SIDE = (os.cpu_count() or 1) + 1                     # notebooks at a time; they take turns in computing
NAMED = "import os; os.environ['RUM_NOTEBOOK'] = '%s'"        # each kernel is told whose cells it asks for


def execute(name: str, home: Path) -> None:
    """Execute every numbered notebook at the profile of that name. A failing one ends the run."""
    profile(name).check()                                    # an unknown profile or missing data: say so at once
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    import papermill

    folder = home / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)

    def one(place: int, source: Path) -> None:
        start = time.perf_counter()
        papermill.execute_notebook(
            source, folder / source.name, parameters={"profile": name, "quiet": True}, kernel_name="python3",
            cwd=source.parent, extra_arguments=["--log-level=ERROR", f"--IPKernelApp.exec_lines={NAMED % source.stem}"],
            progress_bar={"desc": source.stem, "unit": " cells", "leave": False, "position": place})
        print(f"{source.stem:<16} {time.perf_counter() - start:6.1f} s", flush=True)

    *sources, last = sorted((home / "notebooks").glob("[0-9]*.ipynb"))
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        for done in [pool.submit(one, place, source) for place, source in enumerate(sources)]:
            done.result()
    one(0, last)                                             # it gathers what the others have written
    print(f"Executed notebooks: {folder}/   figures and tables: {home / 'figures' / name}/")


if __name__ == "__main__":
    try:
        execute(sys.argv[1] if len(sys.argv) > 1 else "laptop", find_home())
    except (ValueError, FileNotFoundError) as problem:
        sys.exit(f"{problem}")
