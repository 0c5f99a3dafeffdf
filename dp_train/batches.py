"""Which batches of loaders are still unused in custom loops, by the numbers of draws.

A copy of a batch has the number of its draw, so that both are used up at once.
"""

from __future__ import annotations

import secrets

from dp_train.errors import NotPrivateError

_unused_batches: dict[int, int] = {}
"""By their numbers, how many rows were drawn for each batch that is still unused."""


def open_batch(rows: int) -> int:
    """The number of a fresh draw of so many rows, which `take_batch` takes once."""
    number = secrets.randbits(62)
    _unused_batches[number] = rows
    return number


def take_batch(number: int, rows: int) -> None:
    """Uses up a draw for so many rows.

    Raises:
        NotPrivateError: there is no such draw, it was used, or it has fewer rows.
    """
    drawn = _unused_batches.pop(number, None)
    if drawn is None:
        raise NotPrivateError(
            "This batch, or another copy of it, was already used for a release. Two "
            "releases from one draw are not independent samples, so the accounted "
            "epsilon would be too small. Take the next batch from the loader."
        )
    if rows > drawn:
        raise NotPrivateError(
            f"This batch has {rows} rows, and {drawn} were drawn. Copies of an example "
            "count for it several times, and clipping bounds each of them alone. Pass "
            "the rows as they were drawn; for several augmented copies of each example "
            "give the loader `augment` and `augmentation_multiplicity`."
        )
