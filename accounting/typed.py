"""Values typed on a command line: digits only, refused in one line otherwise."""

import math
import re
from collections.abc import Callable
from typing import TypeVar

INTEGER = re.compile(r"[0-9]{1,18}")
DECIMAL = re.compile(
    r"[+-]?([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})(e[+-]?\d{1,3})?"
)


class UsageError(Exception):
    """Something typed is wrong; the text is one line of three sentences."""


Value = TypeVar("Value")


def parse(
    name: str,
    text: str | None,
    pattern: re.Pattern[str],
    convert: Callable[[str], Value],
    meaning: str,
    example: str,
) -> Value:
    """The typed text as a value, or an error that says what to type."""
    if text is None:
        raise UsageError(
            f"--{name} is missing. It is {meaning}, on which epsilon depends. Type"
            f" --{name}={example}."
        )
    if not pattern.fullmatch(text.lower()):
        kind = "whole number" if pattern is INTEGER else "number"
        raise UsageError(
            f"--{name} is {text!r}, not a {kind}. It is {meaning}, on which epsilon"
            f" depends. Type it in digits, such as --{name}={example}."
        )
    return convert(text)


def integer(name: str, text: str | None, meaning: str, example: str) -> int:
    """A whole number >= 1."""
    value = parse(name, text, INTEGER, int, meaning, example)
    if value < 1:
        raise UsageError(
            f"--{name} is {value}, below 1. It is {meaning}, and there is nothing to"
            f" account for without it. Type --{name}={example}."
        )
    return value


def number(name: str, text: str | None, meaning: str, example: str) -> float:
    """A finite number."""
    value = parse(name, text, DECIMAL, float, meaning, example)
    if not math.isfinite(value):
        raise UsageError(
            f"--{name} is {text}, too large for a number. It is {meaning}, on which"
            f" epsilon depends. Type --{name}={example}."
        )
    return value
