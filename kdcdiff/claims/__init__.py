"""The audit: every printed number and comparative sentence of the two papers as data, and the judge of them.

``load()`` reads the claims, ``judge(claim, evidence)`` gives a `Verdict`, ``judge_all`` one for each. What the papers
print lies in ``data/``: tables as CSV, claims as YAML, both validated when they are read.
"""

from kdcdiff.claims.judging import judge, judge_all, load

__all__ = ["judge", "judge_all", "load"]
