"""Battery: rows that nearly cancel do not hide from the norm that clips them.

One example's gradient is sum_t x_t y_t^T, rows in pairs (x, y) and (x, -y (1 + s)), so
that what is left, s x y^T, is as small beside its terms as the planted share s. A Gram
norm rounds to nothing there, and the sum itself rounds to more than it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import keras
import numpy as np

import dp_train
from dp_train.kernels import product
from tests.batteries.cases import precision
from tests.batteries.training import private, without_noise

L2_NORM_CLIP = 1.0
SLACK = 1e-5
SHARES = {
    "float32": 2.0 ** -np.arange(4.0, 24.0),
    "float64": 2.0 ** -np.arange(10.0, 52.0),
}
SIZE = 2.0**40
"""Of the products, so that what is left exceeds the clip by far."""


@contextmanager
def forced(rule: str) -> Iterator[None]:
    """Every product by this rule, whatever it costs."""
    with mock.patch.object(product, "cheapest", lambda *sizes: rule):
        yield


def _attacks(policy: str) -> tuple[Any, Any]:
    """(x, y): [n, 6, 3] and [n, 6, 2], three pairs of rows each."""
    generator = np.random.default_rng(9)
    shares = np.repeat(SHARES[policy], 4)[:, None, None]
    x = generator.standard_normal((len(shares), 3, 3)) * np.sqrt(SIZE)
    y = generator.standard_normal((len(shares), 3, 2)) * np.sqrt(SIZE)
    x = np.concatenate([x, x], axis=1).astype(policy)
    return x, np.concatenate([y, -y * (1 + shares)], axis=1).astype(policy)


def assert_cancelling_rows_are_clipped(rule: str, policy: str) -> None:
    """What one crafted example adds to the sum has norm at most the clip.

    ||clipped sum of the example alone|| <= C (1 + 1e-5), with y as the cotangent.
    """
    with precision(policy), without_noise(), forced(rule):
        model = private(
            keras.Sequential(
                [keras.Input((6, 3)), keras.layers.Dense(2, use_bias=False)]
            ),
            engine="bookkeeping",
            loss=lambda y_true, y_pred: keras.ops.sum(y_true * y_pred, axis=(1, 2)),
        )
        x, y = _attacks(policy)
        sums = [
            dp_train.clipped_gradients(
                model, x[b : b + 1], y[b : b + 1], l2_norm_clip=L2_NORM_CLIP
            ).gradients[0]
            for b in range(len(x))
        ]
    sizes = [float(np.linalg.norm(np.asarray(s, np.float64))) for s in sums]
    assert np.isfinite(sizes).all(), f"Cancelling rows add {sizes} by rule {rule!r}."
    assert max(sizes) <= L2_NORM_CLIP * (1 + SLACK), (
        f"Cancelling rows add {max(sizes):.4g} to the sum by rule {rule!r} in "
        f"{policy}, more than l2_norm_clip={L2_NORM_CLIP}."
    )
