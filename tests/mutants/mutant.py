"""A planted bug, and the name of the battery that must notice it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any


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
