"""A pytest plugin for the runs of nbval: says which cells were really compared, and leaves stderr out.

nbval passes a marked cell without a look where its stored execution count is missing. Loaded with `-p`, this
writes [notebook, number of the code cell] of every true comparison to the file named by NBVAL_GUARD.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from nbval.plugin import IPyNbCell, IPyNbFile

_compared: list[tuple[str, int]] = []
_compare = IPyNbCell.compare_outputs


def _watched(self: Any, test: Any, ref: Any, skip_compare: Any = None) -> bool:
    _compared.append((Path(self.parent.path).stem, self.cell_num))
    return _compare(self, test, ref, skip_compare)


def pytest_configure(config: pytest.Config) -> None:
    IPyNbCell.compare_outputs = _watched


def pytest_collectstart(collector: pytest.Collector) -> None:
    if isinstance(collector, IPyNbFile):
        collector.skip_compare += ("stderr",)  # progress and library warnings are no result


def pytest_sessionfinish(session: pytest.Session) -> None:
    Path(os.environ["NBVAL_GUARD"]).write_text(json.dumps(_compared))
