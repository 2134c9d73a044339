"""An interactive table of amputations for the rendered page: every choice is counted here, the page only
looks it up.

The page needs no network and no library. With scripts off it still shows its first choice.
"""

from __future__ import annotations

import html
import itertools
import json
from collections.abc import Mapping
from typing import Any, get_args

from kdcdiff.book import unet_diagram
from kdcdiff.models import complexity, surgery
from kdcdiff.models.configs import CONFIGS
from kdcdiff.models.macs import Count
from kdcdiff.models.variants import VARIANTS, Innermost, Variant, variant


def choices(stages: int = 4) -> list[Variant]:
    """Every variant that the page offers: a pair less in any stages, the innermost stages three ways, the
    middle or not.
    """
    made = []
    for fewer, innermost, mid in itertools.product(
        itertools.product((0, 1), repeat=stages), get_args(Innermost), (True, False)
    ):
        if innermost == "kept" or fewer[-1] == 0:  # a stage that is gone has no pair to lose
            made.append(Variant(key_of(fewer, innermost, mid), "", fewer, innermost, mid))
    return made


def key_of(fewer: tuple[int, ...], innermost: str, mid: bool) -> str:
    """The page's name for a choice."""
    return "".join(map(str, fewer)) + innermost[0] + ("m" if mid else "-")


def layer_counts(config: Mapping[str, Any]) -> dict[bool, dict[str, Count]]:
    """Each layer's count, where the innermost stages are kept (True) and where both are gone (False).

    A layer's input does not depend on what else is removed, except that the middle moves to the resolution of
    the stage before: two countings serve every choice.
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
    """A student's count, added up from its layers."""
    table = counts[cut.innermost != "both removed"]
    return sum((table[name] for name, stays in surgery.layers_kept(config, cut).items() if stays), Count())


def table(config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the page looks up: for each choice its counts, its name if it has one, and a mark for each
    layer.
    """
    config = CONFIGS["sd-1"] if config is None else config
    stages = len(surgery.with_defaults(config)["block_out_channels"])
    counts = layer_counts(config)
    known: dict[str, list[str]] = {}
    for name, v in VARIANTS.items():
        fewer = (v.fewer_pairs,) * stages if isinstance(v.fewer_pairs, int) else v.fewer_pairs
        fewer = (*fewer[:-1], 0) if v.innermost != "kept" else fewer
        known.setdefault(key_of(fewer, v.innermost, v.mid), []).append(name)
    rows = {}
    for cut in choices(stages):
        c = total(config, cut, counts)
        marks = "".join("1" if stays else "0" for stays in surgery.layers_kept(config, cut).values())
        tensors = len(surgery.weight_map(config, cut))
        rows[cut.name] = [
            c.parameters,
            c.macs["fvcore"],
            c.macs["thop"],
            c.macs["all"],
            tensors,
            ", ".join(known.get(cut.name, [])),
            marks,
        ]
    return {"layers": list(surgery.layers_kept(config, "original")), "rows": rows, "stages": stages}


def page(start: str = "kdc-described", config: Mapping[str, Any] | None = None) -> str:
    """The explorer as one piece of HTML, style and script inside."""
    data = table(config)
    stages, cut = data["stages"], variant(start)
    fewer = (cut.fewer_pairs,) * stages if isinstance(cut.fewer_pairs, int) else cut.fewer_pairs
    fewer = (*fewer[:-1], 0) if cut.innermost != "kept" else fewer
    first = key_of(fewer, cut.innermost, cut.mid)
    whole = key_of((0,) * stages, "kept", True)
    inner = zip(
        get_args(Innermost),
        ("DownBlock2D and UpBlock2D kept", "DownBlock2D removed", "both removed"),
        strict=True,
    )
    form = "".join(
        [_input("checkbox", f"p{s}", bool(fewer[s]), f"a pair less in stage {s + 1}") for s in range(stages)]
        + [_input("radio", "kdcx-inner", word == cut.innermost, said, word[0]) for word, said in inner]
        + [_input("checkbox", "mid", not cut.mid, "the mid stage removed")]
    )
    script = SCRIPT.replace("DATA", json.dumps(data)).replace("WHOLE", json.dumps(whole))
    drawing = _drawing(data["layers"], data["rows"][first][-1], stages)
    figures = "".join(f"<tr><th>{html.escape(t)}</th><td></td><td></td></tr>" for t in HEADINGS)
    filled = _fill(figures, data["rows"][first], data["rows"][whole])
    return (f'<div class="kdcx" role="group" aria-label="What to remove">{STYLE}<form>{form}</form>'
            f'<div class="kdcx-net">{drawing}</div><p aria-live="polite" class="kdcx-name"></p>'
            f'<table><tr><th></th><th>student</th><th>of the teacher</th></tr>{filled}</table>'
            f'{script}</div>')  # fmt: skip


def _input(kind: str, name: str, checked: bool, said: str, value: str = "on") -> str:
    mark = " checked" if checked else ""
    return f'<label><input type="{kind}" name="{name}" value="{value}"{mark}> {said}</label>'


HEADINGS = (
    "U-Net parameters",
    "fvcore GMAC",
    "thop GMAC",
    "GMAC with attention products",
    "tensors carried over",
)


def _fill(figures: str, row: list[Any], whole: list[Any]) -> str:
    """The table's first state, for readers without scripts; the script writes the same."""
    for i in range(len(HEADINGS)):
        said = f"{row[i] / 1e9:.3f}" if i in (1, 2, 3) else f"{row[i]:,}"
        figures = figures.replace("<td></td><td></td>", f"<td>{said}</td><td>{100 * row[i] / whole[i]:.1f} %</td>", 1)
    return figures


def _drawing(layers: list[str], marks: str, stages: int) -> str:
    """Rows of boxes: each stage's way down and its way up, then the middle."""
    kept = dict(zip(layers, (m == "1" for m in marks), strict=True))
    place = {name: i for i, name in enumerate(layers)}

    def boxes(stage: str) -> str:
        names = [n for n in layers if n.startswith(stage + ".")]
        order = {"resnets": 0, "attentions": 1}  # R0 T0 R1 T1 ..., then the sampler
        parts = {n: n.split(".") for n in names}
        names.sort(key=lambda n: (parts[n][-2] not in order, int(parts[n][-1]), order.get(parts[n][-2], 2)))
        return "".join(box(n) for n in names)

    def box(name: str) -> str:
        mark, letter = "" if kept[name] else "gone", unet_diagram.KINDS[name.split(".")[-2]]
        return f'<span data-i="{place[name]}" class="{mark}" title="{name}">{letter}</span>'

    rows = "".join(
        f"<div><b>stage {s + 1}</b><i>{boxes(f'down_blocks.{s}')}</i>"
        f"<i>{boxes(f'up_blocks.{stages - 1 - s}')}</i></div>"
        for s in range(stages)
    )
    return rows + f"<div><b>middle</b><i>{boxes('mid_block')}</i></div>"


STYLE = """<style>
.kdcx{border:1px solid #8884;border-radius:.4rem;padding:.8rem;font-size:.9rem}
.kdcx form{display:grid;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr));gap:.15rem .8rem}
.kdcx-net{margin:.7rem 0}.kdcx-net div{display:flex;gap:1rem;align-items:center;margin:.15rem 0}
.kdcx-net b{width:4.5rem;font-weight:normal}.kdcx-net
i{display:flex;gap:.2rem;min-width:12.5rem;font-style:normal} .kdcx-net
span{width:1.5rem;height:1.5rem;line-height:1.5rem;text-align:center;border:1px solid
#8888;border-radius:.25rem} .kdcx-net span:not(.gone){background:#33658a;color:#fff} .kdcx-net
# span.gone{border:1.5px dashed #c1121f;color:#c1121f}
.kdcx td{text-align:right;font-variant-numeric:tabular-nums}
</style>"""
SCRIPT = """<script>
(function(){
const
box=document.currentScript.closest(".kdcx"),data=DATA,whole=data.rows[WHOLE],form=box.querySelector("form");
const count=n=>n.toLocaleString("en-US"),giga=n=>(n/1e9).toFixed(3); function show(){
 const inner=form.querySelector("input[type=radio]:checked").value;
 const last=form.elements["p"+(data.stages-1)];last.disabled=inner!=="k";
 let key="";for(let s=0;s<data.stages;s++){const c=form.elements["p"+s];key+=c.checked&&!c.disabled?"1":"0";}
 key+=inner+(form.elements["mid"].checked?"-":"m");
 const row=data.rows[key],cells=box.querySelectorAll("td");
 for(let i=0;i<5;i++){cells[2*i].textContent=i>0&&i<4?giga(row[i]):count(row[i]);
  cells[2*i+1].textContent=(100*row[i]/whole[i]).toFixed(1)+" %";}
 box.querySelector(".kdcx-name").textContent=row[5]?"This is "+row[5]+".":"No paper has named this one.";
 box.querySelectorAll("span[data-i]").forEach(e=>e.classList.toggle("gone",row[6][+e.dataset.i]==="0"));
}
form.addEventListener("change",show);show();
})();
</script>"""
