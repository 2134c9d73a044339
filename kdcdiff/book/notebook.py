"""A notebook as data: what parameters it takes, whether their values are used, whether it is sound. Nothing is run."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from kdcdiff.errors import UserError, check
from kdcdiff.store import sha256_file

STANDARD = ("profile", "dataset", "seed", "artifacts")  # what every chapter takes
INJECTED = "# Parameters\n"  # how the cell begins that papermill puts behind the parameters cell
MARK = "NBVAL_CHECK_OUTPUT"  # a cell whose output is exact on any machine
PACKAGE = Path(__file__).resolve().parent.parent
USERS = ("experiments", "book")  # the packages that put a profile's sizes to use
_KINDS: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict}


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's parameters cell."""

    name: str
    kind: type
    optional: bool  # None is allowed
    default: Any

    def parse(self, value: Any, chapter: str) -> Any:
        """Return `value`, perhaps text from a command line, as this parameter's type, or raise UserError."""
        words = self.kind.__name__ + (" or None" if self.optional else "")
        if self.optional and (value is None or str(value).lower() in ("none", "null", "")):
            return None
        if isinstance(value, str) and self.kind is not str:
            text = {"true": "True", "false": "False"}.get(value.lower(), value)
            try:
                value = float(text) if self.kind is float else ast.literal_eval(text)
            except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
                raise UserError(f"{self.name}={value!r}: {chapter} takes {words} here") from None
        if self.kind is float and type(value) is int:
            value = float(value)
        check(type(value) is self.kind, self.name, value, f"{chapter} takes {words} here")
        return value


def read(path: Path) -> NotebookNode:
    """Read a notebook. UserError: it is none, or cannot be read."""
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat fails in many ways on what is no notebook
        raise UserError(f"{path.name}: not a notebook that can be read ({str(error)[:200]})") from None


def is_committed(notebook: NotebookNode) -> bool:
    """Tell a chapter as it is committed, with the outputs on record, from a copy that was executed here."""
    return not {"papermill", "kdcdiff"} & notebook.metadata.keys()


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """List the code cells that hold code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def parameters(notebook: NotebookNode, chapter: str) -> dict[str, Parameter]:
    """Read the parameters that a chapter declares, by name.

    UserError: not exactly one cell tagged `parameters`; a line in it that is not `name: type = literal`; a type that
    papermill's help cannot read (`int | None`: write Optional[int]); or one of the four standard ones missing.
    """
    cells = [cell for cell in notebook.cells if "parameters" in tags(cell)]
    if len(cells) != 1:
        raise UserError(f"{chapter}: {len(cells)} cells are tagged 'parameters'; there must be one")
    found = {}
    for statement in _parsed(cells[0].source, chapter).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            continue
        try:
            if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
                raise ValueError
            kind, optional = _kind(statement.annotation)
            default = ast.literal_eval(statement.value or ast.Tuple([]))
        except (ValueError, KeyError):
            raise UserError(
                f"{chapter}: {ast.unparse(statement)!r} in the parameters cell must read 'name: type = literal', with "
                f"a type of {', '.join(_KINDS)} or Optional[...] of one"
            ) from None
        found[statement.target.id] = Parameter(statement.target.id, kind, optional, default)
    missing = [name for name in STANDARD if name not in found]
    if missing:
        raise UserError(f"{chapter}: the parameters cell lacks {', '.join(missing)}")
    return found


def _parsed(source: str, chapter: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UserError(f"{chapter}: the parameters cell cannot be read as Python ({error})") from None


def _kind(annotation: ast.expr) -> tuple[type, bool]:
    """The type that an annotation names, and whether None is one of its values."""
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name):
        if annotation.value.id == "Optional":
            return _kind(annotation.slice)[0], True
        return _KINDS[annotation.value.id], False
    if isinstance(annotation, ast.Name):
        return _KINDS[annotation.id], False
    raise ValueError


def strays(cells: Iterable[str]) -> tuple[list[str], list[str]]:
    """List the names that papermill has injected and no cell before it declares, and those that are declared.

    `cells` are the sources executed so far. papermill itself injects a name that a notebook does not know, warns in its
    log, and goes on.
    """
    declared: list[str] = []
    for source in cells:
        try:
            body = ast.parse(source).body
        except SyntaxError:
            continue
        targets = [s.targets[0] if isinstance(s, ast.Assign) else getattr(s, "target", None) for s in body]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        if source.startswith(INJECTED):
            return [name for name in names if name not in declared], declared
        declared += names
    return [], declared


def unread(notebook: NotebookNode, names: Iterable[str]) -> list[str]:
    """List the parameters whose value is put to no use: setting one would change nothing.

    A later cell that reads a parameter uses it, but `open_chapter(..., steps=steps)` only hands it on, as the
    profile's size of that name; so that size must be read in turn, in a later cell or in the library.
    """
    tree = code_after_parameters(notebook)
    sizes = sizes_read(tree) | sizes_of_library()
    idle: set[ast.AST] = set()  # what is handed on to nobody
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1] == "open_chapter":
            for passed in call.keywords:
                if passed.arg and passed.arg not in {*STANDARD, *sizes}:
                    idle |= set(ast.walk(passed.value))
    loaded = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node not in idle
    }
    return [name for name in names if name not in loaded]


def code_after_parameters(notebook: NotebookNode) -> ast.Module:
    """Parse the code of all cells that follow the parameters, line magics included."""
    from IPython.core.inputtransformer2 import TransformerManager

    cells = code_cells(notebook)
    first = next((place for place, cell in enumerate(cells) if "parameters" in tags(cell)), len(cells))
    later = [cell.source for cell in cells[first + 1 :] if "injected-parameters" not in tags(cell)]
    return ast.parse("\n".join(TransformerManager().transform_cell(source) for source in later))


def sizes_read(tree: ast.AST) -> set[str]:
    """Collect the sizes that code reads off a profile: `run.profile.steps`, or `p.steps` after `p = run.profile`."""
    profiles: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation and ast.unparse(node.annotation).endswith("Profile"):
            profiles.add(node.arg)
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=False))
                profiles |= {name.id for name, value in pairs if isinstance(name, ast.Name) and _is_profile(value)}
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Load)
        and (_is_profile(node.value) or (isinstance(node.value, ast.Name) and node.value.id in profiles))
    }


def _is_profile(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "profile"


@lru_cache(maxsize=1)
def sizes_of_library() -> frozenset[str]:
    """Collect the sizes of a profile that the library itself reads."""
    files = [path for package in USERS for path in sorted((PACKAGE / package).glob("*.py"))]
    return frozenset(name for path in files for name in sizes_read(ast.parse(path.read_text())))


def flaws(notebook: NotebookNode) -> list[str]:
    """Say why an executed notebook may not be published: errors, cells never run, marks that nbval does not see."""
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
    """List the cells (from 1) marked as exact that lack their output: nbval would pass them without a look."""
    return [
        number
        for number, cell in enumerate(notebook.cells, 1)
        if cell.cell_type == "code" and MARK in cell.source and (cell.execution_count is None or not cell.outputs)
    ]


def source_digest(notebook: NotebookNode) -> str:
    """Hash what was written by hand: cells and their metadata, without outputs."""
    kept = ("tags", "mystnb")
    return digest(
        [
            [cell.cell_type, cell.source, {key: value for key, value in cell.metadata.items() if key in kept}]
            for cell in notebook.cells
        ]
    )


def tree_digest(paths: Iterable[Path], root: Path) -> str:
    """Hash files' names, relative to `root`, and contents."""
    files = [path for path in sorted(paths) if path.is_file()]
    return digest([[path.relative_to(root).as_posix(), sha256_file(path)] for path in files])


def digest(value: Any) -> str:
    """Hash anything that JSON can say; what it cannot goes in as text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
