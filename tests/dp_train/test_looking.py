"""Decisions on figures without noise, and on earlier results, are said and reported."""

import warnings

import keras
import pytest
from models import compiled, data

import dp_train
from accounting import Ledger, privacy_report
from dp_train import looking
from tests.batteries import releases, steering


@pytest.mark.parametrize("way", steering.WAYS)
def test_what_steers_training_is_warned_of_and_reported(way):
    steering.assert_what_steers_is_reported(way)


def test_a_stop_is_offered_the_plan():
    steering.assert_a_stop_is_offered_the_plan()


def test_what_was_given_to_the_constructor_is_no_statistic_of_the_data():
    layers = keras.layers
    given = [
        layers.Normalization(mean=0.0, variance=1.0),
        layers.Discretization(bin_boundaries=[0.0, 1.0]),
        layers.IntegerLookup(vocabulary=[1, 2]),
        layers.StringLookup(vocabulary=["a"]),
        layers.TextVectorization(vocabulary=["a"]),
    ]
    model = keras.Sequential(
        [keras.Input((4,)), steering.Carries(*given), layers.Dense(3)]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled(model).fit(*data(), verbose=0)


def test_a_prepared_list_of_callbacks_sees_epsilon_and_history():
    seen = []

    class See(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(logs["epsilon"])

    prepared = keras.callbacks.CallbackList(
        [See(), dp_train.EpsilonLogger(1e-5)], add_history=True
    )
    history = compiled().fit(*data(), callbacks=prepared, epochs=2, verbose=0)
    assert history.history["epsilon"] == seen
    assert len(seen) == 2


def test_an_interrupted_fit_is_reported_and_its_error_is_the_one_that_is_raised():
    model = releases.small_model()
    with pytest.raises(KeyboardInterrupt):
        model.fit(
            *releases.rows(),
            batch_size=4,
            verbose=0,
            callbacks=[releases.RaiseAt(KeyboardInterrupt(), 2)],
        )
    report = steering.reported(model)
    assert "after 3 of 10 steps, by KeyboardInterrupt" in report.caveats[0].text


def test_a_budget_that_ends_training_is_no_choice():
    model = releases.small_model()
    stop = dp_train.BudgetStop(6.0, 1e-5)
    x, y = releases.rows()
    model.fit(x, y, batch_size=4, epochs=50, callbacks=[stop], verbose=0)
    assert 0 < model.privacy_ledger.total < 500
    remarks = model.privacy_ledger.remarks
    assert "chosen_by_looking" not in {remark.caveat for remark in remarks}


def test_plain_fit_reports_what_steers_it():
    layer = keras.layers.Normalization()
    layer.adapt(data()[0])
    model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(3)])
    optimizer = dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=1.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss=loss)
    loader = dp_train.PoissonLoader(*data(), batch_size=6)
    with pytest.warns(dp_train.PrivacyWarning) as told:
        model.fit(
            loader.dataset_for(optimizer),
            callbacks=[keras.callbacks.TerminateOnNaN()],
            shuffle=False,
            verbose=0,
        )
    assert {w.message.args[0].split()[0] for w in told} == {"Layer", "TerminateOnNaN"}
    text = " ".join(str(privacy_report(optimizer.ledger, 1e-5)).split())
    assert "TerminateOnNaN decided on 'loss'" in text
    assert "(Normalization) has figures from adapt or set" in text


def test_nothing_is_told_of_layers_that_were_never_adapted():
    layers = keras.layers
    never = [
        layers.Normalization(),
        layers.Discretization(num_bins=3),
        layers.IntegerLookup(),
        layers.StringLookup(),
        layers.TextVectorization(),
    ]
    ledger = Ledger()
    looking.warn_of_adapted_layers(keras.Sequential(never), ledger)
    assert ledger.remarks == ()


@pytest.mark.parametrize("is_plain", [False, True], ids=["private", "plain"])
def test_nothing_is_told_in_fit_of_a_layer_that_was_never_adapted(is_plain):
    optimizer = dp_train.DPSGD(
        0.1, l2_norm_clip=1.0, noise_multiplier=1.0, expected_batch_size=6
    )
    layers = [keras.layers.Normalization(), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if is_plain:
        model.compile(optimizer, loss=loss)
    else:
        model = compiled(model, optimizer, loss=loss)
    model.fit(*data(), batch_size=6, shuffle=False, verbose=0)
    assert optimizer.ledger.remarks == ()


@pytest.mark.parametrize("kind", ["IntegerLookup", "StringLookup", "TextVectorization"])
def test_words_that_were_set_are_not_said_to_come_from_adapt(kind):
    layer = getattr(keras.layers, kind)()
    layer.set_vocabulary([1, 2] if kind == "IntegerLookup" else ["a", "b"])
    with pytest.warns(dp_train.PrivacyWarning, match="from adapt, or set later"):
        looking.warn_of_adapted_layers(keras.Sequential([layer]), Ledger())


def test_noise_set_before_the_first_release_is_no_choice():
    model = compiled()
    model.optimizer.noise_multiplier = 2.0
    model.fit(*data(), verbose=0)
    assert model.privacy_ledger.remarks == ()
