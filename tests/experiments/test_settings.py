"""Every stage is keyed by all that its work is called with, and its work sees nothing else of the run's sizes."""

import ast
import contextlib
import dataclasses
import inspect
from pathlib import Path

import pytest

from kdcdiff import experiments
from kdcdiff.experiments import (
    ablation,
    behaviour,
    composition,
    continual,
    first_steps,
    head_to_head,
    paper_tables,
    plan,
    stages,
    tuning,
)
from kdcdiff.experiments.run import open_run
from kdcdiff.manifest import content_key
from kdcdiff.store import Artifact, Store
from kdcdiff.training.continual import METHODS
from kdcdiff.training.losses import KDCLoss

ROOMS = sorted(Path(experiments.__path__[0]).glob("*.py"))
READERS = {  # what a stage's work may hand the run to: they read other stages, which are among its inputs
    "teacher", "student", "model", "classifier", "clip", "latents", "images", "role", "stages",
}  # fmt: skip


class Planning(Store):
    """A store that makes nothing: it notes what each stage is asked for, and hands out artifacts without files."""

    def get(self, stage, make, *, version=1, settings=None, inputs=None, external=None):
        settings, keys = settings or {}, {name: a.key for name, a in (inputs or {}).items()}
        inspect.signature(make).bind(Path(), **settings)  # the work takes the very mapping that is keyed
        self.asked[stage] = (version, settings, keys, external or {})
        return Artifact(self.root / stage, content_key(stage, version, settings, keys, external or {}), {})


@pytest.fixture(scope="module", params=["flora", "folder"])
def asked(request, tmp_path_factory):
    """Stage -> (version, settings, input keys, external inputs), of every stage there is."""
    dataset = "flora"
    if request.param == "folder":
        folder = tmp_path_factory.mktemp("photographs")
        for split in ("train", "test"):
            for name in "abcde":
                (folder / split / name).mkdir(parents=True)
                for i in range(8):
                    (folder / split / name / f"{i}.png").write_bytes(b"never decoded")
        dataset = str(folder)
    run = open_run("smoke", dataset, 0, tmp_path_factory.mktemp("store"))
    store = Planning(run.store.root)
    store.asked = {}
    run = dataclasses.replace(run, store=store)
    lines = paper_tables.rows(run)
    asks = [
        lambda: stages.clip_artifact(run),
        lambda: stages.classifier_artifact(run),
        lambda: stages.generated_artifact(run, "kdc-described"),
        lambda: stages.full_size_seconds(run, ["sd-1"], 2),
        lambda: stages.amputated(run, 2),
        lambda: composition.requested(run.shipped("flora"), 2),
        lambda: first_steps.first_steps_artifact(run),
        lambda: continual.class_by_class(run, "latent-replay"),
        lambda: continual.seconds(run),
        lambda: ablation.one_seed(run, {"total": KDCLoss()}, 0, steps=1, images=1),
        lambda: head_to_head.student(run, head_to_head.TABLE_4["N4"], 0),
        lambda: tuning.search(run, "kdc-diff"),
        lambda: behaviour.guided_artifact(run, "base", 0),
        lambda: behaviour.personalized(run, "small", 0),
        *(lambda line=line: paper_tables.drawn(run, line, 0) for line in lines),
    ]
    for ask in asks:
        with contextlib.suppress(FileNotFoundError):  # what reads its artifact finds no file
            ask()
    return store.asked


WORDS = {"reading": "space", "label": "argmax"}  # of a loss: what else its words may be


def other(value):
    """Values of the same kind as `value`, and not the same."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        changed = {name: WORDS.get(name) or own / 2 + 0.1 for name, own in fields.items()}
        return [dataclasses.replace(value, **{name: new}) for name, new in changed.items()]
    if isinstance(value, dict):
        return [value | {name: changed} for name in value for changed in other(value[name])]
    if isinstance(value, list | tuple):
        return [(*value[:-1], changed) for changed in other(value[-1])] + [tuple(value[:-1])]
    return [value + "x"] if isinstance(value, str) else [value + 1]


def test_changing_any_one_setting_changes_the_key(asked):
    wanted = {
        "images", "latents", "student", "generated", "latency", "amputated", "first-steps", "class-by-class",
        "ablation", "stand-in", "baseline", "pairs", "class-by-class-taught", "student-drawn", "recipe",
        "guided", "personalized", "search", "requested", "method-seconds",
    }  # fmt: skip
    assert wanted <= asked.keys()
    for stage, (version, settings, inputs, external) in asked.items():
        before = content_key(stage, version, settings, inputs, external)
        for name, value in settings.items():
            for changed in other(value):
                after = content_key(stage, version, settings | {name: changed}, inputs, external)
                assert after != before, f"{stage}: {name}={changed!r} has the key of {value!r}"


def test_what_drifted_once_is_in_the_keys(asked):
    """The stand-ins' learning rate, a student's whole objective, and the judge of judged scores."""
    assert {"lr", "ema", "dropout"} <= asked["stand-in"][1].keys()
    assert {"reading", "label"} <= vars(asked["student"][1]["objective"]).keys()
    own = "classifier" in asked
    for stage in ("ablation", "class-by-class"):
        _, _, inputs, external = asked[stage]
        assert ("classifier" in inputs) == own and "assets" in external, stage


def test_methods_differ_in_their_name_and_in_no_other_setting(tmp_path):
    """A method's own codec is in its name: what stores hold of the others keeps its key."""
    run = open_run("smoke", "flora", 0, tmp_path)
    store = plan._Noting()
    run = dataclasses.replace(run, store=store)
    for method in continual.ARMS:
        with contextlib.suppress(FileNotFoundError):
            continual.class_by_class(run, method, capacity=3)
    asked = [one.settings for one in store.asked.values() if one.stage == "class-by-class"]
    assert [settings["method"] for settings in asked] == list(continual.ARMS)
    assert all({**settings, "method": ""} == {**asked[0], "method": ""} for settings in asked)
    assert asked[0]["codec"] == "fp16" and {arm.method for arm in continual.ARMS.values()} == set(METHODS)


def works():
    """(room and stage function, the function `make` in it) of every stage."""
    for room in ROOMS:
        for outer in ast.walk(ast.parse(room.read_text())):
            if isinstance(outer, ast.FunctionDef):
                inner = [node for node in outer.body if isinstance(node, ast.FunctionDef) and node.name == "make"]
                yield from ((f"{room.stem}.{outer.name}", outer, make) for make in inner)


@pytest.mark.parametrize("outer, make", [pytest.param(o, m, id=name) for name, o, m in works()])
def test_the_work_of_a_stage_sees_its_settings_and_what_it_reads(outer, make):
    """No size or seed reaches it around the key: `run` is only asked for its source, its device and other stages."""
    for node in ast.walk(make):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "run":
            assert node.attr in ("source", "place", "device"), f"reads run.{node.attr}"
        if isinstance(node, ast.Call) and any(isinstance(a, ast.Name) and a.id == "run" for a in node.args):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            assert called in READERS, f"hands the run to {called}"
    given = {a.arg for a in (*make.args.args, *make.args.kwonlyargs)} | {make.args.kwarg.arg if make.args.kwarg else ""}
    own = {n.id for n in ast.walk(make) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)} | given
    own |= {f.name for f in ast.walk(make) if isinstance(f, ast.FunctionDef)}
    own |= {a.arg for f in ast.walk(make) if isinstance(f, ast.FunctionDef | ast.Lambda) for a in f.args.args}
    stored = [n.id for n in ast.walk(outer) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    around = {*stored, *(a.arg for a in (*outer.args.args, *outer.args.kwonlyargs))}
    read = {n.id for n in ast.walk(make) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)} - own
    inputs = {"pictures", "weights"}  # artifacts, whose keys are in the stage's
    assert read & around <= {"run", *inputs}, "reads what its settings do not name"
