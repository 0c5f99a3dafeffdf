"""Bugs in what goes with the weights, and in who may train them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import tensorflow as tf

from dp_train.gradients.objective import Objective
from dp_train.host_files import _Beside
from dp_train.last_values import Samples
from dp_train.optimizers import drop_in
from dp_train.optimizers.dp_optimizer import DPOptimizer
from dp_train.owner import Owner
from tests.mutants.mutant import Mutant


@contextmanager
def lost_while_written() -> Iterator[None]:
    to_bytes = Owner.to_bytes
    with mock.patch.object(Owner, "to_bytes", lambda self: to_bytes(Owner())):
        yield


def each_model_its_own() -> Any:
    return mock.patch.object(Owner, "own", lambda self, weights: None)


def not_looked_at() -> Any:
    return mock.patch.object(Owner, "look", lambda *given, **options: None)


def samples_not_compared() -> Any:
    return mock.patch.object(Samples, "_compare", lambda self: tf.constant(True))


def left_out_of_checkpoints() -> Any:
    return mock.patch.object(_Beside, "_restore_from_tensors", lambda *given: None)


@contextmanager
def optimizers_are_all_the_same() -> Iterator[None]:
    with (
        mock.patch.object(DPOptimizer, "__eq__", lambda self, other: True),
        mock.patch.object(DPOptimizer, "__hash__", lambda self: 0),
    ):
        yield


def one_of_several() -> Any:
    return mock.patch.object(drop_in, "_check_is_alone", lambda *arguments: None)


@contextmanager
def complex_as_real() -> Iterator[None]:
    """As if neither the objective nor the norms had looked at number types."""
    with (
        mock.patch.object(Objective, "__post_init__", lambda self: None),
        mock.patch("dp_train.clipping.check_is_real", lambda gradient: None),
        mock.patch(
            "dp_train.optimizers.dp_optimizer.check_is_real", lambda gradient: None
        ),
    ):
        yield


MUTANTS = {
    "ledger left out of checkpoints": Mutant(
        "What a checkpoint holds beside the weights is not read.",
        left_out_of_checkpoints,
        "ledger: checkpoint of TensorFlow",
        "releases made these weights",
    ),
    "ledger lost while written": Mutant(
        "A file of weights is written with an empty ledger.",
        lost_while_written,
        "ledger: file of weights",
        "can be read back",
    ),
    "each model its own ledger": Mutant(
        "Models around one encoder count their own releases only.",
        each_model_its_own,
        "ledger: shared weights",
        "releases moved weights beside the shared one",
    ),
    "foreign changes not looked for": Mutant(
        "A report does not compare the weights with what the last release left.",
        not_looked_at,
        "ledger: changes elsewhere",
        "is not in the report",
    ),
    "changes between steps not looked for": Mutant(
        "A step does not compare the weights with what the step before left.",
        samples_not_compared,
        "ledger: changes in a fit",
        "is not in the report",
    ),
    "assigned optimizer not traced": Mutant(
        "The step goes on with the optimizer that was there when it was traced.",
        optimizers_are_all_the_same,
        "ledger: assigned optimizer",
        "the step went on",
    ),
    "one of several optimizers": Mutant(
        "A DP optimizer clips one layer, and another one trains the rest.",
        one_of_several,
        "one optimizer",
        "on gradients without noise",
    ),
    "complex as real": Mutant(
        "Norms and noise of complex gradients are those of the real part.",
        complex_as_real,
        "complex weights",
        "noised in one part only",
    ),
}
