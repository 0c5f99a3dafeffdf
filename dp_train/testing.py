"""What only tests may use: noise that can be repeated, and so removed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from dp_train.noise.draw import replaced_host_source


class _SeededSource:
    """Repeatable normal samples."""

    name = "insecure-seeded"

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def normals(self, count: int, stddev: float, dtype: Any) -> Any:
        """[count] samples of N(0, stddev^2), float32 or float64."""
        return (stddev * self._generator.standard_normal(count)).astype(dtype)

    def words(self, count: int) -> Any:
        """[count] int64 words."""
        return self._generator.integers(-(2**63), 2**63 - 1, count, np.int64)


@contextmanager
def insecure_noise(seed: int) -> Iterator[None]:
    """Draws noise from a seeded generator inside the block: for tests only.

    Whoever knows the seed can subtract the noise. Every release made inside is marked,
    and ledger and report say that the result is not private.

    Args:
        seed: non-negative integer.
    """
    with replaced_host_source(_SeededSource(seed)):
        yield
