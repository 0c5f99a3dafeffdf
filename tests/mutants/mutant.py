"""A planted bug, and the name of the battery that must notice it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from dp_train import clipped_sum, effects


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


def resealed(given: clipped_sum.ClippedSum, **changes: Any) -> clipped_sum.ClippedSum:
    """The clipped sum with other contents, as only code of the library can make it."""
    contents = clipped_sum.contents(given)
    return clipped_sum.seal(dataclasses.replace(contents, **changes))


def without_checks_of_inputs() -> AbstractContextManager[Any]:
    """Rows of the batch may be read behind the clip.

    For mutants that the white list refuses before their own battery can measure
    them: a battery must keep its power for a fault that the white list misses.
    """

    def ignore(*given: Any, **named: Any) -> None:
        del given, named

    return mock.patch.multiple(effects, check_free_of=ignore, check_inputs=ignore)
