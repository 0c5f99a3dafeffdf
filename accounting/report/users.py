"""Releases as seen by a person who owns several examples."""

from collections.abc import Iterable

from accounting.accountant import Accountant
from accounting.events import (
    Event,
    GaussianEvent,
    NeighboringRelation,
    PoissonSampledEvent,
    Release,
    UnsupportedEventError,
    UnverifiedSamplingEvent,
    user_level,
)


def composed_for_users(
    composed: Accountant, releases: Iterable[Release], max_examples_per_user: int
) -> Accountant:
    """Adds releases as a user sees them; returns the accountant."""
    for release in releases:
        event = seen_by_user(release.event, max_examples_per_user, composed.relation)
        composed.compose(event, release.count)
    return composed


def unit_of(max_examples_per_user: int) -> str:
    """What the guarantee protects, in words."""
    if max_examples_per_user == 1:
        return "one example"
    return f"one user with at most {max_examples_per_user} examples"


def seen_by_user(
    event: Event, max_examples_per_user: int, relation: NeighboringRelation
) -> Event:
    """What one release is if up to so many examples come or go together.

    Poisson-sampled examples enter by a coin each; of ready-made batches, and without
    sampling, all of them may be in one, so the sum moves by that many clip norms.

    Args:
        event: as recorded, of one example.
        max_examples_per_user: k >= 1.
        relation: of the statement.

    Raises:
        UnsupportedEventError: the examples of a user are drawn dependently.
    """
    k = max_examples_per_user
    if k == 1:
        return event
    match event:
        case PoissonSampledEvent(q, GaussianEvent(noise)):
            return user_level(q, noise, k)
        case GaussianEvent(noise):
            return GaussianEvent(noise / k)
        case UnverifiedSamplingEvent(GaussianEvent(noise)):
            return UnverifiedSamplingEvent(GaussianEvent(noise / k))
    raise UnsupportedEventError(
        event,
        "user-level",
        relation.value,
        f"Up to {k} examples of one user are drawn dependently there, and no bound is"
        " known for that.",
        "State the guarantee for single examples, without max_examples_per_user.",
    )
