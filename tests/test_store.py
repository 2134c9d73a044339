"""The artifact store and the results file: keys, atomic publish, damage, kills, refusals."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcdiff.errors import UserError
from kdcdiff.manifest import canonical, content_key
from kdcdiff.provenance import sha256_file
from kdcdiff.store import Store, claim

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def published(root: Path) -> list[str]:
    """The artifacts of a store."""
    return sorted(path.parent.name for path in root.glob("*/manifest.json"))


def write(text: str):
    def make(work: Path, **settings: object) -> None:
        (work / "out.txt").write_text(text)

    return make


def key(params: object) -> str:
    return content_key("stage", 1, {"value": params}, {}, {})


@given(plain)
def test_a_key_survives_a_trip_through_json(value):
    assert key(value) == key(json.loads(json.dumps(canonical(value))))


@given(st.dictionaries(st.text(), plain, min_size=2, max_size=6))
def test_a_key_does_not_depend_on_the_order_of_names(params):
    backwards = dict(reversed(params.items()))
    assert content_key("s", 1, params, {}, {}) == content_key("s", 1, backwards, {}, {})


@given(plain, plain)
def test_two_values_share_a_key_only_if_they_are_the_same_json(one, other):
    same = json.dumps(canonical(one), sort_keys=True) == json.dumps(canonical(other), sort_keys=True)
    assert (key(one) == key(other)) == same


@pytest.mark.parametrize("one, other", [(1, 1.0), (1, True), (0, None), ("1", 1), ([], {}), ("", None)])
def test_values_of_different_types_have_different_keys(one, other):
    assert key(one) != key(other)


@pytest.mark.parametrize("value", [(1, 2), np.float64(0.5), np.int64(3), Path("a/b")])
def test_tuples_numpy_scalars_and_paths_are_taken(value):
    same = {tuple: [1, 2], np.float64: 0.5, np.int64: 3}.get(type(value), "a/b")
    assert key(value) == key(same)


@pytest.mark.parametrize("value", [math.nan, math.inf, {1: 2}, object(), {1, 2}, b"bytes"])
def test_what_has_no_canonical_form_is_refused(value):
    with pytest.raises(TypeError):
        key(value)


def test_every_part_of_the_recipe_is_in_the_key(tmp_path):
    store = Store(tmp_path)
    first, second = store.get("a", write("1")), store.get("a", write("2"), settings={"n": 1})
    others = [
        store.get("a", write("3"), version=2),
        store.get("b", write("4")),
        store.get("a", write("5"), inputs={"x": first}),
        store.get("a", write("6"), inputs={"x": second}),
        store.get("a", write("7"), external={"x": "abc"}),
    ]
    assert len({artifact.key for artifact in (first, second, *others)}) == 7


def test_a_stage_is_made_once_and_said(tmp_path, capsys):
    calls = []

    def make(work: Path, **settings: object) -> None:
        calls.append(work)
        (work / "deep").mkdir()
        (work / "deep" / "out.txt").write_text("hello")

    store = Store(tmp_path)
    made = store.get("latents", make, settings={"n": 1})
    again = Store(tmp_path).get("latents", make, settings={"n": 1})
    assert len(calls) == 1 and made.path == again.path
    assert (again / "deep/out.txt").read_text() == "hello"
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["built", "reused"]
    assert not calls[0].exists(), "the work folder became the artifact"


def test_the_manifest_says_how_it_came_about(tmp_path):
    store = Store(tmp_path)
    data = store.get("data", write("x"))

    def make(work: Path, **settings: object) -> None:
        block = np.ones(40_000_000)  # 320 MB, for long enough to be sampled
        time.sleep(0.3)
        (work / "sum.txt").write_text(str(block.sum()))

    artifact = store.get("sums", make, version=3, settings={"n": 2}, inputs={"data": data}, external={"set": "abc"})
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert manifest == artifact.manifest
    assert manifest["settings"] == {"n": 2} and manifest["inputs"] == {"data": data.key}
    assert manifest["external"] == {"set": "abc"} and manifest["version"] == 3
    assert manifest["files"] == {"sum.txt": {"bytes": 10, "sha256": sha256_file(artifact / "sum.txt")}}
    assert manifest["seconds"] >= 0.3 and manifest["peak_bytes"] > 320e6
    assert {"torch", "diffusers", "kdcdiff"} <= manifest["libraries"].keys()
    assert {"python", "commit", "device", "created"} <= manifest.keys()
    assert data.bytes == 1 and artifact.bytes == 10


@pytest.mark.parametrize("damage", ["flip", "cut", "lose", "manifest", "foreign"])
def test_damage_is_moved_aside_said_and_made_again(tmp_path, capsys, damage):
    store = Store(tmp_path)
    artifact = store.get("weights", write("good content"))
    target = artifact / "out.txt"
    if damage == "flip":
        target.write_text("bad  content")
    elif damage == "cut":
        target.write_text("good")
    elif damage == "lose":
        target.unlink()
    elif damage == "manifest":
        (artifact / "manifest.json").write_text('{"key": ')
    else:
        (artifact / "manifest.json").write_text(json.dumps(artifact.manifest | {"key": "0" * 64}))
    again = store.get("weights", write("good content"))
    assert (again / "out.txt").read_text() == "good content"
    assert "is damaged" in capsys.readouterr().out
    assert len(list((tmp_path / "damaged").iterdir())) == 1


def test_an_error_publishes_nothing_and_leaves_no_rest(tmp_path):
    store = Store(tmp_path)

    def make(work: Path, **settings: object) -> None:
        (work / "half.txt").write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.get("a", make)
    assert published(tmp_path) == [] and list((tmp_path / "work").iterdir()) == []
    assert (store.get("a", write("whole")) / "out.txt").read_text() == "whole"


def test_a_checkpoint_is_kept_over_an_error_and_never_published(tmp_path, capsys):
    store = Store(tmp_path)

    def make(work: Path, **settings: object) -> None:
        checkpoint = work / "checkpoint"
        if not checkpoint.exists():
            checkpoint.mkdir()
            (checkpoint / "step").write_text("7")
            raise KeyboardInterrupt
        (work / "out.txt").write_text((checkpoint / "step").read_text())

    with pytest.raises(KeyboardInterrupt):
        store.get("train", make)
    artifact = store.get("train", make)
    assert (artifact / "out.txt").read_text() == "7" and not (artifact / "checkpoint").exists()
    assert artifact.manifest["resumed"] and "resume train" in capsys.readouterr().out


KILLED = """
    import sys, time
    from pathlib import Path
    from kdcdiff.store import Store

    def make(work, **settings):
        (work / "checkpoint").write_text("step 5")
        (work / "log.jsonl").write_text("one line")
        print("halfway", flush=True)
        time.sleep(60)

    Store(sys.argv[1]).get("train", make, settings={"steps": 10})
"""


def test_a_killed_stage_goes_on_from_its_work_folder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"halfway\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert published(tmp_path) == [], "nothing half-made is published"
    seen = []

    def make(work: Path, **settings: object) -> None:
        seen.extend(sorted(path.name for path in work.iterdir()))
        (work / "out.txt").write_text((work / "checkpoint").read_text())

    artifact = Store(tmp_path).get("train", make, settings={"steps": 10})
    assert seen == ["checkpoint", "log.jsonl"]
    assert (artifact / "out.txt").read_text() == "step 5" and (artifact / "log.jsonl").exists()


RACER = """
    import os, sys, time
    from kdcdiff.store import Store

    def make(work, **settings):
        time.sleep(0.5)
        (work / "out.txt").write_text(str(os.getpid()))

    print((Store(sys.argv[1], say=lambda _: None).get("shared", make) / "out.txt").read_text())
"""


def test_processes_that_ask_at_once_share_one_making(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(RACER), str(tmp_path)]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    makers = {racer.communicate(timeout=60)[0] for racer in racers}
    assert len(makers) == 1 and int(makers.pop()) in {racer.pid for racer in racers}


def test_a_full_disk_is_one_clear_line_and_nothing_half_written(tmp_path):
    def make(work: Path, **settings: object) -> None:
        (work / "half.txt").write_text("half")
        Path("/dev/full").write_text("no room")

    with pytest.raises(UserError, match=r"artifacts='.*no space left while building stage big"):
        Store(tmp_path).get("big", make)
    assert published(tmp_path) == [] and list((tmp_path / "work").iterdir()) == []


def test_a_full_disk_told_as_text_is_understood(tmp_path):
    def make(work: Path, **settings: object) -> None:
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    with pytest.raises(UserError, match="no space left"):
        Store(tmp_path).get("big", make)


def test_a_root_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="artifacts=.*must be a folder that can be written"):
        Store(tmp_path / "file" / "store")


def test_a_root_that_cannot_be_written_is_refused(tmp_path):
    """As an ordinary user: the superuser may write anywhere."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    script = f"""
        import os, sys
        from kdcdiff.errors import UserError
        from kdcdiff.store import Store
        if os.getuid() == 0:
            os.setuid(65534)
        try:
            Store({str(folder)!r})
        except UserError as error:
            print(error)
    """
    for parent in (*tmp_path.parents, tmp_path):
        if parent.is_relative_to("/tmp") and parent != Path("/tmp") and parent.stat().st_uid == os.getuid():
            parent.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert "must be a folder that can be written" in done.stdout, done.stderr


def test_a_stage_name_cannot_leave_the_root(tmp_path):
    with pytest.raises(ValueError, match="letters, digits"):
        Store(tmp_path).get("../outside", write("x"))


def test_a_folder_is_claimed_by_the_settings_of_one_command(tmp_path):
    note = tmp_path / "out" / "settings.json"
    claim(note, {"steps": 3, "path": Path("a"), "sizes": (1, 2)}, "the work of another command")
    before = note.read_bytes()
    claim(note, {"steps": 3, "path": Path("a"), "sizes": (1, 2)}, "the work of another command")
    with pytest.raises(UserError, match=r"holds the work of another command \(steps=3, not 4\)"):
        claim(note, {"steps": 4}, "the work of another command")
    assert note.read_bytes() == before and [f.name for f in note.parent.iterdir()] == ["settings.json"]
    note.write_bytes(before[:9])
    with pytest.raises(UserError, match="its settings.json cannot be read; choose another folder"):
        claim(note, {"steps": 3}, "the work of another command")
