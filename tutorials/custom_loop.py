"""A private training loop of your own, without fit.

    python tutorials/custom_loop.py

Use it where fit is too rigid: own schedules, several models, odd logging. Three calls
make a step private: the loader draws the batch, clipped_gradients bounds every
example's influence, apply_clipped_sum adds the noise and charges the ledger.
"""

from __future__ import annotations

import argparse

import adult
import quiet

with quiet.start_up():
    import keras
    import tensorflow as tf

    import accounting
    import dp_train

    tf.config.list_logical_devices()

DELTA = 1e-5
BATCH_SIZE = 2048
TARGET_EPSILON = 1.0


def main() -> None:
    """Trains a logistic regression on the census data in a hand-written loop."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="three steps only")
    steps = 3 if parser.parse_args().smoke else 200

    x_train, y_train, x_test, y_test = adult.load_adult()
    model = dp_train.make_private(
        keras.Sequential(
            [
                keras.Input((x_train.shape[1],)),
                keras.layers.Dense(1, activation="sigmoid"),
            ]
        )
    )
    # Only the loss is needed here; the optimizer is called by hand.
    model.compile(loss="binary_crossentropy", metrics=["accuracy"])

    # The loader draws Poisson batches: every person enters by an own coin, so sizes
    # vary around BATCH_SIZE. That is the sampling the accounting assumes.
    loader = dp_train.PoissonLoader(
        x_train, y_train, batch_size=BATCH_SIZE, steps_per_epoch=steps
    )

    # Outside fit nobody else knows the number of steps, so the noise for a target is
    # asked for here.
    noise_multiplier = accounting.calibrate.noise_multiplier(
        TARGET_EPSILON, DELTA, loader.sampling.sampling_probability, steps
    )
    optimizer = dp_train.DPSGD(
        learning_rate=2.0,
        momentum=0.9,
        l2_norm_clip=1.0,
        noise_multiplier=noise_multiplier,
    )

    for step, batch in enumerate(loader, start=1):
        # The clipped sum is not private yet. Its only use is the next line.
        clipped_sum = dp_train.clipped_gradients(
            model, batch, l2_norm_clip=optimizer.l2_norm_clip
        )
        optimizer.apply_clipped_sum(clipped_sum, model.trainable_variables)
        if step % 50 == 0 or step == steps:
            report = model.privacy_report(DELTA)
            print(f"step {step:4d}  epsilon {report.epsilon}")

    _, accuracy = model.evaluate(x_test, y_test, batch_size=4096, verbose=0)
    print(f"test accuracy {100 * accuracy:.2f} %")
    print(model.privacy_report(DELTA))


if __name__ == "__main__":
    main()
