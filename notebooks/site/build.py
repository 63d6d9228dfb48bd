"""The kept notebooks as a static site, offline: what `make site` runs.

    python notebooks/site/build.py                     # into site/, from notebooks/, figures/laptop/ and README.md

The pages that are written by hand stand beside this file. The claims, the paper map, the gallery and the pages of the
API are made here from what the project has. Nothing is executed, and no page asks for anything outside of the site.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from html import escape
from importlib.util import find_spec
from pathlib import Path

import nbformat
import vl_convert
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SOURCE, SITE, FIGURES = ROOT / "runs" / "site", ROOT / "site", ROOT / "figures" / "laptop"
# The package has a hyphen in its name, so that it cannot be imported; its own extension would copy four times as much.
MATHJAX = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"
VEGA, WIDGET = "application/vnd.vegalite.v5+json", "application/vnd.jupyter.widget-view+json"
STATIC = "*These controls need a kernel: open the notebook with `make lab`. A picture of one state stands below.*"
THUMBNAIL = 480                                              # pixels across


def titles() -> dict[str, str]:
    """Notebook, by name -> its title."""
    return {path.stem: nbformat.read(path, as_version=4).cells[0].source.splitlines()[0].lstrip("# ")
            for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))}


def linked(text: str, folder: Path = ROOT / "notebooks") -> str:
    """Markdown whose links to other files of the project lead to the start page, or to a copy on the site. Sphinx
    writes the names of headings in small letters, Jupyter as they stand."""
    text = re.sub(r"\]\((\w+\.ipynb)?#([^)\s]+)\)", lambda to: f"]({to[1] or ''}#{to[2].lower()})", text)

    def place(match: re.Match) -> str:
        path = (folder / match[1]).resolve()
        if path == ROOT / "README.md":
            return "](index.md)"
        if path.parent == ROOT / "notebooks":
            return f"]({path.name})"
        if not path.is_file():
            if path.is_dir():
                return "](index.md)"
            raise FileNotFoundError(f"a page in {folder.relative_to(ROOT)} links to {match[1]}, which is not there")
        copy = SOURCE / "files" / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
        return f"]({copy.relative_to(SOURCE)})"

    return re.sub(r"\]\((\.\./[^)#\s]+)(?:#[^)\s]*)?\)", place, text)


def adapted(path: Path, found: dict[str, tuple[str, str]]) -> nbformat.NotebookNode:
    """A notebook for the site: pictures have words, charts draw themselves. `found` learns the figures that it saves:
    name -> (notebook, words)."""
    book, heading = nbformat.read(path, as_version=4), path.stem
    book.metadata.pop("widgets", None)
    for number, cell in enumerate(book.cells):
        if cell.cell_type == "markdown":
            heading = [heading, *re.findall(r"^#+ (.*)$", cell.source, re.MULTILINE)][-1]
            cell.source = linked(cell.source)
            continue
        for k, output in enumerate(cell.get("outputs", ())):
            data = output.get("data", {})
            if "image/png" in data:
                words = output.metadata.get("image/png", {}).get("alt") or f"Figure: {heading}"
                cell.metadata["mystnb"] = {"image": {"alt": words.replace("\n", " ")}}
                for name in re.findall(r"""save\(.*?["'](\w+)["']""", cell.source):
                    found[name] = (path.stem, words)
            if VEGA in data:
                output.data = {"text/html": chart(data[VEGA], f"chart-{number}-{k}")}
            elif WIDGET in data:
                output.data = {"text/markdown": STATIC}
            elif "text/html" in data:
                data["text/html"] = table(data["text/html"])
            elif "text/markdown" in data:
                data["text/markdown"] = re.sub(r"\]\((\w+)\.ipynb", r"](\1.html", linked(data["text/markdown"]))
    return book


def table(html: str) -> str:
    """A table of pandas that a keyboard can scroll, and without empty headers; links lead to pages."""
    html = re.sub(r"<th([^>]*)>(?:&nbsp;)?</th>", r"<td\1></td>", html)
    html = html.replace('<table border="1" class="dataframe"', "<table").replace(
        "<table", '<table tabindex="0" class="dataframe"')
    return re.sub(r'href="(\w+)\.ipynb', r'href="\1.html', html)


def chart(spec: dict, name: str) -> str:
    """A chart that is drawn by the site's own copy of Vega."""
    words = escape(spec.get("description") or "interactive chart", quote=True)
    return (f'<div class="chart" tabindex="0" role="group" aria-label="{words}"><div id="{name}"></div></div>\n'
            f'<script src="_static/vega.js"></script>\n'
            f'<script>vegaEmbed("#{name}", {json.dumps(spec).replace("</", "<&#47;")}, '
            f'{{"actions": false, "renderer": "canvas"}});</script>')


def claims() -> str:
    """The claims of the README, as a page."""
    readme = (ROOT / "README.md").read_text()
    table = re.search(r"<!-- claims -->\n(.*?)<!-- end of claims -->", readme, re.DOTALL).group(1)
    return (f"# The claims\n\nHow often each claim of the papers holds, counted over algorithms or scores, at the "
            f"profile that heads its column. A comparison is a difference paired over the training seeds. It is "
            f"*equivalent* if the difference is shown to be smaller than a margin. Else it *holds* if its 95 % "
            f"interval lies on the claimed side of 0, is *opposite* if it lies on the other, and is *inconclusive* "
            f"if it includes 0. [This notebook]({of('claims')}) has each comparison.\n\n{table}")


def of(name: str) -> str:
    """The file of a notebook, from its name without the number."""
    (path,) = (ROOT / "notebooks").glob(f"[0-9][0-9]_{name}.ipynb")
    return path.name


def paper_map(found: dict) -> str:
    """The table of the claims notebook that says where each figure of the paper is, with links."""
    cells = nbformat.read(ROOT / "notebooks" / of("claims"), as_version=4).cells
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"] + [
        output.data.get("text/markdown", "") for cell in cells if cell.cell_type == "code"
        for output in cell.outputs if "data" in output]
    tables = [table for text in texts for table in re.findall(r"^\| paper .*(?:\n\|.*)*", text, re.MULTILINE)]

    def to_gallery(match: re.Match) -> str:
        return f'<a href="gallery.html#{match[1]}">{match[1]}</a>' if match[1] in found else match[0]

    tables = [re.sub(r"`(\w+)`", to_gallery, linked(table)) for table in tables]
    return "\n\n".join(["# The paper map", "Each figure and table of the papers, and what stands for it here. "
                        "The names of figures lead to the gallery.", *tables])


def gallery(found: dict[str, tuple[str, str]], names: dict[str, str]) -> str:
    """All figures of the laptop profile as thumbnails, under the notebook that makes them."""
    folder, parts = SOURCE / "extra" / "figures", ["# Figures"]
    folder.mkdir(parents=True)
    for notebook in names:
        mine = [name for name, (maker, _) in found.items() if maker == notebook and (FIGURES / f"{name}.png").is_file()]
        parts += [f"## {names[notebook]}\n", f"From [this notebook]({notebook}.ipynb).\n"] if mine else []
        for name in mine:
            words = escape(found[name][1], quote=True)
            with Image.open(FIGURES / f"{name}.png") as picture:
                picture.thumbnail((THUMBNAIL, 10 * THUMBNAIL))
                picture.save(folder / f"{name}.thumbnail.png")
                size = f'width="{picture.width}" height="{picture.height}"'
            for ending in ("png", "csv"):
                shutil.copy(FIGURES / f"{name}.{ending}", folder)
            parts.append(
                f'```{{raw}} html\n<figure class="thumbnail" id="{name}"><a href="figures/{name}.png">'
                f'<img src="figures/{name}.thumbnail.png" {size} loading="lazy" alt="{words}"></a><figcaption>'
                f'<code>{name}</code>, <a href="figures/{name}.csv">its numbers</a></figcaption></figure>\n```\n')
    return "\n".join(parts)


def api() -> None:
    """A page for each module of the core and for the door of the lab."""
    modules = sorted(path for path in (ROOT / "rumlib").rglob("*.py") if path.stem != "__init__"
                     and "lab" not in path.parts[-2:-1])
    modules += [ROOT / "rumlib" / "lab" / f"{name}.py" for name in ("study", "tables", "card", "profiles")]
    (SOURCE / "api").mkdir()
    listed = []
    for path in modules:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        says = ast.get_docstring(ast.parse(path.read_text())).partition("\n\n")[0].replace("\n", " ")
        listed.append(f"- [{name}](api/{name}.md): {says}")
        (SOURCE / "api" / f"{name}.md").write_text(
            f"---\norphan: true\n---\n# {name}\n\n[All modules](../api.md)\n\n"
            f"```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```\n")
    (SOURCE / "api.md").write_text("# API\n\nEvery public name of the core, and what a notebook meets first of the "
                                   "lab, from their docstrings.\n\n" + "\n".join(listed) + "\n")


def assemble() -> None:
    """Write all sources of the site, anew."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    SOURCE.mkdir(parents=True)
    names, found = titles(), {}
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        nbformat.write(adapted(path, found), SOURCE / path.name)
    shutil.copy(HERE / "conf.py", SOURCE)
    for path in HERE.glob("*.md"):
        (SOURCE / path.name).write_text(linked(path.read_text(), HERE))
    (SOURCE / "claims.md").write_text(claims())
    (SOURCE / "paper_map.md").write_text(paper_map(found))
    (SOURCE / "gallery.md").write_text(gallery(found, names))
    shutil.copy(FIGURES / "overview.png", SOURCE)
    (SOURCE / "static").mkdir()
    for path in (*HERE.glob("*.css"), *HERE.glob("*.svg")):
        shutil.copy(path, SOURCE / "static")
    for part in ("tex-chtml.js", "a11y", "output/chtml/fonts"):
        copy = shutil.copytree if (MATHJAX / part).is_dir() else shutil.copy
        (SOURCE / "static" / "mathjax" / part).parent.mkdir(parents=True, exist_ok=True)
        copy(MATHJAX / part, SOURCE / "static" / "mathjax" / part)
    vega = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version="5.20")
    (SOURCE / "static" / "vega.js").write_text(f"(() => {{{vega}}})();\n")       # its names are not those of the page
    api()


def main() -> None:
    assemble()
    made = SOURCE / "html"                                   # MyST-NB writes a copy of all notebooks beside it
    subprocess.run([sys.executable, "-m", "sphinx", "-q", "-b", "html", "-d", SOURCE / "doctrees", SOURCE, made],
                   check=True)
    shutil.rmtree(SITE, ignore_errors=True)
    made.rename(SITE)
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):   # what is downloaded is the notebook as it is kept
        shutil.copy(path, SITE / "_sources")
    print(f"{len(list(SITE.rglob('*.html')))} pages: open {SITE / 'index.html'}")


if __name__ == "__main__":
    main()
