"""Write the bill of materials, `sbom.cdx.json`: every pinned package, its version and its licence, as CycloneDX 1.6.

It is made from `requirements.lock` and from what the installed packages say of their licences: `make bill`. A test
holds the committed one to that. Hashes of the packages' files are in `requirements.hashes`.
"""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from tools.audit import LOCK, pinned

REPO = LOCK.parent
BILL = REPO / "sbom.cdx.json"


def bill(lock: Path) -> dict[str, Any]:
    """Lay out the bill for a lock file. PackageNotFoundError: one of its packages is not installed."""
    version = re.search(r'__version__ = "(.+)"', (REPO / "kdcdiff" / "__init__.py").read_text(encoding="utf-8"))
    assert version is not None
    own = {"type": "application", "bom-ref": "kdcdiff", "name": "kdcdiff", "version": version[1]}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": own | {"licenses": [{"license": {"id": "Apache-2.0"}}]}},
        "components": [_component(name, str(pin)) for name, pin in sorted(pinned(lock).items())],
    }


def _component(name: str, version: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{version}"
    part = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    return part | ({"licenses": said} if (said := _licenses(name)) else {})


def _licenses(name: str) -> list[dict[str, Any]]:
    """Repeat what a package says of its licence: an SPDX expression, or else the names of its classifiers."""
    about = metadata.metadata(name)
    if "License-Expression" in about:
        return [{"expression": about["License-Expression"]}]
    classifiers = [each.rpartition(" :: ")[2] for each in about.get_all("Classifier") or [] if "License ::" in each]
    short = about["License"].strip() if "License" in about else ""
    named = classifiers or [short] * (0 < len(short) < 60 and "\n" not in short)
    return [{"license": {"name": each}} for each in named]


if __name__ == "__main__":
    BILL.write_text(json.dumps(bill(LOCK), indent=1) + "\n", encoding="utf-8")
    print(f"the bill of materials is in {BILL.name}")
