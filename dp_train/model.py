"""make_private: a Keras model whose fit is differentially private training."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from accounting import (
    GaussianEvent,
    Ledger,
    NeighboringRelation,
    PrivacyReport,
    privacy_report,
)
from dp_train import effects, host, host_files, looking, model_checks
from dp_train.account import Account
from dp_train.announcement import announce, delta_of
from dp_train.augmentation import Augment
from dp_train.clipped_sum import ClippedSum, Contents, seal
from dp_train.clipping import check_l2_norm_clip
from dp_train.digests import digest_of
from dp_train.errors import NotPrivateError
from dp_train.gradients.choose import Plan
from dp_train.gradients.copies import for_metrics
from dp_train.gradients.objective import check_losses
from dp_train.gradients.structures import (
    check_dense,
    map_rows,
    row_count,
    tensors,
)
from dp_train.kernels.contribution import UnsupportedSiteError
from dp_train.last_values import Samples
from dp_train.loader import (
    check_not_augmented,
    is_batched,
    is_poisson,
    length,
    peeked,
    poisson_loader,
)
from dp_train.optimizers.dp_optimizer import DPOptimizer
from dp_train.optimizers.subclasses import check_optimizer
from dp_train.private_state import (
    PrivacyState,
    adopt_optimizer,
    check_ready,
    check_step,
    check_sum,
    choose_tables,
    clipped_sum_of,
    once_at_a_time,
    own_weights,
    prepare,
    recorded,
    running,
)
from dp_train.replicas import check_strategy
from dp_train.sampling import UnverifiedSampling
from dp_train.values import Batch, Sampling


def make_private(
    model: keras.Model,
    *,
    gradients: str = "auto",
    microbatch_size: int | str = "auto",
) -> PrivateModel:
    """Turns a Keras model, in place, into one that trains with differential privacy.

    Weights, summary, predict, evaluate, save and callbacks stay as they were. Compile
    it with a DP optimizer; `fit` on arrays then samples Poisson batches of expected
    size `batch_size`, clips every example's gradient, adds noise and keeps the ledger.

    Args:
        model: Sequential, Functional or subclassed, built or not, compiled or not.
        gradients: engine for per-example gradients: "auto" (the fastest that can be
            trusted with the model, see `privacy_plan`), "bookkeeping", "vectorized" or
            "loop".
        microbatch_size: rows whose gradients are in memory at once, or "auto"; changes
            memory and speed, no result.

    Returns:
        The same object, now with `privacy_ledger` and `privacy_report(delta)`.

    Raises:
        TypeError: not a Keras model.
        NotPrivateError: the model has its own train_step.
        ValueError: an option is unknown.

    Example:
        >>> import keras, dp_train
        >>> model = dp_train.make_private(
        ...     keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        ... )
        >>> model.compile(
        ...     dp_train.DPSGD(0.1, l2_norm_clip=1.0, noise_multiplier=1.1), loss="mse"
        ... )
    """
    if isinstance(model, PrivateModel):
        model._privacy.set_options(gradients, microbatch_size)
        model.train_function = None
        return model
    model_checks.check_class(model)
    state = PrivacyState(gradients, microbatch_size)
    model.__class__ = _private_class(type(model))
    model._start(state)
    own_weights(model)
    if model.compiled:
        model.train_function = None
        adopt_optimizer(model)
    return model


_private_classes: dict[type, type] = {}


def _private_class(base: type) -> type:
    """A subclass that Keras saves under the name of its base."""
    if base not in _private_classes:
        private = type(
            base.__name__,
            (PrivateModel, base),
            {"__module__": base.__module__, "__qualname__": base.__qualname__},
        )
        host.alias_registration(private, base)
        _private_classes[base] = private
    return _private_classes[base]


# A mixin: the generated class adds the model's own class as the other base.
_Mixin: Any = keras.Model if TYPE_CHECKING else object


class PrivateModel(_Mixin):
    """A Keras model that trains with differential privacy; `make_private` makes it.

    What it returns is of this class and of the model's own.
    """

    def _start(self, state: PrivacyState) -> PrivacyState:
        """Puts the state where Keras does not track, save or restore it."""
        object.__setattr__(self, "_privacy_state", state)
        return state

    @property
    def _privacy(self) -> PrivacyState:
        """The state; a clone, which Keras makes from the class, starts a new one."""
        state = vars(self).get("_privacy_state")
        return state or self._start(PrivacyState("auto", "auto"))

    # --------------------------------------------------------------- public additions

    @property
    def privacy_ledger(self) -> Ledger:
        """Every release so far that moved this model's weights, or others with them.

        Models that share a weight, or ever shared one, have one ledger.
        """
        account = self._privacy.account
        if account.sampling is None:  # between fits
            own_weights(self)
            account.owner.look(self.weights, "after the last release")
        return account.ledger

    def privacy_report(
        self, delta: float, relation: NeighboringRelation | None = None
    ) -> PrivacyReport:
        """The statement that may be published about the releases made so far.

        Args:
            delta: in (0, 1), well below 1 / examples.
            relation: neighbouring relation; default: the strongest that the sampling
                supports.
        """
        model_checks.warn_of_large_delta(delta, self._privacy.population)
        ledger = self.privacy_ledger
        if any(remark.caveat == "changed_elsewhere" for remark in ledger.remarks):
            model_checks.warn_of_changes_elsewhere()
        return privacy_report(
            ledger,
            delta,
            relation=relation,
            population=self._privacy.population,
        )

    def privacy_plan(self) -> Plan:
        """Which engine computes per-example gradients, and how; print it.

        Raises:
            ValueError: not known before the first fit or train_on_batch.
        """
        if not self._privacy.checked:
            raise ValueError(
                "There is no plan yet. It depends on the loss and on the shapes of the "
                "data. Call fit or train_on_batch first."
            )
        return dataclasses.replace(
            self._privacy.plan, notes=self._privacy.owing.notes()
        )

    # --------------------------------------------------------------- the training step

    def train_step(self, data: Any) -> dict[str, Any]:
        """One noised update from one batch; called by fit, not by users."""
        if not tf.executing_eagerly():
            return self._private_step(data)
        # Also with run_eagerly: what a step does can be read off a graph only.
        functions = self._privacy.functions
        if "step" not in functions:
            functions["step"] = host.graph_of_rows(self._private_step)
        return functions["step"](data)

    @host.while_tracing
    def _private_step(self, data: Any) -> dict[str, Any]:
        """train_step, while tracing."""
        state = self._privacy
        state.traces += 1
        graph = tf.compat.v1.get_default_graph()
        start = len(graph.get_operations())
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if isinstance(state.account.sampling, UnverifiedSampling):
            state.sizes.check((x, y, sample_weight))
        digest = digest_of((x, y, sample_weight))
        # Beyond the budget the step sees no rows and releases nothing.
        may_release = state.releases < state.limit
        rows = tf.where(may_release, row_count((x, y, sample_weight)), 0)
        x, y, sample_weight = map_rows(lambda t: t[:rows], (x, y, sample_weight))
        optimizer = self.optimizer
        tables = [t.layer.embeddings for t in state.owing.tables]
        # What they owe is paid where the step reads them.
        are_tables_as_left = Samples(tables).are_as_left() if tables else None
        check_optimizer(optimizer, DPOptimizer)
        clip = optimizer.l2_norm_clip
        try:
            gradients, data_free, outputs = clipped_sum_of(
                self, (x, y, sample_weight), clip, state.owing
            )
        except UnsupportedSiteError as error:
            raise NotPrivateError(
                "The step is traced in another way than it was checked before, and "
                f"here nothing shows that examples keep apart: {error}. Clipping "
                "bounds an example only where they do. Leave the train_function to "
                "Keras, or call train_step as Keras does."
            ) from error
        summed = len(graph.get_operations())
        contents = Contents(
            gradients=tuple(gradients),
            l2_norm_bound=clip,
            expected_batch_size=state.expected_batch_size,
            account=state.account,
            variables=tuple(self.trainable_variables),
            data_free_gradients=tuple(data_free),
            debtors=state.owing.debtors,
            digest=digest,
            is_reached=state.plan.is_reached,
            fixed=tuple(self.non_trainable_weights),
            are_tables_as_left=are_tables_as_left,
        )

        def release() -> tf.Tensor:
            optimizer.release(seal(contents))
            return state.releases.assign_add(1)

        tf.cond(may_release, release, lambda: tf.identity(state.releases))
        released = len(graph.get_operations())
        seen = for_metrics((x, y, sample_weight), outputs, state.copies)
        logs = host.update_metrics(self, *seen)
        made = graph.get_operations()
        state.outside.add(made[start:], graph, state.known_variables(self))
        check_sum(self, made[start:summed], gradients, data_free, data)
        check_step(self, made[summed:released], made[released:])
        effects.check_inputs(
            made[summed:released], data, allowed=[*gradients, digest], before=summed
        )
        return logs

    # --------------------------------------------------------------- Keras's own calls

    def compile(self, optimizer: Any = "rmsprop", *args: Any, **kwargs: Any) -> None:
        """As keras.Model.compile; the ledger goes on whatever was compiled before.

        With jit_compile=True the clipped sum is one XLA program for a fixed number of
        rows, which draws of any size go through; noise, ledger and update stay outside.
        Where XLA cannot compile it, or gives other sums, a warning and `privacy_plan`
        say so. On two CPU cores a step took 4.7 ms with it and 3.9 without (MLP), 37
        and 34 (transformer), 18 and 16 (embedding), but 41 and 13 (CNN) and 87 and 22,
        after a minute of compiling (LSTM). Without jit_compile there is no XLA on a
        CPU, and none in the private step anywhere.
        """
        model_checks.check_precision(self, optimizer)
        self._privacy.forget()
        super().compile(optimizer, *args, **kwargs)
        check_losses(self)
        # Keras drops a wish that layers or run_eagerly do not allow, with a warning.
        is_wanted = kwargs.get("jit_compile") is True and bool(self.jit_compile)
        self._privacy.wants_xla = is_wanted
        if isinstance(self.optimizer, DPOptimizer):
            adopt_optimizer(self)

    def make_train_function(self, force: bool = False) -> Any:
        """As in Keras, but outside of XLA, which cannot call the host for noise."""
        asked, self._jit_compile = self.jit_compile, False
        try:
            return super().make_train_function(force)
        finally:
            self._jit_compile = asked

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As keras.Model.evaluate; it sees no weights whose noise is owed."""
        self._privacy.owing.before_look()
        return super().evaluate(*args, **kwargs)

    def get_metrics_result(self) -> Any:
        """As in Keras; a metric may read weights when its result is shown."""
        if tf.executing_eagerly():
            self._privacy.owing.before_look()
        return super().get_metrics_result()

    def make_test_function(self, force: bool = False) -> Any:
        """As in Keras; whoever evaluates sees no weights whose noise is owed."""
        self._privacy.owing.before_look()
        return super().make_test_function(force)

    def make_predict_function(self, force: bool = False) -> Any:
        """As in Keras; whoever predicts sees no weights whose noise is owed."""
        self._privacy.owing.before_look()
        return super().make_predict_function(force)

    def compile_from_config(self, config: Any) -> None:
        """As keras.Model.compile_from_config, which refuses overridden compiles."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    @once_at_a_time
    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: dict[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int = 1,
        augment: Augment | None = None,
        augmentation_multiplicity: int = 1,
    ) -> keras.callbacks.History:
        """As keras.Model.fit, with differential privacy.

        On arrays, every step draws a Poisson sample of expected size batch_size
        (default 32), and `shuffle` has no meaning. A PoissonLoader is used as it is.
        Datasets, generators and PyDatasets are trained on, but recorded as unverified
        sampling: no amplification is claimed for batches that somebody else drew.

        Args:
            augment, augmentation_multiplicity: as in PoissonLoader, for arrays.

        Other arguments are those of keras.Model.fit.

        Raises:
            NotPrivateError: the model cannot be private as it is; the message says why.
            BudgetSpentError: the optimizer's target_epsilon was spent before.
            ValueError: batch_size exceeds the number of examples, and others.
        """
        check_ready(self)
        is_validation_private = bool(validation_split) and validation_data is None
        if is_poisson(x) or not is_batched(x):
            if is_poisson(x) and is_validation_private:
                raise ValueError(
                    f"validation_split={validation_split} was given with a "
                    "PoissonLoader. The loader already samples all of its examples. "
                    "Split the arrays first and pass validation_data."
                )
            if is_validation_private:
                (x, y, sample_weight), validation_data = host.split_validation(
                    (x, y, sample_weight), validation_split
                )
            loader = poisson_loader(
                x,
                y,
                sample_weight,
                class_weight,
                batch_size,
                steps_per_epoch,
                augment,
                augmentation_multiplicity,
            )
            draws = loader.draws()
            self._privacy.population = draws.population
            sampling: Sampling = draws
            data = loader.dataset(draws)
            planned: int | None = len(loader)
            example = spec = loader.like
            copies = loader.copies
            fit_arguments: dict[str, Any] = {}
        else:
            check_not_augmented(augment, augmentation_multiplicity)
            data, example, spec = peeked(x)
            copies = 1
            check_dense(example)
            rows = int(row_count(example))
            sampling = UnverifiedSampling(self.optimizer.expected_batch_size or rows)
            planned = steps_per_epoch or length(data)
            fit_arguments = {
                "y": y,
                "sample_weight": sample_weight,
                "class_weight": class_weight,
                "batch_size": batch_size,
                "steps_per_epoch": steps_per_epoch,
                "validation_split": validation_split,
            }
        specs = prepare(self, example, sampling, spec, copies)
        callbacks = looking.flat(callbacks)
        # What feeds a stream runs between ours.
        choose_tables(self, specs, [x, *callbacks] if fit_arguments else callbacks)
        # Ours first: later callbacks, the bar and History then see epsilon.
        callbacks.sort(key=lambda c: not getattr(c, "runs_first", False))
        ledger = self.privacy_ledger
        looking.warn_of_callbacks(callbacks, is_validation_private, ledger)
        looking.warn_of_validation_split(
            validation_split if is_validation_private else 0.0, ledger
        )

        def planned_steps() -> int | None:
            first = self._initial_epoch or initial_epoch
            return None if planned is None else planned * max(0, epochs - first)

        state = self._privacy
        if self.optimizer.target_steps is None:
            looking.note_another_fit(ledger)
        stops = looking.Stops(
            lambda: self.privacy_ledger, planned_steps, lambda: state.is_exhausted
        )
        with (
            recorded(self),
            running(self, sampling, planned_steps) as start,
            stops,
        ):
            self._announce(sampling, planned, planned_steps(), callbacks, bool(verbose))
            callbacks = state.owing.callbacks([*callbacks, _Start(start), stops])
            return super().fit(
                data,
                epochs=epochs,
                verbose=verbose,
                callbacks=callbacks,
                validation_data=validation_data,
                shuffle=False,
                initial_epoch=initial_epoch,
                validation_steps=validation_steps,
                validation_batch_size=validation_batch_size or batch_size,
                validation_freq=validation_freq,
                **fit_arguments,
            )

    def _announce(
        self,
        sampling: Sampling,
        steps_per_epoch: int | None,
        steps: int | None,
        callbacks: list[Any],
        is_shown: bool,
    ) -> None:
        """Says what the coming fit will do, and what ready-made batches cost it."""
        state, optimizer = self._privacy, self.optimizer
        if steps == 0:
            return
        event = sampling.event(GaussianEvent(optimizer.noise_multiplier))
        delta = delta_of([optimizer, *callbacks], state.population)
        ledger, target = self.privacy_ledger, optimizer.target
        if target is not None:
            is_ready_made = isinstance(sampling, UnverifiedSampling)
            if is_ready_made and steps and steps_per_epoch and steps_per_epoch > 1:
                covered = target.covered_steps(steps, int(optimizer.iterations))
                target.warn_of_ready_made_batches(
                    ledger, optimizer.noise_multiplier, steps_per_epoch, covered
                )
        announce(
            event,
            steps,
            optimizer.l2_norm_clip,
            ledger,
            delta,
            target=None if target is None else target.epsilon,
            is_shown=is_shown,
        )

    @once_at_a_time
    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: dict[int, float] | None = None,
        return_dict: bool = False,
    ) -> Any:
        """As keras.Model.train_on_batch: one release on a batch that you chose.

        It is recorded as unverified sampling. The divisor is the optimizer's
        expected_batch_size, or else the number of rows of this batch.
        """
        check_ready(self)
        check_dense((x, y, sample_weight))
        rows = int(row_count((x, y, sample_weight)))
        sampling = UnverifiedSampling(self.optimizer.expected_batch_size or rows)
        specs = prepare(self, (x, y, sample_weight), sampling)
        choose_tables(self, specs, [self])
        with recorded(self, is_step=True), running(self, sampling, lambda: None):
            return super().train_on_batch(
                x,
                y,
                sample_weight=sample_weight,
                class_weight=class_weight,
                return_dict=return_dict,
            )

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """As keras.Model.save; the ledger is in the file, and readable beside it."""
        super().save(filepath, *args, **kwargs)
        with tf.io.gfile.GFile(f"{filepath}.ledger.json", "w") as sidecar:
            sidecar.write(self.privacy_ledger.to_json(about=self._about()))

    def _about(self) -> dict[str, str | int | float]:
        """What a readable ledger says beside the releases."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        about: dict[str, str | int | float] = {"model": self.name, "saved_at": now}
        if self._privacy.population is not None:
            about["examples"] = self._privacy.population
        target = getattr(self.optimizer, "target", None)
        if target is not None:
            about |= {"target_epsilon": target.epsilon, "target_delta": target.delta}
        return about

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, by pickle, joblib or deepcopy, is as private, with the ledger."""
        _, (file,) = super().__reduce__()
        state = self._privacy
        return _copied, (file, state.gradients, state.microbatch_size)


def _copied(file: Any, gradients: str, microbatch_size: int | str) -> Any:
    """The private model that PrivateModel.__reduce__ wrote."""
    model = host_files.model_of_pickle(file)
    return make_private(model, gradients=gradients, microbatch_size=microbatch_size)


class _Start(keras.callbacks.Callback):
    """Last in line when training begins: counts what other callbacks restored."""

    def __init__(self, start: Callable[[], None]) -> None:
        super().__init__()
        self._start = start

    def on_train_begin(self, logs: Any = None) -> None:
        """Calibrates again if a restored checkpoint brought releases or epochs."""
        self._start()


def clipped_gradients(
    model: keras.Model,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    l2_norm_clip: float,
    expected_batch_size: float | None = None,
) -> ClippedSum:
    """Sum of per-example gradients, each clipped: for custom training loops.

        for batch in dp_train.PoissonLoader(x, y, batch_size=256):
            clipped = dp_train.clipped_gradients(model, batch, l2_norm_clip=1.0)
            optimizer.apply_clipped_sum(clipped, model.trainable_variables)

    Args:
        model: from make_private, with a loss (compile(loss=...), add_loss or
            compute_loss).
        x: a Batch from a PoissonLoader, whose sampling is then known; or inputs
            [n, ...] of a batch that you chose, recorded as unverified sampling.
        y, sample_weight: as in train_on_batch; not with a Batch.
        l2_norm_clip: C > 0.
        expected_batch_size: public divisor of the noised sum, > 0; default: the
            loader's batch_size, or the number of rows of a batch that you chose.

    Returns:
        The clipped sum. It is not yet private: apply_clipped_sum adds the noise and
        charges the model's ledger.

    Raises:
        NotPrivateError: the model is not private, the Batch was used before, or
            several replicas train.
        ValueError: l2_norm_clip is not positive and finite, or the number of rows is
            unknown while tracing.
    """
    if not isinstance(model, PrivateModel):
        raise NotPrivateError(
            f"{type(model).__name__} is a plain Keras model. Releases are charged to "
            "the ledger of a private model. Call model = dp_train.make_private(model)."
        )
    check_strategy(model.distribute_strategy)
    sampling: Sampling
    is_drawn = isinstance(x, Batch)
    copies = 1
    if is_drawn:
        copies = x.copies
        (x, y, sample_weight), sampling = x.take()
    else:
        sampling = UnverifiedSampling(expected_batch_size or _static_rows(x))
    rows = map_rows(tf.convert_to_tensor, (x, y, sample_weight))
    # The arrays of a loader settle the sizes that the model leaves open.
    spec = rows if is_drawn else None
    host.outside_of_tracing(lambda: prepare(model, rows, sampling, spec, copies))
    model._privacy.owing.before_look()
    if tf.executing_eagerly():
        model._privacy.account.owner.look(
            model.trainable_variables, "before a step", with_samples=False
        )
    clip = check_l2_norm_clip(l2_norm_clip)
    functions = model._privacy.functions
    if clip not in functions:

        @host.while_tracing
        def compute(rows: Any) -> Any:
            gradients, data_free, _ = clipped_sum_of(model, rows, clip)
            made = tf.compat.v1.get_default_graph().get_operations()
            check_sum(
                model, made, gradients, data_free, rows, may_only_read=model.weights
            )
            return gradients, data_free

        functions[clip] = host.graph_of_rows(compute)
    gradients, data_free = functions[clip](rows)
    contents = Contents(
        gradients=tuple(gradients),
        l2_norm_bound=clip,
        expected_batch_size=expected_batch_size or sampling.expected_batch_size,
        account=Account(model._privacy.account.owner, sampling),
        variables=tuple(model.trainable_variables),
        data_free_gradients=tuple(data_free),
        is_reached=model._privacy.plan.is_reached,
        fixed=tuple(model.non_trainable_weights),
    )
    return seal(contents)


def _static_rows(x: Any) -> int:
    """Rows of a batch that somebody chose: at least 1, and known while tracing."""
    rows = tensors(x)[0].shape[0]
    if rows is None:
        raise ValueError(
            "The number of rows of this batch is unknown while tracing. The noised sum "
            "needs a public divisor. Pass expected_batch_size to clipped_gradients."
        )
    return max(1, int(rows))
