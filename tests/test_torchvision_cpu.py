"""torchvision beside a torch of another build, whichever library comes first."""

import os
import subprocess
import sys
import venv

import pytest

from .imports import REPO

TOOL = REPO / "tools" / "torchvision_cpu.py"


def python(code: str) -> str:
    """What a fresh process prints that runs `code`, the tool importable."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPO), str(TOOL.parent)])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("first", ["torchvision", "lpips", "torch, torchmetrics.image.fid"])
def test_torchvision_can_be_imported_first_in_a_fresh_process(first):
    """`make setup` has seen to it, and no line of the library."""
    assert "nms" in python(f"import {first}\nimport torchvision, torch\nprint(torch.ops.torchvision.nms)")


def test_waiting_for_torchvision_imports_nothing():
    code = "import sys, importlib.util as u, torchvision_cpu; u.find_spec('torchvision'); print('torch' in sys.modules)"
    assert python(code) == "False\n"


def test_where_the_operators_exist_nothing_is_declared():
    code = """
import torch, torchvision_cpu
library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
print(torchvision_cpu.declare_missing([]), torchvision_cpu._declared)
"""
    assert python(code) == "False []\n"


def test_two_finders_that_ask_each_other_come_to_an_end():
    code = """
import sys, importlib.util, torchvision_cpu
sys.meta_path[:0] = [torchvision_cpu.TorchvisionFinder(), torchvision_cpu.TorchvisionFinder()]
print(importlib.util.find_spec("torchvision").name)
"""
    assert python(code) == "torchvision\n"


def test_it_installs_itself_once_and_holds_from_every_start(tmp_path):
    venv.create(tmp_path, with_pip=False)
    command, clean = tmp_path / "bin" / "python", {**os.environ, "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
    for _ in range(2):
        said = subprocess.run([command, TOOL], env=clean, capture_output=True, text=True, check=True).stdout
        assert said.count("\n") == 1 and "torchvision_cpu.pth" in said
    code = "import sys; print([type(finder).__name__ for finder in sys.meta_path].count('TorchvisionFinder'))"
    done = subprocess.run([command, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("1\n", "")
    found = sorted(path.name for path in tmp_path.rglob("*torchvision*"))
    assert found == ["torchvision_cpu.pth", "torchvision_cpu.py"]
