"""All sizes, steps and seeds of a run, in one frozen dataclass per profile.

`smoke` runs every cell in minutes, for CI: its figures mean nothing. `mini`, the default, distils, trains and
evaluates real models from the shipped small teacher in an hour on a two-core CPU, with few seeds and pictures.
`full` is the same with the seeds, steps and pictures that the figures on record need, in hours: the committed outputs
and the empirical verdicts are its. `paper` is the papers' models, data and protocol, for a GPU and the hub. The same
notebooks and code: a profile changes sizes, never paths through the code.

    profiles.get("mini", distill_steps=4000)
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kdcdiff.errors import UserError, check
from kdcdiff.models.shipped import find_pipeline
from kdcdiff.models.variants import variant


def _size(
    default: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    choices: tuple[Any, ...] | None = None,
    known: Callable[[str], object] = str,
) -> Any:
    """A field with its `full` value, and what an override may be: a range (ends in), choices, or what `known` takes.

    `known` raises UserError for anything else.
    """
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "choices": choices, "known": known})


@dataclass(frozen=True)
class Profile:
    """One profile. The values here are `full`'s; a comment says what each is, and why."""

    name: str = "full"

    processes: int = _size(0, 0)  # for trainings that do not depend on each other; 0: one for each core

    # data
    resolution: int | None = _size(None, 16)  # side of the pictures in pixels; None: the teacher's own
    judge_size: int = _size(64, 16)  # side at which an image folder's classifier sees pictures that are larger
    classes: int | None = _size(None, 4)  # classes of an image folder, the first by name; None: all
    train_images: int = _size(160, 8)  # training pictures per class; a folder may have fewer
    test_images: int = _size(50, 2)  # held-out pictures per class

    # teacher
    teacher: str | None = _size(None, known=find_pipeline)  # a pipeline's name, folder or hub id; None: `shipped_for`
    autoencoder_steps: int = _size(1200, 0)  # fine-tuning on an image folder; flora's needs none
    teacher_steps: int = _size(2000, 0)  # fine-tuning of the U-Net on an image folder; flora's needs none
    classifier_steps: int = _size(800, 1)  # training of an image folder's own classifier

    # surgery
    latency_side: int = _size(64, 1)  # of the latents on which full-size U-Nets are timed; 64: a 512x512 picture
    latency_rounds: int = _size(5, 2)  # in which each of them is timed once, and each method of class-by-class training
    influence_images: int = _size(64, 1)  # held-out pictures on which the teacher's parts are bypassed

    # distillation: alpha * soft + (1 - alpha) * hard + beta * feature + gamma * mse, equation (6)
    variant: str = _size("kdc-described", known=variant)
    distill_steps: int = _size(700, 1)
    comparison_steps: int = _size(300, 1)  # of each other student that it is compared with
    distill_batch: int = _size(32, 1)
    learning_rate: float = _size(6e-4, 1e-8, 1e-1)
    alpha: float = _size(0.9, 0.0, 1.0)  # the soft-target loss's share; the hard one has the rest
    beta: float = _size(0.1, 0.0)  # weight of the feature loss
    gamma: float = _size(1.0, 0.0)  # weight of the denoising loss
    temperature: float = _size(4.0, 0.01)  # of the soft targets

    # students that differ in their loss only
    ablation_steps: int = _size(60, 1)  # of each student
    ablation_batch: int = _size(16, 1)
    ablation_seeds: int = _size(5, 2)
    ablation_images: int = _size(8, 1)  # drawn per class by each student
    grid_steps: int = _size(60, 1)  # of each student of the two grids
    alphas: tuple[float, ...] = _size((0.0, 0.5, 1.0), 0.0, 1.0)  # of the grids, as below
    betas: tuple[float, ...] = _size((0.0, 0.1, 1.0), 0.0)
    gammas: tuple[float, ...] = _size((0.0, 1.0, 3.0), 0.0)
    temperatures: tuple[float, ...] = _size((1.0, 4.0, 20.0), 0.01)

    # both papers' objectives on equal terms; steps, batch and pictures are those above
    contest_networks: int = _size(4, 1, 4)  # networks that they meet on, the first of `head_to_head.NETWORKS`
    contest_seeds: int = _size(5, 2)
    contest_longer: int = _size(5, 2)  # how many times as many steps the objectives meet once more, on one network
    contest_garden: int = _size(2, 1)  # and how many times on the garden's teacher

    # how students behave; as many seeds as in the contest
    guidances: tuple[float, ...] = _size((2.0, 2.5, 3.0, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5, 9.5), 0.0, 30.0)  # Figure 7's
    guided_images: int = _size(4, 2)  # per class, model and scale
    subject_steps: int = _size(300, 1)  # of each model with each subject
    subject_batch: int = _size(4, 1)  # pictures of the subject in a step, and as many of its class
    subject_rate: float = _size(5e-4, 1e-8, 1e-1)  # learning rate
    subject_prior: int = _size(40, 1)  # pictures of the subject's class, drawn before
    subject_images: int = _size(3, 1)  # drawn of the subject in each scene

    # class-by-class training
    continual_classes: int = _size(8, 2)  # novel classes learnt one after another
    continual_seeds: int = _size(5, 2)  # runs of each method, each in an order and from a seed of its own
    continual_steps: int = _size(60, 1)  # steps for each
    continual_batch: int = _size(16, 1)
    continual_rate: float = _size(1e-3, 1e-8, 1e-1)  # learning rate
    continual_ema: float = _size(0.9, 0.0, 0.9999)  # decay of the average of the weights, with which a class ends
    continual_images: int = _size(8, 4)  # generated per class after every stage
    continual_sampler_steps: int = _size(10, 1, 1000)
    capacity: int = _size(128, 1)  # latents in the replay buffer in all: a tenth of the novel pictures
    capacities: tuple[int, ...] = _size((8, 1280), 1)  # others that it is compared with: from one a class to all
    policy: str = _size("reservoir", choices=("reservoir", "ring", "herding", "uniform"))  # of the replay buffer

    # the papers' tables with stand-ins
    style_steps: int = _size(100, 0)  # of fine-tuning each stand-in; 0: the hub's own models instead
    pair_steps: int = _size(30, 1)  # of distilling one full-size model from another
    table_steps: int = _size(14, 1)  # of each class, when the described student learns class by class from a teacher
    table_seeds: int = _size(3, 2)
    table_images: int = _size(6, 2)  # drawn per class, row and seed
    table_subject: str = _size("flowers", choices=("flowers", "butterflies"))  # of an image folder: whose rows it meets

    # generation and evaluation
    generated_images: int = _size(40, 2)  # per class and model
    requested_images: int = _size(40, 2)  # per class, of prompts that state several things at once
    sampler_steps: int = _size(20, 1, 1000)
    guidance: float = _size(4.0, 0.0, 30.0)  # 1: no guidance


FULL = Profile()
PROFILES = {
    "smoke": dataclasses.replace(
        FULL,
        name="smoke",
        processes=1,
        classes=5,
        train_images=8,
        test_images=4,
        autoencoder_steps=4,
        teacher_steps=4,
        classifier_steps=8,
        latency_side=8,
        latency_rounds=2,
        influence_images=4,
        distill_steps=4,
        comparison_steps=2,
        distill_batch=4,
        ablation_steps=3,
        ablation_batch=4,
        ablation_seeds=2,
        ablation_images=2,
        grid_steps=2,
        alphas=(0.0, 0.9),
        betas=(0.0, 0.1),
        gammas=(0.0, 1.0),
        temperatures=(1.0, 4.0),
        contest_networks=1,
        contest_seeds=2,
        contest_longer=2,
        contest_garden=1,
        guidances=(2.0, 9.5),
        guided_images=2,
        subject_steps=2,
        subject_batch=2,
        subject_prior=2,
        subject_images=1,
        continual_classes=2,
        continual_steps=3,
        continual_batch=4,
        continual_seeds=2,
        continual_images=4,
        continual_sampler_steps=2,
        capacity=4,
        capacities=(2, 16),
        style_steps=2,
        pair_steps=2,
        table_steps=2,
        table_seeds=2,
        table_images=2,
        generated_images=2,
        requested_images=2,
        sampler_steps=3,
    ),
    "mini": dataclasses.replace(
        FULL,
        name="mini",
        test_images=24,
        latency_side=16,
        latency_rounds=3,
        influence_images=24,
        distill_steps=150,
        comparison_steps=60,
        ablation_steps=18,
        ablation_seeds=3,
        ablation_images=3,
        grid_steps=10,
        contest_networks=1,
        contest_seeds=2,
        contest_longer=2,
        contest_garden=1,
        guidances=(2.0, 4.5, 9.5),
        guided_images=2,
        subject_steps=50,
        subject_images=2,
        continual_classes=3,
        continual_seeds=2,
        continual_steps=18,
        continual_images=4,
        capacity=48,
        capacities=(3, 480),
        style_steps=24,
        pair_steps=8,
        table_steps=6,
        table_seeds=2,
        table_images=4,
        generated_images=12,
        requested_images=4,
        sampler_steps=10,
    ),
    "full": FULL,
    "paper": dataclasses.replace(
        FULL,
        name="paper",
        train_images=1000,
        test_images=100,
        teacher="stable-diffusion-v1-5/stable-diffusion-v1-5",
        autoencoder_steps=0,
        teacher_steps=5_000,
        classifier_steps=5_000,
        distill_steps=50_000,
        comparison_steps=50_000,
        distill_batch=64,
        learning_rate=5e-5,
        ablation_steps=10_000,
        ablation_batch=64,
        ablation_images=100,
        grid_steps=2_000,
        guided_images=50,
        subject_steps=800,
        subject_batch=1,
        subject_rate=1e-6,
        subject_prior=200,
        subject_images=4,
        continual_classes=100,
        continual_steps=2_000,
        continual_batch=64,
        continual_rate=5e-5,
        continual_images=100,
        continual_sampler_steps=25,
        capacity=10_000,
        capacities=(100, 1_000, 100_000),
        style_steps=0,
        pair_steps=10_000,
        table_steps=500,
        table_images=20,
        generated_images=100,
        requested_images=100,
        sampler_steps=25,
        guidance=7.5,
    ),
}

_NONE = "ours: KDC-Diff prints no value"
_OURS = "ours: the papers have no such run"
_BK_SETUP = "BK-SDM, implementation details"
SOURCES = {  # field -> where the value of `paper` comes from
    "processes": "ours: one for each core or GPU",
    "resolution": "KDC-Diff, section 3: 512x512; SD-2's own is the teacher's",
    "judge_size": "ours: KDC-Diff reads pictures by published networks alone",
    "classes": "KDC-Diff, section 3: all of its data sets",
    "train_images": "ours: more than a class of either data set has, so all",
    "test_images": "ours: more than most classes of either data set have",
    "teacher": "KDC-Diff, Table 1: v1.5 is among its baselines; BK-SDM cuts v1.4",
    "autoencoder_steps": "neither paper trains an autoencoder",
    "teacher_steps": _OURS,
    "classifier_steps": _OURS,
    "latency_side": "BK-SDM, Table 3: a 512x512 picture",
    "latency_rounds": "ours: neither paper prints one", "influence_images": _OURS,
    "variant": "KDC-Diff, section 2.1: the network that its text describes",
    "distill_steps": _BK_SETUP + ": 50K iterations; KDC-Diff prints none",
    "comparison_steps": "ours: as long as the students that they stand beside",
    "distill_batch": "BK-SDM's Table 5: batch size 64; KDC-Diff trains at 1, BK-SDM's main models at 256",
    "learning_rate": "both: 5e-5 (KDC-Diff, section 3; BK-SDM, implementation details)",
    "alpha": _NONE, "beta": _NONE, "gamma": _NONE, "temperature": _NONE,
    "ablation_steps": _OURS, "ablation_batch": _OURS, "ablation_seeds": _OURS, "ablation_images": _OURS,
    "grid_steps": _OURS, "alphas": _OURS, "betas": _OURS, "gammas": _OURS, "temperatures": _OURS,
    "contest_networks": "ours: those of both papers", "contest_seeds": _OURS,
    "contest_longer": _BK_SETUP + ": 50K iterations, five times ours", "contest_garden": _OURS,
    "guidances": "BK-SDM, section 5.1.3 and Figure 7", "guided_images": "ours: BK-SDM draws 5,000 in all",
    "subject_steps": _BK_SETUP + ": 800", "subject_rate": _BK_SETUP + ": 1e-6",
    "subject_batch": "ours: BK-SDM prints none", "subject_prior": "ours: BK-SDM prints none",
    "subject_images": "BK-SDM, section 4.1: four for each subject and prompt",
    "continual_classes": "KDC-Diff, section 3: 102 and 100 classes",
    "continual_seeds": _OURS,
    "continual_steps": _NONE, "continual_batch": "ours: KDC-Diff trains at batch 1",
    "continual_rate": "KDC-Diff, section 3: 5e-5",
    "continual_ema": _NONE, "continual_images": _OURS,
    "continual_sampler_steps": _BK_SETUP + ": 25 denoising steps",
    "capacity": _NONE, "capacities": _OURS, "policy": _NONE,
    "style_steps": "KDC-Diff, Table 1: the ten models themselves",
    "pair_steps": _NONE, "table_steps": _NONE, "table_seeds": _OURS, "table_images": _NONE,
    "table_subject": "KDC-Diff, section 3: flowers and butterflies",
    "generated_images": _NONE, "requested_images": _OURS,
    "sampler_steps": _BK_SETUP + ": 25 denoising steps",
    "guidance": _BK_SETUP + ": 7.5",
}  # fmt: skip


def get(name: str, /, **overrides: Any) -> Profile:
    """The profile `name` with fields overridden; an override of None keeps the profile's own value.

    UserError: an unknown profile or field, a value of another type, or one out of range.
    """
    check(name in PROFILES, "profile", name, f"must be one of {', '.join(PROFILES)}")
    given = {field: value for field, value in overrides.items() if value is not None}
    return dataclasses.replace(PROFILES[name], **{field: checked(field, value) for field, value in given.items()})


def allowed() -> list[str]:
    """The names of the fields that may be overridden."""
    return [field.name for field in dataclasses.fields(Profile) if field.name != "name"]


def checked(name: str, value: Any) -> Any:
    """`value` as field `name` takes it: a whole number serves for a fraction, a list for a tuple; or UserError."""
    check(name in allowed(), name, value, f"no such parameter; a profile has {', '.join(allowed())}")
    field = next(field for field in dataclasses.fields(Profile) if field.name == name)
    hint = typing.get_type_hints(Profile)[name]
    if typing.get_origin(hint) is tuple:
        check(isinstance(value, list | tuple) and len(value) > 0, name, value, "must be a list of at least one number")
        return tuple(_checked(name, field, typing.get_args(hint)[0], entry) for entry in value)
    return _checked(name, field, _kind(hint), value)


def _checked(name: str, field: dataclasses.Field[Any], kind: Any, value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    words = {int: "a whole number", float: "a number", str: "a word", bool: "True or False"}[kind]
    low, high, choices = (field.metadata[key] for key in ("low", "high", "choices"))
    limits = [f"at {end} {limit:g}" for end, limit in (("least", low), ("most", high)) if limit is not None]
    expected = "must be " + (f"one of {', '.join(map(str, choices))}" if choices else ", ".join([words, *limits]))
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool) or value == "":
        raise UserError(f"{name}={value!r}: {expected}")
    if kind is float:
        check(math.isfinite(value), name, value, expected)
    inside = (low is None or value >= low) and (high is None or value <= high)
    check(inside and (not choices or value in choices), name, value, expected)
    field.metadata["known"](value)
    return value


def _kind(hint: Any) -> Any:
    """int from `int | None`, and so on."""
    if isinstance(hint, types.UnionType):
        return next(part for part in hint.__args__ if part is not type(None))
    return hint
