"""The slider of pictures: a frame is where the style looks for it, and what cannot be laid out is refused."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from PIL import Image

from kdcdiff.book.slider import slider
from kdcdiff.errors import UserError


def pictures(level: int, groups: int = 2) -> torch.Tensor:
    """Groups of one grey level, 10 brighter from one group to the next."""
    grey = torch.arange(groups, dtype=torch.uint8) * 10 + level
    return grey[:, None, None, None].expand(groups, 3, 16, 16).contiguous()


def made():
    frames = {f"{step} steps": {"teacher": pictures(20), "student": pictures(100 + step)} for step in (0, 40, 80)}
    return slider(frames, ["daisy", "rose & co"], along="training")


def test_every_picture_lies_on_the_sheet_where_the_style_looks_for_it():
    page = BeautifulSoup(made()._repr_html_(), "html.parser")
    sheet = re.search(r"base64,([^)]*)\)", page.select_one(".kdcs-sheet")["style"])[1]
    grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet))).convert("L")).astype(int)
    assert grey.shape == (3 * 16, 4 * 16)
    cells = {cell["aria-label"]: int(cell["style"].removeprefix("--at: ")) for cell in page.select("i[role=img]")}
    assert cells == {"daisy, teacher": 0, "daisy, student": 1, "rose & co, teacher": 2, "rose & co, student": 3}
    for frame, step in enumerate((0, 40, 80)):
        row = [grey[16 * frame + 8, 16 * at + 8] for at in range(4)]
        assert np.abs(np.array(row) - (20, 100 + step, 30, 110 + step)).max() <= 3, "as JPEG keeps it"


def test_it_stands_at_its_last_frame_and_names_them_all():
    page = BeautifulSoup(made()._repr_html_(), "html.parser")
    box, handle = page.select_one(".kdcs"), page.select_one("input[type=range]")
    assert box["data-labels"].split("|") == ["0 steps", "40 steps", "80 steps"]
    assert (handle["min"], handle["max"], handle["value"], handle["aria-valuetext"]) == ("0", "2", "2", "80 steps")
    assert "--frame: 2" in box["style"] and page.select_one("output").text == "80 steps"
    assert handle.find_parent("label").get_text(strip=True) == "training"
    assert repr(made()) == "Pictures along training: 0 steps, 40 steps, 80 steps; 2 groups of teacher, student"


@pytest.mark.parametrize(
    "frames", [{}, {"a": {"x": pictures(0)}, "b": {"y": pictures(0)}}, {"a": {"x": pictures(0, 3)}}]
)
def test_frames_that_do_not_fit_are_refused(frames):
    with pytest.raises(UserError):
        slider(frames, ["daisy", "rose"], along="training")
