"""Errors that a reader can act on: one line that names the parameter, the value and what is allowed."""

from __future__ import annotations


class UserError(ValueError):
    """Wrong input from outside. The command line prints its one line and exits with 2; a notebook stops on it."""

    def _render_traceback_(self) -> list[str]:
        """Say in one line what is wrong: IPython asks an exception for this before it shows where it was raised."""
        return [f"{type(self).__name__}: {self}"]


def one_line(text: object, most: int = 1000) -> str:
    """Write `text` on one line of at most `most` characters, without what would steer a terminal.

    A file's name may hold anything.
    """
    joined = " ".join(line.strip() for line in str(text).splitlines() if line.strip())
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in joined)
    return plain if len(plain) <= most else f"{plain[: most // 2]} ... {plain[5 - most // 2 :]}"


def check(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raise `UserError` as ``name=value: allowed`` unless `ok`."""
    if not ok:
        raise UserError(f"{name}={value!r}: {allowed}")
