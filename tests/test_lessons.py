"""What is true of the notebooks as lessons: their parts, links, sentences, tables and figures."""

import re
from pathlib import Path
from statistics import median

import nbformat
import pytest

from rumlib.lab.lesson import told

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
KEPT = [*NOTEBOOKS, *sorted((ROOT / "figures").glob("*/notebooks/[0-9]*.ipynb"))]
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
kept = pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parts[-3]}-{path.stem}")


def cells(path, kind):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def markdown(path):
    return "\n\n".join(cell.source for cell in cells(path, "markdown"))


def outputs(path):
    return [output for cell in cells(path, "code") for output in cell.outputs if "data" in output]


def prose(text):
    """The text without code, formulas, tables, headings, pictures and addresses."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"\$\$.*?\$\$", " formula ", text, flags=re.DOTALL)
    text = re.sub(r"\$[^$\n]+\$|`[^`\n]+`|\\begin.*?\\end\{\w+\}", "term", text, flags=re.DOTALL)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"^\s*(\||#|<).*$", "", text, flags=re.MULTILINE)
    return re.sub(r"^\s*([-*]|\d+\.)\s+", "\n\n", text, flags=re.MULTILINE)


def sentences(text):
    parts = [part for block in re.split(r"\n\s*\n", prose(text))
             for part in re.split(r"(?<=[.!?:])\s+(?=\W*[A-Z])", block)]
    return [part.split() for part in parts if len(part.split()) > 2]


@notebooks
def test_a_lesson_has_its_parts(path):
    number, first = path.stem[:2], cells(path, "markdown")[0].source
    place = NOTEBOOKS.index(path)
    around = {"previous": NOTEBOOKS[place - 1] if place else None,
              "next": NOTEBOOKS[place + 1] if place + 1 < len(NOTEBOOKS) else None}
    assert first.startswith(f"# {number} · ")
    for part in ("**Question.**", "**You will be able to**", "**Builds on**", "](../README.md#"):
        assert part in first, part
    for word, other in around.items():
        assert other is None or re.search(rf"{word}: \[[^\]]+\]\({other.name}\)", first), word
    text = markdown(path)
    headings = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    numbered = [heading for heading in headings if re.match(r"\d", heading)]
    assert [int(heading.split(".")[0]) for heading in numbered] == list(range(1, len(numbered) + 1)) and numbered
    assert headings[-3:] == ["Summary", "Exercises", "Further reading"] and len(headings) == len(numbered) + 3
    code = cells(path, "code")
    assert any("lesson.measured(" in cell.source for cell in code[:3]) and "lesson.origin(" in code[-1].source


@notebooks
def test_a_lesson_has_three_exercises_with_folded_solutions(path):
    assert re.findall(r"^### Exercise (\d)", markdown(path), flags=re.MULTILINE) == ["1", "2", "3"]
    solutions = [cell for cell in cells(path, "code") if "solution" in cell.metadata.get("tags", [])]
    assert len(solutions) == 3
    for cell in solutions:
        assert {"solution", "hide-cell"} <= set(cell.metadata["tags"]) and cell.outputs
        assert cell.metadata["jupyter"] == {"source_hidden": True, "outputs_hidden": True}


@notebooks
def test_no_measured_decimal_stands_in_a_text(path):
    """Numbers are computed where they stand. What may stand: numbers of papers, of sections, and what is in code."""
    text = re.sub(r"\d{4}\.\d{5}|([Ss]ections?|[Aa]ppendix|Python|CC BY|version) ?[A-Z]?[\d.]+", "",
                  prose(markdown(path)))
    assert not re.findall(r"(?<![\d.])\d*\.\d+", text)


@notebooks
def test_sentences_are_short(path):
    lengths = [len(words) for words in sentences(markdown(path))]
    longest = max(sentences(markdown(path)), key=len)
    assert len(longest) <= 40, " ".join(longest)
    assert median(lengths) <= 18


@kept
def test_every_link_resolves_from_where_the_notebook_is_kept(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", markdown(path)):
        if not re.match(r"https?://", target):
            file, _, anchor = target.partition("#")
            assert not file or (path.parent / file).resolve().exists(), target
            if anchor and file.endswith("README.md"):
                headings = re.findall(r"^#+ (.*)$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
                assert anchor in {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@kept
def test_no_table_is_cut_without_a_word(path):
    html = [output["data"]["text/html"] for output in outputs(path) if "text/html" in output["data"]]
    assert not [table for table in html if re.search(r"<t[dh][^>]*>\s*\.\.\.\s*</t[dh]>", table)]


@kept
def test_every_figure_that_is_saved_is_shown_with_a_text_for_those_who_do_not_see_it(path):
    saved = sum(len(re.findall(r"\b(?!claims|card)\w+\.save\(", cell.source)) for cell in cells(path, "code"))
    pictures = [output for output in outputs(path) if "image/png" in output["data"]]
    assert len(pictures) >= saved
    for output in pictures:
        alt = output.metadata.get("image/png", {}).get("alt", "")
        assert len(alt) > 10, f"picture with the alternative text {alt!r}"


def test_numbers_are_told_with_their_interval():
    assert told({"mean": 0.5, "low": 0.25, "high": 0.75, "n": 4.0}, digits=2) == "0.50 (95 % CI [0.25, 0.75], n = 4)"
    assert told({"mean": 0.5, "low": float("nan"), "high": float("nan"), "n": 1}) == "0.500 (n = 1)"


@pytest.mark.parametrize("text, lengths", [
    ("One two three. Four five six seven.", [3, 4]), ("| a | b |\n\nOne `x + y` two $a + b$ three.", [5]),
    ("- One two three\n- Four five six\n\n$$x$$", [3, 3]), ("## A heading here\n\n[One two](x.md) three.", [3])])
def test_sentences_are_counted(text, lengths):
    assert [len(words) for words in sentences(text)] == lengths
