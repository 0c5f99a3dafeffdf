"""One draw of noise for one release: charge first, then the samples.

The host call that hands over the noise (or its keys) is the call that charges the
ledger, so no noise, and hence no release, leaves the host that was not charged before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from dp_train.host import host_call
from dp_train.noise import device
from dp_train.noise.ahead import KEYSTREAM, DrawnAhead
from dp_train.values import BeginRelease

NOISE_SOURCES = (KEYSTREAM.name, device.NAME)
_ROUND = 1 << 16
_ALIGNED = 16
"""Numbers, of at least 4 bytes, that take a multiple of 64 bytes."""


class HostSource(Protocol):
    """A host generator of normal samples, and of keys for device noise."""

    @property
    def name(self) -> str:
        """What the ledger records."""

    def normals(self, count: int, stddev: float, dtype: Any) -> Any:
        """[count] samples of N(0, stddev^2), float32 or float64."""

    def words(self, count: int) -> Any:
        """[count] int64 words."""


_host_source: HostSource = KEYSTREAM
# Of its own: draws of another size would replace what KEYSTREAM has made ready.
_PAID_LATER = DrawnAhead()


@contextmanager
def replaced_host_source(source: HostSource) -> Iterator[None]:
    """Draws from `source` inside the block; its name goes into the ledger."""
    global _host_source
    previous, _host_source = _host_source, source
    try:
        yield
    finally:
        _host_source = previous


def _recorded_name(noise_source: str) -> str:
    """What the ledger says: device noise is as good as the host that keys it."""
    if _host_source is KEYSTREAM:
        return noise_source
    return _host_source.name


def draw_noise(
    noise_source: str,
    shapes: Sequence[Sequence[int]],
    dtype: tf.DType,
    begin_release: BeginRelease,
    known: Sequence[tf.Tensor] = (),
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Independent N(0, stddev^2) noise for each shape, in graph or eager mode.

    Args:
        noise_source: one of NOISE_SOURCES.
        shapes: static shape of each tensor.
        dtype: float32, or float64 for float64 sums: on coarser noise their low-order
            digits would stand out.
        begin_release: called at run time, once, before any noise exists: charges the
            release for the source's name and returns the standard deviation.
        known: scalars whose values it is given, too.

    Returns:
        One tensor a shape, and the standard deviation, float64.
    """
    if noise_source == device.NAME:
        return _draw_on_device(shapes, dtype, begin_release, known)
    return _draw_on_host(shapes, dtype, begin_release, known)


def _draw_on_host(
    shapes: Sequence[Sequence[int]],
    dtype: tf.DType,
    begin_release: BeginRelease,
    known: Sequence[tf.Tensor],
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """One host call for all tensors, each a part of one array that is not copied."""
    sizes = [int(np.prod(shape, dtype=np.int64)) for shape in shapes]
    # TensorFlow takes an array as it is if it starts at a multiple of 64 bytes.
    places = [-(-size // _ALIGNED) * _ALIGNED for size in sizes]
    starts = [sum(places[:i]) for i in range(len(places))]

    def call(*values: Any) -> Any:
        stddev = begin_release(_recorded_name(KEYSTREAM.name), *values)
        floats = dtype.as_numpy_dtype
        if stddev == 0.0:
            flat = np.zeros(sum(places), floats)
        else:
            flat = _host_source.normals(sum(places), stddev, floats)
        parts = [
            flat[start : start + size].reshape(shape)
            for start, size, shape in zip(starts, sizes, shapes, strict=True)
        ]
        return [np.float64(stddev), *parts]

    dtypes = [tf.float64, *[dtype] * len(shapes)]
    stddev, *noise = tf.nest.flatten(host_call(call, known, dtypes))
    stddev.set_shape([])
    noise = [tf.ensure_shape(z, shape) for z, shape in zip(noise, shapes, strict=True)]
    return noise, stddev


def secret_keys(count: int | tf.Tensor) -> tf.Tensor:
    """[count, 2] uniform int32 numbers of the process's keystream, new at every run.

    Keys for what layers draw: no seed decides them, and nothing keeps them.
    """

    keys = host_call(keys_at_once, [count], tf.int32)
    return tf.ensure_shape(keys, [None if tf.is_tensor(count) else count, 2])


def keys_at_once(count: Any) -> Any:
    """The same as an array, at once."""
    return _host_source.words(int(count)).view(np.int32).reshape(-1, 2)


def paid_later(count: tf.Tensor, width: int) -> tf.Tensor:
    """[count, width] float32 samples of N(0, 1) from the host, for what is owed.

    The release that they belong to was charged when its noise became due. In a graph,
    where the next count will be about the same.
    """

    def call(count: Any) -> Any:
        numbers = int(count) * width
        source = _PAID_LATER if _host_source is KEYSTREAM else _host_source
        # Rounded up, so that a draw made ahead serves batches of about this size.
        flat = source.normals(-(-numbers // _ROUND) * _ROUND, 1.0, np.float32)
        return flat[:numbers].reshape(-1, width)

    samples = host_call(call, [count], tf.float32)
    return tf.ensure_shape(samples, [None, width])


def paid_now(count: int, width: int) -> Any:
    """The same as an array, at once."""
    is_ours = _host_source is KEYSTREAM
    normals = _PAID_LATER.once if is_ours else _host_source.normals
    return normals(count * width, 1.0, np.float32).reshape(count, width)


def _draw_on_device(
    shapes: Sequence[Sequence[int]],
    dtype: tf.DType,
    begin_release: BeginRelease,
    known: Sequence[tf.Tensor],
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """The host sends a standard deviation and one key a tensor."""

    def call(*values: Any) -> Any:
        stddev = begin_release(_recorded_name(device.NAME), *values)
        keys = _host_source.words(2 * len(shapes)).reshape(len(shapes), 2)
        return np.float64(stddev), keys

    stddev, keys = host_call(call, known, (tf.float64, tf.int64))
    stddev.set_shape([])
    keys.set_shape([len(shapes), 2])
    noise = [
        tf.cast(stddev, dtype) * device.standard_normal(shape, keys[i], dtype)
        for i, shape in enumerate(shapes)
    ]
    return noise, stddev
