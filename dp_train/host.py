"""The one place that touches private names of Keras and TensorFlow.

Every name below was tried on Keras 3.15.1 and TensorFlow 2.21.0; a new version of
either is tried here first.
"""

from __future__ import annotations

import concurrent.futures
import functools
import importlib
import logging
import random
import re
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar, cast

import keras
import numpy as np
import tensorflow as tf
from keras.src import backend as keras_backend
from keras.src.random import seed_generator
from keras.src.saving import object_registration
from keras.src.trainers.data_adapters import array_slicing, data_adapter_utils
from keras.src.utils import tracking
from tensorflow.python.distribute import distribute_lib
from tensorflow.python.eager import context
from tensorflow.python.framework import func_graph, op_def_registry, ops
from tensorflow.python.ops import (
    array_ops,
    control_flow_util,
    custom_gradient,
    functional_ops,
    math_grad,
    script_ops,
)
from tensorflow.python.ops.parallel_for import control_flow_ops, pfor

from dp_train.errors import NotPrivateError

_Function = TypeVar("_Function", bound=Callable[..., Any])
_tracing = threading.RLock()


def while_tracing(function: _Function) -> _Function:
    """Decorator: no two threads are in functions with it at once.

    While a step is traced, calls of layers and switches of TensorFlow that all threads
    share are others (`replaced_calls`, `run_functions_eagerly`).
    """

    @functools.wraps(function)
    def locked(*args: Any, **kwargs: Any) -> Any:
        with _tracing:
            return function(*args, **kwargs)

    return cast(_Function, locked)


untracked = tracking.no_automatic_dependency_tracking
"""Decorator: lists assigned inside the method stay plain lists."""


def seed_states(model: keras.Model) -> list[keras.Variable]:
    """State variables of every seed generator in the model, and of the global one."""
    generators = [
        generator
        for layer in model._flatten_layers()
        for generator in layer._seed_generators
    ]
    generators.append(seed_generator.global_seed_generator())
    unique = {id(generator.state): generator.state for generator in generators}
    return list(unique.values())


@contextmanager
def recorded_seeds() -> Iterator[list[keras.Variable]]:
    """States of seed generators that are drawn from inside the block, whoever has them.

    A loss, or a layer, may draw from one that is nobody's attribute.
    """
    found: list[keras.Variable] = []
    following = _ask_for_replacements(seed_generator.SeedGenerator, "next")

    def recording(self: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(self.state)
        return following(self, *args, **kwargs)

    with _replaced(seed_generator.SeedGenerator, {"next": recording}):
        yield found


def sublayers(model: keras.Model) -> list[keras.layers.Layer]:
    """Every layer inside the model, at any depth, without the model itself."""
    return list(model._flatten_layers(include_self=False))


def call_model(model: keras.Model, x: Any, training: bool = True) -> Any:
    """The model's outputs, whether or not its call knows `training`."""
    return model(x, training=training) if model._call_has_training_arg else model(x)


@contextmanager
def without_regularization_losses(model: keras.Model) -> Iterator[None]:
    """Leaves weight regularisers out of `model.losses` inside the block.

    They read no data, so their gradient is added after the noise instead of being
    clipped with every example.
    """
    object.__setattr__(model, "_get_regularization_losses", list)
    try:
        yield
    finally:
        object.__delattr__(model, "_get_regularization_losses")


def regularization_losses(model: keras.Model) -> list[Any]:
    """Losses of the weight regularisers: functions of the weights only."""
    return list(model._get_regularization_losses())


def compute_loss(model: keras.Model, x: Any, y: Any, y_pred: Any, weight: Any) -> Any:
    """The model's own loss, also where `compute_loss` is overridden."""
    return model._compute_loss(
        x=x, y=y, y_pred=y_pred, sample_weight=weight, training=True
    )


def weights_in_rank_of(y: Any, weights: Any) -> Any:
    """Weights [n] in the ranks of the labels, [n, 1, ...], one for each output.

    Keras multiplies them into losses of any rank, and would take the one axis of plain
    weights for the last axis of losses [n, t]. Other weights stay as they are.
    """
    if len(getattr(weights, "shape", ())) != 1 or y is None:
        return weights
    reshape = tf.reshape if tf.is_tensor(weights) else np.reshape

    def one(t: Any) -> Any:
        return reshape(weights, [-1] + [1] * (len(t.shape) - 1))

    return keras.tree.map_structure(one, y)


def update_metrics(model: keras.Model, rows: Any, outputs: Any) -> dict[str, Any]:
    """Feeds every metric of a step, in its graph, and returns what Keras shows.

    Args:
        model: compiled.
        rows: (x, y, sample_weight), [n, ...]; n may be 0.
        outputs: ([n] losses of each example alone, predictions, hidden_on them).
    """
    (x, y, weight), (losses, y_pred, hidden) = rows, outputs
    y_pred = with_hidden(y_pred, hidden)
    penalty = [tf.cast(p, losses.dtype) for p in regularization_losses(model)]
    model._loss_tracker.update_state(sum(penalty, losses))
    if model._compile_loss is not None and model._compile_loss.metrics:
        # One for each of several outputs; Keras feeds them inside the loss. The mean
        # over no rows is NaN, which would stay in the metric.
        tf.cond(
            tf.size(losses) > 0,
            lambda: tf.cast(
                model._compile_loss(y, y_pred, weights_in_rank_of(y, weight)),
                losses.dtype,
            ),
            lambda: tf.zeros([], losses.dtype),
        )
    return model.compute_metrics(x, y, y_pred, sample_weight=weight)


def stock_train_step() -> tuple[keras.Model, Any, Any] | None:
    """(model, (x, y, sample_weight), y_pred) of the train_step of Keras that calls.

    An optimizer knows neither model nor data; the frame that applies it does. None if
    nobody's train_step is running, or one that is not Keras's own.
    """
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code is keras.Model.train_step.__code__:
            found = frame.f_locals
            model = found["self"]
            is_own = type(model).train_step is not keras.Model.train_step
            if is_own or "train_step" in vars(model):
                return None
            rows = tuple(found[name] for name in ("x", "y", "sample_weight"))
            return found["self"], rows, found["y_pred"]
        frame = frame.f_back
    return None


def running_fit() -> dict[str, Any] | None:
    """The arguments of the fit of a plain model that calls, None outside of one.

    An optimizer is told of no callback and no split; the frame that trains knows them.
    """
    code = keras.Model.fit.__wrapped__.__code__
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return None if frame is None else frame.f_locals


def reads_of(variable: keras.Variable, graph: Any) -> list[tf.Tensor]:
    """Tensors that a variable's value was read to in a graph, in order."""
    return [
        op.outputs[0] for op in users_of(variable, graph) if op.type == "ReadVariableOp"
    ]


def users_of(variable: keras.Variable, graph: Any) -> list[tf.Operation]:
    """Ops that are handed a variable itself in a graph: to read it, in most cases."""
    handle = variable.value.handle
    inside = [i for outside, i in graph.captures if outside is handle]
    return [op for placeholder in inside for op in placeholder.consumers()]


def redirect_reads(
    variable: keras.Variable, graph: Any, value: Callable[[], tf.Tensor]
) -> list[tf.Tensor]:
    """Whatever read a variable in a graph reads a new value instead, each its own.

    What assigns to the variable leaves it as it is, so that it keeps nothing of them.

    Args:
        variable: read, and then perhaps assigned to, in the graph itself.
        graph: still open.
        value: makes a tensor of the variable's shape and dtype. Not by an op that has
            to follow those that read: a print of what was drawn, say, would wait for it
            and it for the print.

    Returns:
        The new values.

    Raises:
        NotPrivateError: something else is done to the variable.
    """
    values = []
    reads = reads_of(variable, graph)
    for op in users_of(variable, graph):
        is_next = op.type == "AssignVariableOp" and reads
        is_known = op.type in ("ReadVariableOp", "VarIsInitializedOp")
        if not (is_next or is_known or _initializes(op)):
            raise NotPrivateError(
                f"The state of a random layer, {variable.path!r}, is given to "
                f"{op.type} ({op.name}) as well. What is read there is no secret key, "
                "and what is written there is kept without noise. Let keras.random "
                "draw with the SeedGenerator, outside of functions and loops of your "
                "own; or use make_private."
            )
    for read in reads:
        new = value()
        for op in read.consumers():
            places = [i for i, t in enumerate(op.inputs) if t is read]
            for place in places:
                op._update_input(place, new)
        values.append(new)
    for op in users_of(variable, graph):
        if op.type == "AssignVariableOp":
            op._update_input(1, reads[0])
    return values


def _initializes(op: tf.Operation) -> bool:
    """Whether an op is what TensorFlow asks of a variable that a trace has made.

    It assigns the first value if there is none yet, and does nothing otherwise.
    """
    if op.type != "If" or op.inputs[0].op.type != "VarIsInitializedOp":
        return False
    name = op.node_def.attr["then_branch"].func.name
    definition = context.context().get_function_def(name)
    return all(node.op in ("Const", "Identity") for node in definition.node_def)


def _gradient_name(op: Any) -> str:
    """What tf.custom_gradient left on an op, "" on others."""
    name: str = op.node_def.attr["_gradient_op_type"].s.decode()
    return name


def has_own_gradient(op: Any) -> bool:
    """Whether the op is differentiated otherwise than others of its type."""
    return op._gradient_function is not None or bool(_gradient_name(op))


def has_foreign_gradient(op: Any) -> bool:
    """Whether a gradient was registered for the op that is not TensorFlow's or Keras's.

    tf.custom_gradient and overridden gradients leave a name on the op; the functions
    behind it say where they are from.
    """
    if op._gradient_function is not None:
        return True
    name = _gradient_name(op)
    waiting: list[Any] = [ops.gradient_registry.lookup(name)] if name else []
    seen: set[int] = set()
    while waiting:
        function = waiting.pop()
        is_data = isinstance(function, type | tf.Variable) or tf.is_tensor(function)
        if id(function) in seen or is_data or not callable(function):
            continue
        seen.add(id(function))
        # Other callables hide what they call, and __module__ can be anything.
        is_plain = isinstance(function, types.FunctionType)
        module = function.__globals__["__name__"] if is_plain else ""
        if not module.startswith(("tensorflow.", "keras.")):
            return True
        waiting += [cell.cell_contents for cell in function.__closure__ or ()]
    return False


class Effect(NamedTuple):
    """An op that does, or reads, more than its inputs and outputs show.

    Attributes:
        op: in the graph; it may call the function that holds the effect.
        type, name: of the op in question.
        node: how TensorFlow describes it.
        handles: ids of the handles of variables and tables that it is given.
        function: what a call of the host runs; None for other ops.
        is_needed: whether what its function, or graph, gives depends on what it gives.
    """

    op: tf.Operation
    type: str
    name: str
    node: Any
    handles: tuple[int, ...]
    function: Any
    is_needed: bool


_CALLS = {
    "Case": ("branches", 1),
    "If": ("then_branch else_branch", 1),
    "PartitionedCall": ("f", 0),
    "StatefulPartitionedCall": ("f", 0),
    "StatelessCase": ("branches", 1),
    "StatelessIf": ("then_branch else_branch", 1),
    "StatelessWhile": ("cond body", 0),
    "While": ("cond body", 0),
}
"""Ops that call functions: the names of these, and the first input that is handed on.
"""


def handle_of(variable: keras.Variable | tf.Variable) -> Any:
    """What ops are given of a variable, read by nobody."""
    own = variable._value if isinstance(variable, keras.Variable) else variable
    return own.handle


def stored_value(variable: keras.Variable | tf.Variable) -> tf.Tensor:
    """The value as it is kept: no autocast, and nobody who guards reads is told."""
    own = variable._value if isinstance(variable, keras.Variable) else variable
    return tf.convert_to_tensor(own)


def effects(operations: Iterable[tf.Operation]) -> Iterator[Effect]:
    """The effects of ops of one graph, and of the functions that they call.

    Without one are the ops that compute, if TensorFlow says that they keep no state and
    they are given no variable, table or function.
    """
    outside: dict[int, Any] | None = None
    for op in operations:
        if outside is None:
            outside = _captured(op.graph)
        handles = [
            outside.get(id(t), id(t)) if t.dtype == tf.resource else None
            for t in map(_not_copied, op.inputs)
        ]
        yield from _effects_of_node(op, op.node_def, handles, True)


def stored_rows(variable: keras.Variable, rows: Any) -> tf.Tensor:
    """Some rows of what is kept, as stored_value."""
    return tf.raw_ops.ResourceGather(
        resource=handle_of(variable), indices=rows, dtype=variable._value.dtype
    )


class State(NamedTuple):
    """A variable or table that a step reads.

    Attributes:
        handle: eager.
        dtypes: of its values; of a table's keys and values.
    """

    handle: Any
    dtypes: tuple[Any, ...]

    def content(self) -> list[bytes]:
        """What it holds now, as one string a tensor."""
        with tf.init_scope():
            if len(self.dtypes) == 1:
                (dtype,) = self.dtypes
                read = tf.raw_ops.ReadVariableOp(resource=self.handle, dtype=dtype)
                found = [read]
            else:
                keys, values = self.dtypes
                found = tf.raw_ops.LookupTableExportV2(
                    table_handle=self.handle, Tkeys=keys, Tvalues=values
                )
            return [tf.io.serialize_tensor(t).numpy() for t in found]


_TYPES_OF_STATE = {
    "ReadVariableOp": ("dtype",),
    "ResourceGather": ("dtype",),
    "ResourceGatherNd": ("dtype",),
    "LookupTableFindV2": ("Tin", "Tout"),
}
"""Ops that read a variable or a table, and the attributes with the types of these."""


def states_read(operations: Iterable[tf.Operation], graph: Any) -> list[State]:
    """The variables and tables that ops of a graph read, once each."""
    handles: dict[int, Any] = {}
    while isinstance(graph, func_graph.FuncGraph):
        handles |= {id(outside): outside for outside, _ in graph.captures}
        graph = graph.outer_graph
    found: dict[int, State] = {}
    for effect in effects(operations):
        names = _TYPES_OF_STATE.get(effect.type, ())
        dtypes = tuple(tf.dtypes.as_dtype(effect.node.attr[n].type) for n in names)
        for key in effect.handles if names else ():
            if key in handles and not tf.is_symbolic_tensor(handles[key]):
                found[key] = State(handles[key], dtypes)
    return list(found.values())


_COMPUTING = """array audio bitwise candidate_sampling composite_tensor control_flow
count ctc image linalg list manip map math nn optional parsing ragged_array
ragged_conversion ragged_math random random_index_shuffle rnn set sparse special_math
spectral stateless_random stateless_random_ops_v2 string""".split()
"""Rooms of TensorFlow whose ops compute. Beside them are rooms for files, debuggers,
summaries, checkpoints, data sets: what an op does there need not be called a state."""
_NOT_COMPUTING = frozenset(
    # They write into memory that others read, a variable's too; read files; draw by a
    # seed of their own; end the process (TensorFlow 2.21).
    """Abort FractionalAvgPool FractionalMaxPool ImmutableConst InplaceAdd InplaceSub
    InplaceUpdate""".split()
)
_FEW_COMPUTING = "DynamicPartition DynamicStitch ParallelDynamicStitch".split()
"""In rooms of which most ops do more."""


@functools.cache
def _computing_ops() -> frozenset[str]:
    """Types of the ops whose outputs are all that they do."""
    found = set(_FEW_COMPUTING)
    for room in _COMPUTING:
        name = room if "ops" in room else f"{room}_ops"
        module = importlib.import_module(f"tensorflow.python.ops.gen_{name}")
        # Each room names its ops as graphs do, and imports the type Any.
        found |= {n for n in vars(module) if op_def_registry.get(n) is not None}
    return frozenset(found - _NOT_COMPUTING)


def _captured(graph: Any) -> dict[int, int]:
    """By id of a tensor of a graph, the id of what it stands for outside of all."""
    if not isinstance(graph, func_graph.FuncGraph):
        return {}
    outer = _captured(graph.outer_graph)
    return {id(inside): outer.get(id(o), id(o)) for o, inside in graph.captures}


def _not_copied(t: tf.Tensor) -> tf.Tensor:
    """What Identity ops made a handle of."""
    while t.dtype == tf.resource and t.op.type == "Identity":
        (t,) = t.op.inputs
    return t


def _effects_of_node(
    op: tf.Operation, node: Any, handles: Sequence[int | None], is_needed: bool
) -> Iterator[Effect]:
    """Effects of a node behind an op; of its inputs only the handles are known."""
    if node.op in _CALLS:
        names, first = _CALLS[node.op]
        for key in names.split():
            called = [node.attr[key].func, *node.attr[key].list.func]
            for function in called:
                if function.name:
                    given = handles[first:]
                    name = function.name
                    yield from _effects_of_function(op, name, given, is_needed)
        return
    definition = op_def_registry.get(node.op)
    if definition is None and context.context().has_function(node.op):
        # The loops of tf.nn.ctc_loss call by type; no function has an op's name.
        yield from _effects_of_function(op, node.op, handles, is_needed)
        return
    is_stateful = definition is None or definition.is_stateful
    calls = any(a.HasField("func") or a.list.func for a in node.attr.values())
    found = tuple(handle for handle in handles if handle is not None)
    if is_stateful or calls or found or node.op not in _computing_ops():
        token = node.attr["token"].s.decode() if "PyFunc" in node.op else ""
        function = script_ops._py_funcs._funcs.get(token)
        kind = node.op
        if node.attr["output_stream"].s.startswith(b"file:"):
            kind += " to a file"
        if kind == "Empty" and not node.attr["init"].b:
            kind += " with what the memory held"
        yield Effect(op, kind, node.name, node, found, function, is_needed)


def _effects_of_function(
    op: tf.Operation, name: str, handles: Sequence[int | None], is_needed: bool
) -> Iterator[Effect]:
    """Effects of a function that the runtime knows by name."""
    definition = context.context().get_function_def(name)
    arguments = [argument.name for argument in definition.signature.input_arg]
    known: dict[str, int | None] = dict(zip(arguments, handles, strict=True))
    needed = _needed_nodes(definition) if is_needed else set()
    for node in definition.node_def:
        given = [known.get(i) for i in node.input if not i.startswith("^")]
        if node.op == "Identity":
            known[f"{node.name}:output:0"] = given[0]
        else:
            yield from _effects_of_node(op, node, given, node.name in needed)


def _needed_nodes(definition: Any) -> set[str]:
    """Names of the nodes that the outputs of a function, or its writes, are made of."""
    inputs = {node.name: node.input for node in definition.node_def}
    waiting = [name.partition(":")[0] for name in definition.ret.values()]
    waiting += [node.name for node in definition.node_def if _does(node.op)]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            given = (i for i in inputs.get(name, ()) if not i.startswith("^"))
            waiting += [i.partition(":")[0] for i in given]
    return found


def _does(name: str) -> bool:
    """Whether ops of that name do more than to read."""
    definition = op_def_registry.get(name)
    is_stateful = definition is None or definition.is_stateful
    return is_stateful and not name.startswith(("Read", "ResourceGather"))


_host_calls: weakref.WeakSet[Any] = weakref.WeakSet()


def host_call(function: Callable[..., Any], inputs: Sequence[Any], dtypes: Any) -> Any:
    """tf.numpy_function of a function of this library, which `is_own_call` knows."""
    outputs = tf.numpy_function(function, inputs, dtypes, stateful=True)
    # What TensorFlow 2.21 registers, and leaves on the function that it wraps.
    _host_calls.add(vars(function).get("ag_dnc_wrapper__", function))
    return outputs


def is_own_call(function: Any) -> bool:
    """Whether a host call was made by host_call."""
    return function is not None and function in _host_calls


def losses(model: keras.Model) -> list[Any]:
    """Every loss object given to compile, flattened."""
    return [] if model.loss is None else keras.tree.flatten(model.loss)


def symbolic_build(model: keras.Model, x: Any, y: Any, sample_weight: Any) -> None:
    """Creates the variables of model, metrics and losses from a batch's shapes."""
    data = keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
    model._symbolic_build(data_batch=data if isinstance(data, tuple) else (data,))


def batch_specs(rows: Any) -> Any:
    """Specs of (x, y, sample_weight) with unknown batch axes."""
    return keras.tree.map_structure(
        lambda t: None if t is None else tf.TensorSpec([None, *t.shape[1:]], t.dtype),
        rows,
        none_is_leaf=True,
    )


def guard_reads(variable: keras.Variable, before: Callable[[], None]) -> None:
    """From now on `before` is called whenever anybody reads or assigns the value."""
    guards = vars(variable).setdefault("_guards", [])
    guards.append(before)
    if len(guards) == 1:
        kind: Any = type(variable)
        variable.__class__ = _guarded_class(kind)


def unguard_reads(variable: keras.Variable, before: Callable[[], None]) -> None:
    """Takes back guard_reads of the same function."""
    guards = vars(variable)["_guards"]
    guards.remove(before)
    if not guards:
        variable.__class__ = type(variable).__mro__[1]


_HOOKS = tuple(
    f"on_{what}_{when}"
    for what in ("train", "epoch", "test", "predict")
    for when in ("begin", "end")
)


def wrap_hooks(
    kind: type[keras.callbacks.Callback],
    before: Callable[[keras.Model], None],
    after: Callable[[keras.Model], None],
) -> None:
    """From now on two functions are called around every hook but those of batches.

    Of instances of `kind` alone: what a subclass does in a hook nobody knows.
    """

    def around(hook: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(hook)
        def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
            if type(self) is not kind:
                return hook(self, *args, **kwargs)
            before(self.model)
            hook(self, *args, **kwargs)
            return after(self.model)

        return wrapped

    for name in _HOOKS:
        if name in vars(kind):
            setattr(kind, name, around(vars(kind)[name]))


@functools.cache
def _guarded_class(base: Any) -> type:
    def look(variable: keras.Variable) -> None:
        for before in vars(variable)["_guards"]:
            before()

    class Guarded(base):
        @property
        def value(self) -> Any:
            look(self)
            return base.value.fget(self)

        def _direct_assign(self, value: Any) -> None:
            look(self)
            base._direct_assign(self, value)

        def __repr__(self) -> str:
            look(self)
            return base.__repr__(self)

    Guarded.__name__, Guarded.__qualname__ = base.__name__, base.__qualname__
    Guarded.__module__ = base.__module__
    return Guarded


def optimizer_of_build(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """The trainable variables that the optimizer was built for."""
    return list(optimizer._trainable_variables)


def is_of_keras(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether optimizer and learning rate are Keras's own: XLA can compile those."""
    parts = (optimizer, optimizer._learning_rate)
    return all(type(part).__module__.startswith("keras.") for part in parts)


def rate_of(optimizer: keras.optimizers.Optimizer) -> Any:
    """The learning rate as the optimizer keeps it: a variable, schedule or function."""
    return optimizer._learning_rate


_OF_LOGITS = "Softmax", "Sigmoid"
"""Ops that the cross-entropies of Keras 3.15 look behind, where nothing is hidden."""


def hidden_on(structure: Any) -> Any:
    """What losses find on each tensor of a structure, or behind it, besides its value.

    Keras hides a mask on a tensor, and on the output of sigmoid and softmax the logits.
    Whatever is made anew of a tensor (a slice, a stack) has lost both.

    Returns:
        The structure with a dict in place of each tensor: hidden tensors by the name of
        the attribute, or logits by the type of the op that was applied to them.
    """

    def one(tensor: Any) -> dict[str, Any]:
        found = {k: v for k, v in vars(tensor).items() if tf.is_tensor(v)}
        op = getattr(tensor, "op", None)
        if op is not None and op.type in _OF_LOGITS and "_keras_logits" not in found:
            found[op.type] = op.inputs[0]
        return found

    return keras.tree.map_structure(one, structure)


def with_hidden(structure: Any, hidden: Any) -> Any:
    """The structure with what `hidden_on` found on another of its kind."""

    def one(tensor: Any, found: dict[str, Any]) -> Any:
        if any(name in found for name in _OF_LOGITS):
            ((name, logits),) = [(k, v) for k, v in found.items() if k in _OF_LOGITS]
            tensor = {"Softmax": tf.nn.softmax, "Sigmoid": tf.sigmoid}[name](logits)
        elif found:
            tensor = tf.identity(tensor)
        for name, value in found.items():
            if name not in _OF_LOGITS:
                setattr(tensor, name, value)
        return tensor

    return keras.tree.map_structure_up_to(structure, one, structure, hidden)


def own_words(error: Exception) -> str:
    """The message, without what Keras says around it of the layer and its arguments."""
    text = str(error)
    found = re.search(r"\x1b\[1m(.*?)\x1b\[0m", text, re.DOTALL)
    return found[1] if found else text


def has_mask(tensor: Any) -> bool:
    """Whether Keras hid a mask on the tensor."""
    return getattr(tensor, "_keras_mask", None) is not None


def foreign_attributes(structure: Any) -> list[str]:
    """Names of what somebody put on the tensors and that is no tensor itself."""
    return [
        name
        for tensor in keras.tree.flatten(structure)
        for name, value in vars(tensor).items()
        if value is not None and not tf.is_tensor(value)
    ]


def alias_registration(alias: type, original: type) -> None:
    """Makes `alias` serialize under the name that `original` is registered by."""
    names = object_registration.GLOBAL_CUSTOM_NAMES
    if original in names:
        names[alias] = names[original]


def class_weight_to_sample_weight(y: Any, class_weight: dict[int, float]) -> Any:
    """[N] weights from class labels, as Keras computes them."""
    return data_adapter_utils.class_weight_to_sample_weights(y, class_weight)


def split_validation(arrays: Any, validation_split: float) -> tuple[Any, Any]:
    """(train, validation): the last part becomes validation data, as in Keras."""
    train, validation = array_slicing.train_validation_split(
        arrays, validation_split=validation_split
    )
    return train, validation


def has_own_train_function(model: keras.Model) -> bool:
    """Whether a class of the user's makes what fit calls at each step."""
    own = [k for k in type(model).__mro__ if "make_train_function" in vars(k)]
    return not all(k.__module__.startswith(("keras.", "dp_train.")) for k in own)


@contextmanager
def replaced_calls(
    layers: Iterable[keras.layers.Layer],
    around: Callable[[keras.layers.Layer, Any], Any],
) -> Iterator[None]:
    """Inside the block each layer's `call` is around(layer, call)."""
    layers = list(layers)
    previous = [vars(layer).get("call") for layer in layers]
    for layer in layers:
        object.__setattr__(layer, "call", around(layer, layer.call))
    try:
        yield
    finally:
        for layer, call in zip(layers, previous, strict=True):
            if call is None:
                object.__delattr__(layer, "call")
            else:
                object.__setattr__(layer, "call", call)


@contextmanager
def recorded_calls(model: keras.Model, calls: list[Any]) -> Iterator[None]:
    """Appends (layer, first rows of its outputs) for each call of a leaf layer."""

    def around(layer: keras.layers.Layer, call: Any) -> Any:
        def recording(*args: Any, **kwargs: Any) -> Any:
            outputs = call(*args, **kwargs)
            rows = [
                tf.cast(t[0], tf.float64).numpy() for t in keras.tree.flatten(outputs)
            ]
            calls.append((layer, rows))
            return outputs

        return recording

    with replaced_calls([s for s in sublayers(model) if not s._layers], around):
        yield


@contextmanager
def recorded_python_draws(model: keras.Model, calls: list[Any]) -> Iterator[None]:
    """Appends each layer whose call moves a generator of Python or NumPy, inner first.

    keras.layers.AugMix chooses its ops so, while it is traced (Keras 3.15.1).
    """

    def state() -> tuple[Any, ...]:
        _, words, *rest = np.random.get_state(legacy=True)
        return random.getstate(), np.asarray(words).tobytes(), rest

    def around(layer: keras.layers.Layer, call: Any) -> Any:
        def recording(*args: Any, **kwargs: Any) -> Any:
            before = state()
            outputs = call(*args, **kwargs)
            if state() != before:
                calls.append(layer)
            return outputs

        return recording

    with replaced_calls([*sublayers(model), model], around):
        yield


@contextmanager
def random_layers_off(model: keras.Model) -> Iterator[None]:
    """Layers with a seed generator of their own are not training inside the block."""

    def around(layer: keras.layers.Layer, call: Any) -> Any:
        def off(*args: Any, **kwargs: Any) -> Any:
            if "training" in kwargs:
                kwargs["training"] = False
            return call(*args, **kwargs)

        return off

    with replaced_calls([s for s in sublayers(model) if s._seed_generators], around):
        yield


_CONSTANT_DRAWS: dict[str, Callable[..., Any]] = {
    "normal": lambda shape, mean=0.0, stddev=1.0, dtype=None, seed=None: _constant(
        shape, mean + 0.3 * stddev, dtype
    ),
    "truncated_normal": lambda shape, mean=0.0, stddev=1.0, dtype=None, seed=None: (
        _constant(shape, mean + 0.3 * stddev, dtype)
    ),
    "uniform": lambda shape, minval=0.0, maxval=1.0, dtype=None, seed=None: _constant(
        shape, minval + 0.3 * (maxval - minval), dtype
    ),
    "randint": lambda shape, minval, maxval, dtype="int32", seed=None: _constant(
        shape, minval, dtype
    ),
    "dropout": lambda inputs, rate, noise_shape=None, seed=None: tf.identity(inputs),
    "shuffle": lambda x, axis=0, seed=None: tf.identity(x),
}
"""For the functions of keras.random, one number for every draw."""


def _constant(shape: Any, value: Any, dtype: Any) -> tf.Tensor:
    return tf.fill(shape, tf.cast(value, dtype or keras.config.floatx()))


@contextmanager
def constant_draws() -> Iterator[None]:
    """Inside the block most functions of keras.random draw one number again and again.

    Engines draw otherwise from the same seeds, so that with draws of their own their
    results could not be compared.
    """
    with _replaced(keras_backend.random, _CONSTANT_DRAWS):
        yield


@contextmanager
def inlined_convolutions(model: keras.Model) -> Iterator[None]:
    """float32 convolutions with groups as plain ops inside the block.

    On CPU Keras hides them in a function that XLA compiles. oneDNN, which TensorFlow
    2.21 uses for float32, computes them and their gradients without it.
    """

    def around(layer: keras.layers.Layer, call: Any) -> Any:
        def inlined(*args: Any, **kwargs: Any) -> Any:
            before = tf.config.functions_run_eagerly()
            tf.config.run_functions_eagerly(True)
            try:
                return call(*args, **kwargs)
            finally:
                tf.config.run_functions_eagerly(before)

        return inlined

    grouped = [
        s
        for s in sublayers(model)
        if getattr(s, "groups", 1) != 1
        and hasattr(s, "kernel_size")
        and s.compute_dtype == "float32"
    ]
    with replaced_calls(grouped, around):
        yield


@contextmanager
def dilations_by_example() -> Iterator[None]:
    """Dilated convolutions keep the rows of an example together inside the block.

    TensorFlow runs them as plain ones on d interleaved parts of the input, one batch
    of parts after the other. Here the parts of an example follow each other.
    """
    functions = {
        "space_to_batch_nd": _parts_of_examples,
        "batch_to_space_nd": _examples_of_parts,
    }
    with _replaced(array_ops, functions):
        yield


class _Replacements(threading.local):
    """For each function, by what it is replaced in this thread; the last one counts."""

    def __init__(self) -> None:
        self.stacks: dict[tuple[Any, str], list[Any]] = {}


_replacements = _Replacements()


@contextmanager
def _replaced(module: Any, functions: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Inside the block, and in this thread only, a module's functions are others."""
    for name in functions:
        _ask_for_replacements(module, name)
    stacks = _replacements.stacks
    for name, function in functions.items():
        stacks.setdefault((module, name), []).append(function)
    try:
        yield
    finally:
        for name in functions:
            stacks[module, name].pop()


_originals: dict[tuple[Any, str], Callable[..., Any]] = {}
_asking = threading.Lock()


def _ask_for_replacements(module: Any, name: str) -> Callable[..., Any]:
    """The module's function, which from now on looks for replacements first."""
    with _asking:
        if (module, name) not in _originals:
            original: Callable[..., Any] = getattr(module, name)

            @functools.wraps(original)
            def call(*args: Any, **kwargs: Any) -> Any:
                stack = _replacements.stacks.get((module, name))
                return (stack[-1] if stack else original)(*args, **kwargs)

            setattr(module, name, call)
            _originals[module, name] = original
        return _originals[module, name]


def _known(*tensors: Any) -> list[Any] | None:
    """Their values as lists, or None where one of them is known only at run time."""
    values = [tf.get_static_value(tf.convert_to_tensor(t)) for t in tensors]
    is_known = all(value is not None for value in values)
    return [value.tolist() for value in values] if is_known else None


def _parts_of_examples(
    input: tf.Tensor, block_shape: Any, paddings: Any, name: str | None = None
) -> tf.Tensor:
    """tf.space_to_batch with rows [b, d, ...] in place of [d, b, ...], flattened."""
    known = _known(block_shape, paddings)
    if known is None or not input.shape[1:].is_fully_defined():
        return tf.raw_ops.SpaceToBatchND(
            input=input, block_shape=block_shape, paddings=paddings, name=name
        )
    dilations, padding = known
    spatial, rest = len(dilations), input.shape[1 + len(dilations) :]
    padded = tf.pad(input, [[0, 0], *padding, *[[0, 0]] * len(rest)], name=name)
    sizes = [padded.shape[1 + i] // d for i, d in enumerate(dilations)]
    pairs = [n for pair in zip(sizes, dilations, strict=True) for n in pair]
    parts = tf.reshape(padded, [-1, *pairs, *rest])
    order = [*range(2, 2 * spatial + 1, 2), *range(1, 2 * spatial, 2)]
    last = range(1 + 2 * spatial, parts.shape.rank)
    return tf.reshape(tf.transpose(parts, [0, *order, *last]), [-1, *sizes, *rest])


def _examples_of_parts(
    input: tf.Tensor, block_shape: Any, crops: Any, name: str | None = None
) -> tf.Tensor:
    """The inverse, and crops."""
    known = _known(block_shape, crops)
    if known is None or not input.shape[1:].is_fully_defined():
        return tf.raw_ops.BatchToSpaceND(
            input=input, block_shape=block_shape, crops=crops, name=name
        )
    dilations, cropped = known
    spatial = len(dilations)
    sizes, rest = input.shape[1 : 1 + spatial], input.shape[1 + spatial :]
    parts = tf.reshape(input, [-1, *dilations, *sizes, *rest])
    order = [i for k in range(1, 1 + spatial) for i in (spatial + k, k)]
    last = range(1 + 2 * spatial, parts.shape.rank)
    whole = [s * d for s, d in zip(sizes, dilations, strict=True)]
    joined = tf.reshape(tf.transpose(parts, [0, *order, *last]), [-1, *whole, *rest])
    kept = (slice(c[0], n - c[1]) for c, n in zip(cropped, whole, strict=True))
    return tf.identity(joined[:, *kept], name=name)


@contextmanager
def without_recomputation() -> Iterator[None]:
    """Inside the block `keras.remat` and RematScope call what they wrap, as it is.

    tf.recompute_grad, which they are, saves memory and computes no other gradient. But
    it differentiates only what is handed to it and tf.Variables; weights that are
    tensors would get no gradient (TensorFlow 2.21).
    """
    code = custom_gradient.recompute_grad.__code__

    def through(name: str) -> Callable[..., Any]:
        decorator = _ask_for_replacements(custom_gradient, name)

        def call(f: Any, args: Any, kwargs: Any) -> Any:
            if getattr(f, "__code__", None) not in code.co_consts:
                return decorator(f, args, kwargs)
            place = f.__code__.co_freevars.index("f")
            return f.__closure__[place].cell_contents(*args, **kwargs)

        return call

    names = "_eager_mode_decorator", "_graph_mode_decorator"
    with _replaced(custom_gradient, {name: through(name) for name in names}):
        yield


@contextmanager
def rows_known(
    have_equal_rows: Callable[[tf.Tensor, tf.Tensor], bool],
) -> Iterator[None]:
    """Inside the block gradients need not ask which operand was broadcast along rows.

    Where the number of rows is unknown, TensorFlow compares shapes when the step runs,
    then adds up over no axis at all: six ops behind each product of two tensors.

    Args:
        have_equal_rows: of two tensors of one rank, whether both have as many.
    """
    name = "SmartBroadcastGradientArgs"
    original = _ask_for_replacements(math_grad, name)

    def arguments(x: tf.Tensor, y: tf.Tensor, grad: Any = None) -> Any:
        if x.shape.rank and x.shape.rank == y.shape.rank and have_equal_rows(x, y):
            # Any number of rows will do, but 1.
            two = [tf.TensorShape([2, *t.shape[1:]]) for t in (x, y)]
            found = math_grad._InferGradientReductionAxes(*two)
            if None not in found:
                pairs = zip((x, y), found, strict=True)
                return tuple((tf.shape(t), axes, bool(axes)) for t, axes in pairs)
        return original(x, y, grad)

    with _replaced(math_grad, {name: arguments}):
        yield


def is_trainable_state_changed(model: keras.Model) -> bool:
    """Whether `trainable` of any layer differs from what compile saw."""
    compiled = getattr(model, "_compiled_trainable_state", {})
    return any(
        layer.trainable != compiled.get(layer, layer.trainable)
        for layer in model._flatten_layers()
    )


def vectorized_map(
    function: Callable[[list[tf.Tensor]], Any], elements: list[tf.Tensor]
) -> Any:
    """tf.vectorized_map with a sound batched matmul and without notes to itself.

    The oneDNN kernel of TensorFlow 2.21 reads beyond the buffer of an operand that is
    broadcast along the first of several batch axes where the other is 1 (tensorflow
    issues 117700 and 123109): wrong gradients, or a crash. The map of a batch of one
    makes just that shape, so here both operands get equal batch axes. The kernels of
    softmax stop at five axes, and the map adds one: here they see two.

    Inside an XLA program the map would be a function of its own. Its sizes are values
    there, and XLA compiles anew for each value of what they were computed beside.

    Raises:
        NotImplementedError: TensorFlow cannot map what the function does.
    """
    is_traced: list[bool] = []

    def traced(elements: list[tf.Tensor]) -> Any:
        result = function(elements)
        is_traced[:] = [True]
        return result

    _map_soundly()
    before, _mapping.is_ours = _mapping.is_ours, True
    try:
        # An op without a converter (keyed random ops, depthwise convolutions) runs
        # example by example: slower, and right.
        with (
            _replaced(control_flow_ops, {"_is_under_xla_context": lambda: False}),
            _replaced(functional_ops, {"While": _while_loop}),
            _replaced(pfor, {"_fallback_converter": _one_by_one}),
        ):
            return tf.vectorized_map(traced, elements, warn=False)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if not is_traced:
            raise
        reason = str(error).partition("\n")[0]
        raise NotImplementedError(
            f"TensorFlow has no map over examples for it: {reason}"
        ) from error
    finally:
        _mapping.is_ours = before


def _while_loop(
    input_: list[tf.Tensor], cond: Any, body: Any, name: str | None = None, **_: Any
) -> Any:
    """The loop of tf.nn.ctc_loss as one that TensorFlow can map (TensorFlow 2.21).

    What calls it has a gradient of its own, which does not ask the loop.
    """
    return tf.while_loop(cond._func, body._func, input_, name=name)


def _one_by_one(pfor_input: Any, *given: Any, **named: Any) -> Any:
    """An op without a converter, in a loop, if examples have results of one shape.

    Raises:
        NotImplementedError: how many results there are depends on what it reads.
    """
    op = pfor_input.op
    is_given, is_known = (
        all(t.shape.is_fully_defined() for t in ts) for ts in (op.inputs, op.outputs)
    )
    if is_given and not is_known:
        raise NotImplementedError(
            f"TensorFlow has no map over examples for it: {op.type} may have another "
            "number of results for each example"
        )
    return _ask_for_replacements(pfor, "_fallback_converter")(
        pfor_input, *given, **named
    )


class _Mapping(threading.local):
    """Whether this thread is in a map of ours; others keep TensorFlow's converters."""

    is_ours = False


_mapping = _Mapping()


@functools.cache
def _map_soundly() -> None:
    """Registers, for good, converters and a filter that ask who maps."""

    def choosing(ours: Any, original: Any) -> Any:
        def convert(pfor_input: Any) -> Any:
            return (ours if _mapping.is_ours else original)(pfor_input)

        return convert

    registry = pfor._pfor_converter_registry
    for name, ours in _CONVERTERS.items():
        registry[name] = choosing(ours, registry[name])
    tf.get_logger().addFilter(_is_for_users)


def _is_for_users(record: logging.LogRecord) -> bool:
    """False for "... uses a while_loop. Fix that!", and for what is raised anyway."""
    if not _mapping.is_ours:
        return True
    message = record.getMessage()
    internal = "uses a while_loop", "while pfor was converting", "\n\ncreated at:\n"
    return not any(part in message for part in internal)


def _convert_batch_matmul(pfor_input: Any) -> Any:
    """A BatchMatMulV2 of many examples as one matmul without broadcasting."""
    x, is_x_stacked, _ = pfor_input.input(0)
    y, is_y_stacked, _ = pfor_input.input(1)
    adj_x, adj_y = pfor_input.get_attr("adj_x"), pfor_input.get_attr("adj_y")
    if is_x_stacked and not is_y_stacked and y.shape.rank == 2 and not adj_x:
        rows = tf.reshape(x, tf.stack([-1, tf.shape(x)[-1]]))
        product = tf.matmul(rows, y, adjoint_b=adj_y)
        shape = tf.concat([tf.shape(x)[:-1], tf.shape(product)[-1:]], axis=0)
        return pfor.wrap(tf.reshape(product, shape), True)
    pfor_input.stack_inputs()
    pfor_input.expanddim_inputs_for_broadcast()
    x, y = pfor_input.input(0)[0], pfor_input.input(1)[0]
    batch = tf.broadcast_dynamic_shape(tf.shape(x)[:-2], tf.shape(y)[:-2])
    flat_x, flat_y = (
        tf.reshape(
            tf.broadcast_to(t, tf.concat([batch, tf.shape(t)[-2:]], axis=0)),
            tf.concat([[-1], tf.shape(t)[-2:]], axis=0),
        )
        for t in (x, y)
    )
    product = tf.matmul(flat_x, flat_y, adjoint_a=adj_x, adjoint_b=adj_y)
    shape = tf.concat([batch, tf.shape(product)[-2:]], axis=0)
    return pfor.wrap(tf.reshape(product, shape), True)


def _convert_last_axis(op: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[Any], Any]:
    """An op along the last axis, on a matrix of all that lies before it."""

    def convert(pfor_input: Any) -> Any:
        t = pfor_input.stacked_input(0)
        rows = op(tf.reshape(t, tf.stack([-1, tf.shape(t)[-1]])))
        return pfor.wrap(tf.ensure_shape(tf.reshape(rows, tf.shape(t)), t.shape), True)

    return convert


def _convert_pad(pfor_input: Any) -> Any:
    """A PadV2 with its own value; TensorFlow 2.21 maps it as padding with zeros."""
    pfor_input.stack_inputs([0])
    paddings, value = pfor_input.unstacked_input(1), pfor_input.unstacked_input(2)
    none = tf.zeros([1, 2], paddings.dtype)
    padded = tf.raw_ops.PadV2(
        input=pfor_input.stacked_input(0),
        paddings=tf.concat([none, paddings], axis=0),
        constant_values=value,
    )
    return pfor.wrap(padded, True)


_CONVERTERS = {
    "BatchMatMulV2": _convert_batch_matmul,
    "Softmax": _convert_last_axis(tf.nn.softmax),
    "LogSoftmax": _convert_last_axis(tf.nn.log_softmax),
    "PadV2": _convert_pad,
}


def is_compiled() -> bool:
    """Whether what is traced here becomes part of an XLA program (TensorFlow 2.21)."""
    return bool(control_flow_util.GraphOrParentsInXlaContext(ops.get_default_graph()))


def recurrent_layers(model: keras.Model) -> list[keras.layers.RNN]:
    """Every layer of the model that loops over time steps."""
    return [s for s in sublayers(model) if isinstance(s, keras.layers.RNN)]


@contextmanager
def unrolled_recurrence(model: keras.Model) -> Iterator[None]:
    """Unrolls recurrent layers inside the block: a loop hides its ops from the walk.

    Where Keras 3.15 unrolls backwards, it zeroes masked outputs by the mask of the
    other end (`zero_output_for_mask`, set by Bidirectional). Forwards over reversed
    steps it does not, so such layers are called that way.
    """

    def around(layer: keras.layers.RNN, call: Any) -> Any:
        def forwards(
            sequences: Any, initial_state: Any = None, mask: Any = None, **kwargs: Any
        ) -> Any:
            if mask is None:
                return call(sequences, initial_state=initial_state, **kwargs)
            object.__setattr__(layer, "go_backwards", False)
            try:
                reverse = [tf.reverse(t, [1]) for t in (sequences, mask)]
                kwargs |= {"initial_state": initial_state, "mask": reverse[1]}
                return call(reverse[0], **kwargs)
            finally:
                object.__setattr__(layer, "go_backwards", True)

        return forwards

    layers = [layer for layer in recurrent_layers(model) if not layer.unroll]
    backwards = [s for s in layers if s.go_backwards and s.zero_output_for_mask]
    for layer in layers:
        object.__setattr__(layer, "unroll", True)
    try:
        with replaced_calls(backwards, around):
            yield
    finally:
        for layer in layers:
            object.__setattr__(layer, "unroll", False)


def number_of_call() -> tf.Tensor:
    """In a pipeline, a number that is the first call's when an iterator is new.

    An op with seeds counts its calls, each iterator of a pipeline has ops of its own,
    and a repetition inside the pipeline goes on with those of its iterator (TensorFlow
    2.21).
    """
    return tf.raw_ops.RandomUniformInt(
        shape=tf.constant([], tf.int32),
        minval=tf.constant(0, tf.int64),
        maxval=tf.constant(2**62, tf.int64),
        seed=1,
        seed2=1,
    )


def graph_of_rows(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function as graphs for any number of rows, whoever runs functions eagerly.

    Args:
        function: of a structure of tensors [n, ...].
    """
    traced = tf.function(function, autograph=False)

    def call(rows: Any) -> Any:
        return traced.get_concrete_function(batch_specs(rows))(rows)

    return call


def updates_in_branches(strategy: Any) -> bool:
    """Whether an optimizer can update under a strategy inside a branch of the graph.

    Others call `merge_call`, which TensorFlow 2.21 allows at a graph's top level only.
    """
    is_default = strategy is distribute_lib._get_default_strategy()
    return is_default or isinstance(strategy, tf.distribute.OneDeviceStrategy)


def check_captures(graph: Any) -> None:
    """Refuses a graph that takes tensors of the function around it.

    Raises:
        NotPrivateError: an update does.
    """
    for outside, _ in graph.captures:
        if tf.is_symbolic_tensor(outside) and outside.dtype != tf.resource:
            raise NotPrivateError(
                f"The inner optimizer, its learning rate or a constraint takes a "
                f"tensor of the step ({outside.name}). What was made of the examples "
                "would steer the update without noise. Compute it from weights and "
                "the optimizer's own variables."
            )


def outside_of_tracing(function: Callable[[], Any]) -> Any:
    """Runs a function eagerly, also from inside a tf.function that is being traced.

    In a thread of its own: tf.init_scope would be eager too, but stops every tape.
    """
    if tf.executing_eagerly():
        return function()
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(function).result()
