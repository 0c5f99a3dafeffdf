"""Draws the noise of the next release while the current step computes.

Samples are independent of the data and of each other, so when they are made is no part
of the guarantee; what is released with them is charged first, by the caller.
"""

from __future__ import annotations

import concurrent.futures
import os
import sys
import threading
from typing import Any, NamedTuple

import numpy as np

from dp_train.noise.secure import FloatArray, Keystream

_FEWEST = 1 << 16
"""Below this many samples handing over to a thread costs more than the draw."""
_PER_THREAD = 1 << 20
"""Samples of one piece of work; larger draws use several threads."""
_ALIGNMENT = 64
"""Bytes: TensorFlow adopts an array that starts at a multiple, and copies others."""
_BUFFERS = 3
"""One is drawn into, one is in the step, and one TensorFlow has yet to let go."""


class _Draw(NamedTuple):
    """A draw under way: (standard deviation, dtype), where it goes, its parts."""

    kind: tuple[float, Any]
    out: FloatArray
    parts: list[Any]

    def result(self) -> FloatArray:
        """The samples, once they are there."""
        for part in self.parts:
            part.result()
        return self.out


class DrawnAhead:
    """A keystream whose next draw is under way: same law, less waiting.

    A draw is used once, and only for the same standard deviation and dtype and no
    larger count, in the process that made it; otherwise it is dropped and a fresh one
    is made.
    """

    def __init__(self) -> None:
        self.name = Keystream.name
        self._keystream = Keystream()
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """Drops what a parent process drew, and its threads, which a fork loses."""
        self._lock = threading.Lock()
        self._of_thread = threading.local()
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None
        self._buffers: list[Any] = []
        self._pending: _Draw | None = None

    def words(self, count: int) -> Any:
        """[count] uniform 64-bit words."""
        return self._keystream.words(count)

    def normals(self, count: int, stddev: float, dtype: Any = np.float32) -> FloatArray:
        """[count] independent samples of N(0, stddev^2), float32 or float64.

        Guarantees:
            Large draws start at a multiple of 64 bytes; nobody else writes to them.
        """
        if count < _FEWEST:
            return self._keystream.normals(count, stddev, dtype)
        size, kind = count + count % 2, (stddev, np.dtype(dtype))
        with self._lock:
            pending, self._pending = self._pending, None
            if pending is None or pending.kind != kind or pending.out.size < size:
                pending = self._start(size, kind)
            # Counts that vary are served by the largest of late.
            self._pending = self._start(min(pending.out.size, 2 * size), kind)
        return pending.result()[:count]

    def once(self, count: int, stddev: float, dtype: Any = np.float32) -> FloatArray:
        """As `normals`, and nothing is made ready: the next count will be another."""
        with self._lock:
            draw = self._start(count + count % 2, (stddev, np.dtype(dtype)))
        return draw.result()[:count]

    def _start(self, count: int, kind: Any) -> _Draw:
        """Begins a draw; the caller holds the lock."""
        stddev, dtype = kind
        if self._pool is None:
            self._pool = concurrent.futures.ThreadPoolExecutor(
                os.cpu_count(), thread_name_prefix="noise"
            )
        out = self._buffer(count, dtype)
        parts = [
            self._pool.submit(self._fill, out[start : start + _PER_THREAD], stddev)
            for start in range(0, count, _PER_THREAD)
        ]
        return _Draw(kind, out, parts)

    def _buffer(self, count: int, dtype: Any) -> FloatArray:
        """Memory to which nobody refers any longer, else new.

        Pages that the kernel must clear first cost as much as a third of a large draw.
        """
        size = count * np.dtype(dtype).itemsize
        buffers = self._buffers
        for i in range(len(buffers)):
            is_enough = buffers[i].size >= size + _ALIGNMENT
            if is_enough and _references(buffers, i) == _ALONE:
                return _aligned(buffers[i], size).view(dtype)
        buffers.append(np.empty(size + _ALIGNMENT, np.uint8))
        del buffers[:-_BUFFERS]
        return _aligned(buffers[-1], size).view(dtype)

    def _fill(self, out: FloatArray, stddev: float) -> None:
        """Fills one part from this thread's own keystream."""
        keystream = getattr(self._of_thread, "keystream", None)
        if keystream is None:
            keystream = self._of_thread.keystream = Keystream()
        keystream.fill(out, stddev)


def _aligned(memory: Any, size: int) -> Any:
    """So many bytes of it, from a multiple of _ALIGNMENT on."""
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size]


def _references(arrays: list[Any], i: int) -> int:
    """How many places refer to an array, views of it included; this call as well."""
    return sys.getrefcount(arrays[i])


_ALONE = _references([np.empty(0)], 0)


KEYSTREAM = DrawnAhead()
