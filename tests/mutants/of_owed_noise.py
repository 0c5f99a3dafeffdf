"""Planted bugs of noise that is drawn when a row is read."""

from __future__ import annotations

from typing import Any
from unittest import mock

import tensorflow as tf

from dp_train.noise.owed import OwedNoise
from dp_train.owing import Owing
from tests.mutants.mutant import Mutant

_owe = OwedNoise.owe


def rate_without_root() -> Any:
    """lr^4 in place of lr^2, and the like: half the variance."""

    def half(self: Any, variance: tf.Tensor) -> None:
        _owe(self, 0.5 * variance)

    return mock.patch.object(OwedNoise, "owe", half)


def never_at_the_end() -> Any:
    return mock.patch.object(OwedNoise, "settle", lambda self: None)


def callbacks_are_blind() -> Any:
    return mock.patch("dp_train.owing._may_look", lambda callback: False)


def readers_are_not_noticed() -> Any:
    return mock.patch.object(Owing, "before_look", lambda self: None)


def equal_ids_each_get_noise() -> Any:
    def equal(a: Any, b: Any) -> Any:
        return tf.ones_like(a == b)

    return mock.patch("dp_train.noise.owed.tf.equal", equal)


MUTANTS = {
    "owed_half": Mutant(
        "What a step owes is half the variance of its noise.",
        rate_without_root,
        "owed: every row",
        "standard deviation",
    ),
    "owed_never_settled": Mutant(
        "Rows that were never read keep what they owe when fit ends.",
        never_at_the_end,
        "owed: every row",
        "standard deviation",
    ),
    "owed_while_callbacks_look": Mutant(
        "A callback after a batch calls a traced function on rows that owe.",
        callbacks_are_blind,
        "owed: callbacks",
        "standard deviation",
    ),
    "owed_while_python_reads": Mutant(
        "Reading a table in Python shows rows that owe.",
        readers_are_not_noticed,
        "owed: readers",
        "standard deviation",
    ),
    "owed_several_times": Mutant(
        "A row that a batch reads several times gets its noise as often.",
        equal_ids_each_get_noise,
        "owed: once",
        "standard deviation",
    ),
}
