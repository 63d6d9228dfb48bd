"""JupyterLab, as `make lab` opens it: the tour runs, charts draw themselves, the bench reacts to its sliders."""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from .conftest import ROOT

pytestmark = pytest.mark.browser
CELLS = """() => {
    const cells = window.jupyterapp.shell.currentWidget.content.model.cells, found = [];
    for (let k = 0; k < cells.length; k++) {
        const cell = cells.get(k);
        if (cell.type === 'code')
            found.push({count: cell.executionCount, kinds: cell.outputs.toJSON().map(output => output.output_type)});
    }
    return found;
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab over a copy of the notebooks, which reads published results."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", home / "notebooks", ignore=shutil.ignore_patterns("site"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--allow-root", "--no-browser", f"--port={port}",
               f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", home / "notebooks"]
    environment = os.environ | {"RUM_HOME": str(home), "RUM_FROM": str(ROOT / "figures/laptop/results"),
                                "PYTHONPATH": str(ROOT), "JUPYTER_CONFIG_DIR": str(home / "settings"),
                                "OMP_NUM_THREADS": "1"}
    with open(home / "log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}/lab/tree/{{}}?reset&token={token}"
    try:
        until = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < until and server.poll() is None, (home / "log").read_text()[-2000:]
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(20)


def run_all(page, limit):
    """Run all cells of the notebook that is open, without what it was kept with. Returns what each code cell gave."""
    page.set_default_timeout(limit * 1000)
    page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext?.isReady")
    page.wait_for_function("window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'")
    page.evaluate("window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    assert all(cell["count"] is None for cell in page.evaluate(CELLS))
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    return page.evaluate(CELLS)


def ran(cells):
    return [cell["count"] for cell in cells] == list(range(1, len(cells) + 1)) and not any(
        "error" in cell["kinds"] for cell in cells)


def at_home(page, lab):
    own = re.match(r"http://[^/]+/", lab)[0]
    return [url for url in page.asked if not url.startswith((own, own.replace("http", "ws"), "data:", "blob:"))] == []


def test_the_tour_runs_all_cells(lab, opened):
    page = opened(lab.format("00_tour.ipynb"), viewport=dict(width=1280, height=900))
    assert ran(run_all(page, 180)) and at_home(page, lab)


def test_the_explorer_draws_itself_and_the_bench_reacts_to_its_sliders(lab, opened):
    page = opened(lab.format("16_explorer.ipynb"), viewport=dict(width=1280, height=900))
    assert ran(run_all(page, 180))
    show = """text => {
        const book = window.jupyterapp.shell.currentWidget.content;
        return book.scrollToItem(book.widgets.findIndex(cell => cell.model.sharedModel.getSource().includes(text)));
    }"""
    page.evaluate(show, "explorer(answers)")
    page.wait_for_selector(".vega-embed canvas, .vega-embed svg")
    page.evaluate(show, "bench.controls()")
    told = page.get_by_text(re.compile(r"\d+ examples: mean memorization"))
    told.wait_for()
    before = told.inner_text()
    page.locator(".widget-hslider", has_text="size").locator(".noUi-handle").focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("before => !document.body.innerText.includes(before)", arg=before)
    size = int(before.split()[0]) - 1
    assert told.inner_text().startswith(f"{size} examples") and "Predict ToW first" in told.inner_text()
    assert page.locator('img[alt^="ToW"]').count() == 0
    page.get_by_role("button", name="Unlearn").click()
    answer = page.locator('img[alt^="ToW"]')
    answer.wait_for()
    assert re.search(r"ToW \d\.\d{3}: Random label, predicted 0\.50", page.inner_text("body"))
    page.locator(".widget-hslider", has_text="epochs").locator(".noUi-handle").focus()
    page.keyboard.press("ArrowRight")                        # another choice: the answer goes
    answer.wait_for(state="detached")
    assert at_home(page, lab)
