"""Code for TensorFlow Privacy moves over: import and data line change, XLA is left out.

    python tutorials/from_tensorflow_privacy.py

The model stays a plain Keras model and the loss stays unreduced; fit, callbacks and
metrics stay too. The old line stands above each line that changes.
"""

from __future__ import annotations

import argparse

import adult
import quiet

with quiet.start_up():
    import keras
    import tensorflow as tf

    import accounting
    import dp_train  # was: import tensorflow_privacy

    tf.config.list_logical_devices()

DELTA = 1e-5
BATCH_SIZE = 2048


def main() -> None:
    """Trains a plain model on the census data and reports what it reveals."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="one epoch only")
    epochs = 1 if parser.parse_args().smoke else 9

    x_train, y_train, x_test, y_test = adult.load_adult()
    model = keras.Sequential(
        [
            keras.Input((x_train.shape[1],)),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )

    # was: tensorflow_privacy.DPKerasSGDOptimizer(..., num_microbatches=BATCH_SIZE)
    # Every example is clipped by itself at full speed, so there is nothing to trade
    # with microbatches. The noise multiplier means the same in both.
    optimizer = dp_train.DPSGD(
        learning_rate=1.0, momentum=0.9, l2_norm_clip=1.0, noise_multiplier=4.0
    )
    loss = keras.losses.BinaryCrossentropy(reduction="none")
    # Without XLA, which Keras takes by itself on a GPU and which cannot ask for noise.
    model.compile(
        optimizer=optimizer, loss=loss, metrics=["accuracy"], jit_compile=False
    )

    # was: model.fit(x_train, y_train, batch_size=BATCH_SIZE, epochs=epochs)
    # Those batches were shuffled, and epsilon was computed as if they had been drawn by
    # Poisson sampling. This loader draws them so, and the optimizer knows it.
    loader = dp_train.PoissonLoader(x_train, y_train, batch_size=BATCH_SIZE)
    model.fit(
        loader.dataset_for(optimizer),
        epochs=epochs,
        shuffle=False,
        callbacks=[dp_train.EpsilonLogger(delta=DELTA)],
        verbose=2,
    )
    _, accuracy = model.evaluate(x_test, y_test, batch_size=4096, verbose=0)
    print(f"test accuracy {100 * accuracy:.2f} %")

    # was: tensorflow_privacy.compute_dp_sgd_privacy_statement(...), from the plan.
    # Here the ledger of the optimizer holds what was executed.
    print(accounting.privacy_report(optimizer.ledger, DELTA, population=len(x_train)))
    print(
        "For budgets (target_epsilon, BudgetStop), for layers that a plain graph does "
        "not show\n(recurrent ones) and for microbatches of bounded memory, call "
        "model = dp_train.make_private(model)."
    )


if __name__ == "__main__":
    main()
