"""What is installed: hashes of its files, a bill of materials, and recorded advisories."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import pytest
from packaging.version import Version

from tools.audit import LOCK, audit, holds, main, pinned
from tools.bill import BILL, bill

from .imports import REPO

PINS = pinned(LOCK)
OF_A_PLATFORM = {"torch", "torchvision"}  # other files on other indices under one version: a build for each device


def test_every_package_but_those_with_a_build_for_each_device_has_hashes():
    """The same versions as the lock's, and none without a hash; of torch none, for no index has all of its builds."""
    text = (REPO / "requirements.hashes").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    versions = {
        line[0].partition("==")[0].lower().replace("_", "-"): Version(line[0].partition("==")[2]) for line in lines
    }
    assert versions == {name: version for name, version in PINS.items() if name not in OF_A_PLATFORM}
    assert all(len(line) > 1 for line in lines)
    assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", word) for line in lines for word in line[1:])


def test_the_bill_of_materials_names_every_pinned_package():
    written = json.loads(BILL.read_text(encoding="utf-8"))
    assert written["bomFormat"] == "CycloneDX" and written["metadata"]["component"]["name"] == "kdcdiff"
    assert {part["purl"] for part in written["components"]} == {f"pkg:pypi/{n}@{v}" for n, v in PINS.items()}
    assert written == bill(LOCK), "make bill"
    assert sum("licenses" in part for part in written["components"]) > 0.9 * len(PINS)


RANGE = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.0"}, {"introduced": "3"}, {"fixed": "3.1"}]}


@pytest.mark.parametrize(
    ("version", "affected"),
    [("1.9", True), ("2.0", False), ("2.5", False), ("3.0.5", True), ("3.1", False), ("10.0", False)],
)
def test_an_advisory_holds_within_its_ranges(version, affected):
    assert holds({"ranges": [RANGE]}, Version(version)) == affected
    backwards = RANGE | {"events": RANGE["events"][::-1]}  # events come in any order
    assert holds({"ranges": [backwards]}, Version(version)) == affected


def test_an_advisory_holds_for_the_last_version_that_it_names_and_for_those_that_it_lists():
    last = {"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "1.0"}, {"last_affected": "1.4"}]}]}
    assert [holds(last, Version(v)) for v in ("0.9", "1.0", "1.4", "1.4.1")] == [False, True, True, False]
    commits = [{"type": "GIT", "events": [{"introduced": "0"}]}]  # say nothing of versions
    assert not holds({"ranges": commits}, Version("7.2")) and holds({"versions": ["7.2"]}, Version("7.2"))


def entry(name: str, **more: object) -> dict[str, object]:
    affected = {"package": {"name": name, "ecosystem": "PyPI"}, "ranges": [RANGE]}
    known = {"id": f"PYSEC-{name}", "aliases": ["CVE-1"], "details": "It\nleaks.", "modified": "2026-01-02T00:00:00Z"}
    return known | {"affected": [affected]} | more


@pytest.mark.parametrize("zipped", [False, True])
def test_an_audit_compares_the_lock_with_a_record(tmp_path, zipped, capsys):
    lock, record = tmp_path / "lock", tmp_path / "record"
    lock.write_text("# words\nLeaky_Thing==3.0.5  # why\nsound==2.0\nother==1.0\n")
    record.mkdir()
    entries = [entry("leaky.thing"), entry("sound"), entry("elsewhere"), entry("other", withdrawn="2026-01-01")]
    for number, each in enumerate(entries):
        (record / f"{number}.{'yaml' if number % 2 else 'json'}").write_text(json.dumps(each))  # which is YAML as well
    (record / "README.md").write_text("no advisory")
    if zipped:
        with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
            for file in record.iterdir():
                archive.write(file, file.name)
        record = tmp_path / "all.zip"
    found, compared = audit(lock, record)
    assert found == ["leaky-thing 3.0.5: PYSEC-leaky.thing (CVE-1) It leaks."]
    assert compared == "3 packages, 3 advisories, the newest of 2026-01-02"


@pytest.mark.parametrize(
    ("content", "line"), [("{", "0.json cannot be read"), ("{}", "holds no advisory"), (None, "No such file")]
)
def test_a_record_that_is_none_is_one_line(tmp_path: Path, capsys, content, line):
    if content is not None:
        (tmp_path / "record").mkdir()
        (tmp_path / "record" / "0.json").write_text(content)
    assert main([str(tmp_path / "record")]) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1


def test_an_audit_without_a_record_is_skipped_with_its_reason(capsys):
    assert main([""]) == 0
    assert "skipped: no recorded advisories were named" in capsys.readouterr().out
