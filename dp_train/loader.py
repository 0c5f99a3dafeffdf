"""Loaders whose sampling is known, because they draw it themselves."""

from __future__ import annotations

import itertools
import math
import types
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dp_train import arrays, host
from dp_train.augmentation import Augment, Augmentation, check_multiplicity
from dp_train.batches import batch_digest, open_batch
from dp_train.draws import Draws, settle
from dp_train.gradients.structures import check_dense, map_rows
from dp_train.noise.draw import keys_at_once
from dp_train.sampling import PoissonSampling
from dp_train.values import Batch

_FEWEST = 2
"""Rows on which Keras can be run, whatever the model."""


class PoissonLoader(keras.utils.PyDataset):
    """Poisson-sampled batches of arrays: each example enters by its own coin.

    Batch sizes vary around `batch_size`, and a batch may be empty; that is what the
    amplification by sampling is proved for. `model.fit(x, y, batch_size=B)` makes one
    by itself. Pass a loader to fit, or iterate over it in a custom loop, where each
    element is a Batch for `dp_train.clipped_gradients`.

    Args:
        x, y: arrays [N, ...], or dicts, lists and tuples of such arrays.
        sample_weight: [N, ...] weights, applied to the loss before clipping.
        class_weight: {class: weight} instead, for integer or one-hot labels y.
        batch_size: expected batch size B, in (0, N].
        steps_per_epoch: batches in an epoch; default ceil(N / B).
        augment: augment(x, seed) makes of an example's x, without its batch axis, what
            the model is trained on, of a fixed shape and dtype. `seed` is int32 [2],
            for tf.random.stateless_* and tf.image.stateless_random_*: secret, and
            another one for each example and copy. It is traced once. Nothing shows
            whether constants in it are public: let it mix no other examples of the data
            into x (mixup), which clipping would not bound.
        augmentation_multiplicity: K copies of each example, each augmented by itself,
            over which its gradient is averaged before it is clipped (De et al. 2022,
            arXiv:2204.13650): epsilon is that of one copy, and a step costs about K
            times as much. K > 1 is for private models, in fit and in custom loops.

    Raises:
        ValueError: batch_size above N, arrays of different lengths, or arrays that are
            not dense numbers; or both kinds of weights, or classes that are not plain;
            or K is no positive integer, or augment gives no fixed shape.
        NotPrivateError: augment keeps a state, draws by other seeds than its own, or
            reads a variable.

    Example:
        >>> import numpy as np, dp_train
        >>> loader = dp_train.PoissonLoader(np.zeros((1000, 4)), batch_size=100)
        >>> len(loader), loader.sampling.sampling_probability
        (10, 0.1)
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        batch_size: float,
        steps_per_epoch: int | None = None,
        class_weight: dict[int, float] | None = None,
        augment: Augment | None = None,
        augmentation_multiplicity: int = 1,
    ) -> None:
        super().__init__()
        self.copies = check_multiplicity(augment, augmentation_multiplicity)
        if class_weight is not None:
            if sample_weight is not None:
                raise ValueError(
                    "class_weight and sample_weight were both given. Which one should "
                    "weight the loss is not clear. Multiply them into sample_weight."
                )
            sample_weight = _class_weights(y, class_weight)
        check_dense((x, y, sample_weight))
        named = {"x": x, "y": y, "sample_weight": sample_weight}
        self.arrays = tuple(arrays.dense(a, name) for name, a in named.items())
        lengths = {len(a) for a in keras.tree.flatten(self.arrays) if a is not None}
        if len(lengths) != 1:
            raise ValueError(
                f"x, y and sample_weight have different numbers of examples: "
                f"{sorted(lengths)}. An example must keep its label and weight; a list "
                "of arrays is taken for several inputs. Pass arrays with equal first "
                "axes, and a list of examples as np.stack(examples)."
            )
        arrays.warn_of_rows_without_gradient(self.arrays)
        self._sampling = PoissonSampling(lengths.pop(), batch_size)
        self._steps = steps_per_epoch or math.ceil(
            self.sampling.population / batch_size
        )
        self._line: Draws | None = None
        self._augmentation = (
            None
            if augment is None
            else Augmentation(augment, self.copies, self.arrays[0])
        )

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._steps

    @property
    def sampling(self) -> PoissonSampling:
        """How batches are drawn: what releases of them are accounted as."""
        return self._sampling

    @property
    def like(self) -> tuple[Any, Any, Any]:
        """(x, y, sample_weight) with the shapes and dtypes of what a step sees."""
        x, y, sample_weight = self.arrays
        return self._augmentation.specs if self._augmentation else x, y, sample_weight

    def _taken(self, indices: Any) -> tuple[Any, Any, Any]:
        x, y, sample_weight = (
            None
            if a is None
            else keras.tree.map_structure(lambda t: t.take(indices, axis=0), a)
            for a in self.arrays
        )
        return x, y, sample_weight

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """A fresh draw whatever the index: Keras peeks, prefetches and discards."""
        self._check_single()
        indices = self.sampling.indices()
        x, y, sample_weight = self._taken(indices)
        if self._augmentation:
            x = self._augmentation.of_arrays(x, keys_at_once(len(indices)))
        data = keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
        return data if isinstance(data, tuple) else (data,)

    def _check_single(self) -> None:
        """Refuses several copies where nothing averages over them."""
        if self.copies > 1:
            raise ValueError(
                f"The loader makes augmentation_multiplicity={self.copies} copies of "
                "each example, and its batches were asked for by what averages over no "
                "copies. A plain model would take each for an example of its own. Call "
                "model = dp_train.make_private(model) and pass the loader to its fit, "
                "or leave augmentation_multiplicity out."
            )

    def draws(self) -> Draws:
        """What `dataset` draws from: each of its draws pays for one release."""
        return Draws(self.sampling, self.arrays, copies=self._augmented_copies)

    @property
    def _augmented_copies(self) -> int:
        return self.copies if self._augmentation else 0

    def __getstate__(self) -> dict[str, Any]:
        """Without the draws: a copy of the loader draws its own."""
        return {**vars(self), "_line": None}

    def dataset(self, draws: Draws) -> tf.data.Dataset:
        """An epoch of fresh draws as a tf.data pipeline: the same, and faster in fit.

        Only the indices are drawn in Python; rows are gathered in the pipeline, ahead
        of the step. Each epoch draws anew.
        """
        rows = map_rows(tf.convert_to_tensor, self.arrays)

        def found(*draw: tf.Tensor) -> Any:
            return keras.utils.pack_x_y_sample_weight(*self._drawn(draws, draw, rows))

        return draws.dataset(len(self)).map(found).prefetch(2)

    def _drawn(
        self, draws: Draws, draw: Any, rows: Any, fewest: int = 0
    ) -> tuple[Any, Any, Any]:
        """A draw in a pipeline; it pays for a release on the rows as they are here.

        Args:
            draws: of these rows.
            draw: its place, indices and keys.
            rows: (x, y, sample_weight) of all examples, as tensors.
            fewest: rows; with zeros a batch is filled up to that.
        """
        place, indices, keys = draw
        source = found = map_rows(lambda t: tf.gather(t, indices), rows)
        if self._augmentation:
            x, y, sample_weight = found
            found = self._augmentation(x, keys), y, sample_weight
        if fewest:
            missing = tf.maximum(fewest - tf.size(indices), 0)

            def filled_up(t: tf.Tensor) -> tf.Tensor:
                padded = tf.pad(t, [[0, missing]] + [[0, 0]] * (t.shape.rank - 1))
                return tf.ensure_shape(padded, [None, *t.shape[1:]])

            found = map_rows(filled_up, found)
        return draws.handed_out(place, found, source) if self._augmentation else found

    def dataset_for(self, optimizer: Any) -> tf.data.Dataset:
        """Batches for the fit of a plain Keras model compiled with a DP optimizer.

            loader = dp_train.PoissonLoader(x, y, batch_size=256)
            optimizer = dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=1.1)
            model.compile(optimizer, loss="sparse_categorical_crossentropy")
            model.fit(loader.dataset_for(optimizer), epochs=15)

        The optimizer accounts Poisson sampling from then on, one release for each
        batch that was drawn here. Train it on these batches only. They carry weights,
        so Keras refuses class_weight beside them: give it to the loader.

        Args:
            optimizer: a DPOptimizer; its expected_batch_size becomes the loader's.

        Returns:
            (x, y, sample_weight) batches, to be released in their order; none may be
            left out. An empty batch, or one row, is filled up to two with rows of
            weight 0, on which Keras can be run.

        Raises:
            ValueError: augmentation_multiplicity above 1, which needs make_private.
        """
        self._check_single()
        x, y, sample_weight = self.arrays
        if sample_weight is None:
            sample_weight = np.ones(self.sampling.population, np.float32)
        x, y, sample_weight = map_rows(tf.convert_to_tensor, (x, y, sample_weight))
        sample_weight = host.weights_in_rank_of(y, sample_weight)
        draws = Draws(
            self.sampling,
            map_rows(np.asarray, (x, y, sample_weight)),
            _FEWEST,
            self._augmented_copies,
        )
        optimizer._sample_by(draws)

        def found(*draw: tf.Tensor) -> Any:
            return self._drawn(draws, draw, (x, y, sample_weight), _FEWEST)

        return draws.dataset(len(self)).map(found).prefetch(2)

    def __iter__(self) -> Iterator[Batch]:
        """An epoch of batches for a custom loop, each good for one release.

        They are released in their order, and none is left out, an empty one neither. A
        look at some moves nothing: a loop that begins before the last one has ended
        gets the batches that were not released again.
        """
        self._line = self._line or self.draws()
        for draw in self._line.iteration(len(self)):
            rows = x, y, sample_weight = self._taken(draw.indices)
            if self._augmentation:
                source = batch_digest(rows)
                rows = self._augmentation.of_arrays(x, draw.keys), y, sample_weight
                settle(draw, batch_digest(rows), source)
            open_batch(draw.number, draw.digest, self._line)
            yield Batch(*rows, self.sampling, draw.number, self.copies)


def _class_weights(y: Any, class_weight: dict[int, float]) -> Any:
    """[N] weights, where each example has one class."""
    several = isinstance(y, dict | tuple) or (
        isinstance(y, list) and any(hasattr(a, "shape") for a in y)
    )
    if several:
        raise ValueError(
            f"class_weight was given with labels for {len(y)} outputs. Whose classes "
            "it weights is not clear. Pass sample_weight, in the structure of y."
        )
    labels = np.asarray(y)
    is_one_hot = np.issubdtype(labels.dtype, np.floating) or bool(
        np.all((labels == 0) | (labels == 1)) and np.all(labels.sum(axis=-1) == 1)
    )
    is_single = labels.ndim == 1 or (
        labels.ndim == 2 and (labels.shape[-1] == 1 or is_one_hot)
    )
    if not is_single:
        raise ValueError(
            f"class_weight was given with labels of shape {labels.shape} that are not "
            "one class an example. Keras would take the place of the largest label for "
            "the class. Pass sample_weight instead; for integer labels it is "
            "np.vectorize(class_weight.get)(y)."
        )
    return host.class_weight_to_sample_weight(labels, class_weight)


def is_batched(x: Any) -> bool:
    """Whether somebody else already made batches of the data."""
    return (
        isinstance(x, (keras.utils.PyDataset, tf.data.Dataset, types.GeneratorType))
        or hasattr(x, "__next__")
        or type(x).__module__.startswith("torch.utils.data")
        or isinstance(x, tf.distribute.DistributedDataset)
    )


def is_poisson(x: Any) -> bool:
    """Whether x is a PoissonLoader; a subclass may draw in another way."""
    return type(x) is PoissonLoader


def poisson_loader(
    x: Any,
    y: Any,
    sample_weight: Any,
    class_weight: dict[int, float] | None,
    batch_size: int | None,
    steps_per_epoch: int | None,
    augment: Augment | None,
    augmentation_multiplicity: int,
) -> PoissonLoader:
    """The loader that fit samples from."""
    if is_poisson(x):
        copies = augmentation_multiplicity
        given = {
            "augment": augment,
            "augmentation_multiplicity": None if copies == 1 else copies,
            "y": y,
            "sample_weight": sample_weight,
            "class_weight": class_weight,
            "batch_size": batch_size,
            "steps_per_epoch": steps_per_epoch,
        }
        named = [name for name, value in given.items() if value is not None]
        if named:
            raise ValueError(
                f"fit received a PoissonLoader together with {', '.join(named)}. The "
                "loader decides these itself. Pass them to PoissonLoader instead."
            )
        return x
    return PoissonLoader(
        x,
        y,
        sample_weight,
        batch_size=32 if batch_size is None else batch_size,
        steps_per_epoch=steps_per_epoch,
        class_weight=class_weight,
        augment=augment,
        augmentation_multiplicity=augmentation_multiplicity,
    )


def check_not_augmented(augment: Any, augmentation_multiplicity: int) -> None:
    """Refuses to augment batches that somebody else made."""
    if augment is not None or augmentation_multiplicity != 1:
        raise ValueError(
            "augment or augmentation_multiplicity was given with batches that are "
            "ready made. Examples are augmented where they are drawn, with seeds of "
            "the process's keystream. Pass arrays to fit, or a "
            "PoissonLoader(..., augment=...); a tf.data pipeline augments by a map of "
            "its own."
        )


def peeked(x: Any) -> tuple[Any, Any, Any]:
    """(data, first batch, specs of all batches or None); no batch is lost."""
    spec = None
    if isinstance(x, keras.utils.PyDataset):
        first = x[0]
    elif hasattr(x, "__next__"):
        first = next(x)
        rest = x

        def generator() -> Iterator[Any]:
            yield from itertools.chain([first], rest)

        x = generator()
    else:
        first = next(iter(x))
        spec = getattr(x, "element_spec", None)
    unpack = keras.utils.unpack_x_y_sample_weight
    return x, unpack(first), None if spec is None else unpack(spec)


def length(data: Any) -> int | None:
    """Batches in an epoch, where the data knows."""
    if isinstance(data, tf.data.Dataset):
        cardinality = int(data.cardinality())
        return cardinality if cardinality >= 0 else None
    if isinstance(data, keras.utils.PyDataset):
        return data.num_batches
    return len(data) if hasattr(data, "__len__") else None
