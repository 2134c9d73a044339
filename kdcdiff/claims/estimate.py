"""Measured values with intervals, and comparisons that may stay open."""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot, inf


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval: of no width where it is exact, infinite where it is unknown.

    Sums and differences take the intervals as independent and combine their arms by the square-root method
    (Zou and Donner 2008, doi:10.1002/sim.3095), which respects lopsided intervals.
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, interval: tuple[float, float] | None, exact: bool = False) -> Estimate:
        """From a recorded result; without an interval it is exact or undecidable."""
        if interval is None:
            return cls(value, value, value) if exact else cls(value, -inf, inf)
        return cls(value, min(interval[0], value), max(interval[1], value))

    def __add__(self, other: Estimate | float) -> Estimate:
        o = as_estimate(other)
        value = self.value + o.value
        down = hypot(self.value - self.low, o.value - o.low)
        up = hypot(self.high - self.value, o.high - o.value)
        return Estimate(value, value - down, value + up)

    def __neg__(self) -> Estimate:
        return Estimate(-self.value, -self.high, -self.low)

    def __sub__(self, other: Estimate | float) -> Estimate:
        return self + (-as_estimate(other))

    def __rsub__(self, other: float) -> Estimate:
        return as_estimate(other) - self

    def __mul__(self, factor: float) -> Estimate:
        ends = sorted((self.low * factor, self.high * factor)) if factor else (0.0, 0.0)
        return Estimate(self.value * factor, *ends)

    def __truediv__(self, factor: float) -> Estimate:
        return self * (1 / factor)

    __radd__ = __add__
    __rmul__ = __mul__

    def above(self, other: Estimate | float) -> bool | None:
        """True or False where the difference's interval leaves zero outside, None where it does not."""
        d = self - other
        if d.low == d.high:
            return d.value > 0
        return True if d.low > 0 else False if d.high < 0 else None

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def as_estimate(x: Estimate | float) -> Estimate:
    """An estimate as it is, a number as an exact one."""
    return x if isinstance(x, Estimate) else Estimate(x, x, x)
