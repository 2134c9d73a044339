"""What is light to import stays light: no feature network's library comes with it."""

import subprocess
import sys

HEAVY = ("diffusers", "lpips", "torch_fidelity", "torchmetrics", "transformers")
LIGHT = ("accuracy", "estimate", "extractors", "forgetting")


def test_light_rooms_load_no_heavy_library():
    code = "import sys\n" + "".join(f"import kdcdiff.metrics.{name}\n" for name in LIGHT)
    code += f"print([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
