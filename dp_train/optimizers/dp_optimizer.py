"""DP-SGD as Keras optimizers: noise on a clipped sum, then any optimizer's update.

    g~ = (1 / B) * (sum_b clip(g_b, C) + N(0, (noise_multiplier * C)^2 I))
    weights = inner_update(weights, g~)
                                    Abadi et al. 2016 (arXiv:1607.00133), Alg. 1

Everything behind g~ (momentum, Adam's moments, weight decay, averaging, schedules) is
post-processing and costs no privacy.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from accounting import GaussianEvent, Ledger
from dp_train import effects, host, last_values, looking
from dp_train.account import Account
from dp_train.announcement import announce, delta_of, is_first_trace, steps_of
from dp_train.clipped_sum import ClippedSum, contents, seal, take
from dp_train.clipping import check_is_real, check_l2_norm_clip
from dp_train.errors import NotPrivateError, PrivacyWarning
from dp_train.gradients.structures import tensors
from dp_train.last_values import Samples
from dp_train.noise.draw import NOISE_SOURCES, draw_noise
from dp_train.optimizers.arguments import (
    Fixed,
    check_inner,
    checked_expected_batch_size,
    checked_inner,
    checked_noise_multiplier,
    checked_target,
    checked_target_steps,
)
from dp_train.optimizers.drop_in import PlainFits, clipped_sum_in_fit
from dp_train.optimizers.subclasses import check_class, check_optimizer
from dp_train.optimizers.target import Target
from dp_train.owner import Owner
from dp_train.replicas import check_strategy
from dp_train.sampling import UnverifiedSampling
from dp_train.sizes import FixedSizes
from dp_train.values import Sampling

_FUSED_FROM = 1 << 19
"""Numbers in the weights from which a compiled update is quicker."""


@keras.saving.register_keras_serializable(package="dp_train")
class DPOptimizer(keras.optimizers.Optimizer):
    """Wraps any Keras optimizer; its updates come from noised, clipped sums only.

    Use it like the optimizer it wraps, with a model from `make_private`:

        model = dp_train.make_private(model)
        model.compile(dp_train.DPOptimizer("adam", l2_norm_clip=1.0,
                                           noise_multiplier=1.1), loss=...)

    Learning rate, schedules, weight decay and averaging are those of the inner
    optimizer. A plain Keras model trains privately too, see PoissonLoader.dataset_for;
    elsewhere `apply` and `apply_gradients` raise NotPrivateError, since the gradients
    that Keras hands them were averaged before anybody clipped them.

    Args:
        inner_optimizer: a Keras optimizer, or its name.
        l2_norm_clip: C > 0; each example's gradient is scaled to l2 norm at most C.
        noise_multiplier: standard deviation of the noise as a multiple of C, >= 0.
            0 clips without noise: epsilon is infinity, and a warning says so.
        target_epsilon: instead of noise_multiplier: `fit` calibrates the noise so that
            all its steps, with everything spent before, stay within this epsilon.
        target_delta: delta in (0, 1) of target_epsilon; well below 1 / examples.
        target_steps: the steps that share the target, of all fits with this optimizer
            together. By default each fit spends all that is left on its own steps.
        expected_batch_size: public divisor of the noised sum, > 0. Only for data that
            `fit` cannot sample itself; else it follows from batch_size.
        noise_source: "aes256-ctr" (cryptographic keystream on the host, the default) or
            "philox" (made on the device, keyed by OS entropy).
        lazy_noise: in `fit` of a private model on arrays or a PoissonLoader, large
            Embedding tables get a row's noise when the row is next read, or when
            anybody looks: as much of it, for less time. Only for plain SGD: momentum,
            Adam and weight decay make of old noise more than a sum. Reading a table
            settles it. What Python can't see must not read it while fit runs: a
            tf.function traced before and called from another thread.
        name: optional name.

    Raises:
        ValueError: an argument is out of range, both or neither of noise_multiplier and
            target_epsilon are given, the inner optimizer clips, accumulates or scales
            gradients itself, or lazy_noise is given with another optimizer or source
            than it is made for.

    Example:
        >>> import dp_train
        >>> optimizer = dp_train.DPOptimizer(
        ...     "sgd", l2_norm_clip=1.0, noise_multiplier=1.1
        ... )
        >>> optimizer.noise_multiplier
        1.1
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A subclass may add arguments; what becomes of gradients stays as it is.

        Raises:
            TypeError: it defines more than a subclass may.
        """
        super().__init_subclass__(**kwargs)
        check_class(cls, DPOptimizer)

    l2_norm_clip: Fixed[float] = Fixed()
    target_epsilon: Fixed[float | None] = Fixed()
    target_delta: Fixed[float | None] = Fixed()
    target_steps: Fixed[int | None] = Fixed()
    expected_batch_size: Fixed[float | None] = Fixed()
    noise_source: Fixed[str] = Fixed()
    lazy_noise: Fixed[bool] = Fixed()

    def __init__(
        self,
        inner_optimizer: str | keras.optimizers.Optimizer,
        *,
        l2_norm_clip: float,
        noise_multiplier: float | None = None,
        target_epsilon: float | None = None,
        target_delta: float | None = None,
        target_steps: int | None = None,
        expected_batch_size: float | None = None,
        noise_source: str = NOISE_SOURCES[0],
        lazy_noise: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(learning_rate=0.0, name=name)
        # The name that Keras gives to wrapped optimizers: SwapEMAWeights looks for it.
        self.inner_optimizer = checked_inner(inner_optimizer)
        self._l2_norm_clip = check_l2_norm_clip(l2_norm_clip)
        self._target_epsilon, self._target_delta = checked_target(
            noise_multiplier, target_epsilon, target_delta
        )
        self._target_steps = checked_target_steps(target_steps, target_epsilon)
        self._noise_multiplier = checked_noise_multiplier(noise_multiplier)
        self._expected_batch_size = checked_expected_batch_size(expected_batch_size)
        if noise_source not in NOISE_SOURCES:
            raise ValueError(
                f"noise_source must be one of {NOISE_SOURCES}. Received: "
                f"noise_source={noise_source!r}. The ledger names the generator, so it "
                "must be a known one. Leave it out for the cryptographic keystream."
            )
        self._noise_source = noise_source
        self._lazy_noise = self._checked_lazy_noise(lazy_noise)
        self._checked_update: tuple[int, ...] = ()
        self._account = Account(Owner())
        self._sizes = FixedSizes()
        self._samples = Samples(())
        self._fits = PlainFits()

    @property
    def ledger(self) -> Ledger:
        """Every release made with this optimizer, or from weights that it moved."""
        return self._account.ledger

    @property
    def noise_multiplier(self) -> float | None:
        """Standard deviation of the noise as a multiple of l2_norm_clip.

        Every release reads it, is made with it and is charged for it: it may be set at
        any time. None where a target_epsilon was not calibrated yet.

        Raises:
            AttributeError: set, with a target_epsilon that it follows from.
        """
        return self._noise_multiplier

    @noise_multiplier.setter
    def noise_multiplier(self, noise_multiplier: float) -> None:
        if self.target_epsilon is not None:
            raise AttributeError(
                f"noise_multiplier cannot be set to {noise_multiplier!r}: it follows "
                f"from target_epsilon={self.target_epsilon:g}, which other noise would "
                "miss. Make an optimizer with noise_multiplier, without a target, and "
                "compile again."
            )
        if noise_multiplier is None:
            raise ValueError(
                "noise_multiplier cannot be set to None. A release without a known "
                "noise has no epsilon. Set a number, 0 for no noise."
            )
        multiplier = checked_noise_multiplier(noise_multiplier)
        if multiplier is not None and multiplier != self._noise_multiplier:
            looking.note_new_noise(multiplier, self._account.ledger)
        self._noise_multiplier = multiplier

    # ------------------------------------------------------------------ one release

    def apply_clipped_sum(
        self,
        clipped_sum: ClippedSum,
        trainable_variables: list[keras.Variable] | None = None,
    ) -> None:
        """Adds noise to a clipped sum, divides, and lets the inner optimizer step.

        The release is charged to the model's ledger before its noise exists.

        Args:
            clipped_sum: from `dp_train.clipped_gradients`.
            trainable_variables: the model's; needed once, to build the optimizer.

        Raises:
            ValueError: the optimizer has a target_epsilon, or no variables yet.
            NotPrivateError: the clipped sum belongs to other variables, was released
                before, or was computed outside of the traced function.
        """
        if self.target_epsilon is not None:
            raise ValueError(
                f"target_epsilon={self.target_epsilon} is a promise that only fit can "
                "keep, since it knows the number of steps. A custom loop could exceed "
                "it. Pass noise_multiplier=accounting.calibrate.noise_multiplier(...) "
                "instead."
            )
        if not self.built:
            if trainable_variables is None:
                raise ValueError(
                    "The optimizer has no variables yet. The update needs to know "
                    "which weights the clipped sum belongs to. Pass "
                    "trainable_variables=model.trainable_variables."
                )
            self.build(list(trainable_variables))
        check_strategy()
        check_optimizer(self, DPOptimizer)
        _check_is_of_this_step(clipped_sum)
        self._check_update()
        self.release(clipped_sum)

    def _check_update(self) -> None:
        """Refuses, in a custom loop, an update that depends on other variables.

        Traces the update once for each learning rate, and runs nothing.
        """
        inner, variables = self.inner_optimizer, host.optimizer_of_build(self)
        checked = (*map(id, variables), id(host.rate_of(inner)))
        if checked == self._checked_update:
            return

        def update() -> tf.Tensor:
            inner.apply([tf.zeros(v.shape, v.dtype) for v in variables], variables)
            return tf.zeros([])

        graph = tf.function(update, autograph=False).get_concrete_function().graph
        known = [*variables, *self.variables]
        host.check_captures(graph)
        effects.check(
            graph.get_operations(),
            what=lambda _: "The inner optimizer, its learning rate or a constraint",
            may_write=known,
            may_only_read=known,
        )
        self._checked_update = checked

    def release(self, clipped_sum: ClippedSum) -> None:
        """apply_clipped_sum without its checks: for the training step of the library.

        Raises:
            NotPrivateError: the clipped sum belongs to other variables.
            TypeError: a gradient is complex.
        """
        variables = host.optimizer_of_build(self)
        others = contents(clipped_sum).variables
        if [id(v) for v in others] != [id(v) for v in variables]:
            raise NotPrivateError(
                "The clipped sum belongs to other weights than this optimizer was "
                f"built for ({len(others)} and {len(variables)} "
                "variables). The release would be charged to one model and change "
                "another. Use one optimizer for each model, and compile again after "
                "changing `trainable`."
            )
        release = take(clipped_sum)
        bound = release.l2_norm_bound

        def begin_release(
            noise_source: str, are_as_left: bool, digest: int | None = None
        ) -> float:
            multiplier, account = self._known_noise_multiplier(), release.account
            account.charge(
                multiplier,
                bound,
                noise_source if multiplier > 0 else "none",
                None if digest is None else int(digest),
            )
            # Also of what came between the start of the first fit and its first step.
            if not are_as_left:
                account.owner.note_change("between two steps")
            last_values.forget([*variables, *self.slots])
            return multiplier * bound

        gradients = release.gradients
        for gradient in gradients:
            check_is_real(gradient)
        extras = release.data_free_gradients
        is_reached = release.is_reached or (True,) * len(gradients)
        debtors = [
            debtor if reached else None
            for debtor, reached in zip(
                release.debtors or (None,) * len(gradients), is_reached, strict=True
            )
        ]
        if any(debtors) and not self.is_plain_sgd:
            raise NotPrivateError(
                f"The noise of an embedding table was to be drawn later, and "
                f"{type(self.inner_optimizer).__name__} makes more of old noise than "
                "a sum. The released weights would hide less than was accounted. "
                "Compile again after changing the optimizer."
            )
        now = [i for i, d in enumerate(debtors) if d is None and is_reached[i]]
        shapes = [tuple(variables[i].shape) for i in now]
        is_wide = any(g.dtype == tf.float64 for g in gradients)
        dtype = tf.float64 if is_wide else tf.float32
        owing = Samples([v for v, d in zip(variables, debtors, strict=True) if d])
        moved = [v for v, d in zip(variables, debtors, strict=True) if not d]
        samples = self._sampled([*moved, *self.slots], release.fixed)
        are_as_left = samples.are_as_left()
        if release.are_tables_as_left is not None:
            are_as_left &= release.are_tables_as_left
        known = [are_as_left]
        if release.digest is not None:
            known.append(release.digest)
        drawn, stddev = draw_noise(
            self.noise_source, shapes, dtype, begin_release, known
        )
        noise = dict(zip(now, drawn, strict=True))
        divisor = tf.cast(release.expected_batch_size, tf.float64)

        def update() -> None:
            divisors = {g.dtype: tf.cast(divisor, g.dtype) for g in gradients}
            noised = {
                i: _average(g, noise.get(i), divisors[g.dtype], extras[i])
                for i, g in enumerate(gradients)
                if is_reached[i]
            }
            # As in Keras, a weight without a gradient stays as it is.
            noised |= {
                i: tf.identity(tf.cast(extra, gradients[i].dtype))
                for i, extra in enumerate(extras)
                if extra is not None and not is_reached[i]
            }
            # Never before the charge, also where nothing else of it is needed.
            with tf.control_dependencies([stddev]):
                self.inner_optimizer.apply(
                    list(noised.values()), [variables[i] for i in noised]
                )

        if any(debtors):
            # The update is weights - rate * average: this is the noise's share of it.
            rate = tf.cast(self.inner_optimizer.learning_rate, tf.float64)
            variance = tf.square(rate * stddev / divisor)
            for debtor in debtors:
                if debtor is not None:
                    debtor.owe(variance)
        if self._is_update_fused(gradients):
            tf.function(update, autograph=False, jit_compile=True)()
        else:
            update()
        samples.leave()
        owing.leave()

    def _sampled(
        self, moved: Sequence[keras.Variable], fixed: Sequence[keras.Variable]
    ) -> Samples:
        """Samples of what only releases move, and of what nothing moves."""
        samples = self._samples
        before, now = (samples.weights, samples.fixed), (moved, fixed)
        if [list(map(id, v)) for v in before] != [list(map(id, v)) for v in now]:
            self._samples = Samples(moved, fixed)
        return self._samples

    @property
    def slots(self) -> list[keras.Variable]:
        """What the inner optimizer keeps of earlier updates: no counts, no rates."""
        known = "iteration", "learning_rate"
        return [v for v in self.inner_optimizer.variables if v.name not in known]

    @property
    def is_plain_sgd(self) -> bool:
        """Whether an update adds to the weights rate * average, and keeps nothing.

        Only then is noise of several steps, drawn at once, the same as drawn each time.
        """
        inner = self.inner_optimizer
        is_patched = any(callable(getattr(type(inner), n, None)) for n in vars(inner))
        return (
            type(inner) is keras.optimizers.SGD
            and host.is_of_keras(inner)
            and not is_patched
            and inner.momentum == 0
            and not inner.weight_decay
            and not inner.use_ema
        )

    def _checked_lazy_noise(self, lazy_noise: bool) -> bool:
        if not lazy_noise:
            return False
        if not self.is_plain_sgd:
            name = type(self.inner_optimizer).__name__
            raise ValueError(
                f"lazy_noise={lazy_noise!r} was given with {name}. Noise of several "
                "steps can be drawn at once where an update only adds it up: momentum, "
                "moments, weight decay and averages make more of it. Use "
                "keras.optimizers.SGD without them, with a learning rate that is a "
                "number or a schedule of Keras, or leave lazy_noise out."
            )
        if self.noise_source != NOISE_SOURCES[0]:
            raise ValueError(
                f"lazy_noise={lazy_noise!r} was given with "
                f"noise_source={self.noise_source!r}. Noise that is drawn later comes "
                f"from {NOISE_SOURCES[0]!r} only, and the ledger names one source. "
                "Leave one of the two out."
            )
        return True

    def _is_update_fused(self, gradients: Sequence[Any]) -> bool:
        """Whether XLA makes one loop of noise and update: large weights, known code.

        An update alone reads and writes the weights several times; XLA does it once.
        """
        if any(isinstance(g, tf.IndexedSlices) for g in gradients):
            return False
        numbers = sum(int(np.prod(g.shape, dtype=np.int64)) for g in gradients)
        is_known = host.is_of_keras(self.inner_optimizer)
        is_graph = not tf.executing_eagerly()
        return is_graph and is_known and numbers >= _FUSED_FROM

    def _known_noise_multiplier(self) -> float:
        """The noise multiplier, read when a release is made."""
        if self.noise_multiplier is None:
            raise ValueError(
                f"The noise is not known yet: target_epsilon={self.target_epsilon} is "
                "calibrated by fit, which knows the number of steps. Outside fit "
                "nobody does. Pass noise_multiplier="
                "accounting.calibrate.noise_multiplier(...) instead."
            )
        return self.noise_multiplier

    @host.while_tracing
    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """One release in the step of a plain model's fit; `grads` are not used.

        Keras averages gradients before anybody clips them. In the graph that `fit`
        traces, the optimizer finds each example's share by itself.

        Raises:
            NotPrivateError: not in such a graph, or it does not show each example.
            ValueError: the optimizer has a target_epsilon.
        """
        del grads
        variables = list(trainable_variables or host.optimizer_of_build(self))
        if self.target_epsilon is not None:
            raise ValueError(
                f"target_epsilon={self.target_epsilon:g} cannot be kept in the fit of "
                "a plain model: Keras does not tell its optimizer how many steps there "
                "will be. Call model = dp_train.make_private(model) before compile, "
                "and pass arrays or the loader to fit; or give noise_multiplier="
                "accounting.calibrate.noise_multiplier(target_epsilon, target_delta, "
                "sampling_probability, steps)."
            )
        check_strategy()
        check_optimizer(self, DPOptimizer)
        self._warn_of_missing_noise()
        if self._account.sampling is None and self.expected_batch_size is not None:
            self._account.sampling = UnverifiedSampling(self.expected_batch_size)
        step = clipped_sum_in_fit(self, variables, self._sizes)
        self._announce_fit()
        if not self.built:
            # With values at once, and no second trace for the variables of this one.
            host.outside_of_tracing(lambda: self.build(variables))
        with tf.control_dependencies(tensors(step.rows)[:1]):
            self.release(seal(step.contents))
        step.check(self)
        self._fits.add(step, self)

    def _announce_fit(self) -> None:
        """Says what the fit of a plain model will do, when its step is traced."""
        fit, sampling = host.running_fit(), self._account.sampling
        if fit is None or sampling is None or not is_first_trace(fit):
            return
        population = getattr(sampling, "population", None)
        announce(
            sampling.event(GaussianEvent(self._known_noise_multiplier())),
            steps_of(fit),
            self.l2_norm_clip,
            self._account.ledger,
            delta_of(looking.flat(fit["callbacks"]), population),
            is_shown=bool(fit["verbose"]),
        )

    def _warn_of_missing_noise(self) -> None:
        if self.noise_multiplier == 0:
            warnings.warn(
                "noise_multiplier=0 clips gradients but adds no noise: epsilon is "
                "infinity. Use it to debug or to compare, never for private data.",
                PrivacyWarning,
                stacklevel=6,
            )

    def _sample_by(self, sampling: Sampling) -> None:
        """From now on plain fit is fed by a loader that draws as `sampling` says.

        Called by PoissonLoader.dataset_for.

        Raises:
            ValueError: the loader's expected batch size is not the optimizer's.
        """
        size = sampling.expected_batch_size
        if self.expected_batch_size not in (None, size):
            raise ValueError(
                f"The loader draws {size:g} examples on average, and the optimizer has "
                f"expected_batch_size={self.expected_batch_size:g}. The update would "
                "be scaled by another size than the accounted one. Leave "
                "expected_batch_size out of the optimizer."
            )
        self._expected_batch_size = size
        self._account.sampling = sampling
        self._sizes = FixedSizes()

    # ------------------------------------------------------------------- the budget

    @property
    def target(self) -> Target | None:
        """The target, if there is one."""
        if self.target_epsilon is None or self.target_delta is None:
            return None
        return Target(self.target_epsilon, self.target_delta, self.target_steps)

    def prepare(
        self, ledger: Ledger, sampling: Sampling, planned_steps: int | None
    ) -> int | None:
        """Calibrates the noise for a target, before a fit.

        Args:
            ledger: what was spent so far.
            sampling: how batches will be drawn.
            planned_steps: steps of the coming fit; None if unknown.

        Returns:
            The number of steps that the target allows; None without a target.

        Raises:
            BudgetSpentError: nothing is left of the target.
            ValueError: a target without a known number of steps, or more steps than
                are left of target_steps.
        """
        target = self.target
        if target is None:
            self._warn_of_missing_noise()
            return None
        if planned_steps is None:
            raise ValueError(
                f"target_epsilon={self.target_epsilon} needs the number of steps, and "
                "this data has no length. The noise depends on how often it is drawn. "
                "Pass steps_per_epoch to fit, or noise_multiplier and a BudgetStop."
            )

        if planned_steps == 0:
            return 0
        name = type(self).__name__
        ledger.remark("several_deltas", f"{name} at delta {target.delta:g}")
        self._noise_multiplier = target.noise_multiplier(
            ledger,
            lambda noise: sampling.event(GaussianEvent(noise)),
            target.covered_steps(planned_steps, int(self.iterations)),
            self._noise_multiplier,
        )
        return planned_steps

    # ------------------------------------------- what belongs to the inner optimizer

    @host.untracked
    def build(self, variables: list[keras.Variable]) -> None:
        """Creates the inner optimizer's variables."""
        self._account.owner.own(variables)
        self.inner_optimizer.build(variables)
        check_inner(self.inner_optimizer)
        super().build(variables)
        # Momentum tells of the data, too; and a checkpoint may be of it alone.
        self._account.owner.own(self.variables)

    @property
    def variables(self) -> list[keras.Variable]:
        """Own and inner variables."""
        return [*self._variables, *self.inner_optimizer.variables]

    @property
    def learning_rate(self) -> Any:
        """The inner optimizer's learning rate."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def iterations(self) -> Any:
        """Number of updates so far."""
        return self.inner_optimizer.iterations

    def finalize_variable_values(self, var_list: Any) -> None:
        """Writes averaged weights, where the inner optimizer keeps them."""
        self._account.owner.look(var_list, "in a fit, before averages were written")
        self.inner_optimizer.finalize_variable_values(var_list)
        last_values.leave(var_list)
        self._fits.end(self._account.owner)

    def exclude_from_weight_decay(self, *args: Any, **kwargs: Any) -> None:
        """As in the inner optimizer."""
        self.inner_optimizer.exclude_from_weight_decay(*args, **kwargs)

    # ------------------------------------------------------------------ saving

    def get_config(self) -> dict[str, Any]:
        """Arguments and the ledger; the key of the noise is in neither."""
        return {
            # Keras prints the config where it does not know the class.
            "to_load": "import dp_train before load_model, or compile=False",
            "name": self.name,
            "inner_optimizer": keras.saving.serialize_keras_object(
                self.inner_optimizer
            ),
            "l2_norm_clip": self.l2_norm_clip,
            "noise_multiplier": self.noise_multiplier,
            "target_epsilon": self.target_epsilon,
            "target_delta": self.target_delta,
            "target_steps": self.target_steps,
            "expected_batch_size": self.expected_batch_size,
            "noise_source": self.noise_source,
            "lazy_noise": self.lazy_noise,
            "ledger": self._account.ledger.to_json(),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> DPOptimizer:
        """The optimizer with the ledger that it was saved with."""
        config = dict(config)
        config.pop("to_load", None)
        inner = keras.saving.deserialize_keras_object(
            config.pop("inner_optimizer"), custom_objects=custom_objects
        )
        ledger = Ledger.from_json(config.pop("ledger"))
        calibrated = config.get("noise_multiplier")
        if config.get("target_epsilon") is not None:
            config["noise_multiplier"] = None
        optimizer = cls.__new__(cls)
        DPOptimizer.__init__(optimizer, inner, **config)
        optimizer._noise_multiplier = calibrated
        optimizer._account = Account(Owner(ledger))
        return optimizer

    def save_own_variables(self, store: Any) -> None:
        """The variables, and the ledger as bytes: also without any model."""
        super().save_own_variables(store)
        text = self._account.ledger.to_json().encode()
        store["ledger"] = np.frombuffer(text, np.uint8)

    def load_own_variables(self, store: Any) -> None:
        """Loads the variables; the ledger is merged and never lowered."""
        values = {key: store[key] for key in store.keys()}
        text = values.pop("ledger", None)
        if text is not None:
            self._account.ledger.merge(
                Ledger.from_json(bytes(np.asarray(text)).decode())
            )
        super().load_own_variables(values)


def _check_is_of_this_step(clipped_sum: ClippedSum) -> None:
    """Refuses a sum that a traced function or loop would release again and again."""
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    for gradient in contents(clipped_sum).gradients:
        if getattr(gradient, "graph", None) is not graph:
            raise NotPrivateError(
                "The clipped sum was computed outside of the function or loop that "
                "applies it. One draw would then be released at every call, accounted "
                "as fresh samples. Call clipped_gradients and apply_clipped_sum side "
                "by side."
            )


def _average(
    gradient: Any, noise: tf.Tensor | None, divisor: Any, extra: tf.Tensor | None
) -> Any:
    """(sum + noise) / expected batch size, plus what depends on no data.

    Without noise, which is owed: the rows of the sum over the expected batch size.
    """
    if noise is None:
        values = gradient.values / divisor
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    average = (gradient + tf.cast(noise, gradient.dtype)) / divisor
    return average if extra is None else average + tf.cast(extra, gradient.dtype)
