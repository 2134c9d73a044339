"""The whole road at Stable Diffusion 1.5's size, by the commands that a user would give, with a kill in its middle.

    python benchmarks/full_size.py                    # 512x512 pixels, random weights, at most 20 GiB
    python benchmarks/full_size.py --size tiny        # the same road in a minute, with a pipeline of tiny widths
    python benchmarks/full_size.py --show             # the table of what is on record, as book/scaling.md has it

A pipeline of the exact architecture with seeded random weights is built and saved, its U-Net is shrunk, eight pictures
are encoded, a student is distilled for three steps, killed (SIGKILL), continued for two more, draws a picture in two
steps, and is evaluated. Each step is a process of its own: its seconds, those of its cores, and its peak memory go on
record (`--record FILE`) as soon as it has ended, with what ran beside it. A step that outgrows `--most-gib` is killed.

On a GPU the road is followed by training steps in bfloat16 at batch 16: the reference loop of `benchmarks/distill.py`,
ours, and ours under torch.compile. That part has never been run on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

REPO = Path(__file__).resolve().parents[1]
RECORD = REPO / "book" / "results" / "full-size.json"
CLASSES, EACH = ("daisy", "rose"), 4  # eight pictures
BEFORE = 3  # steps until the kill
MOST_GIB, MOST_MINUTES = 20.0, 30.0
GIB = 2**30

SIZES: dict[str, dict[str, Any]] = {  # its pixels, steps of training, and what is not as in `kdcdiff.models.configs`
    "sd": {"pixels": 512, "steps": 5, "unet": {}, "vae": {}, "text": {}},
    "tiny": {
        "pixels": 32,
        "steps": 60,  # so quick that two would be over before the kill
        "unet": {"block_out_channels": (8, 16, 16, 16), "norm_num_groups": 4, "attention_head_dim": 2,
                 "cross_attention_dim": 16},
        "vae": {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4},
        "text": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                 "projection_dim": 16},
    },
}  # fmt: skip


# --- what goes in --------------------------------------------------------------------------------------------


def build(size: str, work: Path) -> None:
    """Save the pipeline `teacher` and the pictures that it is taught with below `work`."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from PIL import Image
    from transformers import CLIPTextConfig, CLIPTextModel

    from kdcdiff.data import flora
    from kdcdiff.data.image_set import caption_of
    from kdcdiff.models.configs import AUTOENCODER, CONFIGS, TEXT_ENCODER, TOKENS
    from kdcdiff.models.pipeline import SCHEDULER, train_tokenizer

    own, captions = SIZES[size], [caption_of(name) for name in CLASSES]
    torch.manual_seed(0)
    tokenizer = train_tokenizer(captions)  # CLIP's own is a download; the text encoder keeps CLIP's 49,408 rows
    tokenizer.model_max_length = TOKENS
    words = {f"{word}_token_id": getattr(tokenizer, f"{word}_token_id") for word in ("bos", "eos")}
    noise = {name: SCHEDULER[name] for name in ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end")}
    pipeline = StableDiffusionPipeline(
        unet=UNet2DConditionModel(**CONFIGS["sd-1"] | {"sample_size": own["pixels"] // 8} | own["unet"]),
        vae=AutoencoderKL(**AUTOENCODER | {"sample_size": own["pixels"]} | own["vae"]),
        text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER | words | own["text"])),
        tokenizer=tokenizer, scheduler=PNDMScheduler(**noise, skip_prk_steps=True, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(work / "teacher", safe_serialization=True)
    for name in CLASSES:
        (work / "pictures" / name).mkdir(parents=True)
        for number in range(EACH):
            picture = Image.fromarray(flora.draw(name, number, size=own["pixels"]).image)
            picture.save(work / "pictures" / name / f"{number}.png")


# --- the road ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A step of the road as it went: wall seconds, seconds of all cores, peak GiB, and the load beside it at first."""

    step: str
    command: str
    seconds: float
    core_seconds: float
    peak_gib: float
    load: float


Ended = Callable[[Path], bool]


def killed_at(work: Path) -> bool:
    """Say whether the training has left the checkpoint after which it is to be killed."""
    return any((work / "student.work" / "checkpoint").glob("step-*.safetensors"))


def road(size: str, work: Path, device: str, precision: str) -> Iterator[tuple[str, list[str], Ended | None]]:
    """Yield each step's name, its command, and what is waited for where it is to be killed."""
    teacher, pictures, cache, student, drawn = (
        str(work / name) for name in ("teacher", "pictures", "cache", "student", "drawn")
    )
    on, steps = ["--device", device], SIZES[size]["steps"]
    distill = ["distill", "--teacher", teacher, "--latents", cache, "--out", student, "--steps", str(steps)]
    distill += ["--batch", "1", "--precision", precision, "--checkpoint-every", str(BEFORE), *on]
    draw = ["generate", student, "--prompts", "a photo of a rose", "--steps", "2", "--out", drawn, *on]
    seen = ["--resolution", str(min(64, SIZES[size]["pixels"]))]  # the extractor's own
    yield "build and save", [__file__, "--size", size, "--build", str(work)], None
    yield "shrink", ["shrink", teacher, "--variant", "kdc-described", "--out", str(work / "cut")], None
    yield "encode 8 pictures", ["encode", "--teacher", teacher, "--data", pictures, "--out", cache, *on], None
    yield f"distill, SIGKILL after step {BEFORE}", distill, killed_at
    yield f"the same again, to step {steps}", distill, None
    yield "generate a picture in 2 steps", draw, None
    yield "evaluate", ["evaluate", drawn, pictures, *seen, *on], None


def take(
    step: str, words: list[str], killed: Ended | None, work: Path, most_gib: float = MOST_GIB, end: float = float("inf")
) -> Row:
    """Run a command in a process of its own, kill it where `killed` says so, and measure it.

    RuntimeError: it failed, outgrew `most_gib`, or went on after `end` of the clock; its last words are in the message.
    """
    own = words[0].endswith(".py")
    command = [sys.executable, *([] if own else ["-m", "kdcdiff"]), *words]
    load, start, why = os.getloadavg()[0], time.perf_counter(), ""
    with (work / "last-words.txt").open("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=os.environ | {"TQDM_DISABLE": "1"})
        done = False
        while not done:
            time.sleep(0.05)
            number, status, used = os.wait4(process.pid, os.WNOHANG)
            if done := number != 0:
                break
            if psutil.Process(process.pid).memory_info().rss > most_gib * GIB:
                why = f"outgrew {most_gib:g} GiB"
            elif time.time() > end:
                why = "ran out of time"
            if why or (killed and killed(work)):
                os.kill(process.pid, signal.SIGKILL)
                _, status, used = os.wait4(process.pid, 0)
                done = True
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        words_said = said.read()[-2000:]
    if why or process.returncode != (-signal.SIGKILL if killed else 0):
        raise RuntimeError(f"{step}: {why or f'ended with {process.returncode}'}: {words_said}")
    seconds, shown = time.perf_counter() - start, " ".join([] if own else ["kdcdiff", *words])
    shown = shown.replace(f"{work}{os.sep}", "") or f"python benchmarks/{Path(words[0]).name} --build"
    return Row(step, shown, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / GIB, load)


def travel(args: argparse.Namespace, work: Path) -> list[Row]:
    """Go the road below `work`; print each row, and put it on record as soon as it is there."""
    rows: list[Row] = []
    end = time.time() + 60 * args.most_minutes
    for step, words, killed in road(args.size, work, args.device, args.precision):
        rows.append(take(step, words, killed, work, args.most_gib, end))
        print(f"{step:<34}{rows[-1].seconds:>9.1f} s{rows[-1].peak_gib:>8.2f} GiB", flush=True)
        if args.record:
            args.record.write_text(json.dumps(record(args, rows), indent=1) + "\n", encoding="utf-8")
    return rows


def record(args: argparse.Namespace, rows: list[Row]) -> dict[str, Any]:
    """Gather what goes on record: the rows so far, and where they come from."""
    from kdcdiff.provenance import commit, libraries

    memory = psutil.virtual_memory().total / GIB
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, {args.device}"
    told = {"created": time.strftime("%Y-%m-%d", time.gmtime()), "python": platform.python_version()}
    told |= {"libraries": libraries(), "commit": commit(), "machine": machine}  # type: ignore[dict-item]
    about = {"command": f"python benchmarks/full_size.py --size {args.size} --precision {args.precision}"}
    return about | {"provenance": told, "precision": args.precision, "rows": [asdict(row) for row in rows]}


def markdown(recorded: dict[str, Any]) -> str:
    """Lay a record out as the table of book/scaling.md."""
    lines = ["| step | seconds | seconds of all cores | peak memory, GiB | load beside it |", "|---|---|---|---|---|"]
    for row in recorded["rows"]:
        cells = (f"{row['seconds']:.0f}", f"{row['core_seconds']:.0f}", f"{row['peak_gib']:.1f}", f"{row['load']:.1f}")
        lines.append("| " + " | ".join([row["step"], *cells]) + " |")
    return "\n".join(lines)


# --- steps on a GPU ------------------------------------------------------------------------------------------

PEAKS = {  # part of a GPU's name -> its dense bfloat16 matrix peak in FLOP/s, from its maker's data sheet
    "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "RTX 4090": 165e12,
}  # fmt: skip


def steps_on(device: str, size: str, batch: int, rounds: int, compiled: bool = True) -> list[str]:
    """Time training steps in bfloat16 on `device`; a line for each loop: images/s, memory, share of the matrix peak.

    Counted are the multiplications that no loop can leave out: a teacher's forward, and three times a student's.
    """
    import torch
    from distill import LOOPS, Setup

    from kdcdiff.models.complexity import count

    pixels = SIZES["sd"]["pixels"] if size == "sd" else 64
    gpu = torch.device(device).type == "cuda"
    setup = Setup(size, torch.bfloat16, batch, pixels, device)
    macs = [count(dict(unet.config)).macs["all"] for unet in (setup.teacher, setup.student)]
    flop = 2 * batch * (macs[0] + 3 * macs[1])
    name = torch.cuda.get_device_name() if gpu else "cpu"
    peak = next((peak for part, peak in PEAKS.items() if part in name), None)
    lines = [f"bfloat16, batch {batch}, {pixels} pixels, on {name}"]
    ours = "ours, equation (6)"
    for loop in ("reference", ours, *(["compiled"] * compiled)):
        if loop == "compiled":
            for unet in (setup.teacher, setup.student):
                unet.compile()
        step = LOOPS[ours if loop == "compiled" else loop](setup)
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for turn in range(rounds + 2):  # two to warm up, and to compile
            start = time.perf_counter()
            step()
            if gpu:
                torch.cuda.synchronize()
            seconds += [time.perf_counter() - start] * (turn > 1)
        taken = statistics.median(seconds)
        memory = f"{torch.cuda.max_memory_allocated() / GIB:.1f} GiB" if gpu else "memory not measured"
        share = f"{flop / taken / peak:.1%} of the matrix peak" if peak else "matrix peak not known"
        lines.append(f"{loop:<22}{batch / taken:>9.2f} images/s, {memory}, {share}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", choices=tuple(SIZES), default="sd")
    add("--work", type=Path, default=REPO / "_build", help="where it works, in a folder that goes at the end")
    add(
        "--precision",
        choices=("no", "bf16"),
        help="of the steps (default: bf16 on a GPU, no on a CPU, where few have it)",
    )
    add("--device", choices=("cpu", "cuda"), help="(the GPU where there is one)")
    add("--most-gib", type=float, default=MOST_GIB, help="of a step; it is killed above (default: %(default)s)")
    add("--most-minutes", type=float, default=MOST_MINUTES, help="of the road (default: %(default)s)")
    add("--record", type=Path, help="put it on record in this file")
    add("--show", action="store_true", help="print the table on record, and stop")
    add("--build", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.show:
        print(markdown(json.loads(RECORD.read_text(encoding="utf-8"))))
        return
    if args.build:
        build(args.size, args.build)
        return
    from kdcdiff.process import use_device

    args.device = use_device(args.device)
    args.precision = args.precision or ("bf16" if args.device == "cuda" else "no")
    args.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="full-size-", dir=args.work) as work:
        travel(args, Path(work).resolve())
    if args.device == "cuda":
        print("\n".join(steps_on("cuda", "sd" if args.size == "sd" else "small", 16, 20)), flush=True)


if __name__ == "__main__":
    main()
