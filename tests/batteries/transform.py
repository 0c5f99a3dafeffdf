"""Battery: uniform bits become normal samples with whole tails, by exact cases.

No sampling test sees a cut beyond 5 standard deviations, so the transform itself is
tried on chosen bits. No false alarms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from dp_train.noise import device, secure

Transform = Callable[[Any, Any, Any], np.ndarray[Any, Any]]
"""(radius, further, angle), [m] unsigned integers, to [2 m] standard normal samples."""


def of_keystream(radius: Any, further: Any, angle: Any) -> np.ndarray[Any, Any]:
    """`secure.gaussian_from_bits` in the order of arguments used here."""
    radius = np.array(radius, np.uint32).astype(np.int32)
    refined = (radius & 0x7FFFFFFF) < secure._REFINE_BELOW
    out = np.empty(2 * radius.size, np.float32)
    secure.gaussian_from_bits(
        radius,
        np.array(angle, np.uint32).astype(np.int32),
        np.array(further, np.uint32)[refined],
        1.0,
        out,
    )
    return out


def of_device(radius: Any, further: Any, angle: Any) -> np.ndarray[Any, Any]:
    """`device.gaussian_from_bits` in the order of arguments used here."""
    words = [np.array(a, np.uint32) for a in (radius, further, angle)]
    return np.asarray(device.gaussian_from_bits(*words))


TRANSFORMS: dict[str, tuple[Transform, int]] = {
    "keystream": (of_keystream, 31),
    "device": (of_device, 32),
}
"""Each transform with the number of leading radius bits that it reads."""


def _radii(transform: Transform, radius: Any, further: Any) -> np.ndarray[Any, Any]:
    """|z| at angle 0, where the cosine is 1."""
    return transform(radius, further, np.zeros(len(radius), np.uint32))[: len(radius)]


def assert_extreme_bits_reach_nine_standard_deviations(name: str) -> None:
    """The smallest uniform gives |z| >= 9, in the middle of a block too."""
    transform, _ = TRANSFORMS[name]
    for position in range(3):
        radius = np.full(3, 2**30, np.uint32)
        radius[position] = 0
        z = _radii(transform, radius, np.zeros(3, np.uint32))[position]
        assert np.isfinite(z) and z >= 9.0, f"The largest sample is {z}, not 9 or more."
    everywhere = transform([0] * 8, [0] * 8, np.arange(8) * 2**29)
    assert np.max(everywhere) >= 9.0 and np.min(everywhere) <= -9.0, (
        "One of the tails ends before 9 standard deviations."
    )


def assert_radius_is_monotone_and_not_clamped(name: str) -> None:
    """Smaller uniforms give larger samples, and u >= 1e-7 is not a wall.

    The uniforms run down to the smallest one through powers of two, and through all
    values next to where further bits begin to be read.
    """
    transform, bits = TRANSFORMS[name]
    whole = 2 ** np.arange(bits - 1, -1, -1, dtype=np.uint64)
    whole_radii = _radii(transform, whole, np.zeros(bits))
    fractions = 2 ** np.arange(31, -1, -1, dtype=np.uint64)
    fraction_radii = _radii(transform, np.zeros(32), fractions)
    radii = np.concatenate([whole_radii, fraction_radii])
    assert np.all(np.isfinite(radii)), "A uniform gives a sample that is not finite."
    assert np.all(np.diff(radii) > 0), "Halving the uniform does not raise the sample."
    near = np.arange(8192, 0, -1)
    steps = np.diff(_radii(transform, near, np.zeros(near.size)))
    assert np.all(steps >= 0), "The radius is not monotone where further bits begin."


def assert_largest_uniform_is_harmless(name: str) -> None:
    """All ones give a sample of (nearly) zero, never NaN."""
    transform, bits = TRANSFORMS[name]
    z = transform([2**bits - 1], [2**32 - 1], [2**29])
    assert np.all(np.abs(z) < 1e-3), f"The largest uniform gives {z}."


def assert_transform_matches_quantiles(name: str) -> None:
    """On an even grid of uniforms, the transform is Box-Muller's to float32 accuracy.

    z = sqrt(-2 ln u) cos a against scipy's chi-square quantile of 1 - u, two degrees of
    freedom, which shares no code with it.
    """
    transform, bits = TRANSFORMS[name]
    radius = np.linspace(1, 2**bits - 2**20, 10_001).astype(np.uint64)
    uniform = radius / 2.0**bits
    expected = np.sqrt(stats.chi2.isf(uniform, 2))
    z = _radii(transform, radius, np.zeros(radius.size))
    error = np.max(np.abs(z - expected) / expected)
    assert error < 1e-4, f"The radius is off by {error:.2g}."
    angle = np.arange(0, 2**32, 2**24, dtype=np.uint64)
    pairs = transform(np.full(angle.size, 2**bits // 2), np.zeros(angle.size), angle)
    z = np.hypot(pairs[: angle.size], pairs[angle.size :])
    assert np.allclose(z, np.sqrt(2 * np.log(2)), rtol=1e-5), "The angle moves |z|."
    assert abs(np.sum(pairs)) < 1e-3 and len(np.unique(pairs.round(4))) > 100, (
        "The angles do not go around the circle."
    )
