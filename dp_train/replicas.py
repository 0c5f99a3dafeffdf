"""How many replicas may train: one, and under which strategies of TensorFlow.

Several would each clip and noise their own sum: noise is then added twice and charged
twice, and Keras divides each loss by their number before it is clipped.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from dp_train import host
from dp_train.errors import NotPrivateError


def check_strategy(*strategies: Any) -> None:
    """Refuses the strategy in force, and those given, where they cannot train.

    Raises:
        NotPrivateError: several replicas, or a strategy whose updates cannot stand in
            the branch that holds a step back once its budget is spent.
    """
    for strategy in (tf.distribute.get_strategy(), *strategies):
        name = type(strategy).__name__
        if strategy.num_replicas_in_sync > 1:
            raise NotPrivateError(
                f"{name} trains on {strategy.num_replicas_in_sync} replicas. Noise and "
                "clipping are proved here for one replica only: each would clip, noise "
                "and charge a sum of its own. Train under the default strategy, on one "
                "device."
            )
        if not host.updates_in_branches(strategy):
            raise NotPrivateError(
                f"{name} is in force, with one replica. Its updates leave the step's "
                "graph to meet those of other replicas. The guard of the budget is a "
                "branch of that graph, which they cannot leave, nor can they be traced "
                "alone, to see what they depend on. Make, compile and train the model "
                "outside of the strategy's scope: on one device it computes the same."
            )
