"""What Python files and notebooks import, read from their source; nothing is executed."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).resolve().parent.parent


class Import(NamedTuple):
    """`import module`, or, with a name, `from module import name`; wherever in its file it stands."""

    module: str
    name: str | None

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]


def python_files(*folders: str) -> list[Path]:
    """Every Python file and notebook below the project's `folders`."""
    return sorted(path for folder in folders for path in (REPO / folder).rglob("*") if path.suffix in (".py", ".ipynb"))


def imports_of(path: Path) -> Iterator[Import]:
    """Every absolute import of a file, those inside functions among them."""
    for node in ast.walk(ast.parse(_source(path))):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert node.module is not None
            yield from (Import(node.module, alias.name) for alias in node.names)


def _source(path: Path) -> str:
    if path.suffix == ".py":
        return path.read_text()
    cells = json.loads(path.read_text())["cells"]
    lines = [line.rstrip("\n") for cell in cells if cell["cell_type"] == "code" for line in [*cell["source"], ""]]
    return "\n".join("pass" if line.startswith(("%", "!")) else line for line in lines)
