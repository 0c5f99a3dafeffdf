"""Deltas of the sampled Gaussian by mpmath, independent of what is tested."""

import mpmath


def _laws(direction: str, q, s):
    """Densities of P and Q, to the precision of mpmath."""
    mp = mpmath.mp

    def normal(x, mean):
        return mp.exp(-((x - mean) ** 2) / (2 * s * s)) / (s * mp.sqrt(2 * mp.pi))

    def mixture(x, mean):
        return (1 - q) * normal(x, 0) + q * normal(x, mean)

    return {
        "remove": (lambda x: mixture(x, 1), lambda x: normal(x, 0)),
        "add": (lambda x: normal(x, 0), lambda x: mixture(x, 1)),
        "replace": (lambda x: mixture(x, 1), lambda x: mixture(x, -1)),
    }[direction]


def one_release(direction: str, q: float, s: float, epsilon: float) -> float:
    """delta of one release at any real epsilon, by the point where the loss is epsilon.

    Losses are monotone in x; the point is found by bisection on the densities.
    """
    mp = mpmath.mp
    q, s, epsilon = mp.mpf(q), mp.mpf(s), mp.mpf(epsilon)
    p, other = _laws(direction, q, s)

    def loss(x):
        return mp.log(p(x) / other(x))

    sign = -1 if direction == "add" else 1
    low, high = -60 * s - 1, 60 * s + 1
    if loss(sign * high) <= epsilon:
        return 0.0
    if loss(sign * low) > epsilon:
        return float(1 - mp.exp(epsilon))
    for _ in range(180):
        middle = (low + high) / 2
        low, high = (middle, high) if loss(sign * middle) <= epsilon else (low, middle)
    x = sign * high

    def beyond(mean):
        return mp.ncdf(sign * (mean - x) / s)

    mixed = {mean: (1 - q) * beyond(0) + q * beyond(mean) for mean in (-1, 1)}
    first, second = {
        "remove": (mixed[1], beyond(0)),
        "add": (beyond(0), mixed[1]),
        "replace": (mixed[1], mixed[-1]),
    }[direction]
    return float(first - mp.exp(epsilon) * second)


def composed(
    direction: str, q: float, s: float, count: int, epsilon: float, theta: float
):
    """delta of count releases by the contour integral, both sums in mpmath.

    Trapezoid in x over 12 standard deviations, midpoint rule in the frequency; the
    caller chooses a theta near the saddle point.
    """
    mp = mpmath.mp
    q, s, theta = mp.mpf(q), mp.mpf(s), mp.mpf(theta)
    p, other = _laws(direction, q, s)
    low, high = -12 * s - 1, 12 * s + (theta if direction != "add" else 0) + 2
    step = s / 8
    points = [low + step * k for k in range(int((high - low) / step) + 1)]
    nodes = [(step * p(x), mp.log(p(x) / other(x))) for x in points]
    moment = mp.fsum(w * mp.exp(theta * loss) for w, loss in nodes)
    mean = mp.fsum(w * loss * mp.exp(theta * loss) for w, loss in nodes) / moment
    square = mp.fsum(w * loss**2 * mp.exp(theta * loss) for w, loss in nodes) / moment
    spread = mp.sqrt(count * (square - mean**2))
    width = 20 * spread + 60 / theta
    du = 2 * mp.pi / width
    total = mp.mpf(0)
    for k in range(4000):
        z = theta + 1j * (k + mp.mpf(1) / 2) * du
        power = mp.fsum(w * mp.exp(z * loss) for w, loss in nodes) ** count
        term = power * mp.exp(-z * epsilon) / (z * (z + 1))
        total += term.real
        if k > 10 and abs(term) < 1e-16 * abs(total):
            break
    return float(du / mp.pi * total)
