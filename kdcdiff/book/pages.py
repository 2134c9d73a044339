"""What a rendered page gets beyond what Sphinx makes of it: the map, the downloads, and what a keyboard needs.

`finish` takes a page's body and gives it back; it knows nothing of Sphinx (`extension` calls it for each page).
"""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import relpath

from bs4 import BeautifulSoup, Tag

from kdcdiff.book.toc import Book, Page

DOWNLOADS = "downloads"  # in the rendered book: executed notebooks, and every table as CSV


@dataclass
class Finished:
    """A page's body, and the files that it offers: their path in the rendered book -> their text."""

    body: str
    files: dict[str, str] = field(default_factory=dict)


def finish(body: str, page: Page, book: Book) -> Finished:
    """Add to a chapter's page the map of the road and its downloads; to every page what a keyboard needs."""
    soup = BeautifulSoup(body, "html.parser")
    if page.is_chapter:
        number_tables(soup)
    make_accessible(soup)
    if not page.is_chapter:
        return Finished(str(soup))
    name_solutions(soup)
    files = {f"{DOWNLOADS}/{page.name}-table-{n}.csv": text for n, text in enumerate(map(as_csv, tables(soup)), 1)}
    article = soup.find("section") or soup
    title = article.find("h1") if isinstance(article, Tag) else None
    if title:
        title.insert_after(BeautifulSoup(road_map(book, page), "html.parser"))
    article.append(BeautifulSoup(downloads(page, list(files), pictures(soup)), "html.parser"))
    return Finished(str(soup), files)


def make_accessible(soup: BeautifulSoup) -> None:
    """Let the keyboard scroll what scrolls, tables in a frame of their own; drop roles that contradict each other."""
    for entry in soup.find_all(class_=["citation-list", "citation"], role=True):
        del entry["role"]  # a list of doc-biblioentry: the one may not hold the other, which is deprecated besides
    for number, table in enumerate(soup.find_all("table"), 1):
        if table.find_parent(class_="kdc-scroll") or table.find_parent(class_=["kdcx", "highlighttable"]):
            continue
        caption = table.find("caption")
        said = caption.get_text(" ", strip=True)[:120] if caption else f"table {number}"
        frame = soup.new_tag("div", attrs={"class": "kdc-scroll", "tabindex": "0", "role": "region"})
        frame["aria-label"] = f"{said} ({number})" if caption else said
        table.wrap(frame)
    for block in soup.find_all("pre"):
        if block.parent and "highlight" in (block.parent.get("class") or ()):
            block["tabindex"] = "0"


def name_solutions(soup: BeautifulSoup) -> None:
    """Call a cell that is folded whole a solution: only the exercises have such, and others fold code alone."""
    for title in soup.select(".tag_hide-cell > details > summary > p"):
        title.string = "Solution"


def road_map(book: Book, page: Page) -> str:
    """Draw the road through the parts of the book, with the part that `page` stands in marked."""
    steps = []
    for caption, pages in book.parts().items():
        target = next(other for other in pages if other.is_chapter)
        here = ' aria-current="step"' if page in pages else ""
        steps.append(f'<li{here}><a href="{_link(page, target)}">{html.escape(caption)}</a></li>')
    return f'<nav class="kdc-road" aria-label="Where this chapter stands"><ol>{"".join(steps)}</ol></nav>'


def tables(soup: BeautifulSoup) -> list[Tag]:
    """List the tables that a chapter's cells made, in order."""
    return [table for table in soup.find_all("table", class_="kdc-table") if _made_by_a_cell(table)]


def number_tables(soup: BeautifulSoup) -> None:
    """Put its number in a chapter, by which its download is called, before the caption of each table of a cell."""
    for number, table in enumerate(tables(soup), 1):
        if caption := table.find("caption"):
            caption.insert(0, BeautifulSoup(f'<span class="caption-number">Table {number}. </span>', "html.parser"))


def pictures(soup: BeautifulSoup) -> dict[str, str]:
    """Map what a chapter's cells drew, by its number on the page where it has a caption, to its address."""
    found: dict[str, str] = {}
    for image in soup.find_all("img", src=True):
        if _made_by_a_cell(image):
            figure = image.find_parent("figure")
            number = figure.select_one(".caption-number") if figure else None
            said = number.get_text().strip().removeprefix("Fig.").strip() if number else ""
            found[f"figure {said}" if said else f"picture {len(found) + 1}"] = str(image["src"])
    return found


def _made_by_a_cell(tag: Tag) -> bool:
    return tag.find_parent("div", class_="cell_output") is not None


def as_csv(table: Tag) -> str:
    """Write a table as CSV: a line for each row, the head among them."""
    text = io.StringIO()
    rows = [[cell.get_text(" ", strip=True) for cell in row.find_all(["th", "td"])] for row in table.find_all("tr")]
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def downloads(page: Page, files: Sequence[str], drawn: Mapping[str, str]) -> str:
    """Write the line that ends a chapter: what of it can be taken away."""
    links = [_download(page, f"{DOWNLOADS}/{page.name}.ipynb", "executed notebook")]
    links += [_download(page, path, f"table {number} (CSV)") for number, path in enumerate(files, 1)]
    links += [f'<a href="{html.escape(src)}" download>{html.escape(name)}</a>' for name, src in drawn.items()]
    return f'<details class="kdc-downloads"><summary>Downloads</summary><p>{" · ".join(links)}</p></details>'


def _download(page: Page, path: str, said: str) -> str:
    target = relpath(path, page.path.parent.as_posix())
    return f'<a href="{html.escape(target)}" download>{html.escape(said)}</a>'


def _link(page: Page, target: Page) -> str:
    return relpath(target.path.with_suffix(".html").as_posix(), page.path.parent.as_posix())


def write_files(out: Path, files: Mapping[str, str]) -> None:
    """Write what pages offer under the rendered book `out`."""
    for path, text in files.items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_text(text, encoding="utf-8")
