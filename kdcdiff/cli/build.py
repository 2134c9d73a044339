"""`kdcdiff build`: render the executed chapters."""

from __future__ import annotations

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", default=".", help="the book's folder (default: the working folder)")
    said = "render what there is into _build/draft, with a banner on every page that says what is wrong with it"
    parser.add_argument("--draft", action="store_true", help=said)
    said = "html: the pages (the default); singlehtml: all on one page, to be printed; linkcheck: ask for every link"
    parser.add_argument("--builder", choices=("html", "singlehtml", "linkcheck"), default="html", help=said)


def run(args: argparse.Namespace) -> int:
    from kdcdiff.book.render import BuildFailed, build

    try:
        build(args.root, draft=args.draft, builder=args.builder)
    except BuildFailed as failure:
        print(f"failed: {failure}", file=sys.stderr)
        return 1
    return 0
