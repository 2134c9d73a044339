"""What this book teaches Sphinx, loaded by `_config.yml`.

Formulas become MathML, which browsers draw by themselves: no page loads a script for them. The role
{result}`name:.2f` writes a recorded figure with its interval, linked to its chapter; in a draft, one of the committed
outputs where there was no run. Prose says where there is no interval. Docstrings, which are plain text with Markdown's
code marks, are read as what they mean.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from posixpath import relpath
from typing import Any

import nbformat
from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

from kdcdiff.book import answer
from kdcdiff.book.marks import figures_on_record, glued
from kdcdiff.book.pages import DOWNLOADS, finish, write_files
from kdcdiff.book.results import Results
from kdcdiff.book.toc import Book, Page
from kdcdiff.metrics.estimate import Estimate

logger = logging.getLogger(__name__)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register all of it."""
    app.add_html_math_renderer("mathml", (_inline_math, None), (_display_math, None))
    app.add_role("result", ResultRole())
    app.connect("source-read", _read_chapter)
    app.connect("html-page-context", _finish_page)
    app.connect("autodoc-skip-member", _skip_alias)
    app.connect("autodoc-process-signature", _read_signature)
    app.connect("autodoc-process-docstring", _read_docstring)
    app.connect("config-inited", _read_in_parallel)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _read_in_parallel(app: Sphinx, config: Config) -> None:
    """Let pages be read side by side: two extensions of Jupyter Book's do not say whether they mind.

    One numbers sections, once all are read, in the process that has them all; one concerns LaTeX alone.
    """
    for name in ("sphinx_multitoc_numbering", "sphinx_jupyterbook_latex"):
        if name in app.extensions:
            app.extensions[name].parallel_read_safe = True


def book_of(app: Sphinx) -> Book:
    """Find the book whose staging folder is being rendered."""
    return Book(Path(app.srcdir).parent.parent)


# ------------------------------------------------------------------------------------------------ formulas


def mathml(tex: str, display: str = "inline") -> str:
    """Turn a formula into MathML. ValueError: a command that the converter leaves as it is."""
    made = convert(tex, display=display).replace(r"\|", "‖").replace(r"\Vert", "‖")
    left = re.search(r"\\[A-Za-z]+|\\.", made)
    if left:
        raise ValueError(f"{left[0]} in {tex!r} has no MathML")
    return made


def _drawn(node: nodes.Element, tex: str, display: str) -> str:
    try:
        return mathml(tex, display)
    except Exception as error:  # whatever the converter raises is a fault of the formula
        logger.warning("no MathML of a formula: %s", error, location=node)
        return ""


def _inline_math(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(_drawn(node, node.astext(), "inline"))
    raise nodes.SkipNode


def _display_math(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math", tabindex="0"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})</span>')
    self.body.append(_drawn(node, node.astext(), "block") + "</div>")
    raise nodes.SkipNode


# ----------------------------------------------------------------------------------------------- the pages


def _read_chapter(app: Sphinx, name: str, source: list[str]) -> None:
    if Path(app.env.doc2path(name)).suffix == ".ipynb":
        source[0] = tidied(source[0])


def tidied(text: str) -> str:
    """Tidy the glue in the prose of an executed notebook, given and returned as JSON: its intervals and its zeros."""
    notebook = nbformat.reads(text, as_version=4)
    values = glued(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = answer.without_negative_zero(answer.without_unknown(cell.source, values))
    return nbformat.writes(notebook)


def _finish_page(app: Sphinx, name: str, template: str, context: dict[str, Any], doctree: nodes.document) -> None:
    body, book = context.get("body"), book_of(app)
    if not body or doctree is None:
        return
    page = Page(Path(app.env.doc2path(name)).relative_to(app.srcdir))
    if page.is_chapter:
        text = (Path(app.srcdir) / page.path).read_text(encoding="utf-8")
        write_files(Path(app.outdir), {f"{DOWNLOADS}/{page.name}.ipynb": text})
    finished = finish(body, page, book)
    write_files(Path(app.outdir), finished.files)
    context["body"] = finished.body


class ResultRole(SphinxRole):
    """Writes {result}`name:format`: the recorded value, with its interval where it has one."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        name, _, form = self.text.partition(":")
        book = Book(Path(self.env.srcdir).parent.parent)
        self.env.note_dependency(str(book.results))
        result = Results.load(book.results).get(name) or figures_on_record(book).get(name)
        if result is None:
            return [nodes.inline(self.rawtext, "(not measured in this run)")], []  # another variant, say
        low, high = result.interval or (result.value, result.value)
        said = format(Estimate(result.value, low, high), form or ".2f")
        chapter = next((page for page in book.chapters() if page.name == result.chapter), None)
        words = nodes.inline(self.rawtext, said, classes=["kdc-result"])
        if chapter is None:
            return [words], []
        target = relpath(chapter.path.with_suffix(".html").as_posix(), Path(self.env.docname).parent.as_posix())
        return [nodes.reference(self.rawtext, "", words, refuri=target, internal=True)], []


# ----------------------------------------------------------------------------------------- the interface


def _read_docstring(app: Sphinx, what: str, name: str, made: Any, options: Any, lines: list[str]) -> None:
    lines[:] = as_rest(lines)


def _skip_alias(app: Sphinx, what: str, name: str, made: Any, skip: bool, options: Any) -> bool | None:
    """Leave the fields of a named tuple out: Python says of each which number it has, and the class what it is."""
    return True if str(getattr(made, "__doc__", "")).startswith("Alias for field number") else None


def _read_signature(
    app: Sphinx, what: str, name: str, made: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    return signature and readable(signature), returned


def readable(signature: str) -> str:
    """Write ... for a default that is no Python, as <factory>: Sphinx reads no signature that Python would not."""
    return re.sub(r"=\s*<(?:[^<>]|<[^<>]*>)*>", "=...", signature)


def as_rest(lines: list[str]) -> list[str]:
    """Turn a docstring into reStructuredText: code marks doubled, indented blocks shown as code.

    Stars are literal, save around words that they stress, and before the items of a list.
    """
    rest: list[str] = []
    before = ""
    for line in lines:
        indented = line.startswith("    ") and line.strip() != ""
        if indented and not before.strip() and not _in_code(rest):
            rest += ["::", ""]
        rest.append(line if indented else _plain(line))
        before = line
    return [*rest, ""]


def _in_code(rest: list[str]) -> bool:
    """Tell whether the last line that says something belongs to a block of code."""
    said = [line for line in rest if line.strip()]
    return bool(said) and (said[-1] == "::" or said[-1].startswith("    "))


_KEPT = re.compile(  # code, with the role before it; words between two stars, and a word between one
    r"((?:\{[\w:]+\})?`+[^`]+`+|(?<![\w*])\*\*\w(?:[^*]*[^\s*])?\*\*(?![\w*])|(?<![\w*])\*\w+\*(?![\w*]))"
)


def _plain(line: str) -> str:
    """Double single code marks, and escape what reStructuredText would read as marks of its own."""
    item = "* " if line.startswith("* ") else ""
    parts = _KEPT.split(line.removeprefix(item))
    told = [re.sub(r"([*|]|(?<=\w)_(?=\W|$))", r"\\\1", part) for part in parts[::2]]
    kept = [part if part[0] == "*" else f"``{part.strip('`')}{'`' * (part[0] == '{')}``" for part in parts[1::2]]
    return item + "".join(itertools.chain(*itertools.zip_longest(told, kept, fillvalue="")))
