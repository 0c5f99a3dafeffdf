"""Who keeps the ledger of a weight: one owner for all weights that met in a training.

A release of one model tells of its data through every weight that it moved. So the
ledger goes with the weights: each carries its owner, and owners become one where a
model, a file or an optimizer brings their weights together. Beside it each weight
carries a digest of the value that the last recorded release, or its file, left it with.
Where the value is another, something changed it that the ledger does not know.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Iterable, Sequence
from typing import Any, Self, final

import keras
import tensorflow as tf

from accounting import Event, Ledger

SCHEMA_VERSION = 1
NUMBERS = 1 << 18
"""So many numbers of a weight are in its digest: all, except of large ones."""
_OF_STEPS = 1 << 10, 4
"""So many numbers, of so many weights, after a single step: it takes hardly longer."""
_OWNER, _DIGEST = "_dp_train_owner", "_dp_train_digest"
_lock = threading.RLock()


@final
class Owner:
    """The ledger of some weights.

    Args:
        ledger: what was released so far; None for nothing.

    Guarantees:
        Nothing lowers a count: owners that become one keep what either of them spent,
        and a charge to either is in the ledger of both.
    """

    def __init__(self, ledger: Ledger | None = None) -> None:
        self._ledger = Ledger() if ledger is None else ledger
        self._is_changed_elsewhere = False
        self._heir: Owner | None = None

    @property
    def ledger(self) -> Ledger:
        """Every release that moved one of the weights, or a weight beside them."""
        return self._last()._ledger

    @property
    def is_changed_elsewhere(self) -> bool:
        """Whether something that the ledger does not know has changed a weight."""
        return self._last()._is_changed_elsewhere

    def charge(self, event: Event, *, l2_norm_clip: float, noise_source: str) -> None:
        """As Ledger.charge; never to a ledger that is being joined to another."""
        with _lock:
            self.ledger.charge(
                event, l2_norm_clip=l2_norm_clip, noise_source=noise_source
            )

    def join(self, other: Owner) -> None:
        """The two are one from now on."""
        with _lock:
            ours, theirs = self._last(), other._last()
            if ours is not theirs:
                ours._ledger.merge(theirs._ledger)
                ours._is_changed_elsewhere |= theirs._is_changed_elsewhere
                theirs._heir = ours

    def own(self, weights: Iterable[keras.Variable]) -> None:
        """Becomes one with whoever owned the weights before."""
        for weight in weights:
            before = vars(weight).setdefault(_OWNER, self)
            if before is not self:
                before.join(self)

    def look(self, weights: Iterable[keras.Variable]) -> None:
        """Sees whether the weights are as the last release or file left them."""
        for weight in weights:
            known = vars(weight).get(_DIGEST)
            if known is not None and known != _digest(weight, known[0]):
                self._last()._is_changed_elsewhere = True

    def to_bytes(self) -> bytes:
        """What a file keeps beside the weights; `from_bytes` takes it back."""
        content = {
            "schema_version": SCHEMA_VERSION,
            "is_changed_elsewhere": self.is_changed_elsewhere,
            "ledger": json.loads(self.ledger.to_json()),
        }
        return json.dumps(content).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The owner that was written.

        Raises:
            ValueError: not what `to_bytes` writes.
        """
        try:
            content = json.loads(data)
            version = content["schema_version"]
            is_changed = content["is_changed_elsewhere"]
            text = json.dumps(content["ledger"])
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable(f"it is incomplete ({error!r})") from None
        if version != SCHEMA_VERSION or type(is_changed) is not bool:
            raise _unreadable(f"it has schema_version {version!r}")
        owner = cls(Ledger.from_json(text))
        owner._is_changed_elsewhere = is_changed
        return owner

    def _last(self) -> Owner:
        owner = self
        while owner._heir is not None:
            owner = owner._heir
        return owner


def owner_of(weights: Iterable[keras.Variable]) -> Owner | None:
    """The one owner of weights, of which some may have none; None if nobody has."""
    weights = [weight for weight in weights if _OWNER in vars(weight)]
    if not weights:
        return None
    owner: Owner = vars(weights[0])[_OWNER]
    owner.own(weights)
    return owner


def record(weights: Iterable[keras.Variable]) -> None:
    """Keeps digests of what a fit, or a file, left in the weights."""
    for weight in weights:
        vars(weight)[_DIGEST] = _digest(weight, NUMBERS)


def record_step(weights: Sequence[keras.Variable]) -> None:
    """Keeps digests of a few of the weights that one release moved."""
    numbers, most = _OF_STEPS
    last = len(weights) - 1
    for place in {last * i // (most - 1) for i in range(most)} if weights else ():
        vars(weights[place])[_DIGEST] = _digest(weights[place], numbers)


def forget(weights: Iterable[keras.Variable]) -> None:
    """The weights are about to be moved by something that the ledger knows."""
    for weight in weights:
        vars(weight).pop(_DIGEST, None)


def _digest(weight: keras.Variable, numbers: int) -> tuple[int, bytes]:
    """(numbers, SHA-256 of about so many numbers, evenly spread, or of all)."""
    value: Any = weight.value
    if math.prod(value.shape) > NUMBERS:
        step = math.prod(value.shape) // NUMBERS
        # Odd, so that every column of a table has its turn.
        value = tf.reshape(value, [-1])[:: step | 1]
    values = value.numpy().reshape(-1)
    chosen = values[:: max(1, values.size // numbers) | 1]
    return numbers, hashlib.sha256(chosen.tobytes()).digest()


def _unreadable(reason: str) -> ValueError:
    return ValueError(
        f"The ledger beside the weights cannot be read: {reason}. Going on without it "
        "could lose releases that were made, and understate epsilon. Restore the file "
        "from a copy, or use the version of dp_train that wrote it."
    )
