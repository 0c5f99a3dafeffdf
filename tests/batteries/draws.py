"""Battery: every release is paid for by a draw of its own, and made on its rows."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import dp_train
from dp_train.batches import batch_digest
from dp_train.digests import digest_of

EXAMPLES, BATCH = 200, 20


def _rows() -> tuple[Any, Any]:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((EXAMPLES, 4)).astype("float32")
    return x, (x[:, :1] > 0).astype("float32")


class Base(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, x: Any) -> Any:
        return self.dense(x)


class Changing(Base):
    """A fit of its own, which changes the pipeline."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        super().__init__()
        self.change = change

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        if isinstance(x, tf.data.Dataset):
            x = self.change(x)
        return super().fit(x, *args, **kwargs)


class Echoing(Base):
    """A train_function of its own, which takes two steps a batch."""

    def make_train_function(self, force: bool = False) -> Any:
        step = tf.function(self.train_step, autograph=False)

        def function(iterator: Any) -> Any:
            data = next(iterator)
            step(data)
            return step(data)

        self.train_function = function
        return function


class _Stepping(keras.callbacks.Callback):
    """Takes a step of its own."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        x, y = _rows()
        step = tf.function(self.model.train_step, autograph=False)
        step((tf.constant(x[:BATCH]), tf.constant(y[:BATCH])))


def _copies(x: Any, y: Any) -> Any:
    return tf.repeat(x, 10, axis=0), tf.repeat(y, 10, axis=0)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "cached": lambda data: data.take(1).cache().repeat(10),
    "repeated rows": lambda data: data.map(_copies),
    "other rows": lambda data: data.map(
        lambda x, y: (x + tf.cast(tf.random.uniform([]), x.dtype), y)
    ),
    "a sign": lambda data: data.map(
        lambda x, y: (x * tf.where(tf.range(4) == 3, -1.0, 1.0), y)
    ),
    "an axis less": lambda data: data.map(lambda x, y: (x, y[:, 0])),
    "one entry": lambda data: data.map(
        lambda x, y: (x + tf.one_hot(3, 4) * tf.reduce_max(x), y)
    ),
    "batched anew": lambda data: data.unbatch().batch(5),
}


def _fit_changed(name: str) -> tuple[Any, Callable[[], Any]]:
    model = dp_train.make_private(Changing(CHANGES[name]))
    return model, lambda: model.fit(*_rows(), batch_size=BATCH, epochs=2, verbose=0)


def _fit_echoed() -> tuple[Any, Callable[[], Any]]:
    model = dp_train.make_private(Echoing())
    return model, lambda: model.fit(*_rows(), batch_size=BATCH, verbose=0)


def _fit_with_steps() -> tuple[Any, Callable[[], Any]]:
    model = dp_train.make_private(Base())
    return model, lambda: model.fit(
        *_rows(), batch_size=BATCH, verbose=0, callbacks=[_Stepping()]
    )


def _looked_at() -> tuple[Any, Callable[[], Any]]:
    model = Base()
    loader = dp_train.PoissonLoader(*_rows(), batch_size=BATCH)

    def train() -> None:
        drawn = loader.dataset_for(model.optimizer)
        for _ in drawn.take(5):
            pass
        x, y = _rows()
        model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)

    return model, train


def _cached_for_plain_fit() -> tuple[Any, Callable[[], Any]]:
    model = Base()
    loader = dp_train.PoissonLoader(*_rows(), batch_size=BATCH)
    return model, lambda: model.fit(
        loader.dataset_for(model.optimizer).take(1).cache().repeat(5),
        shuffle=False,
        verbose=0,
    )


def _cached_where_augmented() -> tuple[Any, Callable[[], Any]]:
    model = dp_train.make_private(Changing(CHANGES["cached"]))
    return model, lambda: model.fit(
        *_rows(),
        batch_size=BATCH,
        verbose=0,
        augment=lambda x, seed: x + tf.random.stateless_normal(x.shape, seed),
        augmentation_multiplicity=2,
    )


WAYS: dict[str, Callable[[], tuple[Any, Callable[[], Any]]]] = {
    **{name: lambda name=name: _fit_changed(name) for name in CHANGES},
    "train_function": _fit_echoed,
    "callback": _fit_with_steps,
    "draws looked at": _looked_at,
    "cached where augmented": _cached_where_augmented,
    "cached for a plain model": _cached_for_plain_fit,
}


def assert_rows_that_were_not_drawn_make_no_step(way: str) -> None:
    """A second step on a draw, or one on other rows, is refused while fit runs."""
    model, train = WAYS[way]()
    model.compile(
        dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=1.0), loss="mse"
    )
    try:
        train()
    except (dp_train.NotPrivateError, tf.errors.UnknownError) as error:
        assert "no unused draw" in str(error), f"{way}: {error}"
        return
    raise AssertionError(f"{way}: steps were taken on rows that were not drawn.")


def _copied(batch: Any) -> Any:
    return copy.deepcopy(batch)


def _replaced(batch: Any) -> Any:
    return dataclasses.replace(batch, x=batch.x + 1e-3)


def _multiplied(batch: Any) -> Any:
    x, y = (np.concatenate([a] * 10) for a in (batch.x, batch.y))
    return dataclasses.replace(batch, x=x, y=y)


def _exchanged(batch: Any) -> Any:
    return dataclasses.replace(batch, x=np.repeat(_rows()[0][:1], len(batch.x), 0))


def _cut(batch: Any) -> Any:
    return dataclasses.replace(batch, x=batch.x[:, :3])


def _trimmed(batch: Any) -> Any:
    """A last axis that holds zeros only is cut off."""
    return dataclasses.replace(batch, x=batch.x[:, :4])


COPIES = {
    "trimmed": _trimmed,
    "copied": _copied,
    "replaced": _replaced,
    "multiplied": _multiplied,
    "exchanged": _exchanged,
    "cut": _cut,
}


def assert_copies_of_a_batch_do_not_pay_again(way: str) -> None:
    """In a custom loop each draw pays once, for the rows that were drawn."""
    model = dp_train.make_private(Base())
    model.compile(loss="mse")
    x, y = _rows()
    if way == "trimmed":
        x = np.pad(x, [[0, 0], [0, 3]])
    for batch in dp_train.PoissonLoader(x, y, batch_size=BATCH):
        other = COPIES[way](batch)
        try:
            if way in ("copied", "replaced"):
                dp_train.clipped_gradients(model, batch, l2_norm_clip=1.0)
            dp_train.clipped_gradients(model, other, l2_norm_clip=1.0)
        except dp_train.NotPrivateError:
            continue
        raise AssertionError(f"A batch that was {way} paid again, or for copies.")


def _every_second(data: Any) -> Any:
    selected = data.enumerate().filter(lambda i, rows: i % 2 == 1)
    return selected.map(lambda i, rows: rows)


def _one_of_each_look(data: Any) -> Any:
    """Begins an iteration for each batch, and keeps those with many rows."""
    looks = data.take(1).filter(lambda x, y, w: tf.shape(x)[0] > BATCH)
    return looks.repeat(100)


def _select_in_private_fit() -> tuple[Any, Any]:
    model = dp_train.make_private(Changing(_every_second))
    return model, lambda: model.fit(*_rows(), batch_size=BATCH, verbose=0)


def _select_in_plain_fit(change: Callable[[Any], Any]) -> tuple[Any, Any]:
    model = Base()
    loader = dp_train.PoissonLoader(*_rows(), batch_size=BATCH)

    def train() -> None:
        drawn = change(loader.dataset_for(model.optimizer)).repeat()
        model.fit(drawn, steps_per_epoch=5, shuffle=False, verbose=0)

    return model, train


def _select_in_loop(
    is_left_out: Callable[[int, Any], bool], expected: float
) -> tuple[Any, Any]:
    model = dp_train.make_private(Base())
    loader = dp_train.PoissonLoader(*_rows(), batch_size=expected, steps_per_epoch=50)

    def train() -> None:
        for i, batch in enumerate(loader):
            if not is_left_out(i, batch):
                clipped = dp_train.clipped_gradients(model, batch, l2_norm_clip=1.0)
                model.optimizer.apply_clipped_sum(clipped, model.trainable_variables)

    return model, train


SELECTIONS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "private fit": _select_in_private_fit,
    "plain fit": lambda: _select_in_plain_fit(_every_second),
    "looks in plain fit": lambda: _select_in_plain_fit(_one_of_each_look),
    "custom loop": lambda: _select_in_loop(lambda i, _: i % 2 == 0, BATCH),
    "empty batches": lambda: _select_in_loop(lambda _, b: len(b.x) == 0, 1),
}


def assert_no_batch_is_left_out(way: str) -> None:
    """A batch that comes before its turn is refused: an older one was left out."""
    model, train = SELECTIONS[way]()
    model.compile(
        dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=1.0), loss="mse"
    )
    try:
        train()
    except (dp_train.NotPrivateError, tf.errors.UnknownError) as error:
        assert "while an older one" in str(error), f"{way}: {error}"
        return
    raise AssertionError(f"{way}: Batches were selected and released.")


def assert_signs_are_seen() -> None:
    """Negating one number of a row changes the digest, in each of 80 columns.

    A digest that sees a sign in three columns of four passes once in 10^10 times.
    """
    generator = np.random.default_rng(0)
    x = generator.choice(np.array([-1.0, 1.0], np.float32), (3, 80))
    before = int(digest_of((tf.constant(x), None, None)))
    assert before == batch_digest((x, None, None))
    for column in range(80):
        changed = x.copy()
        changed[1, column] *= -1
        assert int(digest_of((tf.constant(changed), None, None))) != before, (
            f"A sign in column {column} is not seen."
        )
