"""Write what the README says of the findings, and its picture, from the committed notebooks.

    python tools/front_page.py          # after `make notebooks`

Figures stand in the notebooks' outputs under the names that the chapters gave them; nothing is run, and none is written
by hand. A test holds the README to it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OPEN, CLOSE = "<!-- findings -->", "<!-- /findings -->"
WIDTH = 118
PICTURE = Path("book/_static/verdicts.svg")
TEXT = (  # a paragraph or an item each; {name:format} is a figure
    "![{said}]({picture})",
    "{total} claims of the two papers, each with a verdict. What the book finds, with 95 % intervals where a figure is "
    "an estimate, on models of about a hundredth of the papers' size:",
    "- **The paper's model is two networks.** One row of its table prints {complexity.kdc-printed.parameters:,.0f} "
    "parameters, which are BK-SDM-Small's, and {complexity.kdc-described.gmac:.2f} GMac, which are those of the "
    "network that its text describes: {complexity.kdc-described.parameters:,.0f} parameters.",
    "- After distillation the described student draws the class asked for in "
    "{student.kdc-described.class_accuracy:.2f} of its images, its teacher in {teacher.class_accuracy:.2f}.",
    "- After as many steps, BK-SDM's base network is at {student.bk-sdm-base.class_accuracy:.2f} with its teacher's "
    "weights and at {student.bk-sdm-base-random.class_accuracy:.2f} without.",
    "- On the same networks, from the same weights, after the same steps on the same batches, KDC-Diff's students draw "
    "the class asked for in {head.accuracy:+.3f} more of their images than BK-SDM's, seed by seed over five seeds; "
    "their distance to the teacher's prediction is smaller by {head.distance:+.4f}. So with BK-SDM's printed weights; "
    "with weights searched for on both sides the same two are {head.tuned.accuracy:+.3f} and "
    "{head.tuned.distance:+.4f}. At printed weights again, on one network and after {head.longer.steps} steps instead "
    "of {head.steps}, they are {head.longer.bk-sdm.accuracy:+.3f} and {head.longer.bk-sdm.distance:+.4f}. On the "
    "garden's teacher, which needs its inner stages, they are {head.garden.bk-sdm.accuracy:+.3f} and "
    "{head.garden.bk-sdm.distance:+.4f} after {head.garden.steps} steps, and {head.garden.bk-sdm-tuned.accuracy:+.3f} "
    "and {head.garden.bk-sdm-tuned.distance:+.4f} beside weights that were searched for.",
    "- Without its mid stage, and without training, the garden's teacher shows all of what it is asked for in "
    "{garden.compliance.alone.mid-removed:.3f} of its pictures, whole in {garden.compliance.alone.original:.3f}; its "
    "FID at infinity is {garden.classifier.mid-removed.fid_infinity:.1f}, whole "
    "{garden.classifier.original.fid_infinity:.1f}.",
    "- With the feature term a student's held-out denoising error changes by {loss.feature.error:.3f}, and the share "
    "of its pictures that show the class asked for by {loss.feature.gain:.2f}, over five paired seeds.",
)


def figures(root: Path) -> dict[str, Any]:
    """Read every figure of the committed notebooks: name -> its value, or an `Estimate` where it has an interval."""
    import nbformat

    from kdcdiff.book import marks

    glued: dict[str, Any] = {}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        glued |= marks.glued(nbformat.read(path, as_version=4))
    return marks.estimates(glued)


def findings(values: Mapping[str, Any]) -> str:
    """Fill the text in: {name:format} is a figure. KeyError: one that no notebook reports."""
    from kdcdiff.book import marks

    counts = marks.tally(values)
    said = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    words: dict[str, Any] = {"said": said, "picture": PICTURE.as_posix(), "total": sum(counts.values())}

    def filled(found: re.Match[str]) -> str:
        value = words[found[1]] if found[1] in words else values[found[1]]
        return format(value if not isinstance(value, str) or not found[2] else float(value), found[2] or "")

    made = [re.sub(r"\{([^{}:]+)(?::([^{}]*))?\}", filled, text) for text in TEXT]
    lines = [made[0], *(fill(text, WIDTH, subsequent_indent="  " * text.startswith("- ")) for text in made[1:])]
    return "\n\n".join([*lines[:2], "\n".join(lines[2:])]) + "\n"


def picture(counts: Mapping[str, int]) -> str:
    """Draw the verdicts as one bar with its list, as SVG that reads on a light ground and on a dark one."""
    from kdcdiff.book.marks import colour

    width, total, left, drawn = 760, sum(counts.values()), 0.0, []
    for place, (name, count) in enumerate((name, count) for name, count in counts.items() if count):
        span, x, y = width * count / total, 8 + 190 * (place % 4), 58 + 24 * (place // 4)
        drawn.append(f'<rect x="{left:.1f}" width="{max(1.0, span - 2):.1f}" height="32" fill="{colour(name)}"/>')
        drawn.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{colour(name)}"/>')
        drawn.append(f'<text x="{x + 18}" y="{y}">{count} {name}</text>')
        left += span
    style = "text { font: 13px sans-serif; fill: #6e7781 }"
    height = 74 + 24 * ((len(drawn) // 3 - 1) // 4)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    return "\n".join([head, f"<style>{style}</style>", *drawn, "</svg>"]) + "\n"


def main() -> int:
    """Bring the README and its picture up to date."""
    from kdcdiff.book import marks

    values = figures(ROOT)
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(OPEN)
    after = rest.partition(CLOSE)[2]
    readme.write_text(f"{before}{OPEN}\n{findings(values)}{CLOSE}{after}")
    (ROOT / PICTURE).write_text(picture(marks.tally(values)))
    print(f"{readme} and {ROOT / PICTURE} say what the notebooks say")
    return 0


if __name__ == "__main__":
    sys.exit(main())
