"""A small road through every kind of work that is published or resumed, as a command of `kdcdiff` that can be killed.

`Roads` is a process that has imported everything once and forks a child for each journey, in a process group of its
own; so a kill costs a second and not ten.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.conftest import REPO, tiny_pipeline

if TYPE_CHECKING:
    from kdcdiff.experiments.run import Run
    from kdcdiff.store import Artifact

CLASSES = ("daisy", "rose")
STEPS = 8
CHECKPOINT = 3  # steps between checkpoints


def travel(root: Path, steps: int = STEPS, say: Callable[[str], None] = print) -> None:
    """Images, latents, distillation, class-by-class training with replay, and pictures, below `root`."""
    import torch

    from kdcdiff.data.latents import LatentSet, encode_set
    from kdcdiff.data.sources import load_flora
    from kdcdiff.models import surgery
    from kdcdiff.models.export import save_portable
    from kdcdiff.models.pipeline import load_pipeline
    from kdcdiff.sampling.folder import generate_to_folder
    from kdcdiff.store import Store
    from kdcdiff.training.continual import learn
    from kdcdiff.training.distill import distill
    from kdcdiff.training.losses import KDCLoss

    torch.set_num_threads(1)
    store = Store(root / "artifacts", say=say)

    def teacher(folder: Path) -> None:
        pictures = load_flora("train", CLASSES, 4, size=16, progress=False)
        pipeline = tiny_pipeline(pictures.captions)
        save_portable(pipeline, folder / "pipeline")
        (folder / "latents").mkdir()
        encode_set(pipeline, pictures).save(folder / "latents")

    def student(folder: Path, *, steps: int) -> None:
        pipeline = load_pipeline(made / "pipeline")
        latents = LatentSet.load(made / "latents")
        unet = surgery.shrink(pipeline.unet, "original")
        distill(
            unet, pipeline.unet, latents, pipeline.scheduler, KDCLoss(), steps=steps, batch=2, lr=1e-3, ema=0.9,
            folder=folder, checkpoint_every=CHECKPOINT, norms_every=0, describe="",
        )  # fmt: skip
        save_portable(unet, folder / "unet")

    def continual(folder: Path, *, steps: int) -> None:
        pipeline = load_pipeline(made / "pipeline")
        latents = LatentSet.load(made / "latents")
        learn(
            pipeline.unet, latents, CLASSES, pipeline.scheduler, "latent-replay", steps=steps, batch=2, lr=1e-3,
            capacity=4, folder=folder / "checkpoint",
        )  # fmt: skip
        save_portable(pipeline.unet, folder / "unet")

    made = store.get("teacher", teacher)
    store.get("student", student, settings={"steps": steps}, inputs={"teacher": made})
    store.get("continual", continual, settings={"steps": 3}, inputs={"teacher": made})
    pipeline = load_pipeline(made / "pipeline")
    prompts = [f"a photo of a {name}" for name in CLASSES for _ in range(2)]
    generate_to_folder(pipeline, prompts, root / "pictures", seed=0, steps=2, batch_size=1, progress=False)


def outcome(root: Path) -> dict[str, str]:
    """The sha256 of every file that a finished road leaves, and of no other."""
    found = {}
    for manifest in root.glob("artifacts/*/manifest.json"):
        files = json.loads(manifest.read_text())["files"]
        found |= {f"{manifest.parent.name}/{name}": entry["sha256"] for name, entry in files.items()}
    for path in sorted((root / "pictures").rglob("*")):
        found[f"pictures/{path.relative_to(root / 'pictures')}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def rests(root: Path) -> list[str]:
    """What a finished road may not leave: unfinished work, partial and temporary files, damaged folders."""
    temporary = (path for path in root.rglob("*") if path.name.startswith(".") or "partial" in path.name)
    return sorted(map(str, [*root.glob("artifacts/work/*"), *root.glob("artifacts/damaged/*"), *temporary]))


# --- stages of a pool, which its workers import ---------------------------------------------------------------------


def number_stage(run: Run, number: int) -> Artifact:
    """A stage that writes its number."""

    def make(folder: Path, *, number: int) -> None:
        (folder / "number.txt").write_text(str(number))

    return run.store.get("number", make, settings={"number": number})


def killed_stage(run: Run, number: int) -> None:
    """The same; at 1 the system kills its worker, once the one before is done."""
    while number and not list(run.store.root.glob("number-*/manifest.json")):
        time.sleep(0.02)
    if number:
        os.kill(os.getpid(), signal.SIGKILL)
    number_stage(run, number)


# --- the command, and the process that forks it -------------------------------------------------------------------

LIMITS = ("none", "files", "user")  # of a child: none, a largest file, or to be an ordinary user


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--limit", choices=LIMITS, default="none")


def run(args: argparse.Namespace) -> int:
    if args.limit == "files":
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
    if args.limit == "user" and os.getuid() == 0:
        os.setuid(65534)
    travel(args.root, args.steps)
    return 0


def serve() -> None:
    """Fork a child for each line of words on stdin and print its number; then, for `wait NUMBER`, its exit code."""
    from kdcdiff import cli

    module: Any = types.ModuleType("kdcdiff.cli.road")
    module.add_arguments, module.run, module.__doc__ = add_arguments, run, __doc__
    sys.modules["kdcdiff.cli.road"] = module
    cli.COMMANDS["road"] = "a small road"
    import kdcdiff.sampling.folder
    import kdcdiff.training.continual
    import kdcdiff.training.distill  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        words = json.loads(line)
        if words[0] == "wait":
            print(os.waitstatus_to_exitcode(os.waitpid(int(words[1]), 0)[1]), flush=True)
            continue
        log, *words = words
        if (child := os.fork()) == 0:
            os.setpgid(0, 0)
            stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(stream, 1)
            os.dup2(stream, 2)
            code = cli.main(words)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        with contextlib.suppress(OSError):
            os.setpgid(child, child)  # by both, so that it holds before either goes on
        print(child, flush=True)


class Roads:
    """Starts, signals and awaits journeys."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self.server = server

    def _ask(self, *words: str) -> int:
        assert self.server.stdin is not None and self.server.stdout is not None
        self.server.stdin.write(json.dumps(words) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def command(self, root: Path, words: Sequence[str]) -> int:
        """Start a command of `kdcdiff`; return its process group. What it prints goes to `root`.log."""
        return self._ask(f"{root}.log", *words)

    def start(self, root: Path, *words: str) -> int:
        """Start on the road below `root`, likewise."""
        return self.command(root, ["road", str(root), *words])

    def wait(self, child: int) -> int:
        """Wait for the end of a journey; return its exit code, negative for a signal."""
        return self._ask("wait", str(child))

    def go(self, root: Path, *words: str) -> int:
        return self.wait(self.start(root, *words))

    def kill(self, child: int) -> int:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        return self.wait(child)


@contextlib.contextmanager
def roads() -> Iterator[Roads]:
    """A server of journeys."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO), "TQDM_DISABLE": "1"}
    environment["TOKENIZERS_PARALLELISM"] = "false"  # it is forked
    command = [sys.executable, "-m", "tests.faults.road"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=REPO, env=environment, text=True, **pipes) as server:  # type: ignore[call-overload]
        assert server.stdout.readline() == "ready\n"
        yield Roads(server)
        server.stdin.close()


if __name__ == "__main__":
    serve()
