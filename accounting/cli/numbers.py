"""Values typed on a command line: 60000, 6e4 or 1/50000; else refused in one line."""

import re
from fractions import Fraction

_DECIMAL = r"([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})(e[+-]?[0-9]{1,3})?"
_NUMBER = re.compile(rf"[+-]?{_DECIMAL}(/{_DECIMAL})?")
_MOST = 10**18


class UsageError(Exception):
    """Something typed is wrong; the text is one line of three sentences."""


def exact(
    name: str, text: str | None, meaning: str, example: str, kind: str = "number"
) -> Fraction:
    """The typed number without rounding, or an error that says what to type."""
    if text is None:
        raise UsageError(
            f"--{name} is missing. It is {meaning}, on which epsilon depends. Type"
            f" --{name}={example}."
        )
    parts = text.lower().split("/")
    if not _NUMBER.fullmatch(text.lower()) or _divides_by_zero(parts):
        raise _not_a(kind, name, text, meaning, example)
    value = Fraction(parts[0])
    return value / Fraction(parts[1]) if len(parts) > 1 else value


def integer(name: str, text: str | None, meaning: str, example: str) -> int:
    """A whole number >= 1."""
    value = exact(name, text, meaning, example, "whole number")
    if value.denominator != 1 or not 0 <= value < _MOST:
        raise _not_a("whole number", name, str(text), meaning, example)
    if value < 1:
        raise UsageError(
            f"--{name} is {value}, below 1. It is {meaning}, and there is nothing to"
            f" account for without it. Type --{name}={example}."
        )
    return int(value)


def number(name: str, text: str | None, meaning: str, example: str) -> float:
    """A finite number."""
    try:
        return float(exact(name, text, meaning, example))
    except OverflowError:
        raise UsageError(
            f"--{name} is {text}, too large for a number. It is {meaning}, on which"
            f" epsilon depends. Type --{name}={example}."
        ) from None


def _not_a(kind: str, name: str, text: str, meaning: str, example: str) -> UsageError:
    return UsageError(
        f"--{name} is {text!r}, not a {kind}. It is {meaning}, on which epsilon"
        f" depends. Type it in digits, such as --{name}={example}."
    )


def _divides_by_zero(parts: list[str]) -> bool:
    return len(parts) > 1 and Fraction(parts[1]) == 0
