"""The built site, as a reader's browser shows it (make test-browser)."""

import re
from urllib.parse import unquote, urljoin, urlsplit

import pytest

from .conftest import ROOT, SITE

pytestmark = pytest.mark.browser
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html")
               if "_static" not in path.parts)
WRITTEN = [f"{name}.html" for name in ("index", "claims", "paper_map", "glossary", "gallery", "api", "teacher",
                                       "search", "api/rumlib.metrics")]
SIZES = {"desktop": dict(width=1280, height=900), "phone": dict(width=390, height=844)}
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]


def broken_rules(page, **rules):
    """What axe finds wrong on a page: rule -> the first places. Its rule on landmarks is left out: the theme has the
    name of the site beside its navigation, in none."""
    from axe_playwright_python.sync_playwright import Axe

    rules = {name: {"enabled": on} for name, on in {"region": False, **rules}.items()}
    found = Axe().run(page, options={"runOnly": RULES, "rules": rules, "resultTypes": ["violations"]}).response
    return {rule["id"]: [node["html"][:150] for node in rule["nodes"][:3]] for rule in found["violations"]}


@pytest.mark.parametrize("name", [*WRITTEN, *(f"{name}.html" for name in NOTEBOOKS)])
def test_a_page_opens_is_as_wide_as_its_window_and_keeps_the_rules_of_axe(name, site, opened):
    """No error, and no request to elsewhere. Contrast has a test of its own: where there are many tables, it takes half
    a minute."""
    page = opened(site + name, viewport=SIZES["phone"])
    page.wait_for_load_state("networkidle")
    assert page.said == []
    assert [url for url in page.asked if not url.startswith((site, "data:", "blob:"))] == []
    for size in SIZES.values():
        page.set_viewport_size(size)
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0, size
    assert broken_rules(page, **{"color-contrast": False}) == {}


@pytest.mark.parametrize("name", ["index.html", "claims.html", "gallery.html", "api/rumlib.metrics.html", *(
    f"{name}.html" for name in NOTEBOOKS if name.endswith(("_tour", "_explorer")))])
def test_contrast_in_light_and_in_dark(name, site, opened):
    page = opened(site + name, viewport=SIZES["desktop"], color_scheme="light")
    assert broken_rules(page) == {}
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.documentElement.dataset.theme == 'dark'")
    page.wait_for_timeout(1000)                              # colours fade into each other
    assert broken_rules(page) == {}


def test_every_notebook_has_a_page_and_can_be_downloaded_as_it_is_kept(site, opened):
    page = opened(site + "index.html")
    for name in NOTEBOOKS:
        assert page.locator(f'nav a[href="{name}.html"]').count() >= 1
        answer = page.request.get(f"{site}_sources/{name}.ipynb")
        assert answer.body() == (ROOT / "notebooks" / f"{name}.ipynb").read_bytes()
    page = opened(f"{site}{NOTEBOOKS[1]}.html")
    assert page.locator(f'a[href="_sources/{NOTEBOOKS[1]}.ipynb"]').count() >= 1
    assert f"{NOTEBOOKS[0]}.html" in page.locator(".prev-next-footer a.left-prev").get_attribute("href")
    assert f"{NOTEBOOKS[2]}.html" in page.locator(".prev-next-footer a.right-next").get_attribute("href")


def test_search_finds_entanglement(site, opened):
    page = opened(site + "index.html")
    page.goto(site + "search.html?q=entanglement")
    page.wait_for_selector("ul.search li a")
    found = {link.get_attribute("href").partition(".html")[0] for link in page.locator("ul.search li a").all()}
    assert "glossary" in found and found & set(NOTEBOOKS) and page.said == []


def parts(text, tag, attribute):
    """The values of an attribute of all elements with that tag."""
    return re.findall(rf"""<{tag}\b[^>]*?\s{attribute}=["']([^"']*)["']""", text)


def test_the_explorer_reacts_to_its_brush(site, opened):
    page = opened(site + "16_explorer.html", viewport=SIZES["desktop"])
    canvas = page.locator(".chart canvas")
    canvas.wait_for()
    canvas.scroll_into_view_if_needed()
    before, box = canvas.screenshot(), canvas.bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 220, steps=5)
    page.mouse.up()
    after = canvas.screenshot()
    assert after != before
    page.get_by_label("low", exact=True).check()
    page.wait_for_timeout(300)
    assert canvas.screenshot() != after and page.said == []


def test_every_link_resolves():
    """To a page or file of the site, and to a place on it. Links to elsewhere are not followed: there is no network."""
    texts = {name: (SITE / name).read_text() for name in PAGES}
    places = {name: set(re.findall(r"""\s(?:id|name)=["']([^"']+)["']""", text)) for name, text in texts.items()}
    broken = []
    for name, text in texts.items():
        text = re.sub(r"<script\b.*?</script>", "", text, flags=re.DOTALL)
        for link in {*parts(text, "a", "href"), *parts(text, "img", "src"), *parts(text, "link", "href")}:
            if link.startswith(("http:", "https:", "data:", "mailto:")):
                continue
            place = urlsplit(urljoin(f"/{name}", unquote(link)))
            path, anchor = place.path.lstrip("/"), place.fragment
            if not (SITE / path).exists() or (anchor and path in places and anchor not in places[path]):
                broken.append((name, link))
    assert broken == []


def test_nothing_is_loaded_from_elsewhere():
    """Neither at once nor later: no script, style, picture or font has another host's address."""
    pattern = re.compile(r"""<(?:script|img|iframe|source)\b[^>]*\ssrc=["']https?:|"""
                         r"""<link\b[^>]*rel=["'](?:stylesheet|preload|icon)["'][^>]*href=["']https?:|"""
                         r"""@import\s+(?:url\()?["']?https?:|url\(["']?https?:""")
    files = [SITE / name for name in PAGES] + list(SITE.rglob("*.css"))
    assert [str(path.relative_to(SITE)) for path in files if pattern.search(path.read_text())] == []


def test_every_picture_has_words():
    without = [(name, tag) for name in PAGES for tag in re.findall(r"<img\b[^>]*>", (SITE / name).read_text())
               if not re.search(r"""\salt=["'][^"']*\w[^"']*["']""", tag) and 'role="presentation"' not in tag]
    assert without == []

