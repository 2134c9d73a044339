"""`kdcdiff build`: the staged book, rendered by Jupyter Book into `_build/html`, with warnings as errors.

With execution off, Jupyter Book publishes a failed notebook and says nothing. So what is not sound is refused before:
a chapter that is missing, failed, half executed, older than its source, or run at another profile than the rest. After
it, every page must exist and load nothing from the network. The finished book replaces the old one in one rename.
"""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import yaml

from kdcdiff.book import marks
from kdcdiff.book import notebook as notebooks
from kdcdiff.book.staging import copy_pages, is_current
from kdcdiff.book.toc import Book
from kdcdiff.errors import UserError
from kdcdiff.store import write_atomically

DIGEST = ".kdcdiff-digest"  # in the rendered book: a hash of what it was rendered from
BUILDERS = {"html": "index.html", "singlehtml": "index.html", "linkcheck": "output.txt"}  # and what to look at first
WHAT = {"html": "book", "singlehtml": "book on one page", "linkcheck": "list of links"}
# Rendering makes millions of objects and drops few: collecting them seldom takes a sixth of its time off. And pages are
# rendered side by side: Jupyter Book's function can, its command has no option that says so.
_JUPYTER_BOOK = (
    "import functools, gc, os; gc.set_threshold(200_000, 50, 100); from jupyter_book import sphinx; "
    "sphinx.build_sphinx = functools.partial(sphinx.build_sphinx, jobs=len(os.sched_getaffinity(0))); "
    "from jupyter_book.cli.main import main; main()"
)
_TAG = re.compile(r"<(script|link|img|iframe|source)\b[^>]*>(\s*</script>)?", re.IGNORECASE)
_REMOTE = re.compile(r"""\b(?:src|href)\s*=\s*["']?(?:https?:)?//""", re.IGNORECASE)
# What the theme ships and no page uses: sphinx-thebe's scripts, which would fetch thebe for a reader who asks for live
# code, even where it is off, and 1.5 MB of script for the dozen icons that the style sheet draws without it.
_UNUSED = re.compile(
    r"""<script[^>]*(?:fontawesome|sphinx-thebe)\.js[^>]*>\s*</script>|<script>\s*const THEBE_JS_URL[^<]*</script>"""
    r"""|<script type="text/x-thebe-config">[^<]*</script>|<script>kernelName = [^<]*</script>""",
)
# And where one does not search, the tools and the index of search as one types, which is off: 0.3 MB of every page.
_SEARCHING = re.compile(
    r"""<script src="[./]*(?:_static/(?:searchtools|language_data)|searchindex)\.js"></script>\s*"""
)
_PUBLIC = re.compile(r"(?:(?:https|ssh)://)?(?:[^@/]+@)?(github\.com|gitlab\.com)[:/]([\w.-]+)/([\w.-]+?)(?:\.git)?/?")
_REMOTE_CSS = re.compile(r"""(?:@import\s+["']|url\(\s*["']?)(?:https?:)?//""", re.IGNORECASE)
_LOADS = ("stylesheet", "preload", "preconnect", "modulepreload", "icon", "dns-prefetch", "prefetch")


class BuildFailed(Exception):
    """The book did not render. The message says where the log is, or what is wrong with a page."""


def build(root: str | Path = ".", *, draft: bool = False, builder: str = "html") -> Path:
    """Render the staged book into the folder returned. UserError: a chapter that may not be published.

    A `draft` goes to `_build/draft`, renders what there is (where a chapter was not run, the committed outputs and
    their figures), and says on every page why it is not the book. `builder` is one of `BUILDERS`; what is not pages
    goes to a folder of its name: all of it on one page, to be printed, or what became of every link.
    """
    book = Book(Path(root).resolve())
    faults = faults_of(book)
    if faults and not draft:
        raise UserError("the staged book cannot be published: " + "; ".join(faults) + "; `kdcdiff run` first")
    copy_pages(book)
    if draft:
        _fill_in(book, faults)
    _point_at_source(book)
    marks.fill(book)
    target = book.build / (builder if builder != "html" else "draft" if draft else "html")
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)  # what a kill has left
    digest = _digest(book)
    pages = builder == "html"
    current = (target / DIGEST).exists() and (target / DIGEST).read_text() == digest
    if current and not (pages and missing_pages(book, target)):
        print(f"the {WHAT[builder]} is up to date: {target / BUILDERS[builder]}")
        return target
    rendered = _render(book, builder, strict=not draft)
    if builder == "singlehtml":  # Sphinx puts the page where the first one lies, its addresses counted from the top
        os.replace(rendered / book.pages()[0].path.with_suffix(".html"), rendered / BUILDERS[builder])
    for page in rendered.rglob("*.html"):
        text = offline(page.read_text())
        page.write_text(text if page.name == "search.html" else _SEARCHING.sub("", text))
    problems = [*(missing_pages(book, rendered) if pages else []), *remote_loads(rendered)]
    if problems:
        raise BuildFailed("the rendered book is not sound: " + "; ".join(problems))
    (rendered / DIGEST).write_text(digest)
    if target.exists():
        os.replace(target, old)
    os.replace(rendered, target)
    shutil.rmtree(old, ignore_errors=True)
    print(f"the {'draft' if draft else WHAT[builder]} is in {target / BUILDERS[builder]}")
    return target


def _digest(book: Book) -> str:
    """Hash what the rendered book depends on: the staged pages, the recorded figures, this library and Jupyter Book."""
    staged = [path for path in book.staged.rglob("*") if path.is_file()]
    library = [path for path in notebooks.PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    results = book.results.read_text() if book.results.exists() else ""
    trees = [notebooks.tree_digest(staged, book.staged), notebooks.tree_digest(library, notebooks.PACKAGE)]
    return notebooks.digest([*trees, results, metadata.version("jupyter-book")])


def _fill_in(book: Book, faults: list[str]) -> None:
    """Stage what a draft lacks: the committed chapters, and a banner that names the faults."""
    for chapter in book.chapters():
        copy = book.staged / chapter.path
        if not copy.exists() or notebooks.is_committed(notebooks.read(copy)):  # an earlier draft's
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(book.root / chapter.path, copy)
    settings = yaml.safe_load((book.root / "_config.yml").read_text())
    more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
    why = html.escape(f"{faults[0]}{more}" if faults else "rendered with --draft")
    said = f"Draft, not the book: {why}"
    if all(notebooks.is_committed(notebooks.read(book.staged / chapter.path)) for chapter in book.chapters()):
        said = "The outputs on record; no chapter was run here"
    settings["sphinx"]["config"]["html_theme_options"]["announcement"] = said
    (book.staged / "_config.yml").write_text(yaml.safe_dump(settings, sort_keys=False))


def _point_at_source(book: Book) -> None:
    """Point the launch buttons at the repository that this checkout came from; without a public one there are none."""
    path = book.staged / "_config.yml"
    settings, found = yaml.safe_load(path.read_text()), repository(book.root)
    if found is None:
        settings.pop("launch_buttons", None)
    else:
        settings["repository"] = dict(zip(("url", "branch"), found, strict=True))
    path.write_text(yaml.safe_dump(settings, sort_keys=False))


def repository(root: Path) -> tuple[str, str] | None:
    """Return the address and the branch of `root`'s remote `origin`; None where it is not on GitHub or GitLab."""
    asked = {"url": ["remote", "get-url", "origin"], "branch": ["rev-parse", "--abbrev-ref", "HEAD"]}
    said = {}
    for name, words in asked.items():
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
        said[name] = done.stdout.strip()
    found = _PUBLIC.fullmatch(said["url"])
    return (f"https://{found[1]}/{found[2]}/{found[3]}", said["branch"]) if found else None


def faults_of(book: Book) -> list[str]:
    """Say why the staged chapters may not be published; nothing if they may."""
    faults, settings = [], {}
    for chapter in book.chapters():
        copy = book.staged / chapter.path
        if not copy.exists():
            faults.append(f"{chapter.name} was never run")
            continue
        notebook = notebooks.read(copy)
        made = notebook.metadata.get("kdcdiff", {})
        flaws = notebooks.flaws(notebook)
        if notebooks.is_committed(notebook):
            faults.append(f"{chapter.name} was never run")
        elif flaws:
            faults.append(f"{chapter.name}: {flaws[0]}")
        elif made.get("status") != "completed":
            faults.append(f"{chapter.name} did not run to its end")
        elif not is_current(book, chapter):
            faults.append(f"{chapter.name} is older than its source, or its figures have been replaced")
        else:
            given = made["parameters"]
            settings[chapter.name] = tuple(given[name] for name in ("profile", "dataset", "seed"))
    if len(set(settings.values())) > 1:
        faults.append(
            "chapters were run at different settings: "
            + ", ".join(f"{name} at {' '.join(map(str, setting))}" for name, setting in settings.items())
        )
    return faults


def _render(book: Book, builder: str, *, strict: bool) -> Path:
    """Run Jupyter Book on the staging folder, into a fresh folder. BuildFailed: with its warnings."""
    output = book.build / "render"
    shutil.rmtree(output, ignore_errors=True)
    log = book.build / "build.log"
    start = [sys.executable, "-c", _JUPYTER_BOOK, "build", str(book.staged)]
    options = ["--path-output", str(output), "--all", "-n", "--keep-going", "--builder", builder]
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    print(f"rendering {len(book.pages())} pages", flush=True)
    done = subprocess.run(
        [*start, *options, *["-W"] * strict],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=environment,
    )
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    write_atomically(log, plain)
    if done.returncode != 0:
        said = plain.splitlines()
        lines = [line for line in said if re.search(r"WARNING|ERROR|\) broken ", line)] or said[-5:]
        raise BuildFailed("\n  ".join([f"Jupyter Book reports {len(lines)} warnings (all of it: {log})", *lines[:20]]))
    return output / "_build" / builder


def offline(page: str) -> str:
    """Cut the tags that would load something from the network: Jupyter Book adds thebe, even when it is off."""

    def keep(match: re.Match[str]) -> str:
        return "" if match[1].lower() in ("script", "link") and _is_load(match[0]) else match[0]

    return _TAG.sub(keep, _UNUSED.sub("", page))


def _is_load(tag: str) -> bool:
    """Tell whether a tag makes a browser fetch from another host (a canonical or search link does not)."""
    if not _REMOTE.search(tag):
        return False
    if tag[:5].lower() == "<link":
        return any(re.search(rf"""rel\s*=\s*["']?[^"'>]*\b{kind}\b""", tag, re.IGNORECASE) for kind in _LOADS)
    return True


def remote_loads(html: Path) -> list[str]:
    """List what the pages and their styles would still load from the network."""
    found = []
    for page in sorted(html.rglob("*.html")):
        loads = [match[0] for match in _TAG.finditer(page.read_text()) if _is_load(match[0])]
        found += [f"{page.relative_to(html)} loads {tag}" for tag in loads]
    for style in sorted(html.rglob("*.css")):
        if _REMOTE_CSS.search(style.read_text(errors="replace")):
            found.append(f"{style.relative_to(html)} loads from the network")
    return found


def missing_pages(book: Book, html: Path) -> list[str]:
    pages = [*(page.path.with_suffix(".html") for page in book.pages()), Path("index.html")]
    return [f"{page} is missing" for page in pages if not (html / page).is_file()]
