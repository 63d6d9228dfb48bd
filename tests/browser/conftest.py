"""A headless Chromium that is on the machine (Debian: apt-get install chromium), and servers for what it looks at."""

import functools
import http.server
import shutil
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SITE = ROOT / "site"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="session")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="pip install -r notebooks/site/requirements.lock")
    if CHROMIUM is None:
        pytest.fail("there is no Chromium on this machine: apt-get install chromium")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def site():
    """The address of the built site, as a server on this machine gives it."""
    if not (SITE / "index.html").exists():
        pytest.fail("there is no site yet: make site")
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture
def opened(browser):
    """A function that opens an address in a page of its own; the page notes what goes wrong and what it asks for."""
    contexts = []

    def open_(address, **how):
        contexts.append(browser.new_context(**how))
        page = contexts[-1].new_page()
        page.said, page.asked = [], []
        page.on("console", lambda message: message.type == "error" and page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("response", lambda answer: answer.status >= 400 and page.said.append(f"{answer.status} {answer.url}"))
        page.goto(address, wait_until="load")
        return page

    yield open_
    for context in contexts:
        context.close()
