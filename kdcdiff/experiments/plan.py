"""What a run would make: each of its stages, what it fetches, weighs and takes. Nothing is made and nothing fetched.

    print(plan_run(profiles.get("paper"), "oxford-102", seed=0, device="cuda", rates=rates).report())

The stages are asked for as the chapters ask for them, of a store that takes note and makes nothing. Sizes follow from
the networks' shapes. Times come from rates that were measured (``book/results/rates.json``): where there is none for
the device and the network, the plan says so and gives no figure. What is asked of the garden's small teacher beside
the run's own is left out.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from kdcdiff.claims import judging
from kdcdiff.data.names import checked_dataset
from kdcdiff.data.sources import DOWNLOADS, Source
from kdcdiff.errors import UserError
from kdcdiff.experiments import (
    ablation,
    behaviour,
    continual,
    first_steps,
    head_to_head,
    paper_models,
    paper_tables,
    stages,
    tuning,
)
from kdcdiff.experiments.profiles import SOURCES, Profile
from kdcdiff.experiments.run import Run
from kdcdiff.models import surgery, unet_files
from kdcdiff.models.configs import AUTOENCODER, CONFIGS, TEXT_ENCODER
from kdcdiff.models.shipped import SHIPPED, find_pipeline, shipped_for
from kdcdiff.store import Artifact, Store, content_key

OXFORD_CLASSES = 102
TIMED = ("sd-1", "sd-2", "bk-sdm-base", "bk-sdm-small", "kdc-described")  # by the chapter on surgery
DISTILLING = ("student", "first-steps", "ablation", "search", "recipe", "pairs", "class-by-class-taught")
MOMENTS = 4 * 4  # bytes of training for each parameter: weight, gradient and AdamW's two moments, in float32
GIB = 2**30


@dataclass(frozen=True)
class Networks:
    """What the sizes follow from: the teacher, by the configurations of its parts."""

    name: str  # sd-1, sd-2, or that of a pipeline on this machine
    hub: str  # its hub id, or empty
    unet: Mapping[str, Any]
    autoencoder: Mapping[str, Any]
    text: Mapping[str, Any]
    resolution: int

    @property
    def latent(self) -> int:
        """Count the values of one latent."""
        side = self.resolution // 2 ** (len(self.autoencoder["block_out_channels"]) - 1)
        return int(self.autoencoder.get("latent_channels", 4)) * side**2

    @cached_property
    def parameters(self) -> int:
        """Count the teacher U-Net's parameters."""
        return _parameters(self.unet)

    @cached_property
    def whole(self) -> int:
        """Count the parameters of U-Net, text encoder and autoencoder."""
        return self.parameters + _companions(*(json.dumps(c, default=list) for c in (self.autoencoder, self.text)))

    def student(self, variant: str) -> int:
        """Count the parameters of a student of this teacher."""
        return _parameters(surgery.student_config(self.unet, variant.removesuffix(stages.RANDOM)))


def _parameters(config: Mapping[str, Any]) -> int:
    return sum(math.prod(shape) for shape in surgery.parameter_shapes(config).values())


@lru_cache
def _companions(autoencoder: str, text: str) -> int:
    """Count the parameters of an autoencoder and a text encoder of these configurations, in JSON."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        parts = AutoencoderKL.from_config(json.loads(autoencoder)), CLIPTextModel(CLIPTextConfig(**json.loads(text)))
    return sum(p.numel() for part in parts for p in part.parameters())


def networks_of(profile: Profile, dataset: str) -> Networks:
    """Say what the teacher of a run is, from its folder, or as one of the papers' models, whose sizes are known.

    UserError: any other hub id; nothing is known of it without a download.
    """
    teacher = profile.teacher or shipped_for(dataset)
    folder = find_pipeline(teacher)
    if folder is not None:
        read = {part: unet_files.read_json(folder / part / "config.json") for part in ("vae", "text_encoder")}
        resolution = profile.resolution or unet_files.read_resolution(folder)
        config = unet_files.read_config(folder)
        return Networks(teacher, "", config, read["vae"], read["text_encoder"], resolution)
    for known in paper_models.BASELINES:
        if teacher in (known.hub, known.now):
            resolution = profile.resolution or known.resolution
            return Networks(known.family, known.source, CONFIGS[known.family], AUTOENCODER, TEXT_ENCODER, resolution)
    raise UserError(f"teacher={teacher!r}: a plan needs a folder, {', '.join(SHIPPED)}, or a model of the papers")


# --- what the stages would be --------------------------------------------------------------------------------


class _Unread(Source):
    """A data set whose files are not read for their checksum, and may not be there yet."""

    def checksum(self) -> str:
        return "not read"


@dataclass(frozen=True)
class _Planned(Run):
    """A run whose teacher and data set may still have to be fetched."""

    side: int

    @cached_property
    def resolution(self) -> int:
        return self.side

    @cached_property
    def source(self) -> Source:
        if self.dataset == "oxford-102" and not (DOWNLOADS / self.dataset).is_dir():
            names = tuple(f"class {number:03d}" for number in range(1, OXFORD_CLASSES + 1))[: self.profile.classes]
            split = (3 * len(names) + 4) // 5
            return _Unread(self.dataset, DOWNLOADS / self.dataset, names[:split], names[split:])
        own = super().source
        return _Unread(own.name, own.root, own.base, own.novel, own.seed)


@dataclass(frozen=True)
class Asked:
    """A stage as it was asked for."""

    stage: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]  # keys of artifacts


class _Noting(Store):
    """A store that makes nothing: it takes note of what it is asked for, by key."""

    def __init__(self) -> None:
        self.root, self.asked = Path("/nowhere"), dict[str, Asked]()

    def get(
        self,
        stage: str,
        make: Callable[..., None],
        *,
        version: int = 1,
        settings: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Artifact] | None = None,
        external: Mapping[str, str] | None = None,
    ) -> Artifact:
        keys = {name: artifact.key for name, artifact in (inputs or {}).items()}
        key = content_key(stage, version, settings or {}, keys, external or {})
        self.asked.setdefault(key, Asked(stage, settings or {}, keys))
        return Artifact(self.root / "planned" / key, key, {})


def _asks(run: Run) -> Iterator[Callable[[], object]]:
    """Ask for the stages of all chapters, in their order."""
    p = run.profile
    for split in ("train", "test"):
        yield partial(stages.latents_artifact, run, split)
    yield partial(stages.classifier_artifact, run)
    yield partial(stages.clip_artifact, run)
    yield partial(stages.generated_artifact, run, "teacher")
    yield partial(stages.full_size_seconds, run, TIMED, p.latency_rounds)
    yield partial(stages.amputated, run, max(2, p.generated_images // 4))
    for k in range(p.ablation_seeds):
        sizes = {"steps": p.ablation_steps, "images": p.ablation_images}
        yield partial(ablation.one_seed, run, ablation.objectives(run), run.seed + k, **sizes)
    for first, second in (("alpha", "beta"), ("gamma", "temperature")):
        values = (getattr(p, name + "s") for name in (first, second))
        cells = ablation.grid(first, next(values), second, next(values), stages.kdc_loss(run))
        yield partial(ablation.one_seed, run, cells, run.seed, steps=p.grid_steps, images=0)
    for name in stages.students(run):
        yield partial(stages.generated_artifact, run, name)
    for cell in (*head_to_head.cells(head_to_head.networks(run)), *head_to_head.longer(p.contest_longer)):
        for seed in head_to_head.seeds(run):
            yield partial(head_to_head.student, run, cell, seed)
    yield partial(first_steps.first_steps_artifact, run)
    for k in range(p.continual_seeds):
        for method in continual.ARMS:
            yield partial(continual.class_by_class, run, method, repetition=k)
        for method in continual.PAPERS:
            yield partial(continual.class_by_class, run, method, repetition=k, network=continual.WHOLE)
    memories: list[dict[str, Any]] = [{"codec": "uint8"}, *({"capacity": capacity} for capacity in p.capacities)]
    yield from (partial(continual.class_by_class, run, "latent-replay", **memory) for memory in memories)
    yield partial(continual.seconds, run)
    for who in behaviour.EVERYONE:
        for seed in head_to_head.seeds(run):
            yield from (partial(stage, run, who, seed) for stage in (behaviour.guided_artifact, behaviour.personalized))
    for row in paper_tables.rows(run):
        for k in range(p.table_seeds):
            yield partial(paper_tables.drawn, run, row, run.seed + k)


def asked_of(run: Run, store: _Noting) -> dict[str, Asked]:
    """List what the chapters would ask the run's `store` for, by key."""
    for ask in _asks(run):
        with contextlib.suppress(FileNotFoundError):  # what reads its artifact finds none, and has asked by then
            ask()
    return store.asked


# --- what they weigh and take --------------------------------------------------------------------------------


@dataclass
class Line:
    """All artifacts of one stage: bytes on `disk` for as many pictures as the profile allows, bytes of `memory` for the
    arrays and weights of one at a time; `pictures` that go through distillation, and that are `drawn`."""

    stage: str
    artifacts: int = 0
    disk: int = 0
    memory: int = 0
    pictures: int = 0
    drawn: int = 0


@dataclass(frozen=True)
class Plan:
    """The plan of a run."""

    profile: Profile
    dataset: str
    device: str
    networks: Networks
    lines: tuple[Line, ...]
    fetched: tuple[str, ...]
    rates: Sequence[Mapping[str, Any]] = field(repr=False)

    def rate(self) -> Mapping[str, Any] | None:
        """Find the measured rate of distillation on this device, for this network and resolution."""
        wanted = {"what": "distillation", "device": self.device, "network": self.networks.name}
        wanted["resolution"] = self.networks.resolution  # type: ignore[assignment]
        return next((r for r in self.rates if all(r[name] == value for name, value in wanted.items())), None)

    def report(self) -> str:
        """Lay the plan out as text."""
        rate, net = self.rate(), self.networks
        told = [f"profile {self.profile.name} on {self.dataset}, on {self.device}: nothing is made or fetched"]
        teacher = self.profile.teacher or shipped_for(self.dataset)
        told.append(f"teacher {teacher}: {net.name}, {net.resolution} pixels, {net.parameters:,} parameters")
        told += ["", "fetched:", *(f"  {line}" for line in self.fetched or ("nothing",)), "", "stages:"]
        head = ("stage", "artifacts", "GiB on disk, at most", "GiB of memory", "hours of distillation", "drawn")
        rows = [head, *(self._row(line, rate) for line in self.lines)]
        disk = sum(line.disk for line in self.lines)
        rows.append(("all", str(sum(line.artifacts for line in self.lines)), f"{disk / GIB:,.1f}", "", "", ""))
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        told += ["  " + "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        if rate is None:
            told.append(f"  rates: not measured on {self.device} for {net.name} at {net.resolution} pixels")
        else:
            told.append(
                f"  rate: {rate['seconds']} s a picture in {rate['dtype']} on {rate['machine']} ({rate['source']})"
            )
        told.append("  time of drawing and of training without a teacher: not measured")
        told += ["", self._claims(), "", "values, and where they come from:"]
        width = max(len(name) for name in SOURCES)
        told += [f"  {name:<{width}}  {getattr(self.profile, name)!s:<22}  {SOURCES[name]}" for name in SOURCES]
        return "\n".join(told)

    def _row(self, line: Line, rate: Mapping[str, Any] | None) -> tuple[str, ...]:
        hours = "" if not line.pictures else "not measured" if rate is None else ""
        if line.pictures and rate is not None:
            hours = f"{line.pictures * rate['seconds'] / 3600:,.1f}"
        sizes = (f"{n / GIB:,.2f}" if n else "" for n in (line.disk, line.memory))
        return (line.stage, str(line.artifacts), *sizes, hours, f"{line.drawn:,}" if line.drawn else "")

    def _claims(self) -> str:
        """Name the claims that the run would give evidence for."""
        found = [claim.id for claim in judging.load() if not claim.offline and claim.check]
        return f"decides, if it is run to its end, {len(found)} empirical claims: {', '.join(found)}"


def plan_run(
    profile: Profile, dataset: str, *, seed: int, device: str, rates: Sequence[Mapping[str, Any]] = ()
) -> Plan:
    """Plan a run: nothing is made, and nothing fetched. `rates` are the rows of ``book/results/rates.json``.

    UserError: an unknown data set, or a teacher of which nothing is known without a download.
    """
    networks = networks_of(profile, dataset)
    store = _Noting()
    run = _Planned(profile, checked_dataset(dataset), seed, device, store, networks.resolution)
    counts: dict[str, int] = {}  # key -> pictures in it
    lines: dict[str, Line] = {}
    for key, one in asked_of(run, store).items():
        line = lines.setdefault(one.stage, Line(one.stage))
        line.artifacts += 1
        _weigh(line, one, key, counts, networks)
    return Plan(profile, run.dataset_word, device, networks, tuple(lines.values()), _fetched(run), rates)


TRAINED: dict[str, Callable[[Mapping[str, Any]], str]] = {  # stage -> the variant that it trains; empty: a whole U-Net
    "student": lambda s: str(s["name"]),
    "first-steps": lambda s: str(s["name"]),
    "ablation": lambda s: str(s["variant"]),
    "search": lambda s: str(s["variant"]),
    "recipe": lambda s: str(s["network"]),
    "class-by-class": lambda s: str(s["variant"]),
    "class-by-class-taught": lambda s: str(s["variant"]),
    "personalized": lambda s: "" if s["who"] == behaviour.TEACHER else behaviour.MODELS[s["who"]].network,
    "pairs": lambda s: "",
    "stand-in": lambda s: "",
    "teacher": lambda s: "",
}


def _weigh(line: Line, one: Asked, key: str, counts: dict[str, int], net: Networks) -> None:
    """Add one artifact to the line of its stage."""
    s, picture, latent = one.settings, 3 * net.resolution**2, 2 * 4 * net.latent  # mean and deviation, float32
    cells = s.get("drawing", s)  # what a row of the tables draws is a setting of its own
    classes, students = len(cells.get("classes", ())), len(s.get("candidates", s.get("students", ("one",))))
    drawn, kept, memory = int(cells.get("count", 0)) * classes * students, 0, 0
    if one.stage == "images":
        counts[key], kept, memory, drawn = drawn, drawn * picture, drawn * picture, 0
    elif one.stage == "latents":
        held = counts.get(one.inputs["images"], 0)
        kept, memory = held * latent, held * (picture + latent) + 4 * net.whole
    elif one.stage == "class-by-class":
        order, count = len(s["order"]), int(s["count"])
        rows = 1 if s["method"] == "joint" else order
        kept = memory = rows * order * count * picture  # a place for each class after each
        shown = order if rows == 1 else sum(min(stage + 2, order) for stage in range(order))
        drawn = (order + shown) * count + max(2, count // 2) * len(s["base"])
    elif one.stage in ("student", "stand-in"):
        kept = 4 * _trained(one, net)
    elif one.stage == "teacher":
        kept, drawn = 4 * net.whole, 0
    elif one.stage == "first-steps":
        drawn = (int(s["steps"]) // int(s["every"]) + 3) * classes  # and at first, in the end, and by the teacher
        kept = drawn * picture
    elif one.stage == "guided":
        drawn *= len(s["scales"])
        kept = drawn * picture
    elif one.stage == "personalized":
        kept = (int(s["pictures"]) + int(s["count"]) * len(behaviour.SCENES)) * picture
        drawn = 2 * int(s["count"]) * len(behaviour.SCENES) + int(s["prior"])  # before and after, and of its class
    elif one.stage in ("ablation", "recipe"):
        drawn = int(s["images"]) * classes * students
    else:
        drawn *= len(s["names"]) if one.stage == "amputated" else 1
        kept = drawn * picture
    if one.stage in DISTILLING:
        turns = classes if one.stage == "class-by-class-taught" else 1
        line.pictures += int(s["steps"]) * int(s["batch"]) * students * turns
    if one.stage in TRAINED:
        beside = min(students, tuning.TOGETHER) if one.stage == "search" else students
        memory += MOMENTS * _trained(one, net) * beside + 4 * net.whole
    line.disk, line.drawn, line.memory = line.disk + kept, line.drawn + drawn, max(line.memory, memory)


def _trained(one: Asked, net: Networks) -> int:
    """Count the parameters of the network that a stage trains."""
    variant = TRAINED[one.stage](one.settings)
    return net.student(variant) if variant else net.parameters


def _fetched(run: Run) -> tuple[str, ...]:
    """List what is not on this machine: models by hub id with the bytes of their weights, and data sets."""
    found = []
    labels = {run.teacher}
    if not run.profile.style_steps:
        labels |= {b.source for b in paper_models.BASELINES if b.source}
    for hub in sorted(labels):
        if find_pipeline(hub) is not None:
            continue
        known = next((b for b in paper_models.BASELINES if hub in (b.hub, b.now)), None)
        weighs = "of a size that is not known here"
        if known is not None:
            own = Networks(known.family, hub, CONFIGS[known.family], AUTOENCODER, TEXT_ENCODER, known.resolution)
            weighs = f"at least {4 * own.whole / GIB:.1f} GiB in float32, {known.licence}"
        found.append(f"{hub}: {weighs}")
    if run.dataset == "oxford-102" and not (DOWNLOADS / run.dataset).is_dir():
        found.append(f"Oxford-102, by torchvision, to {DOWNLOADS}: size not measured")
    return tuple(found)
