"""An interactive table of amputations for the rendered page: every choice is counted here, the page only looks it up.

The page needs no network and no library. With scripts off it still shows its first choice. Its style and its script are
`explorer.css` and `explorer.js`.
"""

from __future__ import annotations

import dataclasses
import html
import itertools
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any, get_args

from kdcdiff.book import unet_diagram
from kdcdiff.models import complexity, surgery
from kdcdiff.models.configs import CONFIGS
from kdcdiff.models.macs import Count
from kdcdiff.models.variants import VARIANTS, Innermost, Variant, variant

HEADINGS = {  # of the figures of a choice: whether they are counted in billions
    "U-Net parameters": False,
    "fvcore GMac": True,
    "thop GMac": True,
    "GMac with attention products": True,
    "tensors carried over": False,
}
INNERMOST = dict(
    zip(get_args(Innermost), ("DownBlock2D and UpBlock2D kept", "DownBlock2D removed", "both removed"), strict=True)
)


def choices(stages: int = 4) -> list[Variant]:
    """List what the page offers: a pair less in any stages, the innermost stages three ways, the middle or not."""
    made = []
    for fewer, innermost, mid in itertools.product(
        itertools.product((0, 1), repeat=stages), get_args(Innermost), (True, False)
    ):
        if innermost == "kept" or fewer[-1] == 0:  # a stage that is gone has no pair to lose
            cut = Variant("choice", "", fewer, innermost, mid)
            made.append(dataclasses.replace(cut, name=key_of(cut, stages)))
    return made


def key_of(cut: Variant, stages: int) -> str:
    """Name a choice as the page does: `0110k-` has a pair less in its two middle stages, and no mid stage."""
    return "".join(map(str, fewer_pairs(cut, stages))) + cut.innermost[0] + ("m" if cut.mid else "-")


def fewer_pairs(cut: Variant, stages: int) -> tuple[int, ...]:
    """Say how many pairs each stage loses; an innermost stage that is gone has none to lose."""
    fewer = (cut.fewer_pairs,) * stages if isinstance(cut.fewer_pairs, int) else cut.fewer_pairs
    return tuple(fewer) if cut.innermost == "kept" else (*fewer[:-1], 0)


def layer_counts(config: Mapping[str, Any]) -> dict[bool, dict[str, Count]]:
    """Count each layer, where the innermost stages are kept (True) and where both are gone (False).

    A layer's input does not depend on what else is removed, except that the middle moves to the resolution of the stage
    before: two countings serve every choice.
    """
    found = {}
    for kept, what in ((True, "original"), (False, "down-up-removed")):
        net = surgery.on_meta(surgery.student_config(config, what))
        size = surgery.with_defaults(config)["sample_size"]
        counts = complexity.count_parts(net, complexity.meta_inputs(net, size), fine=True)
        names = {surgery.layer_of(s): surgery.layer_of(t) for s, t in surgery.weight_map(config, what).items()}
        found[kept] = {names[name]: c for name, c in counts.items()}
    return found


def total(config: Mapping[str, Any], cut: Variant, counts: Mapping[bool, Mapping[str, Count]]) -> Count:
    """Add a student's count up from its layers."""
    table = counts[cut.innermost != "both removed"]
    return sum((table[name] for name, stays in surgery.layers_kept(config, cut).items() if stays), Count())


def table(config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Make what the page looks up: for each choice its figures, its name if it has one, and a mark for each layer."""
    config = CONFIGS["sd-1"] if config is None else config
    stages = len(surgery.with_defaults(config)["block_out_channels"])
    counts = layer_counts(config)
    known: dict[str, list[str]] = {}
    for name, named in VARIANTS.items():
        known.setdefault(key_of(named, stages), []).append(name)
    rows = {}
    for cut in choices(stages):
        c = total(config, cut, counts)
        marks = "".join("1" if stays else "0" for stays in surgery.layers_kept(config, cut).values())
        tensors = len(surgery.weight_map(config, cut))
        names = ", ".join(known.get(cut.name, []))
        rows[cut.name] = [c.parameters, c.macs["fvcore"], c.macs["thop"], c.macs["all"], tensors, names, marks]
    return {
        "layers": list(surgery.layers_kept(config, "original")),
        "rows": rows,
        "stages": stages,
        "whole": key_of(VARIANTS["original"], stages),
        "giga": [place for place, billions in enumerate(HEADINGS.values()) if billions],
    }


def page(start: str = "kdc-described", config: Mapping[str, Any] | None = None) -> str:
    """Write the explorer as one piece of HTML, its style, its data and its script inside."""
    data = table(config)
    stages, cut = data["stages"], variant(start)
    fewer, first = fewer_pairs(cut, stages), data["rows"][key_of(cut, stages)]
    form = "".join(
        [_input("checkbox", f"p{s}", bool(fewer[s]), f"a pair less in stage {s + 1}") for s in range(stages)]
        + [_input("radio", "kdcx-inner", word == cut.innermost, said, word[0]) for word, said in INNERMOST.items()]
        + [_input("checkbox", "mid", not cut.mid, "the mid stage removed")]
    )
    parts = [
        '<div class="kdcx" role="group" aria-label="What to remove">',
        f"<style>\n{_file('explorer.css')}</style>",
        f"<form>{form}</form>",
        f'<div class="kdcx-net">{_drawing(data["layers"], first[-1], stages)}</div>',
        '<p aria-live="polite" class="kdcx-name"></p>',
        f"<table>{_figures(first, data['rows'][data['whole']])}</table>",
        f'<script type="application/json">{as_data(data)}</script>',
        f"<script>\n{_file('explorer.js')}</script>",
        "</div>",
    ]
    return "".join(parts)


def as_data(value: Any) -> str:
    """Write JSON that no text in it can end the script around it."""
    return json.dumps(value).replace("<", "\\u003c")


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _input(kind: str, name: str, checked: bool, said: str, value: str = "on") -> str:
    mark = " checked" if checked else ""
    return f'<label><input type="{kind}" name="{name}" value="{value}"{mark}> {said}</label>'


def _figures(row: list[Any], whole: list[Any]) -> str:
    """Write the table's first state, for readers without scripts; the script writes the same."""
    lines = ['<tr><th></th><th scope="col">student</th><th scope="col">of the teacher</th></tr>']
    for (heading, billions), figure, all_of_it in zip(HEADINGS.items(), row, whole, strict=False):
        said = f"{figure / 1e9:.3f}" if billions else f"{figure:,}"
        share = f"{100 * figure / all_of_it:.1f} %"
        lines.append(f'<tr><th scope="row">{html.escape(heading)}</th><td>{said}</td><td>{share}</td></tr>')
    return "".join(lines)


def _drawing(layers: list[str], marks: str, stages: int) -> str:
    """Draw rows of boxes: each stage's way down and its way up, then the middle. What is removed is `gone`."""
    place = {name: i for i, name in enumerate(layers)}

    def box(name: str) -> str:
        mark = "" if marks[place[name]] == "1" else "gone"
        return f'<span data-i="{place[name]}" class="{mark}" title="{name}">{unet_diagram.letter(name)}</span>'

    def row(title: str, *blocks: str) -> str:
        drawn = ["".join(map(box, unet_diagram.layers_of(layers, block))) for block in blocks]
        return f"<div><b>{title}</b>" + "".join(f"<i>{boxes}</i>" for boxes in drawn) + "</div>"

    pairs = [(f"stage {s + 1}", f"down_blocks.{s}", f"up_blocks.{stages - 1 - s}") for s in range(stages)]
    return "".join(row(*pair) for pair in pairs) + row("middle", "mid_block")
