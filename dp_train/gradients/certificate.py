"""Certificate: an engine must agree with the slow loop before it touches data.

On a few made-up rows and shaken weights, the clipped sums of the engine are compared
with those of batch-of-one autodiff. It catches what shape checks cannot: a layer that
mixes examples, a time-major reshape whose length equals the batch, a faulty kernel of
the host. Meanwhile draws are constants, and a layer that draws otherwise is switched
off. At last the engine runs as it will, with random layers on, which draw otherwise in
the loop.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dp_train import host
from dp_train.gradients import loop
from dp_train.gradients.copies import by_example, flat
from dp_train.gradients.objective import Objective, Rows
from dp_train.made_up import ROWS, made_up

TOLERANCE = 1e-2
"""Relative."""
_FLIPS, _SHAKES = 0.1, (4, 5, 6)
"""Kernels that sum in another order flip a ReLU now and then, which moves a gradient by
some percent. Up to that, the weights are shaken again: what is wrong stays wrong."""
_ROUNDING = {"bfloat16": 2.0**-7}
"""Relative, by the type that layers compute in; 2^-22 in others: two weights so close
are one weight, as far as that type knows."""
_NOISE = 32.0
"""What of a gradient so many times a rounding moves is nothing but rounding."""
_SMALL = 1e-3
"""Of the largest gradient; only smaller ones are asked whether they are 0 in truth."""
FAILURES = NotImplementedError, TypeError, ValueError, tf.errors.OpError
"""What an engine raises that cannot compute this model."""
_DRAWS = 3
"""What a random layer does may depend on what it draws."""
_CLIPS = (1e-3, 1e6)
"""All examples clipped, so that norms count; none clipped, so that sums do."""
_MASKS = ([True] * ROWS, [True] + [False] * (ROWS - 1))


class NotCertifiedError(Exception):
    """The engine gave other clipped sums than the loop, or could not be compared."""


class _NoGradientError(NotCertifiedError):
    """The loop gave nothing to compare with."""


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
    for is_positive in (False, True):
        rows = made_up_rows(example, is_positive=is_positive)
        try:
            with nothing_drawn(objective, rows) as quiet:
                _certify(engine, quiet, rows)
            break
        except _NoGradientError:
            # Logarithms, say, of what is never negative.
            if is_positive:
                raise
    if objective.seed_states:
        _run_as_it_will(engine, objective, rows)


@contextmanager
def nothing_drawn(objective: Objective, rows: Rows) -> Iterator[Objective]:
    """Inside the block this objective has the same value each time, if any has.

    Draws are constants. Where something still draws, layers with seeds of their own are
    not training, and if that is not enough, nothing is.
    """
    quiet = dataclasses.replace(objective, seed_states=[])
    if not objective.seed_states:
        yield quiet
        return
    with host.constant_draws():
        if not _draws(objective, rows):
            yield quiet
            return
        with host.random_layers_off(objective.model):
            yield dataclasses.replace(quiet, training=not _draws(objective, rows))


def _run_as_it_will(
    engine: Callable[..., Any], objective: Objective, rows: Rows
) -> None:
    """Runs the engine with random layers on: each draws its own, but must draw."""
    run = tf.function(
        lambda rows, keys: engine(objective, rows, keys, 1.0, tf.ones([ROWS], tf.bool)),
        autograph=False,
    )
    generator = np.random.default_rng(8)
    shape = (ROWS * objective.copies, 2)
    try:
        for _ in range(_DRAWS):
            keys = [
                by_example(
                    tf.cast(generator.integers(0, 2**31, shape), state.dtype),
                    objective.copies,
                )
                for state in objective.seed_states
            ]
            run(rows, keys)
    except FAILURES as error:
        raise NotCertifiedError(
            f"it fails on made-up rows where layers draw ({reason_of(error)})"
        ) from error


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
            weights, found = shaken(objective, seed), []
            for mask, clip in itertools.product(_MASKS, _CLIPS):
                # One pair at a time: the sums are as large as the weights.
                arguments = tf.constant(mask), tf.constant(clip, tf.float64)
                # Traced, also where functions are run eagerly: an engine reads a graph.
                run = both.get_concrete_function(weights, *arguments)
                sums, expected = run(weights, *arguments)

                def again(
                    run: Any = run, weights: Any = weights, arguments: Any = arguments
                ) -> Any:
                    return run(_rounded(objective, weights), *arguments)[1]

                found.append(_difference(objective, sums, expected, again))
            off, path = max(found)
            if off <= TOLERANCE:
                return
            if off > _FLIPS:
                break
    except FAILURES as error:
        raise NotCertifiedError(
            f"it fails on made-up rows ({reason_of(error)})"
        ) from error
    raise NotCertifiedError(
        f"the clipped gradients of {path!r} are off by {off:.2g} from the loop's"
    )


def _draws(objective: Objective, rows: Rows) -> bool:
    """Whether a training call draws numbers: each engine would draw others."""
    with keras.StatelessScope(collect_losses=True) as scope:
        host.call_model(objective.model, flat(rows[0], objective.copies))
        moved = map(scope.get_current_value, objective.seed_states)
        return any(value is not None for value in moved)


def shaken(objective: Objective, seed: int, times: float = 1.0) -> list[tf.Tensor]:
    """The weights, each number moved: zeros would hide what they multiply.

    The wider a layer, the less: sums of many inputs would saturate what follows.
    """
    generator = np.random.default_rng(seed)
    shaken = []
    for v in objective.variables:
        shake = generator.standard_normal(v.shape, np.float32)
        scale = times * min(0.1, max(1, math.prod(v.shape[:-1])) ** -0.5)
        shaken.append(tf.convert_to_tensor(v.value) + tf.cast(scale * shake, v.dtype))
    return shaken


def _rounded(objective: Objective, weights: list[tf.Tensor]) -> list[tf.Tensor]:
    """The weights, moved by as much as a rounding."""
    layers = host.sublayers(objective.model)
    size = max((_ROUNDING.get(s.compute_dtype, 2.0**-22) for s in layers), default=0.0)
    generator = np.random.default_rng(7)
    return [
        w + tf.cast(size * generator.standard_normal(w.shape, np.float32), w.dtype) * w
        for w in weights
    ]


def reason_of(error: Exception) -> str:
    """The line of an error that says what is wrong, not where TensorFlow met it."""
    lines = [line.strip() for line in host.own_words(error).splitlines()]
    places = ("Graph execution error", "Detected at node", "<stack traces", "File ")
    said = [line for line in lines if line and not line.startswith(places)]
    named = r" graph \S*\[.*?\]|\{\{.*?\}\} ?"
    return re.sub(named, "", (said or lines or [repr(error)])[0])


def made_up_rows(example: Rows, *, is_positive: bool = False) -> Rows:
    """ROWS rows that a loss can be computed on; inputs in [0, 1) if positive."""
    x, y, sample_weight = example
    return (
        made_up(x, is_positive=is_positive),
        made_up(y, is_positive=True),
        made_up(sample_weight, is_positive=True),
    )


def _difference(
    objective: Objective,
    sums: list[Any],
    expected: list[Any],
    again: Callable[[], list[Any]],
) -> tuple[float, str]:
    """The largest, each relative to the size of its own variable's.

    A gradient that is 0 but for roundings has no size of its own: there a difference
    counts for what it is of a thousandth of the largest of all.

    Args:
        objective: names the variables.
        sums: of the engine.
        expected: of the loop.
        again: gives those of the loop on weights that differ by a rounding.
    """
    scales = [_largest(e) for e in expected]
    largest = max(scales)
    if not 0 < largest < math.inf:
        raise _NoGradientError("made-up rows give no finite gradient to compare")
    found, moved = [], None
    for i, variable in enumerate(objective.variables):
        error, scale = _largest(sums[i] - expected[i]), scales[i]
        if error > TOLERANCE * scale and scale < _SMALL * largest:
            moved = moved or again()
            noise = _NOISE / TOLERANCE * _largest(moved[i] - expected[i])
            scale = max(scale, min(noise, _SMALL * largest))
        off = error / scale if scale else math.inf if error else 0.0
        found.append((math.inf if math.isnan(off) else off, variable.path))
    return max(found)


def _largest(t: Any) -> float:
    """The largest magnitude."""
    return float(tf.reduce_max(tf.abs(t)))
