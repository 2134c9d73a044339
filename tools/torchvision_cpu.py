"""Lets torchvision be imported next to a torch of another build (a CPU torch beside a CUDA torchvision).

There torchvision's compiled library does not load, and its import stops with "operator torchvision::nms does not
exist", and with it lpips, torch-fidelity, torchmetrics' image metrics and transformers' image code. Declaring the
schemas of the two operators that it mentions while it is being imported is enough: nothing here calls them.

    python tools/torchvision_cpu.py

copies this file into that interpreter's environment, with a `.pth` that imports it whenever Python starts: so it holds
in every process and notebook kernel, whichever library comes first. This is for a development environment, and no part
of the package: an environment whose torch and torchvision come from one index has no need of it, and where their builds
match, the compiled library loads and nothing is declared. To undo it, delete the two files that it names.
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


class TorchvisionFinder:
    """A meta path finder that waits for `torchvision` and nothing else, and wraps its loader."""

    searching = False  # while the other finders are asked: one of them may ask this one again

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find `torchvision` as the other finders do, to be declared before it is executed; None for all else."""
        if name != "torchvision" or self.searching:
            return None
        self.searching = True
        try:
            for finder in sys.meta_path:
                spec = None if finder is self else finder.find_spec(name, path, target)
                if spec is not None and spec.loader is not None:
                    _declare_before(spec)
                    return spec
        finally:
            self.searching = False
        return None


def _declare_before(spec: ModuleSpec) -> None:
    loader: Any = spec.loader
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        declare_missing(list(spec.submodule_search_locations or []))
        execute(module)

    loader.exec_module = exec_module


def declare_missing(folders: list[str]) -> bool:
    """Declare torchvision's operators unless its library, looked for in `folders`, loads; True where it was needed."""
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


def wait() -> None:
    """Wait for torchvision's import; nothing where it has been imported or is already waited for."""
    waiting = any(isinstance(finder, TorchvisionFinder) for finder in sys.meta_path)
    if not waiting and "torchvision" not in sys.modules:
        sys.meta_path.insert(0, TorchvisionFinder())


def install(folder: str | None = None) -> tuple[str, str]:
    """Copy this file into `folder` (this interpreter's site-packages) as a module that every start imports.

    Returns the paths of the module and of its `.pth`. Each is replaced in one step, since another process may start at
    any moment, and the module comes first.
    """
    import os
    import sysconfig
    from pathlib import Path

    home = Path(folder or sysconfig.get_path("purelib"))
    module = home / Path(__file__).name
    for path, text in ((module, Path(__file__).read_text()), (module.with_suffix(".pth"), f"import {module.stem}\n")):
        whole = path.with_suffix(".new")
        whole.write_text(text)
        os.replace(whole, path)
    return str(module), str(module.with_suffix(".pth"))


if __name__ == "__main__":
    print("torchvision can be imported beside a torch of another build:", *install())
else:
    wait()
