"""Lets torchvision be imported next to a torch of another build (a CPU torch beside a CUDA torchvision).

There torchvision's compiled library does not load, and its import stops with "operator torchvision::nms does
not exist", and with it lpips, torch-fidelity, torchmetrics' image metrics and transformers' image code.
Declaring the schemas of the two operators it mentions while it is being imported is enough: nothing here
calls them.

`install` puts a finder in front of the import system that waits for torchvision and for nothing else, so
torch is not imported before torchvision is. `kdcdiff-torchvision.pth`, shipped beside the package, calls it
when Python starts: that way it holds in every process and notebook kernel, whichever library comes first.
Where the builds match, the compiled library loads and nothing is declared.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # typing itself would cost every Python start 10 ms
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

OPERATORS = ("nms", "qnms")
_declared: list[Any] = []  # a torch Library withdraws its declarations when it is collected: keep it


class _TorchvisionFinder:
    """A meta path finder that wraps the loader of `torchvision`, once."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                _declare_before(spec)
                return spec
        return None


def _declare_before(spec: ModuleSpec) -> None:
    loader: Any = spec.loader
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        declare_missing(list(spec.submodule_search_locations or []))
        execute(module)

    loader.exec_module = exec_module


def declare_missing(folders: list[str]) -> bool:
    """Declare torchvision's operators unless its library, looked for in `folders`, loads. True where it was
    needed.
    """
    from pathlib import Path

    import torch

    for folder in folders:
        for library in sorted(Path(folder).glob("_C*.so")) + sorted(Path(folder).glob("_C*.pyd")):
            try:
                torch.ops.load_library(library)
                return False
            except OSError:
                continue
    if _declared or any(name.startswith("torchvision::nms") for name in torch._C._dispatch_get_all_op_names()):
        return False
    schemas = torch.library.Library("torchvision", "DEF")
    for operator in OPERATORS:
        schemas.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(schemas)
    return True


def install() -> None:
    """Wait for torchvision's import; nothing where it has been imported or is already waited for."""
    waiting = any(isinstance(finder, _TorchvisionFinder) for finder in sys.meta_path)
    if not waiting and "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _TorchvisionFinder())
