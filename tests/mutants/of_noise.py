"""Bugs between the clipped sum and the weights."""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import tensorflow as tf
from scipy import stats

from dp_train.gradients import choose, vectorized
from dp_train.gradients.structures import row_count
from dp_train.noise import ahead, device, secure
from dp_train.optimizers import dp_optimizer
from dp_train.optimizers.dp_optimizer import DPOptimizer
from tests.mutants.mutant import Mutant, resealed, without_checks_of_inputs

_draw_noise = dp_optimizer.draw_noise
_normals = ahead.DrawnAhead.normals


def _noise_through(change: Callable[[list[Any]], list[Any]]) -> Any:
    """Passes the tensors of every draw through `change`."""

    def draw(*args: Any) -> Any:
        noise, stddev = _draw_noise(*args)
        return change(noise), stddev

    return mock.patch.object(dp_optimizer, "draw_noise", draw)


def _normals_by(function: Any) -> Any:
    return mock.patch.object(ahead.DrawnAhead, "normals", function)


def _applying(change: Callable[[Any], Any]) -> Any:
    """Passes every clipped sum through `change` before it is applied."""
    apply = DPOptimizer.release

    def changed(self: Any, clipped: Any, *rest: Any) -> None:
        apply(self, change(clipped), *rest)

    return mock.patch.object(DPOptimizer, "release", changed)


@contextmanager
def divided_by_batch_size() -> Iterator[None]:
    divisors: list[Any] = []

    def remember(clipped: Any) -> Any:
        divisors[:] = [clipped.expected_batch_size]
        return clipped

    def divide(noise: list[Any]) -> list[Any]:
        return [z / tf.cast(divisors[0], z.dtype) for z in noise]

    with _applying(remember), _noise_through(divide):
        yield


def without_clip() -> Any:
    return _applying(lambda clipped: resealed(clipped, l2_norm_bound=1.0))


def two_percent_low() -> Any:
    return _noise_through(lambda noise: [0.98 * z for z in noise])


def frozen_at_trace_time() -> Any:
    def constant(noise: list[Any]) -> list[Any]:
        generator = np.random.default_rng()
        return [
            tf.math.reduce_std(z)
            * tf.constant(generator.standard_normal(z.shape), tf.float32)
            for z in noise
        ]

    return _noise_through(constant)


def shared_by_equal_shapes() -> Any:
    def share(noise: list[Any]) -> list[Any]:
        first: dict[tuple[int, ...], Any] = {}
        return [first.setdefault(tuple(z.shape), z) for z in noise]

    return _noise_through(share)


def same_at_every_step() -> Any:
    def repeated(self: Any, count: int, stddev: float, dtype: Any) -> Any:
        samples = np.random.default_rng(0).standard_normal(count)
        return (stddev * samples).astype(dtype)

    return _normals_by(repeated)


def from_the_random_seed() -> Any:
    def seeded(self: Any, count: int, stddev: float, dtype: Any) -> Any:
        return np.random.normal(0.0, stddev, count).astype(dtype)

    return _normals_by(seeded)


@contextmanager
def empty_batch_skipped() -> Iterator[None]:
    seen: list[Any] = []
    clipped_sum = choose.clipped_sum

    def counting(engine: str, objective: Any, rows: Any, *rest: Any) -> Any:
        seen[:] = [row_count(rows)]
        return clipped_sum(engine, objective, rows, *rest)

    def skip(noise: list[Any]) -> list[Any]:
        return [tf.where(seen[0] > 0, z, tf.zeros_like(z)) for z in noise]

    with (
        without_checks_of_inputs(),
        mock.patch.object(choose, "clipped_sum", counting),
        _noise_through(skip),
    ):
        yield


def noise_per_microbatch() -> Any:
    def noisy(objective: Any, rows: Any, keys: Any, clip: float, *rest: Any) -> Any:
        sums, outputs = vectorized.clipped_sum(objective, rows, keys, clip, *rest)
        return [s + tf.random.normal(s.shape, stddev=clip) for s in sums], outputs

    return mock.patch.dict(choose.ENGINES, {"vectorized": noisy})


def cut_at_two() -> Any:
    # The variance of clip(z, -2, 2), made up for: only the shape is wrong.
    inside = stats.norm.expect(lambda z: z * z, lb=-2, ub=2)
    scale = (inside + 4 * 2 * stats.norm.sf(2)) ** -0.5

    def cut(self: Any, count: int, stddev: float, dtype: Any) -> Any:
        samples = _normals(self, count, stddev, dtype).clip(-2 * stddev, 2 * stddev)
        return (scale * samples).astype(np.float32)

    return _normals_by(cut)


def keystream_cut_at_five() -> Any:
    transform = secure.gaussian_from_bits

    def cut(radius: Any, angle: Any, further: Any, stddev: float, out: Any) -> None:
        transform(radius, angle, further, stddev, out)
        np.clip(out, -5.6 * stddev, 5.6 * stddev, out=out)

    return mock.patch.object(secure, "gaussian_from_bits", cut)


def device_cut_at_five() -> Any:
    transform = device.gaussian_from_bits

    def cut(*bits: Any) -> Any:
        return tf.clip_by_value(transform(*bits), -5.6, 5.6)

    return mock.patch.object(device, "gaussian_from_bits", cut)


def further_bits_ignored() -> Any:
    transform = secure.gaussian_from_bits

    def coarse(radius: Any, angle: Any, further: Any, *rest: Any) -> None:
        transform(radius, angle, np.zeros_like(further), *rest)

    return mock.patch.object(secure, "gaussian_from_bits", coarse)


def radius_off() -> Any:
    transform = device.gaussian_from_bits
    return mock.patch.object(
        device, "gaussian_from_bits", lambda *bits: 0.999 * transform(*bits)
    )


@contextmanager
def step_skipped_for_nan() -> Iterator[None]:
    seen: list[Any] = []
    clipped_sum = choose.clipped_sum

    def looking(engine: str, objective: Any, rows: Any, *rest: Any) -> Any:
        seen[:] = [tf.reduce_all(tf.math.is_finite(rows[0]))]
        return clipped_sum(engine, objective, rows, *rest)

    def skip(noise: list[Any]) -> list[Any]:
        return [tf.where(seen[0], z, tf.zeros_like(z)) for z in noise]

    with (
        without_checks_of_inputs(),
        mock.patch.object(choose, "clipped_sum", looking),
        _noise_through(skip),
    ):
        yield


def key_kept_over_a_fork() -> Any:
    forgetful = types.SimpleNamespace(
        getpid=lambda: 1, register_at_fork=lambda **callbacks: None
    )
    return mock.patch.object(secure, "os", forgetful)


def draw_ahead_kept_over_a_fork() -> Any:
    forgetful = types.SimpleNamespace(
        cpu_count=os.cpu_count, register_at_fork=lambda **callbacks: None
    )
    return mock.patch.object(ahead, "os", forgetful)


MUTANTS = {
    "noise divided by the batch size": Mutant(
        "The noise is scaled for an average and then averaged again.",
        divided_by_batch_size,
        "noise: standard deviation",
        "standard deviation is 0.12",
    ),
    "noise without the clip": Mutant(
        "The standard deviation is noise_multiplier whatever l2_norm_clip is.",
        without_clip,
        "noise: standard deviation",
        "standard deviation is 0.(39|40)",
    ),
    "noise 2 % low": Mutant(
        "The noise is 2 % too small.",
        two_percent_low,
        "noise: standard deviation",
        "standard deviation is 0.9[78]",
    ),
    "noise frozen at trace time": Mutant(
        "NumPy draws the noise once, while the step is traced.",
        frozen_at_trace_time,
        "noise: independence",
        "correlation is 1.0",
    ),
    "noise shared by equal shapes": Mutant(
        "Variables of the same shape get the same noise.",
        shared_by_equal_shapes,
        "noise: independence",
        "correlation is 1.0",
    ),
    "same noise at every step": Mutant(
        "The generator is seeded again in every step.",
        same_at_every_step,
        "noise: independence",
        "correlation is 1.0",
    ),
    "noise from the random seed": Mutant(
        "keras.utils.set_random_seed decides the noise.",
        from_the_random_seed,
        "noise: random seed",
        "correlation is 1.0",
    ),
    "empty batch skipped": Mutant(
        "A batch without examples gets no noise, which reveals that it was empty.",
        empty_batch_skipped,
        "noise: empty batch",
        "standard deviation is 0.0",
    ),
    "noise added per microbatch": Mutant(
        "Every microbatch adds noise of its own: more than was promised.",
        noise_per_microbatch,
        "noise: standard deviation",
        "standard deviation is [12]|cannot be used for this model",
    ),
    "tails cut at 2 standard deviations": Mutant(
        "Samples end at 2 standard deviations, with the right variance.",
        cut_at_two,
        "noise: distribution",
        "distribution is off",
    ),
    "keystream cut at 5.6 standard deviations": Mutant(
        "A floor under the uniform ends the keystream's tails.",
        keystream_cut_at_five,
        "extreme bits: keystream",
        "largest sample is 5.59",
    ),
    "device cut at 5.6 standard deviations": Mutant(
        "A floor under the uniform ends the device noise's tails.",
        device_cut_at_five,
        "extreme bits: device",
        "largest sample is 5.59",
    ),
    "further bits ignored": Mutant(
        "The bits that refine a small uniform are drawn and not used.",
        further_bits_ignored,
        "monotone radius: keystream",
        "does not raise the sample",
    ),
    "radius 0.1 % low": Mutant(
        "The device's radius is 0.1 % too small.",
        radius_off,
        "quantiles: device",
        "radius is off by 0.001",
    ),
    "step skipped for a NaN": Mutant(
        "A batch with an example that is not finite gets no noise, as in loss scaling.",
        step_skipped_for_nan,
        "noise: batch of NaN",
        "standard deviation is 0.0",
    ),
    "key kept over a fork": Mutant(
        "Parent and child go on with one keystream.",
        key_kept_over_a_fork,
        "noise: fork",
        "share a keystream",
    ),
    "draw ahead kept over a fork": Mutant(
        "The noise that was made ahead before a fork is used by parent and child.",
        draw_ahead_kept_over_a_fork,
        "noise: fork",
        "share a keystream",
    ),
}
