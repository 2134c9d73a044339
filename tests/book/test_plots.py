"""The figures' makers: what is drawn is what was given."""

import math

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from seaborn.utils import relative_luminance

from kdcdiff.book import plots
from kdcdiff.metrics.estimate import Estimate, as_estimate

matplotlib.use("Agg")


def test_bars_show_estimates_with_their_intervals():
    values = {
        "sure": Estimate(0.5, 0.4, 0.7),
        "at the end": Estimate(1.0, 0.8, 1.0),
        "exact": as_estimate(0.25),
        "a number": 0.75,
        "one seed": Estimate(0.6, -math.inf, math.inf, n=1),
    }
    figure = plots.bars(values, unit="share", limit=(0, 1))
    axis = figure.axes[0]
    assert [bar.get_width() for bar in axis.patches] == [0.5, 1.0, 0.25, 0.75, 0.6]
    assert [label.get_text() for label in axis.get_yticklabels()] == list(values)
    whiskers = [[x for x, _ in segment] for segment in axis.collections[0].get_segments()]
    assert np.array(whiskers[:2]) == pytest.approx(np.array([[0.4, 0.7], [0.8, 1.0]]))
    assert [len(whisker) for whisker in whiskers[2:]] == [0, 0, 0], "where nothing is known, or all"
    assert axis.get_xlim() == (0, 1) and axis.get_xlabel() == "share"
    figure.canvas.draw()


def test_line_art_is_a_vector_and_pictures_are_not():
    lines = plots.bars({"one": 0.5, "two": 0.25}, unit="share")
    drawn = plots.as_svg(lines)
    assert drawn is not None and drawn.lstrip().startswith("<?xml") and drawn == plots.as_svg(lines)
    assert plots.as_svg(plots.picture_grid(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 2)) is None


def test_a_figure_of_very_many_lines_stays_a_picture():
    figure, axis = plt.subplots()
    axis.scatter(*np.random.default_rng(0).random((2, 9000)))
    assert plots.as_svg(figure) is None


def test_a_matrix_s_numbers_can_be_read_on_every_colour():
    values = np.linspace(0, 1, 12).reshape(3, 4)
    values[0, 1] = np.nan
    axis = plots.matrix(values, list("abc"), ["0.25", 100, "long name", 3])
    colours = axis.collections[0].get_facecolor()[~np.isnan(values).ravel()]
    for number, colour in zip(axis.texts, colours, strict=True):
        own, ground = relative_luminance(number.get_color()), relative_luminance(colour)
        assert (max(own, ground) + 0.05) / (min(own, ground) + 0.05) > 4.5, "WCAG 2 AA"
    short = plots.matrix(values, list("abc"), ["0.25", 100, 200, 300])
    turned = [own.get_xticklabels()[0].get_rotation() for own in (axis, short)]
    assert turned == [45, 0], "only what is long is turned"


def test_rank_panels_name_their_axes_once():
    panels = {name: ([1.0, 2.0], [2.0, 1.0], ["pair", "pair"]) for name in "abc"}
    axes = plots.rank_panels(panels, across=2).axes
    assert [axis.get_xlabel() for axis in axes] == ["", "rank in the paper", "rank in the paper", ""]
    assert [axis.get_ylabel() for axis in axes] == ["rank here", "", "rank here", ""]
