"""The small language of checks: one Python-like expression over the papers' cells, networks and evidence.

    lowest("kdc-diff-1/flowers/kdc-diff/fid")
    macs("sd-1", "fvcore") > 3e11
    seen("student.kdc-described.class_accuracy") > (1 - ours(0.1)) * seen("teacher.class_accuracy")

A threshold that is not in the sentence is marked as `ours`, so that half and double of it can be tried. Only
literals, arithmetic, comparisons, ``and`` / ``or`` / ``not`` and the functions below exist; nothing is ever
`eval`-ed. Truth has three values: None says that the evidence does not decide. Every comparison leaves a line
that says what was compared, and one of sampled figures its p value.
"""

from __future__ import annotations

import ast
import math
import operator
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from kdcdiff.claims import readings, tables
from kdcdiff.claims.model import Evidence
from kdcdiff.claims.statistics import p_value
from kdcdiff.errors import UserError
from kdcdiff.metrics.estimate import Estimate, as_estimate
from kdcdiff.models.configs import LATENT
from kdcdiff.models.macs import CONVENTIONS

EXACT_UNITS = ("bytes", "B", "count", "parameters", "MAC", "GMac")  # counted, not sampled: no interval is needed
ADDRESSED = ("cell", "column", "lowest", "highest", "place")  # functions whose first argument is an address
NAMING = {"parameters": None, "inherits": None, "macs": 1, "pairs": 1, "stages": 1, "widths": 1}
"""Functions of networks, and how many of their words name one; None: all of them."""
OUTSIDE = (*NAMING, "readings", "fact")  # functions that read more than the paper itself
INSIDE = (*ADDRESSED, "stated", "metrics")  # functions that read the paper
ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
COMPARISONS: dict[type, tuple[str, Callable[[Any, Any], bool]]] = {
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
    ast.Eq: ("=", operator.eq),
    ast.NotEq: ("is not", operator.ne),
}


@dataclass
class Checker:
    """Evaluates checks; `trace` collects what was compared, `read` which evidence was used, `ps` the p values."""

    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    factor: float = 1.0  # on every threshold of ours
    trace: list[str] = field(default_factory=list)
    read: list[str] = field(default_factory=list)
    ps: list[float] = field(default_factory=list)
    divided: bool = False  # endpoints were asked that do not agree
    void: bool = False  # a statement's own condition does not hold: here it can be neither true nor false

    def decide(self, check: str) -> bool | None:
        """Evaluate a check: True, False, or None where the evidence does not decide. UserError: it is no truth."""
        result = self._value(parse(check))
        if result is not None and not isinstance(result, bool):
            raise UserError(f"check={check!r}: gives {result!r}, not true or false")
        return result

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.Tuple() | ast.List():
                return tuple(self._value(e) for e in node.elts)
            case ast.UnaryOp(op=ast.USub()):
                return -self._value(node.operand)
            case ast.UnaryOp(op=ast.Not()):
                inner = self._value(node.operand)
                return None if inner is None else not inner
            case ast.BinOp():
                return ARITHMETIC[type(node.op)](self._value(node.left), self._value(node.right))
            case ast.BoolOp():
                return self._join(isinstance(node.op, ast.And), [self._value(v) for v in node.values])
            case ast.Compare():
                return self._compare(node)
            case ast.Call(func=ast.Name(id="given"), args=[condition, statement]):
                if self._value(condition) is not True:
                    self.void = True
                    return None
                self.ps.clear()  # the condition is no finding
                return self._value(statement)
            case ast.Call(func=ast.Name(id=name)):
                positional = [self._value(a) for a in node.args]
                named = {k.arg or "": self._value(k.value) for k in node.keywords}
                return getattr(self, f"do_{name}")(*positional, **named)
        raise UserError(f"check={ast.unparse(node)!r}: is not of the language")

    @staticmethod
    def _join(every: bool, values: list[bool | None]) -> bool | None:
        deciding = not every
        if deciding in values:
            return deciding
        return None if None in values else every

    def _compare(self, node: ast.Compare) -> bool | None:
        values = [self._value(node.left), *(self._value(c) for c in node.comparators)]
        results: list[bool | None] = []
        for op, a, b in zip(node.ops, values, values[1:], strict=False):
            sign, function = COMPARISONS[type(op)]
            if isinstance(a, Estimate) or isinstance(b, Estimate):
                difference = as_estimate(a) - b if ">" in sign else as_estimate(b) - a
                results.append(difference.above(0))
                if not difference.is_exact:
                    self.ps.append(p_value(difference, difference.n or self._smallest()))
                paired = " (paired)" if difference.n else ""
            else:
                results.append(bool(function(a, b)))
                paired = ""
            verdict = {True: "holds", False: "does not hold", None: "is open"}[results[-1]]
            self.trace.append(f"{show(a)} {sign} {show(b)} {verdict}{paired}")
        return self._join(True, results)

    # The papers' cells and numbers.
    def do_cell(self, address: str) -> Any:
        c = tables.cell(address)
        return c.text if c.value is None else c.value

    def do_column(self, address: str, role: str = "") -> tuple[float, ...]:
        return tuple(c.value for c in tables.cells(address) if c.value is not None and role in ("", c.role))

    def _ranked(self, address: str, role: str, reverse: bool) -> tuple[int, tables.Cell]:
        """Count the cell's peers (of the roles given, as in ``pair|variant``) that are strictly better, plus one."""
        mine = tables.cell(address)
        others = [c for c in tables.peers(address) if not role or c.role in role.split("|") or c.address == address]
        others.sort(key=lambda c: c.value or 0.0, reverse=reverse)
        place = 1 + sum((c.value > mine.value) if reverse else (c.value < mine.value) for c in others)  # type: ignore[operator]
        first = others[0]
        at = "" if first.address == address or place == 1 else f"; {first.text} is ({first.address.split('/')[-2]})"
        self.trace.append(
            f"{mine.text} is number {place} of {len(others)} from the {'highest' if reverse else 'lowest'}{at}"
        )
        return place, mine

    def do_lowest(self, address: str, role: str = "") -> bool:
        return self._ranked(address, role, reverse=False)[0] == 1

    def do_highest(self, address: str, role: str = "") -> bool:
        return self._ranked(address, role, reverse=True)[0] == 1

    def do_place(self, address: str, role: str = "", worst: bool = False) -> int:
        better = tables.cell(address).better
        return self._ranked(address, role, reverse=(better == "high") is not worst)[0]

    def do_stated(self, id: str) -> float:
        return tables.stated(id).value

    def do_fact(self, id: str) -> float:
        return tables.fact(id).value

    def do_metrics(self, table: str) -> int:
        """Count the columns of a table that rank its rows."""
        return sum("better" in about for about in tables.load_tables()[table].columns.values())

    def do_prints(self, value: float, text: str) -> bool:
        """Say whether `value` prints as `text` (an address, a stated number's id or digits), rounded or cut."""
        if "/" in text:
            text = tables.cell(text).text if text.split("/")[0] in tables.load_tables() else tables.stated(text).text
        places = len(text.partition(".")[2])
        holds = readings.printed(round(value * 10**6), 10**6, text)
        self.trace.append(f"{value:,.{max(places + 3, 0)}f} {'prints' if holds else 'does not print'} as {text}")
        return holds

    # Plain arithmetic on columns.
    def do_mean(self, values: tuple[float, ...]) -> float:
        return statistics.fmean(values)

    def do_spread(self, values: tuple[float, ...]) -> float:
        return statistics.stdev(values)

    def do_count(self, values: tuple[float, ...]) -> int:
        return len(values)

    def do_low(self, values: tuple[float, ...]) -> float:
        return min(values)

    def do_high(self, values: tuple[float, ...]) -> float:
        return max(values)

    def do_given(self, condition: bool | None, statement: bool | None) -> bool | None:
        """Return a statement that has a meaning only where `condition` holds; it is not looked at anywhere else."""
        raise UserError("given: takes a condition and a statement")

    def do_together(self, *endpoints: bool | None) -> bool | None:
        """Join a claim's endpoints: true where all hold, false where none does, and open where they do not agree."""
        if all(e is True for e in endpoints) or all(e is False for e in endpoints):
            return endpoints[0]
        self.divided = self.divided or {True, False} <= set(endpoints)
        return None

    def do_ours(self, threshold: float) -> float:
        """Mark a threshold that is ours and not the sentence's; `factor` moves it."""
        return threshold * self.factor

    def do_cut(self, before: float, after: float) -> float:
        """The share that is gone, in per cent."""
        return 100 * (1 - after / before)

    def do_holding(self, *truths: bool | None) -> int:
        """Count the statements that hold."""
        return sum(t is True for t in truths)

    # The networks.
    def do_parameters(self, *names: str) -> int:
        return sum(readings.network_count(n).parameters for n in names)

    def do_macs(self, name: str, convention: str, latent: int = LATENT) -> int:
        return readings.network_count(name, latent).macs[convention]

    def do_pairs(self, name: str, side: str) -> tuple[int, ...]:
        return readings.pairs(name, side)

    def do_stages(self, name: str, side: str, kind: str = "") -> int:
        return sum(s.startswith(kind) for s in readings.stages(name, side))

    def do_widths(self, name: str) -> tuple[int, ...]:
        return readings.widths(name)

    def do_inherits(self, student: str, teacher: str) -> bool:
        holds = readings.inherits(student, teacher)
        self.trace.append(f"every tensor of {student} {'has' if holds else 'does not have'} its source in {teacher}")
        return holds

    def do_readings(self, parameters: str, gmac: str) -> int:
        """Count the readings of the text that have both printed figures, whatever the counting convention."""
        total, text = round(tables.cell(parameters).value or 0), tables.cell(gmac).text
        by_total, by_gmac = readings.matching(total), readings.matching(gmac=text)
        both = {d for d, _ in by_total} & {d for d, _ in by_gmac}
        these = f"{len(by_total)} have {total:,} parameters, {len(by_gmac)} print {text} GMac, {len(both)} do both"
        self.trace.append(f"of {len(readings.family_counts())} readings {these}")
        return len(both)

    # The evidence.
    def do_seen(self, name: str) -> Estimate:
        found = self.evidence.get(name)
        if found is None:
            raise UserError(f"evidence={name!r}: was not recorded")
        self.read.append(name)
        value, exact = float(found.value), found.unit in EXACT_UNITS
        low, high = found.interval or ((value, value) if exact else (-math.inf, math.inf))
        return Estimate(value, min(low, value), max(high, value), replicates=found.replicates)

    def _smallest(self) -> int | None:
        """The smallest number of samples among the evidence read so far; None where none says."""
        return min((n for name in self.read if (n := self.evidence[name].n)), default=None)


@lru_cache(maxsize=1024)
def parse(check: str) -> ast.expr:
    """Parse a check. UserError, in one line: it is not of the language, or names what does not exist."""
    try:
        root = ast.parse(" ".join(check.split()), mode="eval").body
    except SyntaxError as error:
        raise UserError(f"check={check!r}: {error.msg}") from error
    for node in ast.walk(root):
        if isinstance(node, ast.Name) and not hasattr(Checker, f"do_{node.id}"):
            raise UserError(f"check={check!r}: there is no {node.id}")
        if isinstance(node, ast.Call) and not isinstance(node.func, ast.Name):
            raise UserError(f"check={check!r}: only plain functions can be called")
    for function, words in _calls(root):
        _resolve(check, function, words)
    return root


def _calls(root: ast.expr) -> Iterator[tuple[str, list[str]]]:
    """Walk the calls of a parsed check: the function's name, and the words among its arguments."""
    for node in ast.walk(root):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            words = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            yield node.func.id, words


def _resolve(check: str, function: str, words: list[str]) -> None:
    """Raise `UserError` where an address, a number, a network or a convention does not exist."""
    known = {"network": (*readings.NETWORKS, *readings.COMPANIONS), "convention": tuple(CONVENTIONS)}
    asked = [("network", word) for word in words[: NAMING[function]]] if function in NAMING else []
    asked += [("convention", word) for word in words[1:]] if function == "macs" else []
    for kind, word in asked:
        if word not in known[kind]:
            raise UserError(f"check={check!r}: there is no {kind} {word!r}; there are {', '.join(known[kind])}")
    if function in ADDRESSED:
        tables.cells(words[0])
    elif function in ("stated", "fact"):
        getattr(tables, function)(words[0])


def evidence_names(check: str) -> tuple[str, ...]:
    """Name the results that a check asks for, in order, each once; none for an empty check."""
    asked = [words[0] for function, words in _calls(parse(check)) if function == "seen" and words] if check else []
    return tuple(dict.fromkeys(asked))


def looks_outside(check: str) -> bool:
    """Say whether a check computes by itself: from networks, from published facts, or from nothing of the paper's."""
    called = {function for function, _ in _calls(parse(check))}
    return bool(called & set(OUTSIDE)) or not called & set(INSIDE)


def threshold_of(check: str) -> str:
    """Say whose threshold a check has: ``ours``, ``the claim's`` (an inequality with a stated number), or none."""
    root = parse(check)
    if any(function == "ours" for function, _ in _calls(root)):
        return "ours"
    sides = [node for node in ast.walk(root) if isinstance(node, ast.Compare) and not isinstance(node.ops[0], ast.Eq)]
    return "the claim's" if any(f == "stated" for side in sides for f, _ in _calls(side)) else ""


def show(value: Any) -> str:
    """Write a value as a reader would."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) >= 1000 else f"{value:.6g}"
    if isinstance(value, tuple):
        return "(" + ", ".join(show(v) for v in value) + ")"
    return str(value)
