"""Who keeps the ledger of a weight: one owner for all weights that met in a training.

A release of one model tells of its data through every weight that it moved. So the
ledger goes with the weights: each carries its owner, and owners become one where a
model, a file or an optimizer brings their weights together. Where a weight is not as
the last release or its file left it, something changed it that the ledger does not
know, and a remark in the ledger says so.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Self, final

import keras

from accounting import Event, Ledger
from dp_train import host, last_values

_OWNER = "_dp_train_owner"
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
        self._heir: Owner | None = None
        self._is_reading = False

    @property
    def ledger(self) -> Ledger:
        """Every release that moved one of the weights, or a weight beside them."""
        return self._last()._ledger

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
                theirs._heir = ours

    def own(self, weights: Iterable[keras.Variable]) -> None:
        """Becomes one with whoever owned the weights before."""
        for weight in weights:
            before = vars(weight).setdefault(_OWNER, self)
            if before is not self:
                before.join(self)

    def look(
        self, weights: Iterable[keras.Variable], when: str, with_samples: bool = True
    ) -> None:
        """Notes it if a weight is not as the last release or file left it.

        Args:
            weights: any.
            when: "between two fits", say.
            with_samples: as in last_values.are_as_left.
        """
        weights = list(weights)
        if self._last()._is_reading:
            return
        if not last_values.are_as_left(weights, with_samples):
            self.note_change(when)
            # So that it is told once.
            last_values.leave(weights)

    @contextmanager
    def reading(self, weights: list[keras.Variable]) -> Iterator[None]:
        """A file that holds this ledger is read into weights; Keras looks meanwhile."""
        self.own(weights)
        # Not all of them need be in the file.
        self.look(weights, "before a file was read")
        owner = self._last()
        owner._is_reading = True
        try:
            yield
        finally:
            owner._is_reading = False
        last_values.record(weights)

    def note_change(self, when: str) -> None:
        """Lets every report say that something else than releases moved the weights.

        Args:
            when: as in `look`.
        """
        with _lock:
            if self.ledger.total:
                self.ledger.remark("changed_elsewhere", f"seen {when}")

    def to_bytes(self) -> bytes:
        """What a file keeps beside the weights; `from_bytes` takes it back."""
        return self.ledger.to_json().encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The owner that was written.

        Raises:
            ValueError: not what `to_bytes` writes.
        """
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"The ledger beside the weights cannot be read ({error}). Going on "
                "without it could lose releases that were made, and understate "
                "epsilon. Restore the file from a copy."
            ) from None
        return cls(Ledger.from_json(text))

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


def keep_through(kind: type[keras.callbacks.Callback]) -> None:
    """From now on what such a callback writes to weights counts as left by releases.

    Args:
        kind: a callback that writes nothing but what releases had made before.
    """

    def before(model: keras.Model) -> None:
        owner = owner_of(model.weights)
        if owner is not None:
            owner.look(moved(model), f"in a fit, before {kind.__name__}")

    def after(model: keras.Model) -> None:
        last_values.leave(moved(model))

    def moved(model: keras.Model) -> list[keras.Variable]:
        return [*model.weights, *getattr(model.optimizer, "variables", ())]

    host.wrap_hooks(kind, before, after)


for _kind in keras.callbacks.EarlyStopping, keras.callbacks.SwapEMAWeights:
    keep_through(_kind)
