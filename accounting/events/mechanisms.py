"""Releases without sampling: what noise was added, or what was proved about them."""

import dataclasses
import math
from collections.abc import Iterable

from accounting.events.base import (
    Event,
    checked_cost,
    checked_count,
    checked_noise,
    checked_probability,
    checked_real,
)


@dataclasses.dataclass(frozen=True, slots=True)
class GaussianEvent(Event):
    """A sum over the data plus Gaussian noise, without sampling.

    Attributes:
        noise_multiplier: standard deviation of the noise / clip norm, >= 0, finite.
            0 means no noise: epsilon is then infinite.
    """

    noise_multiplier: float

    def __post_init__(self) -> None:
        meaning = "the standard deviation of the noise in units of the clip norm"
        value = checked_noise(self.noise_multiplier, meaning)
        object.__setattr__(self, "noise_multiplier", value)

    def describe(self) -> str:
        return f"Gaussian noise, multiplier {self.noise_multiplier:.6g}"


@dataclasses.dataclass(frozen=True, slots=True)
class LaplaceEvent(Event):
    """A sum over the data plus independent Laplace noise, without sampling.

    Attributes:
        noise_multiplier: scale b of the noise, of density e^{-|x|/b} / 2b, over the l1
            norm to which each example was clipped; >= 0, finite.
    """

    noise_multiplier: float

    def __post_init__(self) -> None:
        meaning = "the scale of the noise in units of the l1 clip norm"
        value = checked_noise(self.noise_multiplier, meaning)
        object.__setattr__(self, "noise_multiplier", value)

    def describe(self) -> str:
        return f"Laplace noise, multiplier {self.noise_multiplier:.6g}"


@dataclasses.dataclass(frozen=True, slots=True)
class DiscreteGaussianEvent(Event):
    """One integer sum plus discrete Gaussian noise (arXiv:2004.00010).

    Noise x has probability proportional to e^{-x^2 / 2 sigma^2} on the integers, with
    sigma = noise_multiplier x sensitivity.

    Attributes:
        noise_multiplier: sigma / sensitivity, >= 0, finite.
        sensitivity: largest change of the sum by one example, a whole number >= 1.
    """

    noise_multiplier: float
    sensitivity: int = 1

    def __post_init__(self) -> None:
        value = checked_noise(self.noise_multiplier, "sigma over the sensitivity")
        object.__setattr__(self, "noise_multiplier", value)
        object.__setattr__(self, "sensitivity", _sensitivity(self.sensitivity))

    def describe(self) -> str:
        return (
            f"discrete Gaussian noise, multiplier {self.noise_multiplier:.6g},"
            f" sensitivity {self.sensitivity}"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class DiscreteLaplaceEvent(Event):
    """One integer sum plus discrete Laplace (two-sided geometric) noise.

    Noise x has probability proportional to e^{-|x| / b} on the integers, with
    b = noise_multiplier x sensitivity.

    Attributes:
        noise_multiplier: b / sensitivity, >= 0, finite.
        sensitivity: largest change of the sum by one example, a whole number >= 1.
    """

    noise_multiplier: float
    sensitivity: int = 1

    def __post_init__(self) -> None:
        value = checked_noise(self.noise_multiplier, "b over the sensitivity")
        object.__setattr__(self, "noise_multiplier", value)
        object.__setattr__(self, "sensitivity", _sensitivity(self.sensitivity))

    def describe(self) -> str:
        return (
            f"discrete Laplace noise, multiplier {self.noise_multiplier:.6g},"
            f" sensitivity {self.sensitivity}"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class MixtureOfGaussiansEvent(Event):
    """Gaussian noise on a sum that one person moves by a random amount.

    The pair is sum_i p_i N(c_i, s^2) against N(0, s^2) and its reverse
    (arXiv:2310.15526, section 4; several steps by norms of vectors, arXiv:2401.10294).

    Attributes:
        noise_multiplier: s, standard deviation over the unit of the sensitivities.
        sensitivities: c_i >= 0, l2 norms.
        probabilities: p_i of each of them, of sum 1.
    """

    noise_multiplier: float
    sensitivities: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        meaning = "the standard deviation of the noise in units of the sensitivities"
        value = checked_noise(self.noise_multiplier, meaning)
        object.__setattr__(self, "noise_multiplier", value)
        for name in ("sensitivities", "probabilities"):
            if not isinstance(getattr(self, name), Iterable):
                raise ValueError(
                    f"The {name} of a mixture are {getattr(self, name)!r}. Each case"
                    " has a sensitivity and a probability. Pass two tuples of numbers."
                )
        sensitivities = tuple(
            checked_cost("a sensitivity", c, "how far one person moves the sum")
            for c in self.sensitivities
        )
        probabilities = tuple(
            checked_probability(
                "a probability",
                p,
                "the chance of a sensitivity",
                "Pass one probability for each sensitivity.",
            )
            for p in self.probabilities
        )
        total = math.fsum(probabilities)
        if len(sensitivities) != len(probabilities) or abs(total - 1) > 1e-12:
            raise ValueError(
                f"There are {len(sensitivities)} sensitivities and"
                f" {len(probabilities)} probabilities of sum {total!r}. Every case must"
                " have its chance, and together they must be certain. Pass one"
                " probability for each sensitivity, of sum 1."
            )
        object.__setattr__(self, "sensitivities", sensitivities)
        object.__setattr__(self, "probabilities", probabilities)

    def describe(self) -> str:
        return (
            f"Gaussian noise, multiplier {self.noise_multiplier:.6g}, one of"
            f" {len(self.sensitivities)} sensitivities up to"
            f" {max(self.sensitivities):.6g}"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class RandomizedResponseEvent(Event):
    """A category told by its owner, replaced at random (Warner 1965).

    Attributes:
        noise_parameter: chance, in [0, 1], that the answer is drawn uniformly from all
            categories, the true one among them.
        num_buckets: number of categories, >= 1.
    """

    noise_parameter: float
    num_buckets: int

    def __post_init__(self) -> None:
        value = checked_probability(
            "noise_parameter",
            self.noise_parameter,
            "the chance of a random answer",
            "Pass for example 0.5.",
        )
        object.__setattr__(self, "noise_parameter", value)
        number = checked_count(self.num_buckets, "num_buckets", "how many categories")
        object.__setattr__(self, "num_buckets", number)

    def describe(self) -> str:
        return (
            f"randomized response, {self.num_buckets} categories, random with"
            f" probability {self.noise_parameter:.6g}"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class PureEvent(Event):
    """Any release that was proved epsilon-DP for the relation of the accountant.

    Attributes:
        epsilon: >= 0, finite.
    """

    epsilon: float

    def __post_init__(self) -> None:
        value = checked_cost("epsilon", self.epsilon, "what the release reveals")
        object.__setattr__(self, "epsilon", value)

    def describe(self) -> str:
        return f"any release that is {self.epsilon:.6g}-DP"


@dataclasses.dataclass(frozen=True, slots=True)
class ApproximateEvent(Event):
    """Any release that was proved (epsilon, delta)-DP for the accountant's relation.

    Attributes:
        epsilon: >= 0, finite.
        delta: in [0, 1].
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        value = checked_cost("epsilon", self.epsilon, "what the release reveals")
        object.__setattr__(self, "epsilon", value)
        delta = checked_probability(
            "delta",
            self.delta,
            "the chance that epsilon fails",
            "Pass for example 1e-6.",
        )
        object.__setattr__(self, "delta", delta)

    def describe(self) -> str:
        return f"any release that is ({self.epsilon:.6g}, {self.delta:.6g})-DP"


@dataclasses.dataclass(frozen=True, slots=True)
class ZeroConcentratedEvent(Event):
    """Any release that was proved rho-zCDP for the accountant's relation.

    Renyi divergence of every order a > 1 is at most a rho (Bun and Steinke 2016,
    arXiv:1605.02065). No single pair of laws dominates all such releases.

    Attributes:
        rho: >= 0, finite.
    """

    rho: float

    def __post_init__(self) -> None:
        value = checked_cost("rho", self.rho, "what the release reveals")
        object.__setattr__(self, "rho", value)

    def describe(self) -> str:
        return f"any release that is {self.rho:.6g}-zCDP"


def user_level(
    sampling_probability: float, noise_multiplier: float, max_examples_per_user: int
) -> MixtureOfGaussiansEvent:
    """Poisson-sampled Gaussian, as seen by a user who owns several examples.

        sensitivity i with probability C(k, i) q^i (1 - q)^{k - i},   i = 0 .. k

    since each of k examples enters by its own coin and moves the sum by at most the
    clip norm (arXiv:2401.10294; charged to all k at once, never k times).

    Args:
        sampling_probability: q in [0, 1] of each example.
        noise_multiplier: standard deviation of the noise / clip norm of one example.
        max_examples_per_user: k, the most examples that any user owns.

    >>> user_level(0.5, 1.0, 2).probabilities
    (0.25, 0.5, 0.25)
    """
    q = checked_probability(
        "sampling_probability",
        sampling_probability,
        "the chance that an example enters the batch",
        "Pass expected batch size / number of examples.",
    )
    k = checked_count(
        max_examples_per_user, "max_examples_per_user", "what one user owns at most"
    )
    if k > 1000:
        raise ValueError(
            f"max_examples_per_user is {k}, above 1000. So many cases of one user"
            " would leave hardly any protection and a slow answer. Bound the examples"
            " of a user before training."
        )
    chances = [math.comb(k, i) * q**i * (1 - q) ** (k - i) for i in range(1, k + 1)]
    rest = max(0.0, 1 - math.fsum(chances))
    return MixtureOfGaussiansEvent(
        checked_real("noise_multiplier", noise_multiplier),
        tuple(float(i) for i in range(k + 1)),
        (rest, *chances),
    )


def _sensitivity(value: object) -> int:
    return checked_count(value, "sensitivity", "how far one example moves the sum")
