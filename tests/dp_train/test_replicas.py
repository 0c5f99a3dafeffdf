"""One replica trains; several, and strategies that fit cannot serve, are refused.

Several devices are made before TensorFlow starts, so each test is a process of its own.
"""

import os
import pathlib
import subprocess
import sys
import textwrap

ROOT = pathlib.Path(__file__).parents[2]
SETTING = """
import keras, numpy as np, tensorflow as tf, dp_train
cpu = tf.config.list_physical_devices("CPU")[0]
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, two)
x, y = np.ones((40, 4), "float32"), np.zeros((40, 1), "float32")

def model(strategy, is_private=True):
    with strategy.scope():
        made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        if is_private:
            made = dp_train.make_private(made)
        optimizer = dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=1.0)
        made.compile(optimizer, loss="mse")
    return made

def loop(strategy, made):
    @tf.function
    def step(x, y):
        def of_replica(x, y):
            clipped = dp_train.clipped_gradients(made, x, y, l2_norm_clip=1.0)
            made.optimizer.apply_clipped_sum(clipped, made.trainable_variables)
        strategy.run(of_replica, args=(x, y))
    step(tf.constant(x), tf.constant(y))

def refusal(train):
    try:
        train()
    except dp_train.NotPrivateError as error:
        return str(error)
    return "nothing"

one, both = (tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"][:n]) for n in (1, 2))
"""


def said(script: str) -> str:
    """What a process of its own prints."""
    ran = subprocess.run(
        [sys.executable, "-c", SETTING + textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


def test_several_replicas_are_refused_in_fit_and_in_custom_loops():
    found = said(
        """
        made = model(both)
        print(refusal(lambda: made.fit(x, y, batch_size=10, verbose=0)))
        print(refusal(lambda: loop(both, made)))
        print(made.privacy_ledger.total)
        outside = model(tf.distribute.get_strategy())
        print(refusal(lambda: loop(both, outside)))
        print(outside.privacy_ledger.total)
        """
    ).splitlines()
    refused = [found[i] for i in (0, 1, 3)]
    assert all("MirroredStrategy trains on 2 replicas" in line for line in refused)
    assert (found[2], found[4]) == ("0", "0")


def test_one_mirrored_replica_is_refused_for_its_reason_and_one_device_is_not():
    found = said(
        """
        made = model(one)
        print(refusal(lambda: made.fit(x, y, batch_size=10, verbose=0)))
        print(refusal(lambda: loop(one, made)))
        plain = model(one, is_private=False)
        loader = dp_train.PoissonLoader(x, y, batch_size=10)
        data = loader.dataset_for(plain.optimizer)
        print(refusal(lambda: plain.fit(data, verbose=0)))
        print(made.privacy_ledger.total + plain.optimizer.ledger.total)
        device = tf.distribute.OneDeviceStrategy("CPU:0")
        made = model(device)
        made.fit(x, y, batch_size=10, verbose=0)
        loop(device, made)
        print(made.privacy_ledger.total)
        """
    ).splitlines()
    assert all("branch of that graph" in line for line in found[:3])
    assert found[3:] == ["0", "5"]
