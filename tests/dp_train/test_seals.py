"""What a release is made of is the library's own, and honest users are let in."""

import keras
import numpy as np
import pytest
from models import compiled, data

import dp_train
from tests.batteries import sealed


@pytest.mark.parametrize("way", sealed.TAMPERED)
def test_a_clipped_sum_cannot_be_changed(way):
    sealed.assert_a_clipped_sum_cannot_be_changed(way)


@pytest.mark.parametrize("way", sealed.SAMPLINGS)
def test_releases_are_charged_by_own_samplings_only(way):
    sealed.assert_releases_are_charged_by_own_samplings_only(way)


@pytest.mark.parametrize("is_private", [False, True])
@pytest.mark.parametrize("way", sealed.OPTIMIZERS)
def test_gradients_meet_only_own_methods(way, is_private):
    sealed.assert_gradients_meet_only_own_methods(way, is_private)


def test_late_methods_are_refused_in_custom_loops():
    model = compiled()
    clipped = dp_train.clipped_gradients(model, *data(), l2_norm_clip=1.0)
    optimizer = model.optimizer
    optimizer.release = lambda clipped_sum: None
    with pytest.raises(dp_train.NotPrivateError, match=r"overrides release.*inner"):
        optimizer.apply_clipped_sum(clipped)


def test_a_clipped_sum_shows_its_facts():
    x, y = data()
    model = compiled()
    clipped = dp_train.clipped_gradients(model, x[:8], y[:8], l2_norm_clip=0.5)
    shapes = [tuple(g.shape) for g in clipped.gradients]
    assert shapes == [tuple(v.shape) for v in model.trainable_variables]
    assert clipped.data_free_gradients == (None,) * len(shapes)
    assert repr(clipped) == "ClippedSum(l2_norm_bound=0.5, expected_batch_size=8)"
    model.optimizer.apply_clipped_sum(clipped)
    assert clipped.l2_norm_bound == 0.5
    with pytest.raises(TypeError, match=r"not made or copied by hand.*clipped_grad"):
        dp_train.ClippedSum(clipped.gradients, 1.0)
    with pytest.raises(TypeError, match="Received: list"):
        model.optimizer.apply_clipped_sum([1.0])


@keras.saving.register_keras_serializable(package="tests")
class Slow(dp_train.DPAdam):
    """Adam as this group uses it."""

    FACTOR = 0.5

    def __init__(self, learning_rate=0.25, label="", **kwargs):
        super().__init__(learning_rate, **kwargs)
        self.label = label

    def slower(self):
        self.learning_rate = self.FACTOR * float(self.learning_rate)
        return self

    def get_config(self):
        return super().get_config()


class Named:
    """A mixin."""

    title = "mine"


class Mixed(Named, dp_train.DPSGD):
    pass


def test_subclasses_may_have_arguments_constants_and_methods_of_their_own(tmp_path):
    optimizer = Slow(l2_norm_clip=1.0, noise_multiplier=1.0, label="a").slower()
    assert float(optimizer.learning_rate) == 0.125
    model = compiled(optimizer=optimizer)
    model.fit(*data(), batch_size=20, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is Slow
    assert loaded.optimizer.ledger.total == 3
    mixed = Mixed(0.1, l2_norm_clip=1.0, noise_multiplier=1.0)
    compiled(optimizer=mixed).fit(*data(), batch_size=20, verbose=0)
    assert (mixed.title, mixed.ledger.total) == ("mine", 3)


def test_a_subclass_may_not_stand_before_what_the_optimizer_keeps():
    def keeping(name, value):
        return type("Own", (dp_train.DPSGD,), {name: value})

    for name in ("inner_optimizer", "_noise_multiplier"):
        with pytest.raises(TypeError, match=f"{name}, or defines it as a property"):
            keeping(name, property(lambda self: None))
    for name in ("__getattribute__", "__dict__", "build", "learning_rate"):
        with pytest.raises(TypeError, match=f"Own overrides {name}"):
            keeping(name, lambda self: None)
    mixin = type("Mixin", (), {"apply": lambda self, *given: None})
    with pytest.raises(TypeError, match="Own overrides apply"):
        type("Own", (mixin, dp_train.DPSGD), {})


def test_train_step_that_was_set_after_make_private_is_refused():
    for on_the_class in (False, True):
        model = compiled()
        step = model.train_step
        owner = type(model) if on_the_class else model
        owner.train_step = lambda *given, step=step: step(*given[-1:])
        try:
            for train in (model.fit, model.train_on_batch):
                with pytest.raises(
                    dp_train.NotPrivateError,
                    match=r"set after make_private.*Remove it.*clipped_gradients",
                ):
                    train(*data())
        finally:
            del owner.train_step
        model.fit(*data(), batch_size=20, verbose=0)
        assert model.privacy_ledger.total == 3


def test_the_sampling_of_a_loader_is_read_only():
    x, y = data()
    loader = dp_train.PoissonLoader(x, y, batch_size=6)
    assert loader.sampling.sampling_probability == 0.1
    with pytest.raises(AttributeError):
        loader.sampling = loader.sampling
    np.testing.assert_array_equal(loader.arrays[1], y)
