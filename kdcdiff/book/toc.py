"""The book's table of contents: which pages there are, in which order, and what each chapter is called.

`_toc.yml` is the one list; a chapter is an entry that is a notebook. A chapter is called by its slug, the name of its
file without leading digits: `notebooks/05-surgery.ipynb` is `surgery`, wherever in the order it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kdcdiff.errors import UserError, check


def slug(path: Path) -> str:
    """Cut a page's name from its file's: the stem without leading digits and dash."""
    return re.sub(r"^\d+-", "", path.stem)


@dataclass(frozen=True)
class Page:
    """An entry of the table of contents, by its file relative to the book's root."""

    path: Path

    @property
    def name(self) -> str:
        return slug(self.path)

    @property
    def is_chapter(self) -> bool:
        return self.path.suffix == ".ipynb"


@dataclass(frozen=True)
class Book:
    """A book's folder, with `_config.yml` and `_toc.yml`; what is made from it goes to `_build`."""

    root: Path

    @property
    def build(self) -> Path:
        return self.root / "_build"

    @property
    def staged(self) -> Path:
        return self.build / "staged"

    @property
    def results(self) -> Path:
        return self.build / "results.json"

    def pages(self) -> list[Page]:
        """List every page in order. UserError: a page that does not exist, or two of one name."""
        toc = self.root / "_toc.yml"
        check(toc.is_file(), "root", str(self.root), "must be a book's folder, with a _toc.yml")
        pages: dict[str, Page] = {}
        try:
            listed = list(_entries(yaml.safe_load(toc.read_text(encoding="utf-8"))))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise UserError(f"_toc.yml={str(toc)!r}: cannot be read as YAML ({str(error)[:200]})") from None
        for entry in listed:
            inside = not Path(entry).is_absolute() and ".." not in Path(entry).parts
            check(inside, "_toc.yml", entry, "must be a page of the book's own folder")
            stem = entry.removesuffix(".ipynb").removesuffix(".md")
            found = [Path(stem + suffix) for suffix in (".ipynb", ".md") if (self.root / (stem + suffix)).is_file()]
            check(bool(found), "_toc.yml", entry, "no such notebook or page")
            page = Page(found[0])
            check(page.name not in pages, "_toc.yml", entry, f"another page is called {page.name}, too")
            pages[page.name] = page
        return list(pages.values())

    def parts(self) -> dict[str, list[Page]]:
        """List the parts that hold chapters, by caption in order, each with its pages (prose among them)."""
        by_stem = {page.path.with_suffix(""): page for page in self.pages()}
        parts = yaml.safe_load((self.root / "_toc.yml").read_text()).get("parts", [])
        found = {part["caption"]: [by_stem[Path(entry)] for entry in _entries(part)] for part in parts}
        return {caption: pages for caption, pages in found.items() if any(page.is_chapter for page in pages)}

    def chapters(self) -> list[Page]:
        return [page for page in self.pages() if page.is_chapter]

    def chosen(self, only: list[str] | None) -> list[Page]:
        """List the chapters named, in the book's order; all of them for None. UserError: no such chapter."""
        chapters = self.chapters()
        names = [chapter.name for chapter in chapters]
        for name in only or []:
            check(name in names, "only", name, f"must be a chapter of _toc.yml: {', '.join(names)}")
        return [chapter for chapter in chapters if not only or chapter.name in only]


def here() -> Book:
    """Find the book that the working folder lies in, else the one that this library lies in.

    So a chapter that papermill executes from any folder is still a chapter of its book. Where there is neither, the
    working folder is taken for one.
    """
    folder = Path.cwd()
    around = (folder, *folder.parents, Path(__file__).resolve().parents[2])
    return Book(next((place for place in around if (place / "_toc.yml").exists()), folder))


def _entries(node: Any) -> Iterator[str]:
    """Every `root` and `file` of a table of contents, in reading order."""
    if isinstance(node, list):
        for item in node:
            yield from _entries(item)
    elif isinstance(node, dict):
        yield from (str(node[key]) for key in ("root", "file") if key in node)
        for key in ("parts", "chapters", "sections"):
            yield from _entries(node.get(key, []))
