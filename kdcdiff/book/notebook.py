"""The book as data: which chapters there are, what parameters each takes, and whether a notebook is sound.

`_toc.yml` is the one list of chapters and their order; a chapter is an entry that is a notebook. Nothing is
run here.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbformat import NotebookNode

from kdcdiff.errors import UserError, check

STANDARD = ("profile", "dataset", "seed", "artifacts")  # what every chapter takes
MARK = "NBVAL_CHECK_OUTPUT"  # a cell whose output is exact on any machine
_KINDS: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's parameters cell."""

    name: str
    kind: type
    optional: bool  # None is allowed
    default: Any

    def parse(self, value: Any, chapter: str) -> Any:
        """`value`, perhaps text from a command line, as this parameter's type, or UserError."""
        words = self.kind.__name__ + (" or None" if self.optional else "")
        if self.optional and (value is None or str(value).lower() in ("none", "null", "")):
            return None
        if isinstance(value, str) and self.kind is not str:
            text = {"true": "True", "false": "False"}.get(value.lower(), value)
            try:
                value = float(text) if self.kind is float else ast.literal_eval(text)
            except (ValueError, SyntaxError):
                raise UserError(f"{self.name}={value!r}: {chapter} takes {words} here") from None
        if self.kind is float and type(value) is int:
            value = float(value)
        check(type(value) is self.kind, self.name, value, f"{chapter} takes {words} here")
        return value


@dataclass(frozen=True)
class Page:
    """An entry of the table of contents: `name` is its file's stem, `path` its file relative to the book's
    root.
    """

    name: str
    path: Path

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
        """Every page, in the table of contents' order. UserError: a page that does not exist, or twice."""
        toc = self.root / "_toc.yml"
        check(toc.is_file(), "root", str(self.root), "must be a book's folder, with a _toc.yml")
        pages = []
        for entry in _entries(yaml.safe_load(toc.read_text())):
            stem = entry.removesuffix(".ipynb").removesuffix(".md")
            found = [Path(stem + suffix) for suffix in (".ipynb", ".md") if (self.root / (stem + suffix)).is_file()]
            check(bool(found), "_toc.yml", entry, "no such notebook or page")
            pages.append(Page(found[0].stem, found[0]))
        names = [page.path for page in pages]
        check(len(set(names)) == len(names), "_toc.yml", str(toc), "names a page twice")
        return pages

    def chapters(self) -> list[Page]:
        return [page for page in self.pages() if page.is_chapter]

    def chosen(self, only: list[str] | None) -> list[Page]:
        """The chapters named, in the book's order; all of them for None."""
        chapters = self.chapters()
        names = [chapter.name for chapter in chapters]
        for name in only or []:
            check(name in names, "only", name, f"must be a chapter of _toc.yml: {', '.join(names)}")
        return [chapter for chapter in chapters if not only or chapter.name in only]


def _entries(node: Any) -> Iterator[str]:
    """Every `root` and `file` of a table of contents, in reading order."""
    if isinstance(node, list):
        for item in node:
            yield from _entries(item)
    elif isinstance(node, dict):
        yield from (str(node[key]) for key in ("root", "file") if key in node)
        for key in ("parts", "chapters", "sections"):
            yield from _entries(node.get(key, []))


def read(path: Path) -> NotebookNode:
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, nbformat.reader.NotJSONError) as error:
        raise UserError(f"{path.name}: not a notebook that can be read ({error})") from None


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The code cells that hold code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def parameters(notebook: NotebookNode, chapter: str) -> dict[str, Parameter]:
    """The parameters that a chapter declares, by name.

    UserError: not exactly one cell tagged `parameters`; a line in it that is not `name: type = literal`; a
    type that papermill's help cannot read (`int | None`: write Optional[int]); or one of the four standard
    ones missing.
    """
    cells = [cell for cell in notebook.cells if "parameters" in tags(cell)]
    if len(cells) != 1:
        raise UserError(f"{chapter}: {len(cells)} cells are tagged 'parameters'; there must be one")
    found = {}
    for statement in ast.parse(cells[0].source).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            continue
        line = ast.unparse(statement)
        try:
            if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
                raise ValueError
            kind, optional = _kind(statement.annotation)
            default = ast.literal_eval(statement.value or ast.Tuple([]))
        except (ValueError, KeyError):
            raise UserError(
                f"{chapter}: {line!r} in the parameters cell must read 'name: type = literal', with a "
                f"type of {', '.join(_KINDS)} or Optional[...] of one"
            ) from None
        found[statement.target.id] = Parameter(statement.target.id, kind, optional, default)
    missing = [name for name in STANDARD if name not in found]
    if missing:
        raise UserError(f"{chapter}: the parameters cell lacks {', '.join(missing)}")
    return found


def _kind(annotation: ast.expr) -> tuple[type, bool]:
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name):
        if annotation.value.id == "Optional":
            return _kind(annotation.slice)[0], True
        return _KINDS[annotation.value.id], False
    if isinstance(annotation, ast.Name):
        return _KINDS[annotation.id], False
    raise ValueError


def unread(notebook: NotebookNode, names: Mapping[str, Any]) -> list[str]:
    """The parameters that no later cell reads: setting one would change nothing."""
    from IPython.core.inputtransformer2 import TransformerManager

    plain = TransformerManager()
    read_names: set[str] = set()
    after = False
    for cell in code_cells(notebook):
        if after and "injected-parameters" not in tags(cell):
            tree = ast.parse(plain.transform_cell(cell.source))
            read_names |= {
                node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
            }
        after = after or "parameters" in tags(cell)
    return [name for name in names if name not in read_names]


def flaws(notebook: NotebookNode) -> list[str]:
    """Why an executed notebook may not be published: errors, cells never run, marks that nbval does not see.
    Empty if it is sound.
    """
    found = []
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type == "code" and cell.source.strip():
            if any(MARK in line and not line.lstrip().startswith("#") for line in cell.source.splitlines()):
                found.append(f"cell {number}: nbval reads {MARK} on a line of its own only")
            errors = [output for output in cell.outputs if output.output_type == "error"]
            if errors:
                found.append(f"cell {number} failed: {errors[0].ename}: {errors[0].evalue}")
            elif cell.execution_count is None:
                found.append(f"cell {number} was never executed")
    return found


def stripped(notebook: NotebookNode) -> list[int]:
    """The cells (from 1) marked as exact whose stored output is missing: nbval would pass them without a
    look.
    """
    return [
        number
        for number, cell in enumerate(notebook.cells, 1)
        if cell.cell_type == "code" and MARK in cell.source and (cell.execution_count is None or not cell.outputs)
    ]


def source_digest(notebook: NotebookNode) -> str:
    """A hash of what was written by hand: cells and their metadata, without outputs."""
    cells = [
        [cell.cell_type, cell.source, {k: v for k, v in cell.metadata.items() if k in ("tags", "mystnb")}]
        for cell in notebook.cells
    ]
    return digest(cells)


def tree_digest(paths: Iterator[Path] | list[Path], root: Path) -> str:
    """A hash of files' names and contents."""
    return digest(
        [
            [path.relative_to(root).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()]
            for path in sorted(paths)
            if path.is_file()
        ]
    )


def digest(value: Any) -> str:
    default = dataclasses.asdict if dataclasses.is_dataclass(value) else str
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=default).encode()).hexdigest()
