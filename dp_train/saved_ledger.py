"""The ledger in every file that carries weights: written, read back, never lowered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from accounting import Ledger
from dp_train import host_files
from dp_train.errors import NotPrivateError
from dp_train.owner import Owner, forget, owner_of, record

_TENSOR = "dp_train_ledger"


class InCheckpoints:
    """A mixin of trackable objects whose ledger a tf.train.Checkpoint holds too.

    Not an object of its own that is tracked: a checkpoint from elsewhere would be
    called incomplete for want of it.
    """

    def _owned(self) -> tuple[Owner, Any]:
        """The owner, and the weights that a checkpoint of this object may restore."""
        raise NotImplementedError

    def _serialize_to_tensors(self) -> dict[str, tf.Tensor]:
        owner, weights = self._owned()
        if tf.executing_eagerly():
            owner.look(weights)
        return {_TENSOR: tf.constant(owner.to_bytes())}

    def _restore_from_tensors(self, restored: dict[str, tf.Tensor]) -> None:
        # An exported model, where this is traced, is never trained.
        if tf.executing_eagerly():
            owner, weights = self._owned()
            owner.join(Owner.from_bytes(restored[_TENSOR].numpy()))
            # In what order values come back is not known.
            forget(weights)


def _spent(model: Any) -> Owner | None:
    """The owner whose ledger goes with a model's weights; None if it knows nothing."""
    weights = list(getattr(model, "weights", ()))
    owner = owner_of(weights)
    if owner is None:
        return None
    owner.look(weights)
    ledger = owner.ledger
    knows = ledger.total or ledger.remarks or owner.is_changed_elsewhere
    return owner if knows else None


def _written(model: Any) -> bytes | None:
    owner = _spent(model)
    return None if owner is None else owner.to_bytes()


@contextmanager
def _reading(model: Any, data: bytes | None) -> Iterator[None]:
    """Loads weights; before, what was spent on them is joined to what is known."""
    if data is None:
        yield
        return
    owner, weights = Owner.from_bytes(data), list(getattr(model, "weights", ()))
    owner.own(weights)
    # Not all of them need be in the file.
    owner.look(weights)
    yield
    record(weights)


@contextmanager
def _checked(model: Any, read: Callable[[], bytes | None], name: str) -> Iterator[None]:
    """Saves a model; its file then holds all that was spent before.

    Raises:
        NotPrivateError: it does not.
    """
    owner = _spent(model)
    before = Ledger() if owner is None else Ledger.from_json(owner.ledger.to_json())
    yield
    if before.total == 0:
        return
    data = read()
    found = Ledger() if data is None else Owner.from_bytes(data).ledger
    total = found.total
    found.merge(before)
    if found.total != total:
        raise NotPrivateError(
            f"{name} was written, and of {before.total} releases {total} can be read "
            "back from it. Whoever loads these weights would go on as if the others "
            "had not been made. Remove the file, and save in another place or format."
        )


host_files.keep_beside_weights(_written, _reading, _checked)
