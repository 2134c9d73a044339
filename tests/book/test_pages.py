"""What the pages get beyond Sphinx: formulas, the map, downloads, marks; the README."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup
from docutils.core import publish_string

from kdcdiff import cli
from kdcdiff.book import extension, marks, pages, plots, tables, toc
from kdcdiff.book.toc import Book, Page
from kdcdiff.metrics.estimate import Estimate

from ..conftest import REPO

# ----------------------------------------------------------------------------------------------- formulas


@pytest.mark.parametrize(
    "tex, said",
    [
        (r"T^2 \, \mathrm{KL}\big(z_t \,\|\, z_s\big)", "T2KL(zt‖zs)"),
        (r"\big\| f_s^l - f_t^l \big\|^2", "‖fsl−ftl‖2"),
        (r"\frac{1}{T-1}\sum_{j<T} R_{Tj}", "1T−1∑j<TRTj"),
    ],
)
def test_a_formula_becomes_mathml(tex, said):
    soup = BeautifulSoup(extension.mathml(tex, "block"), "html.parser")
    assert soup.math["display"] == "block" and soup.get_text(strip=True) == said


def test_a_command_without_mathml_is_refused():
    with pytest.raises(ValueError, match="nosuchthing"):
        extension.mathml(r"a \nosuchthing b")


def test_every_formula_of_the_book_has_mathml():
    prose = [path.read_text() for path in (REPO / "book").glob("*.md")]
    for path in sorted((REPO / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        prose += [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    found = [own for text in prose for own in re.findall(r"(?<![\w`\\])\$\$?([^$\n`][^$`]*?)\$\$?(?!\w)", text)]
    assert len(found) > 20
    for tex in found:
        extension.mathml(tex)


def test_a_docstring_is_read_as_what_it_means():
    block = ["    mix(x, *y)", "", "    mix(2)"]
    said = "Mix `x` and *y*: a | b, 2 * x * y, *args, `pair_`, name_."
    meant = r"Mix ``x`` and *y*: a \| b, 2 \* x \* y, \*args, ``pair_``, name\_."
    assert extension.as_rest([said, "", *block, "", "Then."]) == [meant, "", "::", "", *block, "", "Then.", ""]


@pytest.mark.parametrize(
    "said, meant",
    [
        (["**Of a file.** Then `f(**a, **b)` and **c."], [r"**Of a file.** Then ``f(**a, **b)`` and \*\*c."]),
        (["As {glue:text}`name:.3f`."], ["As ``{glue:text}`name:.3f```."]),
        (["Two:", "", "* a `b`", "  c * d", "* e"], ["Two:", "", "* a ``b``", r"  c \* d", "* e"]),
    ],
)
def test_marks_of_a_docstring_come_out_as_marks(said, meant):
    assert extension.as_rest(said) == [*meant, ""]
    shown = publish_string("\n".join(meant), writer_name="html", settings_overrides={"halt_level": 2}).decode()
    text = BeautifulSoup(shown, "html.parser").body.get_text(" ", strip=True)
    assert "``" not in text and "Definition" not in text and "<dl" not in shown


def test_a_signature_has_no_default_that_python_could_not_read():
    said = "(folder: ~pathlib.Path = <factory>, say=<built-in function print>, f=<function <lambda>>, n: int = 3)"
    assert extension.readable(said) == "(folder: ~pathlib.Path =..., say=..., f=..., n: int = 3)"


# -------------------------------------------------------------------------------------------------- the pages


@pytest.fixture
def book(tmp_path) -> Book:
    for name in ("01-a", "02-b", "03-c"):
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        (tmp_path / "notebooks" / f"{name}.ipynb").write_text("{}")
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "intro.md").write_text("# A book\n")
    parts = {"First": ["notebooks/01-a", "notebooks/02-b"], "Then": ["notebooks/03-c"], "Back": ["book/intro"]}
    lines = [
        f"  - caption: {name}\n    chapters: [{', '.join(f'file: {f}' for f in own)}]" for name, own in parts.items()
    ]
    lines = [re.sub(r"file: ([^,\]]+)", r"{file: \1}", line) for line in lines]
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: book/intro\nparts:\n" + "\n".join(lines[:2]) + "\n")
    return Book(tmp_path)


@pytest.mark.parametrize("executed", [{}, {"papermill": {}}])
def test_a_draft_has_the_figures_of_chapters_as_they_are_committed(book, executed):
    def said(name: str, text: str) -> nbformat.NotebookNode:
        return nbformat.v4.new_output("display_data", {"x/text/plain": text}, metadata={"scrapbook": {"name": name}})

    outputs = [said("share", "0.5"), said("share.low", "0.4"), said("share.high", "0.6"), said("count", "7"),
               said("open", "1"), said("open.low", "-inf"), said("open.high", "inf"), said("word", "Yes")]  # fmt: skip
    cell = nbformat.v4.new_code_cell("", outputs=outputs)
    copy = book.staged / book.chapters()[0].path
    copy.parent.mkdir(parents=True)
    copy.write_text(nbformat.writes(nbformat.v4.new_notebook(cells=[cell], metadata=executed)))
    found = {name: (one.value, one.interval, one.chapter) for name, one in marks.figures_on_record(book).items()}
    own = {name: found[name] for name in ("share", "count", "open") if name in found}
    wanted = {"share": (0.5, (0.4, 0.6), "a"), "count": (7, None, "a"), "open": (1, None, "a")}
    assert own == ({} if executed else wanted) and "word" not in found


BODY = """<section><h1>Title</h1><div class="cell_output">{table}<img src="../_images/x.png" alt="A thing">
<figure><img src="../_images/y.svg" alt="Another"><span class="caption-number">Fig. 35 </span></figure></div>
<div class="highlight"><pre>code</pre></div></section>"""


def test_a_chapter_gets_its_map_and_its_downloads(book):
    table = tables.table([{"model": "a, student", "share": Estimate(0.5, 0.4, 0.6)}], caption="Models")._repr_html_()
    finished = pages.finish(BODY.format(table=table), book.chapters()[1], book)
    soup = BeautifulSoup(finished.body, "html.parser")
    assert [step.get_text() for step in soup.select(".kdc-road li")] == ["First", "Then"]
    assert soup.select_one(".kdc-road [aria-current]").get_text() == "First"
    assert [a["href"] for a in soup.select(".kdc-road a")] == ["01-a.html", "03-c.html"]
    assert finished.files == {"downloads/b-table-1.csv": 'model,share\n"a, student","0.50 [0.40, 0.60]"\n'}
    links = {a.get_text(): a["href"] for a in soup.select(".kdc-downloads a")}
    assert links["executed notebook"] == "../downloads/b.ipynb" and links["picture 1"] == "../_images/x.png"
    assert links["figure 35"] == "../_images/y.svg"  # as its caption has it
    assert soup.find("caption").get_text() == "Table 1. Models"
    assert links["table 1 (CSV)"] == "../downloads/b-table-1.csv"


def test_what_is_folded_whole_is_a_solution(book):
    fold = '<div class="cell {tag}"><details><summary><p>Code</p></summary><p>Code</p></details></div>'
    body = fold.format(tag="tag_hide-cell") + fold.format(tag="tag_hide-input")
    soup = BeautifulSoup(pages.finish(body, book.chapters()[1], book).body, "html.parser")
    assert [p.text for p in soup.select(".cell p")] == ["Solution", "Code", "Code", "Code"]


def test_what_scrolls_can_be_scrolled_from_the_keyboard(book):
    page = Page(Path("book/intro.md"))
    body = BODY.format(table="<table><caption>Of all</caption><tr><td>1</td></tr></table>")
    soup = BeautifulSoup(pages.finish(body, page, book).body, "html.parser")
    frame = soup.table.parent
    assert (frame["tabindex"], frame["role"], frame["aria-label"]) == ("0", "region", "Of all (1)")
    assert soup.pre["tabindex"] == "0" and not soup.select(".kdc-road, .kdc-downloads")
    again = pages.finish(str(soup), page, book).body
    assert again.count("kdc-scroll") == 1, "once is enough"


def test_a_chapter_s_prose_says_where_there_is_no_interval():
    prose = "By {glue:text}`a:+.2f` [{glue:text}`a.low:.2f`, {glue:text}`a.high:.2f`], {glue:text}`n:,`."
    outputs = [
        nbformat.v4.new_output("display_data", {"application/papermill.record/text/plain": said}, metadata=about)
        for name, said in {"a": "0.5", "a.low": "-inf", "a.high": "inf"}.items()
        for about in [{"scrapbook": {"name": name}}]
    ]
    cells = [nbformat.v4.new_markdown_cell(prose), nbformat.v4.new_code_cell(outputs=outputs)]
    read = nbformat.reads(extension.tidied(nbformat.writes(nbformat.v4.new_notebook(cells=cells))), as_version=4)
    assert read.cells[0].source == "By {glue:text}`a:+z.2f` (no interval), {glue:text}`n:,`."
    assert read.cells[1].outputs == outputs


# -------------------------------------------------------------------------------------------------- the marks


def test_marks_are_filled_and_unknown_ones_stay(book, monkeypatch):
    (book.staged / "book").mkdir(parents=True)
    staged = book.staged / "book" / "intro.md"
    staged.write_text("<!-- libraries -->\n<!-- nobody -->\n")
    marks.fill(book)
    assert "torch" in staged.read_text() and "<!-- nobody -->" in staged.read_text()


def test_the_verdict_bar_says_in_words_what_it_draws():
    soup = BeautifulSoup(marks.verdict_bar({"refuted": 3, "undecided": 0, "rederived": 9}, "v.html"), "html.parser")
    assert soup.select_one("[role=img]")["aria-label"] == "12 claims: 3 refuted, 9 rederived"
    assert ["flex-grow: 3" in soup.i["style"], len(soup.select("i"))] == [True, 2]
    assert [item.get_text() for item in soup.select("li")] == ["3 refuted", "9 rederived"]


def test_the_page_on_photographs_shows_every_recorded_row():
    recorded = json.loads((REPO / "book" / "results" / "butterflies.json").read_text())["results"]
    rows = list(marks.recorded_rows(recorded, "tables.butterflies", "row", marks.ENDPOINTS))
    methods = list(marks.recorded_rows(recorded, "continual", "method", marks.MEASURES))
    assert (len(rows), len(methods)) == (21, 8) and all(isinstance(row["FID"], Estimate) for row in rows)
    shown = next(row for row in rows if row["row"] == "midjourney>realistic")
    assert shown["KID"].value == recorded["tables.butterflies.midjourney-to-realistic.kid"]["value"]


def test_a_pilot_is_read_in_per_cent_with_the_least_of_its_pairs():
    row = {"setting": "plain", "steps": "200", "mid_block": "0.0003", "down_blocks.3": "0.001", "up_blocks.0": "0.0093",
           "down_blocks.0.1": "0.14", "up_blocks.3.1": "0.02"}  # fmt: skip
    (read,) = marks.pilots([row])
    assert read == {"setting": "plain", "steps": 200, "mid stage (%)": pytest.approx(0.03),
                    "DownBlock2D (%)": pytest.approx(0.1), "UpBlock2D (%)": pytest.approx(0.93),
                    "least pair (%)": pytest.approx(2)}  # fmt: skip
    shown = BeautifulSoup(marks.MAKERS["pilots"](Book(REPO)), "html.parser")
    recorded = (REPO / "book" / "results" / "pilots.csv").read_text().splitlines()
    assert len(shown.select("tbody tr")) == len(recorded) - 1


def test_every_command_and_every_module_has_its_place_in_the_book():
    files = {path.stem for path in (REPO / "kdcdiff" / "cli").glob("*.py")}
    assert set(cli.COMMANDS) == files - {"__init__", "arguments"}, "what `marks.commands` asks for its help"
    pages_of = {name for name in marks.MAKERS if name.startswith("api")}
    for name in pages_of:
        assert f"<!-- {name} -->" in (REPO / "book" / f"{name}.md").read_text()
    listed = set(re.findall(r"automodule:: (\S+)", "".join(marks.MAKERS[name](Book(REPO)) for name in pages_of)))
    modules = {
        ".".join(path.relative_to(REPO).with_suffix("").parts)
        for path in (REPO / "kdcdiff").rglob("*.py")
        if "cli" not in path.parts and not path.name.startswith("__")
    }
    assert listed == modules


# ------------------------------------------------------------------------------------------ README and figures


@pytest.fixture(scope="module")
def front_page():
    spec = importlib.util.spec_from_file_location("front_page", REPO / "tools" / "front_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_figure_that_a_page_asks_for_is_one_that_a_chapter_reports(front_page):
    text = "".join(page.read_text() for page in (REPO / "book").glob("*.md"))
    asked = set(re.findall(r"\{result\}`([^`:]+)", text))
    assert len(asked) > 10 and asked <= front_page.figures(REPO).keys()


def test_the_readme_says_what_the_notebooks_say(front_page):
    values = front_page.figures(REPO)
    text = (REPO / "README.md").read_text()
    said = text.partition(front_page.OPEN)[2].partition(front_page.CLOSE)[0]
    assert said == "\n" + front_page.findings(values), "`python tools/front_page.py` brings it up to date"
    drawn = front_page.picture(marks.tally(values))
    assert (REPO / front_page.PICTURE).read_text() == drawn and drawn.count("<rect") == 2 * drawn.count("<text")


def test_parts_without_a_chapter_are_no_stretch_of_the_road():
    parts = toc.Book(REPO).parts()
    assert "Back matter" not in parts and all(any(page.is_chapter for page in own) for own in parts.values())


# How colours look to those who lack a kind of cone: Machado, Oliveira & Fernandes 2009 (doi:10.1109/TVCG.2009.113)
SEEN = {
    "all cones": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lightness_and_hues(colour: str, seen: np.ndarray) -> np.ndarray:
    """CIELAB of a colour (#rrggbb, D65) as it is seen."""
    rgb = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    light = np.clip(seen @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4), 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.array(to_xyz) @ light / [0.95047, 1, 1.08883])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eye", SEEN)
def test_no_two_colours_of_the_figures_look_alike_to_anyone(eye):
    seen = {colour: lightness_and_hues(colour, np.array(SEEN[eye])) for colour in plots.OKABE_ITO}
    nearest = min(np.linalg.norm(seen[a] - seen[b]) for a, b in itertools.combinations(seen, 2))
    assert nearest > 15, "2.3 is what one just notices"


def test_groups_differ_by_marker_as_well_and_bars_by_hatching():
    looks = [tuple(plots.look(place).values()) for place in range(56)]
    assert len(set(looks)) == 56 and len({marker for _, marker in looks[:8]}) == 8
    colours = [plots.PALETTE[name] for name in ("teacher", "student", "good")]
    drawn = plots.bars({"a": 1.0, "b": 2.0, "c": 3.0}, unit="share", colours=colours).axes[0].patches
    assert len({bar.get_hatch() for bar in drawn}) == 3
