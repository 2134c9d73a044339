"""The command line: a file for each command, imported only when the command is asked for.

Each file has `add_arguments(parser)` and `run(args) -> int`; its first line is the command's description. What is heavy
is imported in `run`, after the command line has been read and checked.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from collections.abc import Sequence

from kdcdiff import __version__
from kdcdiff.cli.arguments import Parser
from kdcdiff.errors import UserError, one_line
from kdcdiff.process import Stopped, keep_memory, on_full_gpu, stopping, wait_passively

COMMANDS = {  # the command's file, and what it does
    "run": "execute the chapters into _build/staged",
    "build": "render the executed chapters to _build/html",
    "claims": "the papers' claims and their verdicts",
    "complexity": "parameters, MACs, latency and memory of a U-Net",
    "shrink": "cut a teacher down to a student",
    "encode": "write pictures and captions into a latents cache",
    "distill": "train a student on its teacher's knowledge",
    "continual": "teach a student new classes, one after another",
    "personalize": "teach a pipeline one subject, from a few pictures",
    "generate": "draw pictures from a pipeline into a folder",
    "evaluate": "measure generated pictures against real ones",
    "doctor": "check what the book needs, item by item",
    "pretrain": "train the small pipeline that the project ships",
    "store": "list, verify, tidy and fetch the results of stages",
}

DEBUG = "show where an error arose"


def parser_for(command: str | None) -> argparse.ArgumentParser:
    """Make the parser with `command`'s own options, or, for None, with the bare list of commands."""
    parser = Parser(prog="kdcdiff", description="Distilled diffusion models, reproduced and audited.")
    parser.add_argument("--version", action="version", version=f"kdcdiff {__version__}")
    parser.add_argument("--debug", action="store_true", help=DEBUG)
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        if name != command:
            subparsers.add_parser(name, help=summary, add_help=False)
            continue
        room = importlib.import_module(f"kdcdiff.cli.{name}")
        own = subparsers.add_parser(name, help=summary, description=(room.__doc__ or "").partition(": ")[2])
        room.add_arguments(own)
        own.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=DEBUG)
        own.set_defaults(run=room.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Wrong input, and a disk or a network that refuses, print one line and give 2; a fault of the program's own prints
    one line and gives 70. An end that was asked for gives 128 and the signal's number, as a shell says it.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = next((word for word in words if word in COMMANDS), None)
    keep_memory()
    wait_passively()
    try:
        with stopping(), on_full_gpu():
            args = parser_for(command).parse_args(words)
            return int(args.run(args) or 0)
    except KeyboardInterrupt as stop:
        print("interrupted; finished stages are kept, and a training's last checkpoint", file=sys.stderr)
        return 128 + (stop.number if isinstance(stop, Stopped) else 2)
    except BrokenPipeError:
        return 1
    except Exception as error:
        if "--debug" in words:
            traceback.print_exc()
        code, line = told(error)
        print(f"error: {one_line(line)}", file=sys.stderr)
        return code


def told(error: Exception) -> tuple[int, str]:
    """Return the exit code and the line for an error that a command has not caught."""
    if isinstance(error, UserError):
        return 2, str(error)
    if isinstance(error, OSError) and error.strerror:
        return 2, f"file={str(error.filename or '')!r}: {error.strerror}"
    if isinstance(error, MemoryError):
        return 2, "out of memory; choose smaller sizes"
    kind = type(error).__name__
    return 70, f"{kind}: {error} (this is a fault of the program; --debug shows where it arose)"
