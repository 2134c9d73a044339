"""`kdcdiff build`: warnings are errors, what failed is not published, and the pages need no network."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import nbformat
import pytest
import yaml

from kdcdiff import cli
from kdcdiff.book import notebook as notebooks
from kdcdiff.book import render, runner
from kdcdiff.book.staging import copy_pages
from kdcdiff.book.toc import Book
from kdcdiff.errors import UserError

CHAPTERS = {
    "01-a": [
        "from kdcdiff.metrics.estimate import Estimate\nfrom kdcdiff.book.tables import table",
        'chapter.store.get("numbers", lambda folder: (folder / "n.txt").write_text("7"));',
        'share = chapter.record("a.share", Estimate(0.12345, 0.1, 0.15, n=9));',
        'table([{"model": "a student", "share": Estimate(0.12345, 0.1, 0.15)}])',
        "md:The share is {glue:text}`a.share:.2f`, with $x^2$ and {cite}`kdc`.",
    ],
    "02-b": ["1 + 1", "md:Elsewhere it was {glue:text}`01-a.ipynb::a.share:.3f`.\n\n```{bibliography}\n```"],
}


@pytest.fixture
def run_book(small_book) -> Path:
    root = small_book(CHAPTERS)
    runner.run(root, profile="smoke")
    return root


def staged(root: Path, name: str) -> Path:
    return root / "_build" / "staged" / "notebooks" / f"{name}.ipynb"


def test_a_book_is_rendered_whole_offline_and_once(run_book, capsys):
    assert cli.main(["build", "--root", str(run_book)]) == 0
    html = run_book / "_build" / "html"
    assert capsys.readouterr().out.splitlines()[-1] == f"the book is in {html / 'index.html'}"
    first = (html / "notebooks" / "01-a.html").read_text()
    assert ">0.12<" in first and "kdc-badge" in first and "profile smoke" in first
    assert ">0.123<" in (html / "notebooks" / "02-b.html").read_text()
    assert "kdcdiff run --force --only a --profile smoke" in first, "the cost box says how to run it again"
    assert "Injected" not in first and "artifacts = " not in first.replace("&quot;", ""), "the injected cell is hidden"
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in first, "formulas are drawn by the browser"
    assert (html / "downloads" / "a.ipynb").exists() and (html / "downloads" / "a-table-1.csv").exists()
    assert 'aria-current="step"' in first and "fontawesome.js" not in first
    for page in html.rglob("*.html"):
        text = page.read_text()
        assert "cdn" not in text.lower() and "unpkg" not in text and str(run_book) not in text
    assert "searchindex.js" in (html / "search.html").read_text() and "searchindex.js" not in first
    assert render.remote_loads(html) == []
    status = (html / "book" / "status.html").read_text()
    assert '<th scope="row">a</th><td>completed</td>' in status and "<!-- chapters -->" not in status
    assert '<th scope="row">numbers</th><td>a</td>' in status and "all stages" in status
    assert '0.12 <span class="kdc-interval">[0.10, 0.15]</span></td>' in first and "kdc-table" in first
    for page in (first, json.dumps(notebooks.read(staged(run_book, "01-a")).cells)):
        assert "numbers-" not in page and not re.search(r"\b(built|reused)\b", page), "what the store says is no result"
    written = (html / "index.html").stat().st_mtime_ns
    render.build(run_book)
    assert "up to date" in capsys.readouterr().out and (html / "index.html").stat().st_mtime_ns == written
    # a changed page is rendered again, a warning stops it, and the book that was there stays
    (run_book / "book" / "intro.md").write_text("# A small book\n\nSee {doc}`nowhere` and {glue:text}`gone`.\n")
    assert cli.main(["build", "--root", str(run_book)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("failed: Jupyter Book reports") and "nowhere" in said and "gone" in said
    assert (html / "index.html").exists()


def test_what_is_not_sound_is_not_published(small_book, capsys):
    root = small_book(CHAPTERS, light=True)
    for name in CHAPTERS:
        write = root / "notebooks" / f"{name}.ipynb"
        notebook = notebooks.read(write)
        notebook.cells = notebook.cells[:3]
        nbformat.write(notebook, write)
    with pytest.raises(UserError, match="a was never run; b was never run; `kdcdiff run` first"):
        render.build(root)
    runner.run(root)
    assert render.faults_of(Book(root)) == []

    whole = staged(root, "01-a").read_text()
    notebook = notebooks.read(staged(root, "01-a"))
    notebook.cells[1].execution_count = None
    nbformat.write(notebook, staged(root, "01-a"))
    assert render.faults_of(Book(root)) == ["a: cell 2 was never executed"]

    notebook = nbformat.reads(whole, as_version=4)
    notebook.cells[1].outputs = [nbformat.v4.new_output("error", ename="E", evalue="why", traceback=[])]
    nbformat.write(notebook, staged(root, "01-a"))
    assert render.faults_of(Book(root)) == ["a: cell 2 failed: E: why"]

    notebook = nbformat.reads(whole, as_version=4)
    del notebook.metadata["kdcdiff"]
    nbformat.write(notebook, staged(root, "01-a"))
    assert render.faults_of(Book(root)) == ["a did not run to its end"]

    staged(root, "01-a").write_text(whole)
    source = notebooks.read(root / "notebooks" / "01-a.ipynb")
    source.cells[0].source = "# Another title"
    nbformat.write(source, root / "notebooks" / "01-a.ipynb")
    assert render.faults_of(Book(root)) == ["a is older than its source, or its figures have been replaced"]

    runner.run(root, only=["a"], profile="smoke")
    assert render.faults_of(Book(root)) == [
        "chapters were run at different settings: a at smoke flora 0, b at mini flora 0"
    ]
    assert cli.main(["build", "--root", str(root)]) == 2
    assert "cannot be published" in capsys.readouterr().err and not (root / "_build" / "html").exists()


def test_a_draft_takes_what_there_is_and_says_so_on_every_page(small_book):
    book = Book(small_book(CHAPTERS, light=True))

    def banner() -> str:
        copy_pages(book)
        render._fill_in(book, ["a was never <run>", "b was never run"])
        settings = yaml.safe_load((book.staged / "_config.yml").read_text())
        return settings["sphinx"]["config"]["html_theme_options"]["announcement"]

    assert banner() == "The outputs on record; no chapter was run here"
    copy = book.staged / book.chapters()[1].path
    executed = notebooks.read(copy)
    executed.metadata["papermill"] = {}
    nbformat.write(executed, copy)
    assert banner() == "Draft, not the book: a was never &lt;run&gt;, and 1 more"
    assert all((book.staged / chapter.path).exists() for chapter in book.chapters())
    assert render.faults_of(book), "what was filled in is not taken for a chapter that ran"
    source = book.root / book.chapters()[0].path
    source.write_text(source.read_text() + "\n")
    render._fill_in(book, ["a was never run"])
    assert (book.staged / book.chapters()[0].path).read_text() == source.read_text(), "the next draft takes it anew"
    copy_pages(book)
    assert (book.staged / "_config.yml").read_text() == (book.root / "_config.yml").read_text(), (
        "the book has no banner"
    )


@pytest.mark.parametrize(
    "origin, address",
    [
        ("https://github.com/some/book.git", "https://github.com/some/book"),
        ("git@github.com:some/book.git", "https://github.com/some/book"),
        ("https://name:secret@gitlab.com/some/a.book", "https://gitlab.com/some/a.book"),
        ("/srv/git/book.git", None),
        ("https://github.com.example.org/some/book", None),
        (None, None),
    ],
)
def test_launch_buttons_point_at_a_public_origin_or_are_not_there(small_book, origin, address):
    book = Book(small_book(CHAPTERS, light=True))
    git = ["git", "-C", str(book.root), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    if origin:
        for words in ("init -qb trunk", f"remote add origin {origin}", "commit -q --allow-empty -ma"):
            subprocess.run([*git, *words.split()], check=True)
    copy_pages(book)
    render._point_at_source(book)
    settings = yaml.safe_load((book.staged / "_config.yml").read_text())
    assert ("launch_buttons" in settings) == (address is not None)
    assert settings.get("repository") == (address and {"url": address, "branch": "trunk"})


@pytest.mark.parametrize(
    "tag, loads",
    [
        ('<script src="https://cdn.example/x.js"></script>', True),
        ('<script async src="//cdn.example/x.js"></script>', True),
        ('<link rel="stylesheet" href="https://fonts.example/a.css">', True),
        ('<link href="https://fonts.example" rel="preconnect" crossorigin>', True),
        ('<script src="_static/x.js"></script>', False),
        ('<link rel="canonical" href="https://example.org/">', False),
        ('<a href="https://example.org/">a link to follow</a>', False),
    ],
)
def test_tags_that_load_from_the_network_are_cut(tmp_path, tag, loads):
    (tmp_path / "page.html").write_text(f"<p>before{tag}after</p>")
    assert bool(render.remote_loads(tmp_path)) == loads
    assert render.offline(f"<p>before{tag}after</p>") == ("<p>beforeafter</p>" if loads else f"<p>before{tag}after</p>")


@pytest.mark.parametrize("style", ['@import "https://x.example/a.css";', "a{src:url(https://x.example/f.woff)}"])
def test_styles_that_load_from_the_network_are_found(tmp_path, style):
    (tmp_path / "a.css").write_text(style)
    assert len(render.remote_loads(tmp_path)) == 1
