"""Which batches of loaders are still unused in custom loops, by the numbers of draws.

A copy of a batch has the number of its draw, so that both are used up at once. What the
draw was, rows and sampling, is kept here and not believed of the batch.
"""

from __future__ import annotations

from typing import Any, final

import numpy as np

from accounting import Event
from dp_train.digests import digests_of_arrays
from dp_train.errors import NotPrivateError

_unused: dict[int, tuple[int | None, Any]] = {}
"""By number, the digest of the rows that pay, and the draws that it is one of."""


@final
class UsedDraw:
    """Sampling of one batch, which pays for one release.

    Args:
        draws: that it is one of.
        digest: of its rows.
    """

    __slots__ = "_digest", "_draws", "_is_paid"

    def __init__(self, draws: Any, digest: int) -> None:
        self._draws, self._digest, self._is_paid = draws, digest, False

    @property
    def expected_batch_size(self) -> float:
        """B."""
        return float(self._draws.expected_batch_size)

    def event(self, release: Event) -> Event:
        """`release` as seen through the sampling."""
        event: Event = self._draws.event(release)
        return event

    @property
    def are_others_left_out(self) -> bool:
        """Whether draws of the same examples by other loaders were not released."""
        return bool(self._draws.are_others_left_out)

    def pay(self, digest: int | None) -> None:
        """Uses up the draw; its rows were compared when they were taken.

        Raises:
            NotPrivateError: it was used up before, or an older one is unused.
        """
        if self._is_paid:
            raise _used()
        self._draws.pay(self._digest)
        self._is_paid = True


def batch_digest(rows: Any) -> int:
    """Digest of (x, y, sample_weight), arrays [n, ...]."""
    return int(np.sum(digests_of_arrays(rows)))


def open_batch(number: int, digest: int | None, draws: Any) -> None:
    """A draw that `take_batch` takes once.

    Args:
        number: of the draw.
        digest: of its rows; None if they are not made of the examples as given.
        draws: that it is one of.
    """
    _unused[number] = digest, draws


def take_batch(number: int, rows: Any) -> UsedDraw:
    """Uses up a draw, for the rows that were drawn.

    Args:
        number: of the draw.
        rows: (x, y, sample_weight), arrays [n, ...].

    Raises:
        NotPrivateError: there is no such draw, it was used, or it had other rows.
    """
    drawn = _unused.pop(number, None)
    if drawn is None:
        raise _used()
    digest, draws = drawn
    if digest is None or batch_digest(rows) != digest:
        raise NotPrivateError(
            "The rows of this batch are not those that were drawn: some were changed, "
            "copied, cut or exchanged, or the loader's arrays were changed in place "
            "since they were first drawn from. A copy counts once more for its "
            "example, and a size that was chosen by looking at a batch lets its "
            "longest example move the others; clipping bounds neither. Pass the batch "
            "as it was drawn; change examples before that, or by the loader's "
            "`augment` and `augmentation_multiplicity`."
        )
    return UsedDraw(draws, digest)


def _used() -> NotPrivateError:
    return NotPrivateError(
        "This batch, or another copy of it, was already used for a release. Two "
        "releases from one draw are not independent samples, so the accounted epsilon "
        "would be too small. Take the next batch from the loader."
    )
