"""Answers that are numbers too: the upper bound, which is what may be promised."""

import abc
import decimal
import math
import re
from typing import SupportsFloat

_SPEC = re.compile(r".*?(?:\.(?P<digits>\d+))?(?P<kind>[a-zA-Z%]?)", re.DOTALL)


class Promise(abc.ABC):
    """What is compared, formatted and rounded by the figure that may be promised.

    Formats with a number of digits, and `round`, go up: what is read still holds.
    Without a format the text is that of `str`.
    """

    __slots__ = ()

    @property
    @abc.abstractmethod
    def promised(self) -> float:
        """The figure that may be promised."""

    def __float__(self) -> float:
        return self.promised

    def __lt__(self, other: SupportsFloat) -> bool:
        return self.promised < float(other)

    def __le__(self, other: SupportsFloat) -> bool:
        return self.promised <= float(other)

    def __gt__(self, other: SupportsFloat) -> bool:
        return self.promised > float(other)

    def __ge__(self, other: SupportsFloat) -> bool:
        return self.promised >= float(other)

    def __round__(self, ndigits: int | None = None) -> float:
        if not math.isfinite(self.promised):
            return self.promised
        return _up(self.promised, ndigits or 0)

    def __format__(self, spec: str) -> str:
        return format(_rounded_up(self.promised, spec), spec) if spec else str(self)


def _rounded_up(value: float, spec: str) -> float:
    """The value that, printed by the format, is not below what it was."""
    parts = _SPEC.fullmatch(spec)
    if parts is None or not math.isfinite(value) or value == 0:
        return value
    kind, digits = parts["kind"].lower(), parts["digits"]
    if not kind and digits is None:
        return value
    count = 6 if digits is None else int(digits)
    # Significant digits are counted from the first one.
    first = math.floor(math.log10(abs(value)))
    if kind == "e":
        count -= first
    elif kind in ("", "g", "n"):
        count = max(count, 1) - 1 - first
    elif kind == "%":
        count += 2
    return _up(value, count)


def _up(value: float, digits: int) -> float:
    """The next number with so many digits after the point."""
    unit = decimal.Decimal(1).scaleb(-digits)
    with decimal.localcontext() as context:
        context.prec = 400
        exact = decimal.Decimal(repr(value))
        return float(exact.quantize(unit, decimal.ROUND_CEILING))
