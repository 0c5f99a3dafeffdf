"""Certificate: an engine must agree with the slow loop before it touches data.

On a few made-up rows and shaken weights, the clipped sums of the engine are compared
with those of batch-of-one autodiff. It catches what shape checks cannot: a layer that
mixes examples, a time-major reshape whose length equals the batch, a faulty kernel of
the host. Layers with seeds of their own are switched off and the others are training;
where something still draws, nothing is training.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dp_train import host
from dp_train.gradients import loop
from dp_train.gradients.objective import Objective, Rows
from dp_train.made_up import ROWS, made_up

TOLERANCE = 1e-2
"""Relative."""
_FLIPS, _SHAKES = 0.1, (4, 5, 6)
"""Kernels that sum in another order flip a ReLU now and then, which moves a gradient by
some percent. Up to that, the weights are shaken again: what is wrong stays wrong."""
_CLIPS = (1e-3, 1e6)
"""All examples clipped, so that norms count; none clipped, so that sums do."""
_MASKS = ([True] * ROWS, [True] + [False] * (ROWS - 1))


class NotCertifiedError(Exception):
    """The engine gave other clipped sums than the loop, or could not be compared."""


def certify(engine: Callable[..., Any], objective: Objective, example: Rows) -> None:
    """Compares an engine with the loop.

    Args:
        engine: clipped_sum of an engine.
        objective: the loss of one example.
        example: (x, y, sample_weight) of some rows; only shapes and dtypes are read.

    Raises:
        NotCertifiedError: they differ by more than TOLERANCE, however the weights are
            shaken, or by more than a flip; the message names the variable.
    """
    rows = made_up_rows(example)
    if not objective.seed_states:
        _certify(engine, objective, rows)
        return
    with host.random_layers_off(objective.model):
        training = not _draws(objective, rows)
        quiet = dataclasses.replace(objective, seed_states=[], training=training)
        _certify(engine, quiet, rows)


def _certify(engine: Callable[..., Any], objective: Objective, rows: Rows) -> None:
    """Compares them where nothing is drawn."""

    @tf.function(autograph=False)
    def both(weights: Any, is_real: tf.Tensor, clip: tf.Tensor) -> list[Any]:
        mapping = list(zip(objective.variables, weights, strict=True))
        with keras.StatelessScope(mapping):
            return [
                compute(objective, rows, [], clip, is_real)[0]
                for compute in (engine, loop.clipped_sum)
            ]

    try:
        for seed in _SHAKES:
            weights, found = _shaken(objective, seed), []
            for mask, clip in itertools.product(_MASKS, _CLIPS):
                # One pair at a time: the sums are as large as the weights.
                sums, expected = both(
                    weights, tf.constant(mask), tf.constant(clip, tf.float64)
                )
                found.append(_difference(objective, sums, expected))
            off, path = max(found)
            if off <= TOLERANCE:
                return
            if off > _FLIPS:
                break
    except (TypeError, ValueError, tf.errors.OpError) as error:
        raise NotCertifiedError(
            f"it fails on made-up rows ({reason_of(error)})"
        ) from error
    raise NotCertifiedError(
        f"the clipped gradients of {path!r} are off by {off:.2g} from the loop's"
    )


def _draws(objective: Objective, rows: Rows) -> bool:
    """Whether a training call draws numbers: each engine would draw others."""
    with keras.StatelessScope(collect_losses=True) as scope:
        host.call_model(objective.model, rows[0])
        moved = map(scope.get_current_value, objective.seed_states)
        return any(value is not None for value in moved)


def _shaken(objective: Objective, seed: int) -> list[tf.Tensor]:
    """The weights, each number moved: zeros would hide what they multiply."""
    generator = np.random.default_rng(seed)
    return [
        tf.convert_to_tensor(v.value)
        + tf.cast(0.1 * generator.standard_normal(v.shape, np.float32), v.dtype)
        for v in objective.variables
    ]


def reason_of(error: Exception) -> str:
    """The line of an error that says what is wrong, not where TensorFlow met it."""
    lines = [line.strip() for line in str(error).splitlines()]
    places = ("Graph execution error", "Detected at node", "<stack traces", "File ")
    said = [line for line in lines if line and not line.startswith(places)]
    return re.sub(r" graph \S*\[.*?\]", "", (said or lines or [repr(error)])[0])


def made_up_rows(example: Rows) -> Rows:
    """ROWS rows that a loss can be computed on."""
    x, y, sample_weight = example
    return (
        made_up(x),
        made_up(y, is_positive=True),
        made_up(sample_weight, is_positive=True),
    )


def _difference(
    objective: Objective, sums: list[Any], expected: list[Any]
) -> tuple[float, str]:
    """The largest, relative to its variable or a thousandth of the largest of all."""
    scales = [float(tf.reduce_max(tf.abs(e), axis=None)) for e in expected]
    largest = max(scales)
    if not 0 < largest < float("inf"):
        raise NotCertifiedError("made-up rows give no finite gradient to compare")
    found = []
    for variable, value, reference, scale in zip(
        objective.variables, sums, expected, scales, strict=True
    ):
        error = float(tf.reduce_max(tf.abs(value - reference)))
        error /= max(scale, 1e-3 * largest)
        found.append((math.inf if math.isnan(error) else error, variable.path))
    return max(found)
