"""For a lesson: exercise sheets with and without solutions, and slides of the tour. What `make class` runs.

    python notebooks/site/classkit.py                        # into runs/class/: sheets and slides, to print or to show

Both come from the notebooks. A sheet holds what stands under `## Exercises`; code cells tagged `solution` are
on the sheet of the teacher alone. The slides are the tour, a section a column. No page asks for anything outside.
"""

from __future__ import annotations

import re
import shutil
from html import escape
from importlib.util import find_spec
from pathlib import Path

import nbformat
from build import MATHJAX, ROOT, WIDGET
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

CLASS = ROOT / "runs" / "class"
REVEAL = Path(find_spec("sphinx_revealjs").origin).parent / "_static" / "revealjs"
LONG = 14                                                    # lines of code that a slide does not show
LEFT_OUT = ("## Exercises", "## Further reading", "## Where this comes from")
STYLE = """body { font: 11pt/1.5 sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
.space { height: 9rem; border-bottom: 1px solid #767676; } img { max-width: 100%; }
pre { overflow-x: auto; background: #f5f5f5; padding: 0.5rem; font-size: 9pt; white-space: pre-wrap; }
table { border-collapse: collapse; } th, td { padding: 0.1rem 0.5rem; text-align: right; }
.anchor-link { display: none; }
@media print { body { margin: 0; } section { break-before: page; } }"""
SLIDES = """.anchor-link { display: none; } .reveal { font-size: 30px; } .reveal h1 { font-size: 1.8em; }
.reveal h2 { font-size: 1.4em; } .reveal h3 { font-size: 1.1em; } .reveal h1, .reveal h2 { text-transform: none; }
 .reveal section { text-align: left; }
.reveal pre { width: 100%; font-size: 0.6em; white-space: pre-wrap; }
.reveal table { font-size: 0.7em; } .reveal section img { max-height: 60vh; margin: 0; }"""


def html(cells: list) -> str:
    """Cells as nbconvert writes them, without a page around them. Links to other notebooks become plain words."""
    exporter = HTMLExporter(template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True)
    body, _ = exporter.from_notebook_node(nbformat.v4.new_notebook(cells=cells))
    return re.sub(r'<a href="(?!https?:|#)[^"]*">(.*?)</a>', r"\1", body, flags=re.DOTALL)


def page(title: str, style: str, body: str, head: str = "") -> str:
    colours = HtmlFormatter(style="friendly").get_style_defs(".highlight")
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width='
            f'device-width, initial-scale=1"><title>{escape(title)}</title>{head}<style>{colours}\n{style}</style>'
            f'<script defer src="mathjax/tex-chtml.js"></script></head><body>{body}</body></html>\n')


def tagged(cell, *tags: str) -> bool:
    return bool({*tags} & {*cell.metadata.get("tags", ())})


def exercises(book) -> list:
    """The cells between the heading of the exercises and the next one; none where there is no such heading."""
    found = []
    for cell in book.cells:
        if cell.cell_type == "markdown" and (heading := re.match(r"## .*", cell.source)):
            found = [*found, cell] if heading[0] == "## Exercises" else found
            if found and heading[0] != "## Exercises":
                return found
        elif found:
            found.append(cell)
    return found


def sheet(books: dict, *, solutions: bool) -> str:
    """All exercises, a section for each notebook: with their solutions, or with room to write."""
    parts = []
    for name, book in books.items():
        cells = []
        for cell in exercises(book):
            if not solutions and tagged(cell, "solution"):
                cell = nbformat.v4.new_markdown_cell('<div class="space"></div>')
            cells.append(cell)
        if cells:
            title = book.cells[0].source.splitlines()[0].lstrip("# ")
            parts.append(f'<section id="{name}"><h1>{escape(title)}</h1>{html(cells)}</section>')
    return page(f"Exercises{' with solutions' if solutions else ''}", STYLE, f"<main>{''.join(parts)}</main>")


def slides(book) -> str:
    """The tour: a column for each section, in it a slide for each cell that has something to show."""
    columns, skip = [], False
    for cell in book.cells:
        if cell.cell_type == "markdown":
            if re.match(r"##? ", cell.source):
                skip = cell.source.startswith(LEFT_OUT)
                if not skip:
                    columns.append([])
        elif tagged(cell, "parameters", "solution") or not cell.outputs or WIDGET in str(cell.outputs):
            continue
        if skip or not columns or "provenance()" in cell.source:
            continue
        shown = nbformat.from_dict(cell)
        if cell.cell_type == "code" and cell.source.count("\n") >= LONG:
            shown.source = f"# {cell.source.count(chr(10)) + 1} lines of code: see the notebook"
        columns[-1].append(f"<section>{html([shown])}</section>")
    body = "".join(f"<section>{''.join(column)}</section>" for column in columns)
    head = "".join(f'<link rel="stylesheet" href="reveal/{name}.css">' for name in ("reveal", "theme/white"))
    return page(book.cells[0].source.splitlines()[0].lstrip("# "), SLIDES, (
        f'<div class="reveal"><div class="slides">{body}</div></div><script src="reveal/reveal.js"></script>'
        f"<script>Reveal.initialize({{hash: true, width: 1200, height: 750, center: false}});</script>"), head)


def main() -> None:
    shutil.rmtree(CLASS, ignore_errors=True)
    books = {path.stem: nbformat.read(path, as_version=4)
             for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))}
    CLASS.mkdir(parents=True)
    for name, solutions in (("exercises", False), ("solutions", True)):
        (CLASS / f"{name}.html").write_text(sheet(books, solutions=solutions))
    (CLASS / "slides.html").write_text(slides(books["00_tour"]))
    shutil.copytree(REVEAL / "dist", CLASS / "reveal", ignore=shutil.ignore_patterns("*.map", "*.esm.js", "*.eot"))
    for part in ("tex-chtml.js", "output/chtml/fonts"):
        copy = shutil.copytree if (MATHJAX / part).is_dir() else shutil.copy
        (CLASS / "mathjax" / part).parent.mkdir(parents=True, exist_ok=True)
        copy(MATHJAX / part, CLASS / "mathjax" / part)
    print(f"Sheets and slides: {CLASS}/exercises.html, solutions.html and slides.html")


if __name__ == "__main__":
    main()
