"""The command line: each subcommand lives in its room, and the room is imported only when the command is
asked for.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from kdcdiff import __version__
from kdcdiff.allocator import keep_memory
from kdcdiff.errors import UserError

COMMANDS = {  # subcommand -> (the room whose add_parser registers it, what it does)
    "run": ("kdcdiff.runner", "execute the chapters into _build/staged"),
    "build": ("kdcdiff.render", "render the executed chapters to _build/html"),
    "claims": ("kdcdiff.claims.command", "the papers' claims and their verdicts"),
    "complexity": ("kdcdiff.complexity", "parameters, MACs, latency and memory of a U-Net"),
    "shrink": ("kdcdiff.students", "cut a teacher down to a student"),
    "distill": ("kdcdiff.distill", "train a student with the total loss"),
    "evaluate": ("kdcdiff.evaluation", "measure a pipeline's pictures against real ones"),
    "pretrain": ("kdcdiff.pretrain", "train the small pipeline that the project ships"),
}


def parser_for(command: str | None) -> argparse.ArgumentParser:
    """The parser with `command`'s own options, or, for None, with the bare list of commands."""
    parser = argparse.ArgumentParser(prog="kdcdiff", description="Distilled diffusion models, reproduced and audited.")
    parser.add_argument("--version", action="version", version=f"kdcdiff {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (room, summary) in COMMANDS.items():
        if name == command:
            importlib.import_module(room).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary, add_help=False)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Wrong input prints one line and gives 2, an interruption 130."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = next((word for word in words if word in COMMANDS), None)
    keep_memory()
    try:
        args = parser_for(command).parse_args(words)
        return int(args.run(args) or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; finished stages are kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
