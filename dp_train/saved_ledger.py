"""The ledger in every file that carries weights: written, read back, never lowered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from accounting import Ledger
from dp_train import host_files, last_values
from dp_train.errors import NotPrivateError
from dp_train.owner import Owner, owner_of


def _spent(model: Any) -> Owner | None:
    """The owner whose ledger goes with a model's weights; None if it knows nothing."""
    return _spent_on(list(getattr(model, "weights", ())))


def _spent_on(weights: list[Any]) -> Owner | None:
    owner = owner_of(weights)
    if owner is None:
        return None
    owner.look(weights, "before they were saved")
    return owner if owner.ledger.total or owner.ledger.remarks else None


def _written(model: Any) -> bytes | None:
    owner = _spent(model)
    return None if owner is None else owner.to_bytes()


@contextmanager
def _reading(model: Any, data: bytes | None) -> Iterator[None]:
    """Loads weights; before, what was spent on them is joined to what is known."""
    if data is None:
        yield
        return
    with Owner.from_bytes(data).reading(list(getattr(model, "weights", ()))):
        yield
    last_values.leave(getattr(getattr(model, "optimizer", None), "variables", ()))


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


def _written_for(weight: Any) -> bytes | None:
    """What a checkpoint holds beside one weight: its ledger, and its digest."""
    owner = _spent_on([weight])
    if owner is None:
        return None
    return last_values.digest(weight) + owner.to_bytes()


def _read_for(weight: Any, data: bytes) -> None:
    """The value may be read before or after; its digest says what it has to be."""
    length = last_values.DIGEST_BYTES
    Owner.from_bytes(data[length:]).own([weight])
    last_values.expect(weight, data[:length])


host_files.keep_in_checkpoints(_written_for, _read_for, last_values.was_read)
host_files.keep_beside_weights(_written, _reading, _checked)
