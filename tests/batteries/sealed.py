"""Battery: what a release is made of is believed of nothing that can be written to."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import accounting
import dp_train
from dp_train.draws import Draws
from dp_train.sampling import PoissonSampling

EXAMPLES = 40
CLIP = 1.0


def rows() -> tuple[Any, Any]:
    """Fixed inputs and targets, with large gradients."""
    x = np.random.default_rng(0).standard_normal((EXAMPLES, 3)).astype("float32")
    return x, 100 * x[:, :1]


def plain() -> Any:
    """A model that is not yet compiled."""
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])


def optimizer(kind: Any = dp_train.DPSGD, noise_multiplier: float = 1.0) -> Any:
    """Of learning rate 1."""
    return kind(1.0, l2_norm_clip=CLIP, noise_multiplier=noise_multiplier)


# ------------------------------------------------------------------- a clipped sum


def _written(name: str, value: Any) -> Callable[[Any], Any]:
    def change(clipped: Any) -> Any:
        setattr(clipped, name, value(clipped))
        return clipped

    return change


def _made_by_hand(clipped: Any) -> Any:
    return type(clipped)(clipped.gradients, 1e-3, 1.0)


class Lookalike:
    """Has what a clipped sum has."""

    def __init__(self, clipped: Any) -> None:
        self.gradients = tuple(100 * g for g in clipped.gradients)
        self.l2_norm_bound = 1e-3


def _memory_of_its_gradients(clipped: Any) -> Any:
    for gradient in clipped.gradients:
        gradient._numpy()[...] *= 100
    return clipped


TAMPERED: dict[str, Callable[[Any], Any]] = {
    "gradients": _written("gradients", lambda c: tuple(100 * g for g in c.gradients)),
    "bound": _written("l2_norm_bound", lambda c: 1e-3),
    "account": _written("account", lambda c: None),
    "variables": _written("variables", lambda c: ()),
    "method": _written("take", lambda c: c.gradients),
    "class": _written("__class__", lambda c: Lookalike),
    "replaced": lambda c: dataclasses.replace(c, l2_norm_bound=1e-3),
    "made by hand": _made_by_hand,
    "copied": copy.copy,
    "deeply copied": copy.deepcopy,
    "an empty one": lambda c: object.__new__(type(c)),
    "lookalike": Lookalike,
    "used again": lambda c: c,
    "memory": _memory_of_its_gradients,
}


def assert_a_clipped_sum_cannot_be_changed(way: str) -> None:
    """However it is tampered with, at most what was clipped is released, once.

    Args:
        way: key of TAMPERED.
    """
    model, sgd = dp_train.make_private(plain()), optimizer(noise_multiplier=0.0)
    model.compile(loss="mse")
    clipped = dp_train.clipped_gradients(
        model, *(a[:1] for a in rows()), l2_norm_clip=CLIP
    )
    before = model.get_weights()
    # Once as it is: what pays again would pay with it. The memory is written before.
    changes = [TAMPERED[way], lambda c: c]
    if way != "memory":
        changes.reverse()
    for change in changes:
        try:
            sgd.apply_clipped_sum(change(clipped), model.trainable_variables)
        except (AttributeError, TypeError, dp_train.NotPrivateError):
            continue
    pairs = zip(model.get_weights(), before, strict=True)
    moved = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in pairs))
    assert moved <= CLIP * (1 + 1e-5), f"one example moved the weights by {moved:g} C"
    assert model.privacy_ledger.total == 1, "a clipped sum paid for two releases"


# ----------------------------------------------------------------------- a sampling


class Cheap:
    """Says itself what its draws cost."""

    expected_batch_size = 10.0

    def event(self, release: accounting.Event) -> accounting.Event:
        return accounting.PoissonSampledEvent(1e-4, release)

    def pay(self, digest: int | None) -> None:
        del digest


class Everybody(PoissonSampling):
    """Draws all rows, at the price of few."""

    def indices(self) -> Any:
        return np.arange(self.population)


def _set_on_the_loader(loader: Any, sgd: Any) -> None:
    loader.sampling = Everybody(EXAMPLES, 1)


def _written_into_the_sampling(loader: Any, sgd: Any) -> None:
    loader.sampling.indices = lambda: np.arange(EXAMPLES)


def _written_into_the_draws(loader: Any, sgd: Any) -> None:
    draws = loader.draws()
    draws.pay = lambda digest: None
    loader.draws = lambda: draws


def _other_draws(loader: Any, sgd: Any) -> None:
    # Nobody is drawn in 40 steps but with probability 4e-5: there are no such rows.
    draws = Draws(PoissonSampling(10**6, 1e-6), rows())
    loader.draws = lambda: draws


def _own_draws(loader: Any, sgd: Any) -> None:
    loader.draws = Cheap


SAMPLINGS: dict[str, Callable[[Any, Any], None]] = {
    "sampling of the loader": _set_on_the_loader,
    "method of the sampling": _written_into_the_sampling,
    "method of the draws": _written_into_the_draws,
    "draws of more rows": _other_draws,
    "draws of its own": _own_draws,
    "sampling of the optimizer": lambda loader, sgd: sgd._sample_by(Cheap()),
    "subclass for the optimizer": lambda loader, sgd: sgd._sample_by(Everybody(40, 1)),
}


def assert_releases_are_charged_by_own_samplings_only(way: str) -> None:
    """A sampling that somebody else wrote prices no release.

    Args:
        way: key of SAMPLINGS.
    """
    x, y = rows()
    sgd, loader = optimizer(), dp_train.PoissonLoader(x, y, batch_size=1)
    is_plain = "optimizer" in way
    model = plain() if is_plain else dp_train.make_private(plain())
    model.compile(sgd, loss="mse")
    is_refused = False
    try:
        SAMPLINGS[way](loader, sgd)
        if is_plain:
            model.fit(x, y, batch_size=EXAMPLES, shuffle=False, verbose=0)
        else:
            model.fit(loader, verbose=0)
    except (AttributeError, TypeError, dp_train.NotPrivateError, tf.errors.OpError):
        is_refused = True
    total = sgd.ledger.total
    assert is_refused and not total, f"{total} releases were priced by another sampling"


# --------------------------------------------------------------- an optimizer


class Delegating(keras.optimizers.Optimizer):
    """Answers for the DP optimizer, and then trains on its own."""

    def __init__(self, first: Any) -> None:
        super().__init__(0.1)
        self.first = first

    def __getattr__(self, name: str) -> Any:
        if name == "first":
            raise AttributeError(name)
        return getattr(self.first, name)

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        self.first.apply(grads, trainable_variables)
        for g, v in zip(grads, trainable_variables, strict=True):
            v.assign_sub(1000.0 * g)


def _raw(self: Any, grads: Any, trainable_variables: Any = None) -> None:
    dp_train.DPSGD.apply(self, grads, trainable_variables)
    for g, v in zip(grads, trainable_variables, strict=True):
        v.assign_sub(1000.0 * g)


def _delegating() -> tuple[Any, Any]:
    sgd = optimizer()
    return sgd, Delegating(sgd)


def _method_of_the_class() -> tuple[Any, Any]:
    class Late(dp_train.DPSGD):
        pass

    Late.apply = _raw
    sgd = optimizer(Late)
    return sgd, sgd


def _method_of_the_instance() -> tuple[Any, Any]:
    sgd = optimizer()
    sgd.apply = lambda *given: _raw(sgd, *given)
    return sgd, sgd


def _clip_as_a_property() -> tuple[Any, Any]:
    class Growing(dp_train.DPSGD):
        l2_norm_clip = property(lambda self: 100.0)

    sgd = optimizer(Growing)
    return sgd, sgd


def _late_clip() -> tuple[Any, Any]:
    class Late(dp_train.DPSGD):
        pass

    sgd = optimizer(Late)
    Late.l2_norm_clip = property(lambda self: 100.0)
    return sgd, sgd


OPTIMIZERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "delegating": _delegating,
    "method of the class": _method_of_the_class,
    "method of the instance": _method_of_the_instance,
    "clip as a property": _clip_as_a_property,
    "clip set on the class": _late_clip,
}


def assert_gradients_meet_only_own_methods(way: str, is_private: bool = False) -> None:
    """An optimizer that is not what it was when it was written trains nothing.

    Args:
        way: key of OPTIMIZERS.
        is_private: whether the model is.
    """
    model, refusal, before = plain(), "", []
    try:
        sgd, outer = OPTIMIZERS[way]()
        if is_private:
            model = dp_train.make_private(model)
        model.compile(outer, loss="mse")
        before = model.get_weights()
        loader = dp_train.PoissonLoader(*rows(), batch_size=10)
        if is_private:
            model.fit(loader, verbose=0)
        else:
            model.fit(loader.dataset_for(sgd), shuffle=False, verbose=0)
    except (TypeError, dp_train.NotPrivateError) as error:
        refusal = str(error)
    assert refusal, f"trained with an optimizer that is not its own: {way}"
    pairs = zip(before, model.get_weights(), strict=True) if before else ()
    assert all(np.array_equal(a, b) for a, b in pairs), "weights changed"
