"""The drawing and the explorer: both say what the surgery does, and need nothing but themselves."""

import json
import re
import shutil
import subprocess

import kdcdiff  # noqa: F401  (first: it repairs torchvision)
from kdcdiff.book import explorer, unet_diagram
from kdcdiff.models import complexity, surgery
from kdcdiff.models.configs import CONFIGS
from kdcdiff.models.variants import VARIANTS

# isort: split
import matplotlib
import pytest

matplotlib.use("Agg")
SD1 = CONFIGS["sd-1"]
SHOWN = ("fvcore", "thop", "all")


@pytest.fixture(scope="module")
def data():
    return explorer.table()


def row_named(data, name):
    return next(row for row in data["rows"].values() if name in row[5].split(", "))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_named_variant_is_a_choice_with_its_exact_counts(data, name):
    row, cost = row_named(data, name), complexity.count(surgery.student_config(SD1, name))
    assert row[:4] == [cost.parameters, *(cost.macs[c] for c in SHOWN)]
    assert row[4] == len(surgery.weight_map(SD1, name))
    assert row[6].count("1") == sum(surgery.layers_kept(SD1, name).values())


def test_a_choice_without_a_name_counts_exactly_too(data):
    odd = next(v for v in explorer.choices() if v.name == "0110k-")
    cost = complexity.count(surgery.student_config(SD1, odd))
    assert data["rows"][odd.name][:4] == [cost.parameters, *(cost.macs[c] for c in SHOWN)]


def test_the_page_carries_everything_and_fetches_nothing(data, tmp_path):
    page = explorer.page("kdc-described")
    assert "420,423,044" in page and "48.9 %" in page, "it can be read with scripts off"
    assert not re.search(r"https?://|<link|src=", page)
    assert json.dumps(data) in page
    node = shutil.which("node")
    if node:
        (tmp_path / "page.js").write_text(re.search(r"<script>(.*)</script>", page, re.S).group(1))
        subprocess.run([node, "--check", tmp_path / "page.js"], check=True)


def test_what_is_drawn_as_removed_is_what_is_removed():
    figure = unet_diagram.unet("kdc-described")
    dashed = [p for p in figure.axes[0].patches if p.get_linestyle() not in ("-", "solid")]
    gone = [stays for stays in surgery.layers_kept(SD1, "kdc-described").values()].count(False)
    assert len(dashed) == gone > 0
    kept = surgery.layers_kept(SD1, "kdc-described")
    assert unet_diagram.stage_layers(kept, "down_blocks.2") == [
        ("R", True), ("T", True), ("R", False), ("T", False), ("↓", False)
    ]  # fmt: skip
    assert unet_diagram.stage_layers(kept, "mid_block") == [("R", True), ("T", True), ("R", True)]
