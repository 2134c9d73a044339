"""Errors that a reader can act on: one line that names the parameter, the value and what is allowed."""

from __future__ import annotations


class UserError(ValueError):
    """Wrong input from outside. The command line prints its one line and exits with 2; a notebook stops on it."""

    def _render_traceback_(self) -> list[str]:
        """Say in one line what is wrong: IPython asks an exception for this before it shows where it was raised."""
        return [f"{type(self).__name__}: {self}"]


def one_line(text: object) -> str:
    """Write `text` on one line, without what would steer a terminal: a file's name may hold anything."""
    joined = " ".join(line.strip() for line in str(text).splitlines() if line.strip())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in joined)


def check(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raise `UserError` as ``name=value: allowed`` unless `ok`."""
    if not ok:
        raise UserError(f"{name}={value!r}: {allowed}")
