"""The command line: a file for each command, imported only when the command is asked for.

Each file has `add_arguments(parser)` and `run(args) -> int`; its first line is the command's description. What is heavy
is imported in `run`, after the command line has been read and checked.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from kdcdiff import __version__
from kdcdiff.cli.arguments import Parser
from kdcdiff.errors import UserError
from kdcdiff.process import keep_memory, wait_passively

COMMANDS = {  # the command's file, and what it does
    "run": "execute the chapters into _build/staged",
    "build": "render the executed chapters to _build/html",
    "claims": "the papers' claims and their verdicts",
    "complexity": "parameters, MACs, latency and memory of a U-Net",
    "shrink": "cut a teacher down to a student",
    "encode": "write pictures and captions into a latents cache",
    "distill": "train a student on its teacher's knowledge",
    "continual": "teach a student new classes, one after another",
    "generate": "draw pictures from a pipeline into a folder",
    "evaluate": "measure generated pictures against real ones",
    "pretrain": "train the small pipeline that the project ships",
}


def parser_for(command: str | None) -> argparse.ArgumentParser:
    """Make the parser with `command`'s own options, or, for None, with the bare list of commands."""
    parser = Parser(prog="kdcdiff", description="Distilled diffusion models, reproduced and audited.")
    parser.add_argument("--version", action="version", version=f"kdcdiff {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        if name != command:
            subparsers.add_parser(name, help=summary, add_help=False)
            continue
        room = importlib.import_module(f"kdcdiff.cli.{name}")
        own = subparsers.add_parser(name, help=summary, description=(room.__doc__ or "").partition(": ")[2])
        room.add_arguments(own)
        own.set_defaults(run=room.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Wrong input prints one line and gives 2, an interruption 130."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = next((word for word in words if word in COMMANDS), None)
    keep_memory()
    wait_passively()
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
