"""The range of a number, in the words of an error and in symbols."""

from __future__ import annotations

from typing import NamedTuple


class Bounds(NamedTuple):
    """The range of a number: ``low`` and ``high`` may be absent, and belong to the range if closed."""

    low: float | None
    low_closed: bool
    high: float | None
    high_closed: bool

    def holds(self, value: float) -> bool:
        """Return whether a number lies in the range.

        >>> Bounds(0, False, 1, True).holds(0), Bounds(0, False, 1, True).holds(1)
        (False, True)
        """
        above = self.low is None or (value >= self.low if self.low_closed else value > self.low)
        below = self.high is None or (value <= self.high if self.high_closed else value < self.high)
        return above and below

    def requirement(self) -> str:
        """Say what a value must do.

        >>> Bounds(0, False, 1, False).requirement(), Bounds(1, True, None, False).requirement()
        ('must lie in (0, 1)', 'must be at least 1')
        """
        if self.low is not None and self.high is not None:
            return f"must lie in {self._interval()}"
        if self.low is not None:
            return f"must be {'at least' if self.low_closed else 'greater than'} {self.low:g}"
        return f"must be {'at most' if self.high_closed else 'less than'} {self.high:g}"

    def label(self) -> str:
        """Return the range in symbols.

        >>> Bounds(0, True, 1, False).label(), Bounds(0, False, None, False).label()
        ('in [0, 1)', '> 0')
        """
        if self.low is not None and self.high is not None:
            return f"in {self._interval()}"
        if self.low is not None:
            return f"{'≥' if self.low_closed else '>'} {self.low:g}"
        return f"{'≤' if self.high_closed else '<'} {self.high:g}"

    def _interval(self) -> str:
        return (
            f"{'[' if self.low_closed else '('}{self.low:g}, {self.high:g}{']' if self.high_closed else ')'}"
        )


def bounds_from(
    *, gt: float | None = None, ge: float | None = None, lt: float | None = None, le: float | None = None
) -> Bounds | None:
    """Return the range between limits given as in pydantic; ``None`` where there are none.

    >>> bounds_from(gt=0, le=1).label()
    'in (0, 1]'
    """
    low, high = (ge if gt is None else gt), (le if lt is None else lt)
    return None if low is None and high is None else Bounds(low, gt is None, high, lt is None)
