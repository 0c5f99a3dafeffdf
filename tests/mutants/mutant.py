"""A planted bug, and the name of the battery that must notice it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from dp_train import effects


@dataclass(frozen=True)
class Mutant:
    """One bug of the kind that real libraries shipped.

    Attributes:
        sentence: what is wrong, in one sentence.
        plant: a context manager; dp_train has the bug inside its block.
        caught_by: key of `registry.BATTERIES`.
        caught_as: part of the battery's message (a regular expression), so that it is
            caught for what it is and not by accident.
    """

    sentence: str
    plant: Callable[[], AbstractContextManager[Any]]
    caught_by: str
    caught_as: str


def without_checks_of_inputs() -> AbstractContextManager[Any]:
    """Rows of the batch may be read behind the clip.

    For mutants that the white list refuses before their own battery can measure
    them: a battery must keep its power for a fault that the white list misses.
    """

    def ignore(*given: Any, **named: Any) -> None:
        del given, named

    return mock.patch.multiple(effects, check_free_of=ignore, check_inputs=ignore)
