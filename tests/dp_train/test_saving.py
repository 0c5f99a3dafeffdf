"""The ledger belongs to the model: it travels, is merged, and is never lowered."""

import copy
import json
import pickle
import subprocess
import sys
from unittest import mock

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from models import (
    BUILDERS,
    Registered,
    Subclassed,
    compiled,
    data,
    loss,
    sequential,
)

import dp_train
from accounting import Ledger, compute_dp_sgd_privacy


def trained(builder=BUILDERS["functional"], steps=3):
    model = compiled(builder())
    model.fit(*data(), batch_size=20, steps_per_epoch=steps, verbose=0)
    return model


LOADABLE = {name: b for name, b in BUILDERS.items() if name != "subclassed"}


@pytest.mark.parametrize("builder", LOADABLE.values(), ids=LOADABLE)
@pytest.mark.parametrize("save", ["model.save", "save_model"])
def test_saved_model_loads_as_plain_keras_with_ledger_and_state(
    builder, save, tmp_path
):
    model = trained(builder)
    path = tmp_path / "model.keras"
    if save == "model.save":
        model.save(path)
    else:
        keras.saving.save_model(model, path)
    loaded = keras.models.load_model(path)
    assert not hasattr(loaded, "privacy_ledger")
    assert isinstance(loaded.optimizer, dp_train.DPSGD)
    np.testing.assert_array_equal(
        loaded.predict(data()[0], verbose=0), model.predict(data()[0], verbose=0)
    )
    with pytest.raises(dp_train.NotPrivateError, match="make_private"):
        loaded.fit(*data(), verbose=0)
    private = dp_train.make_private(loaded)
    assert private.privacy_ledger.total == 3
    private.fit(*data(), batch_size=20, verbose=0)
    assert private.privacy_ledger.total == 6
    assert int(private.optimizer.iterations) == 6


def test_unregistered_subclass_loads_with_custom_objects(tmp_path):
    model = trained(Subclassed)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(
        tmp_path / "model.keras", custom_objects={"Subclassed": Subclassed}
    )
    assert type(loaded) is Subclassed


def test_registered_subclass_is_saved_under_its_own_name(tmp_path):
    model = trained(Registered)
    model.save(tmp_path / "model.keras")
    assert type(keras.models.load_model(tmp_path / "model.keras")) is Registered


def test_sidecar_is_the_ledger_in_readable_form(tmp_path):
    model = trained()
    model.save(tmp_path / "model.keras")
    text = (tmp_path / "model.keras.ledger.json").read_text()
    found = Ledger.from_json(text)
    assert found.releases == model.privacy_ledger.releases
    assert found.about["examples"] == len(data()[0])
    assert found.about["model"] == model.name
    assert {"saved_at", "examples", "model"} <= set(found.about)


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "model.weights.h5"])
def test_command_reads_the_ledger_in_every_file_of_a_model(tmp_path, capsys, name):
    model = trained()
    path = tmp_path / name
    if name == "model.weights.h5":
        model.save_weights(path)
    else:
        model.save(path)
        (tmp_path / f"{name}.ledger.json").unlink()
    capsys.readouterr()
    options = [f"--ledger={path}", "--delta=1e-5", "--json"]
    assert compute_dp_sgd_privacy.main(options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["epsilon"] == model.privacy_report(1e-5).epsilon.to_dict()


def test_legacy_h5_file_carries_the_ledger(tmp_path):
    model = trained()
    model.save(tmp_path / "model.h5")
    loaded = dp_train.make_private(keras.models.load_model(tmp_path / "model.h5"))
    assert loaded.privacy_ledger.total == 3


def test_loading_an_older_checkpoint_keeps_what_was_spent(tmp_path):
    model = trained(steps=2)
    model.save(tmp_path / "old.keras")
    model.save_weights(tmp_path / "old.weights.h5")
    model.fit(*data(), batch_size=20, steps_per_epoch=4, verbose=0)
    model.load_weights(tmp_path / "old.weights.h5")
    assert model.privacy_ledger.total == 6
    model.load_weights(tmp_path / "old.keras")
    assert model.privacy_ledger.total == 6


def test_two_continuations_of_one_checkpoint_add_up(tmp_path):
    trained(steps=2).save(tmp_path / "start.keras")
    continuations = []
    for steps in (3, 4):
        model = dp_train.make_private(keras.models.load_model(tmp_path / "start.keras"))
        model.fit(*data(), batch_size=20, steps_per_epoch=steps, verbose=0)
        model.save_weights(tmp_path / f"{steps}.weights.h5")
        continuations.append(model)
    continuations[0].load_weights(tmp_path / "4.weights.h5")
    assert continuations[0].privacy_ledger.total == 2 + 3 + 4


def test_model_checkpoint_and_backup_keep_the_ledger(tmp_path):
    model = compiled()
    callbacks = [
        keras.callbacks.ModelCheckpoint(
            tmp_path / "{epoch}.keras", save_best_only=False
        ),
        keras.callbacks.BackupAndRestore(tmp_path / "backup"),
    ]
    model.fit(*data(), batch_size=20, epochs=2, callbacks=callbacks, verbose=0)
    first = dp_train.make_private(keras.models.load_model(tmp_path / "1.keras"))
    second = dp_train.make_private(keras.models.load_model(tmp_path / "2.keras"))
    assert (first.privacy_ledger.total, second.privacy_ledger.total) == (3, 6)


def test_where_the_ledger_cannot_travel_a_new_one_starts_and_the_report_says_so():
    model = trained()
    copied = BUILDERS["functional"]()
    copied.set_weights(model.get_weights())
    cloned = keras.models.clone_model(dp_train.make_private(BUILDERS["sequential"]()))
    for fresh in (copied, cloned):
        private = compiled(fresh)
        assert private.privacy_ledger.total == 0
        private.fit(*data(), batch_size=20, verbose=0)
        caveats = {c.id for c in private.privacy_report(1e-5).caveats}
        assert "ledger_scope" in caveats


def test_clone_of_a_compiled_private_model_goes_on_with_its_ledger():
    model = trained()
    clone = keras.models.clone_model(model)
    dp_train.make_private(clone).fit(*data(), batch_size=20, verbose=0)
    assert clone.privacy_ledger.total == 6
    assert model.privacy_ledger.total == 3


@pytest.mark.parametrize("builder", LOADABLE.values(), ids=LOADABLE)
def test_a_copy_is_as_private_and_goes_on_with_the_ledger(builder):
    model = trained(builder)
    copied = copy.deepcopy(model)
    copied.fit(*data(), batch_size=20, verbose=0)
    assert copied.privacy_ledger.total == 6
    assert model.privacy_ledger.total == 3


def test_a_pickle_keeps_the_options_of_make_private():
    model = compiled(gradients="loop", microbatch_size=4)
    model.fit(*data(), batch_size=20, verbose=0)
    loaded = pickle.loads(pickle.dumps(model))
    loaded.fit(*data(), batch_size=20, verbose=0)
    assert loaded.privacy_plan().engine == "loop"
    assert loaded._privacy.microbatch == 4


def test_a_plain_model_with_a_dp_optimizer_is_pickled_with_its_ledger():
    model = sequential()
    optimizer = dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=1.0)
    model.compile(optimizer, loss=loss())
    loader = dp_train.PoissonLoader(*data(), batch_size=20)
    model.fit(loader.dataset_for(optimizer), shuffle=False, verbose=0)
    loaded = pickle.loads(pickle.dumps(model))
    assert loaded.optimizer.ledger.releases == optimizer.ledger.releases
    assert dp_train.make_private(loaded).privacy_ledger.total == 3


def test_a_file_whose_ledger_cannot_be_read_back_is_refused(tmp_path):
    model = trained()
    path = tmp_path / "model.weights.h5"
    with (
        mock.patch("dp_train.host_files._in_store", lambda store: None),
        pytest.raises(dp_train.NotPrivateError, match="of 3 releases 0 can be read"),
    ):
        model.save_weights(path)


@pytest.mark.parametrize("damage", [0, 255])
def test_a_damaged_ledger_stops_the_loading(tmp_path, damage):
    model = trained()
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    with h5py.File(path, "r+") as file:
        file["_dp_train/vars/ledger"][:4] = damage
    with pytest.raises(ValueError, match="ledger .*cannot be read"):
        model.load_weights(path)


def test_a_remark_goes_with_weights_that_nothing_was_released_on(tmp_path):
    model = compiled(sequential())
    model.privacy_ledger.remark("chosen_by_looking", "a callback")
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = dp_train.make_private(sequential())
    fresh.load_weights(tmp_path / "model.weights.h5")
    assert fresh.privacy_ledger.remarks == model.privacy_ledger.remarks


@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
def test_plain_files_are_as_before_and_hold_nothing_of_ours(tmp_path):
    model = sequential()
    model.save_weights(tmp_path / "plain.weights.h5")
    with h5py.File(tmp_path / "plain.weights.h5") as file:
        assert "_dp_train" not in file
    private = compiled()
    private.load_weights(tmp_path / "plain.weights.h5")
    assert private.privacy_ledger.total == 0
    private.fit(*data(), batch_size=20, verbose=0)
    ids = [caveat.id for caveat in private.privacy_report(1e-5).caveats]
    assert "changed_elsewhere" not in ids


@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
def test_weights_of_a_plain_file_are_a_change_that_the_report_names(tmp_path):
    sequential().save_weights(tmp_path / "plain.weights.h5")
    model = trained(sequential)
    model.load_weights(tmp_path / "plain.weights.h5")
    with pytest.warns(dp_train.PrivacyWarning, match="weights were changed"):
        report = model.privacy_report(1e-5)
    assert "changed_elsewhere" in str(report)
    model.save_weights(tmp_path / "changed.weights.h5")
    other = compiled()
    other.load_weights(tmp_path / "changed.weights.h5")
    with pytest.warns(dp_train.PrivacyWarning, match="weights were changed"):
        other.privacy_report(1e-5)


def test_a_checkpoint_of_a_plain_model_is_complete_for_a_private_one(tmp_path):
    path = tf.train.Checkpoint(model=sequential()).save(str(tmp_path / "plain"))
    status = tf.train.Checkpoint(model=dp_train.make_private(sequential()))
    status.restore(path).assert_consumed()


def test_a_private_model_is_exported_as_any_other(tmp_path):
    model = trained(sequential)
    model.export(tmp_path / "exported", verbose=False)
    tf.saved_model.save(model, str(tmp_path / "saved"))
    for name in ("exported", "saved"):
        tf.saved_model.load(str(tmp_path / name))


def test_a_file_of_the_format_before_keeps_its_ledger(tmp_path):
    """There only the optimizer holds it, among its variables and in its config."""
    model = trained()
    with mock.patch("dp_train.saved_ledger.owner_of", lambda weights: None):
        model.save(tmp_path / "before.keras")
        model.save_weights(tmp_path / "before.weights.h5")
    with h5py.File(tmp_path / "before.weights.h5") as file:
        assert "_dp_train" not in file
    loaded = keras.models.load_model(tmp_path / "before.keras")
    assert dp_train.make_private(loaded).privacy_ledger.total == 3
    fresh = compiled(BUILDERS["functional"]())
    fresh.optimizer.build(fresh.trainable_variables)
    fresh.load_weights(tmp_path / "before.weights.h5")
    assert fresh.privacy_ledger.total == 3


def test_an_unknown_class_names_what_to_import(tmp_path):
    trained().save(tmp_path / "model.keras")
    script = f"import keras; keras.models.load_model({str(tmp_path / 'model.keras')!r})"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert "import dp_train before load_model" in result.stderr


def test_optimizer_config_round_trip_keeps_arguments_and_ledger():
    model = trained()
    config = keras.optimizers.serialize(model.optimizer)
    loaded = keras.optimizers.deserialize(config)
    assert type(loaded) is dp_train.DPSGD
    assert loaded.ledger.releases == model.privacy_ledger.releases
    assert (loaded.l2_norm_clip, loaded.noise_multiplier) == (1.0, 1.0)
    assert isinstance(loaded.inner_optimizer, keras.optimizers.SGD)
    assert "key" not in str(config).lower().replace("keras", "")


def test_calibrated_optimizer_round_trip_keeps_target_and_noise():
    model = compiled(
        optimizer=dp_train.DPAdam(
            0.01, l2_norm_clip=1.0, target_epsilon=3.0, target_delta=1e-5
        )
    )
    model.fit(*data(), batch_size=20, verbose=0)
    loaded = keras.optimizers.deserialize(keras.optimizers.serialize(model.optimizer))
    assert loaded.target_epsilon == 3.0
    assert loaded.noise_multiplier == model.optimizer.noise_multiplier


def test_evaluate_predict_summary_and_weights_stay(capsys):
    plain = BUILDERS["sequential"]()
    weights = plain.get_weights()
    outputs = plain.predict(data()[0], verbose=0)
    private = dp_train.make_private(plain)
    assert private is plain
    for a, b in zip(weights, private.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(private.predict(data()[0], verbose=0), outputs)
    private.summary()
    assert "Sequential" in private.__class__.__name__
    assert "dense" in capsys.readouterr().out


class Crash(keras.callbacks.Callback):
    """Ends the process, as it were, after some epochs."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def crashed_and_restored(tmp_path, make, callbacks, epochs):
    """A fit that crashed in its third epoch, gone on with in a new model."""
    backup = tmp_path / "backup"
    first = compiled(optimizer=make())
    with pytest.raises(KeyboardInterrupt):
        first.fit(
            *data(),
            batch_size=20,
            epochs=epochs,
            callbacks=[keras.callbacks.BackupAndRestore(backup), Crash(2)],
            verbose=0,
        )
    assert first.privacy_ledger.total == 6
    second = compiled(optimizer=make())
    second.fit(
        *data(),
        batch_size=20,
        epochs=epochs,
        callbacks=[*callbacks, keras.callbacks.BackupAndRestore(backup)],
        verbose=0,
    )
    return second


def test_target_epsilon_counts_what_a_backup_restored(tmp_path):
    model = crashed_and_restored(
        tmp_path,
        lambda: dp_train.DPSGD(
            0.1, l2_norm_clip=1.0, target_epsilon=2.0, target_delta=1e-5
        ),
        [],
        epochs=5,
    )
    assert model.privacy_ledger.total == 15
    assert model.privacy_report(1e-5).epsilon.upper <= 2.0


def test_budget_stop_counts_what_a_backup_restored(tmp_path):
    model = crashed_and_restored(
        tmp_path,
        lambda: dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=2.0),
        [dp_train.BudgetStop(6.0, 1e-5)],
        epochs=200,
    )
    epsilon = model.privacy_report(1e-5).epsilon.upper
    assert 5.0 < epsilon <= 6.0


def test_report_of_an_empty_ledger_claims_nothing():
    model = compiled()
    report = model.privacy_report(1e-5)
    assert "Epsilon is 0" not in str(report)
    assert {c.id for c in report.caveats} == {"ledger_scope"}


def test_model_and_private_model_inside_it_share_one_ledger():
    inner = trained()
    outer = compiled(keras.Sequential([inner, keras.layers.Dense(3)]))
    outer.fit(*data(), batch_size=20, verbose=0)
    assert outer.privacy_ledger.total == inner.privacy_ledger.total == 6
    inner.fit(*data(), batch_size=20, verbose=0)
    assert outer.privacy_ledger.total == inner.privacy_ledger.total == 9
    assert inner.optimizer.ledger is outer.optimizer.ledger
