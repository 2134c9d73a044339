"""What options take: numbers in their ranges, paths, pipelines, data sets and devices; one vocabulary for all commands.

Whatever can be refused is refused here, while the command line is read and before torch is imported.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from kdcdiff.data import names
from kdcdiff.errors import UserError, check
from kdcdiff.models import variants
from kdcdiff.models.shipped import find_pipeline
from kdcdiff.process import DEVICES, use_device

Type = Callable[[str], Any]  # of an option: its words -> its value
DATASETS = f"{', '.join(names.DATASETS)} or an image folder with train and test"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as any other wrong input's."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))


def _number(kind: type, ok: Callable[[Any], bool], allowed: str) -> Type:
    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not ok(value):
            raise argparse.ArgumentTypeError(f"must be {allowed}, not {text!r}")
        return value

    return read


def whole(least: int, most: int | None = None) -> Type:
    """Take a whole number from `least`, up to `most` where there is one."""
    allowed = f"a whole number from {least}" + (f" to {most}" if most is not None else "")
    return _number(int, lambda n: least <= n and (most is None or n <= most), allowed)


positive = _number(float, lambda x: 0 < x < float("inf"), "a number above 0")
weight = _number(float, lambda x: 0 <= x < float("inf"), "a number from 0")
fraction = _number(float, lambda x: 0 <= x <= 1, "a number from 0 to 1")
decay = _number(float, lambda x: 0 <= x < 1, "a number from 0, below 1")
seed = whole(0, 2**31 - 1)


def one_of(*names: str) -> Type:
    """Take one of `names`."""
    return _number(str, lambda name: name in names, f"one of {', '.join(names)}")


def refusing(read: Callable[[str], Any]) -> Type:
    """Make an argument type of a function that raises UserError."""

    def checked(text: str) -> Any:
        try:
            return read(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


@refusing
def new_path(text: str) -> Path:
    """Take a path that does not exist yet."""
    check(not Path(text).exists(), "path", text, "must not exist yet")
    return Path(text)


@refusing
def folder(text: str) -> Path:
    """Take an existing folder of images."""
    check(Path(text).expanduser().is_dir(), "folder", text, "must be a folder of images")
    return Path(text)


@refusing
def pipeline(text: str) -> str:
    """Take a pipeline's name, folder or hub id."""
    find_pipeline(text)
    return text


@refusing
def unet(text: str) -> str:
    """Take what `pipeline` takes, and a U-Net alone."""
    find_pipeline(text, unet=True)
    return text


variant = refusing(variants.variant)
dataset = refusing(names.checked_dataset)


def add_resolution(parser: argparse.ArgumentParser, what: str, default: str) -> None:
    """Add ``--resolution``, the side of `what` in pixels; left out it is `default`."""
    parser.add_argument("--resolution", type=whole(8), metavar="PIXELS", help=f"side of {what} (default: {default})")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, which `device_of` reads."""
    parser.add_argument("--device", type=one_of(*DEVICES), help="cpu or cuda (default: the GPU where there is one)")


def device_of(args: argparse.Namespace) -> str:
    """Return the device to place models on: ``--device``, or the GPU where there is one. UserError: no GPU here."""
    return use_device(args.device)
