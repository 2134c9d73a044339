"""What to remove from a U-Net, as values: the networks of the two papers, and any that a reader writes.

A variant is data. `kdcdiff.surgery` derives everything else from it and from the teacher's configuration, and
no variant has code of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from kdcdiff.errors import UserError, check

Innermost = Literal["kept", "down removed", "both removed"]


@dataclass(frozen=True)
class Variant:
    """What to remove from a U-Net.

    Write your own in three lines and hand it to any function here, or to the command line as a JSON file:
    `Variant("mine", "two outer stages thinned", fewer_pairs=(1, 1, 0, 0), mid=False)`.
    """

    name: str  # in tables and folders
    removed: str = ""  # one clause for people
    fewer_pairs: int | tuple[int, ...] = 0  # R-T pairs that leave every stage, or each (outermost first)
    innermost: Innermost = "kept"  # DownBlock2D and UpBlock2D, the stages next to the middle
    mid: bool = True  # whether the mid stage stays

    def __post_init__(self) -> None:
        pairs = self.fewer_pairs
        numbers = tuple(pairs) if isinstance(pairs, tuple | list) else (pairs,)
        whole = bool(numbers) and all(type(n) is int and n >= 0 for n in numbers)
        check(whole, "fewer_pairs", pairs, "a whole number from 0, or one per stage")
        choices = get_args(Innermost)
        check(self.innermost in choices, "innermost", self.innermost, f"one of {', '.join(choices)}")
        check(isinstance(self.mid, bool), "mid", self.mid, "true or false")
        check(isinstance(self.name, str) and bool(self.name), "name", self.name, "a name")
        if not isinstance(pairs, int):
            object.__setattr__(self, "fewer_pairs", numbers)

    @property
    def description(self) -> str:
        """What is removed, in words: the author's clause, or one made from the value."""
        pairs = f"R-T pairs per stage: {self.fewer_pairs}" if self.fewer_pairs else ""
        inner = {"kept": "", "down removed": "DownBlock2D", "both removed": "DownBlock2D, UpBlock2D"}[self.innermost]
        mid = "" if self.mid else "the mid stage"
        return self.removed or "; ".join(filter(None, (pairs, inner, mid))) or "nothing"


VARIANTS: dict[str, Variant] = {
    v.name: v
    for v in (
        Variant("original", "nothing"),
        Variant("fewer-pairs", "one R-T pair of every down and up stage", fewer_pairs=1),
        Variant("bk-sdm-base", "one R-T pair of every down and up stage", fewer_pairs=1),
        Variant("bk-sdm-small", "one R-T pair of every stage; the mid stage", fewer_pairs=1, mid=False),
        Variant(
            "bk-sdm-tiny",
            "one R-T pair of every stage; DownBlock2D and UpBlock2D; the mid stage",
            1,
            "both removed",
            mid=False,
        ),
        Variant("mid-removed", "the mid stage", mid=False),
        Variant(
            "down-removed",
            "DownBlock2D, and the layers of UpBlock2D that read its skip connections",
            innermost="down removed",
        ),
        Variant("down-up-removed", "DownBlock2D and UpBlock2D", innermost="both removed"),
        Variant("kdc-described", "one R-T pair of every stage; DownBlock2D and UpBlock2D", 1, "both removed"),
        Variant("kdc-printed", "one R-T pair of every stage; the mid stage", fewer_pairs=1, mid=False),
    )
}
"""The networks of the two papers. `kdc-described` is the one that KDC-Diff's text describes, `kdc-printed`
the one whose parameter count its Table 2 prints (BK-SDM-Small, to the last digit)."""


def variant(what: str | Path | Variant) -> Variant:
    """A variant by name, as a value, or from a JSON file with `Variant`'s fields (the file's name is the
    default name)."""
    if isinstance(what, Variant):
        return what
    if what in VARIANTS:
        return VARIANTS[str(what)]
    path = Path(what)
    allowed = f"one of {', '.join(VARIANTS)}, or a JSON file with a variant's fields"
    check(path.suffix == ".json" and path.is_file(), "variant", str(what), allowed)
    try:
        fields = json.loads(path.read_text())
        pairs = fields.get("fewer_pairs", 0)
        fields["fewer_pairs"] = tuple(pairs) if isinstance(pairs, list) else pairs
        return Variant(**{"name": path.stem} | fields)
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        allowed = "name, removed, fewer_pairs, innermost and mid"
        raise UserError(f"variant={str(what)!r}: a JSON object with some of {allowed} ({error})") from None
