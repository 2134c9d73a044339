"""What to remove from a U-Net, as values: the networks of the two papers, and any that a reader writes.

A variant is data. `kdcdiff.models.surgery` derives everything else from it and from the teacher's configuration, and no
variant has code of its own.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
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
        plain = isinstance(self.name, str) and bool(re.fullmatch(r"[\w.-][\w. -]{0,99}", self.name))
        check(plain, "name", self.name, "a name of one line: at most 100 letters, digits, dots, dashes and spaces")
        check(isinstance(self.removed, str), "removed", self.removed, "a clause")
        if not isinstance(pairs, int):
            object.__setattr__(self, "fewer_pairs", numbers)

    @property
    def description(self) -> str:
        """Say what is removed: the author's clause, or one made from the value."""
        pairs = f"R-T pairs per stage: {self.fewer_pairs}" if self.fewer_pairs else ""
        inner = {"kept": "", "down removed": "DownBlock2D", "both removed": "DownBlock2D, UpBlock2D"}[self.innermost]
        mid = "" if self.mid else "the mid stage"
        return self.removed or "; ".join(filter(None, (pairs, inner, mid))) or "nothing"


_PAIRS, _DOWN_UP, _MID = "one R-T pair of every stage", "DownBlock2D and UpBlock2D", "the mid stage"
_BASE = Variant("fewer-pairs", "one R-T pair of every down and up stage", fewer_pairs=1)
_SMALL = Variant("bk-sdm-small", f"{_PAIRS}; {_MID}", fewer_pairs=1, mid=False)
_ALL = (
    Variant("original", "nothing"),
    _BASE,
    replace(_BASE, name="bk-sdm-base"),
    _SMALL,
    Variant("bk-sdm-tiny", f"{_PAIRS}; {_DOWN_UP}; {_MID}", fewer_pairs=1, innermost="both removed", mid=False),
    Variant("mid-removed", _MID, mid=False),
    Variant(
        "down-removed",
        "DownBlock2D, and the layers of UpBlock2D that read its skip connections",
        innermost="down removed",
    ),
    Variant("down-up-removed", _DOWN_UP, innermost="both removed"),
    Variant("kdc-described", f"{_PAIRS}; {_DOWN_UP}", fewer_pairs=1, innermost="both removed"),
    replace(_SMALL, name="kdc-printed"),
)
VARIANTS: dict[str, Variant] = {v.name: v for v in _ALL}
"""The networks of the two papers, under the papers' names: two have two. `kdc-described` is the one that KDC-Diff's
text describes, `kdc-printed` the one whose parameter count its Table 2 prints (BK-SDM-Small's, to the last digit)."""


def variant(what: str | Path | Variant) -> Variant:
    """Read a variant: by name, as a value, or from a JSON file with `Variant`'s fields (its name is the default name).

    Raises `UserError` on an unknown name, a missing file, and fields that are not a variant's.
    """
    if isinstance(what, Variant):
        return what
    if what in VARIANTS:
        return VARIANTS[str(what)]
    path = Path(what)
    allowed = f"one of {', '.join(VARIANTS)}, or a JSON file with a variant's fields"
    check(path.suffix == ".json" and path.is_file(), "variant", str(what), allowed)
    try:
        return Variant(**{"name": path.stem} | json.loads(path.read_text(encoding="utf-8")))
    except UserError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        allowed = "name, removed, fewer_pairs, innermost and mid"
        raise UserError(f"variant={str(what)!r}: a JSON object with some of {allowed} ({error})") from None
