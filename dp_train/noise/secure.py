"""Gaussian noise from a cryptographic keystream, on the host: the default.

AES-256 in counter mode, keyed by 256 bits from the operating system at the start of
every process, then Box-Muller with a 64-bit radius. A framework's own normal sampler
takes its key from 32 bits of entropy (TensorFlow) or stops at 5.7 standard deviations
(Box-Muller with u >= 1e-7); either voids an (epsilon, delta) guarantee.
"""

from __future__ import annotations

import os
import secrets
import threading
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

FloatArray = np.ndarray[Any, np.dtype[Any]]
Int32Array = np.ndarray[Any, np.dtype[np.int32]]
UInt32Array = np.ndarray[Any, np.dtype[np.uint32]]

_PAIRS_PER_BLOCK = 1 << 15  # 256 KiB of bits: the temporaries stay in the L2 cache
_ZEROS = memoryview(bytes(8 * _PAIRS_PER_BLOCK))
_ROOM = 15  # that the cipher wants behind its output
_REFINE_BELOW = 1 << 12  # below 4096 / 2^31 the radius takes 32 further bits


def gaussian_from_bits(
    radius_bits: Int32Array,
    angle_bits: Int32Array,
    further_bits: UInt32Array,
    stddev: float,
    out: FloatArray,
) -> None:
    """Box-Muller transform of uniform bits to normal samples.

        u = (k + f) / 2^31,   k the low 31 bits of radius_bits
        f = (further_bits + 1/2) / 2^32
        r = stddev * sqrt(-2 ln u)
        z = r cos(a), r sin(a),   a = pi * angle_bits / 2^31
                                            Box & Muller 1958, Ann. Math. Stat. 29(2)

    f matters only where k is small, so it is read only there: the smallest u is 2^-64
    and the largest |z| is stddev * sqrt(2 * 64 * ln 2) = 9.42 stddev.

    Args:
        radius_bits: [m] uniform; overwritten.
        angle_bits: [m] uniform.
        further_bits: [j] uniform, j >= the number of k below 4096; taken in order.
        stddev: >= 0.
        out: [2 m] float32 or float64, filled.
    """
    pairs = radius_bits.size
    np.bitwise_and(radius_bits, 0x7FFFFFFF, out=radius_bits)
    radius = radius_bits.astype(out.dtype)
    small = np.flatnonzero(radius_bits < _REFINE_BELOW)
    if small.size:
        fraction = (further_bits[: small.size] + 0.5) * 2.0**-32
        radius[small] = radius_bits[small] + fraction
    radius *= out.dtype.type(2.0**-31)
    np.log(radius, out=radius)
    radius *= out.dtype.type(-2.0)
    np.sqrt(radius, out=radius)
    radius *= out.dtype.type(stddev)
    angle = out[pairs:]
    np.copyto(angle, angle_bits, casting="same_kind")
    angle *= out.dtype.type(np.pi * 2.0**-31)
    np.cos(angle, out=out[:pairs])
    out[:pairs] *= radius
    np.sin(angle, out=angle)
    angle *= radius


class Keystream:
    """Normal samples and raw words from an AES-256-CTR keystream of this process.

    The key is drawn at the first use in a process, renewed after a fork, and never
    leaves this object: it is not saved, logged or restored.
    """

    name = "aes256-ctr"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process_id: int | None = None
        self._encryptor: Any = None
        self._block = bytearray(len(_ZEROS) + _ROOM)
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """Drops the parent's key (and a lock that it may have held)."""
        self._lock = threading.Lock()
        self._process_id = None
        self._encryptor = None

    def _bytes(self, count: int, stream: bytearray | None = None) -> bytearray:
        """`count` bytes of keystream, in `stream` or new; the caller holds the lock."""
        if self._process_id != os.getpid():
            key, nonce = secrets.token_bytes(32), secrets.token_bytes(16)
            self._encryptor = Cipher(algorithms.AES(key), modes.CTR(nonce)).encryptor()
            self._process_id = os.getpid()
        stream = bytearray(count + _ROOM) if stream is None else stream
        zeros = _ZEROS[:count] if count <= len(_ZEROS) else bytes(count)
        written = self._encryptor.update_into(zeros, stream)
        if written != count:
            raise RuntimeError(
                f"The keystream gave {written} of {count} bytes. The rest would be "
                "zeros, which is no noise. Report this with the version of the "
                "`cryptography` package."
            )
        return stream

    def words(self, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """[count] uniform 64-bit words, for keys of other generators."""
        with self._lock:
            return np.frombuffer(self._bytes(8 * count), np.int64, count).copy()

    def normals(self, count: int, stddev: float, dtype: Any = np.float32) -> FloatArray:
        """[count] independent samples of N(0, stddev^2), float32 or float64.

        Guarantees:
            Tails to 9.42 standard deviations; no seed, no clamp, no repetition.
        """
        out = np.empty(count + count % 2, dtype)
        self.fill(out, stddev)
        return out[:count]

    def fill(self, out: FloatArray, stddev: float) -> None:
        """As `normals`, into an array of even size."""
        with self._lock:
            for start in range(0, out.size, 2 * _PAIRS_PER_BLOCK):
                block = out[start : start + 2 * _PAIRS_PER_BLOCK]
                pairs = block.size // 2
                # Always the same memory: new one for each block is a tenth of the draw.
                stream = self._bytes(8 * pairs, self._block)
                bits = np.frombuffer(stream, np.int32, 2 * pairs)
                radius_bits, angle_bits = bits[:pairs], bits[pairs:]
                np.bitwise_and(radius_bits, 0x7FFFFFFF, out=radius_bits)
                small = int(np.count_nonzero(radius_bits < _REFINE_BELOW))
                further = np.frombuffer(self._bytes(4 * small), np.uint32, small)
                gaussian_from_bits(radius_bits, angle_bits, further, stddev, block)
