"""Proof on the traced graph that no example's predictions read another example.

The book-keeping engine runs the whole batch at once; what it sums is bounded for each
example only if examples stay apart. A probe on a few rows can miss a layer that mixes
rarely (a maximum over the batch, a roll, training-only statistics). So every op between
inputs and predictions must be one that is known to keep the batch axis to itself; any
other op, or a use of the batch's size as a number, is refused by name.

A tensor that depends on the data is `Examples(axis, blocks)`: its axis `axis` holds the
examples in order, `blocks` consecutive places each (Keras flattens [b, t, i] to
[b t, i]); or it is a `SIZE`: integers that know the batch size only, good for shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from dp_train import host
from dp_train.kernels.contribution import UnsupportedSiteError


class Examples(NamedTuple):
    """Which axis holds the examples, and how many places each takes."""

    axis: int
    blocks: int


class Flat(NamedTuple):
    """Examples one after the other in a matrix whose sizes are known at run time only.

    `entries` is what each takes. Keras reshapes so before the MatMul of a Dense layer,
    whose weight then tells the width of a row.
    """

    entries: int


SIZE = "size"
Kind = Examples | Flat | str
Kinds = dict[int, Kind]

_POINTWISE = frozenset(
    """Abs Acos Acosh Add AddV2 AsString Asin Asinh Atan Atan2 Atanh BitwiseAnd
    Bucketize Cast Ceil CheckNumerics ClipByValue Cos Cosh Div DivNoNan Elu EnsureShape
    Equal Erf Erfc Erfinv Exp Expm1 Floor FloorDiv FloorMod Greater GreaterEqual
    Identity IsFinite IsInf IsNan LeakyRelu Less LessEqual Lgamma Log Log1p LogicalAnd
    LogicalNot LogicalOr Maximum Minimum Mod Mul MulNoNan Neg NotEqual OnesLike
    PlaceholderWithDefault Pow PreventGradient RealDiv Reciprocal Relu Relu6 Rint Round
    Rsqrt SelectV2 Selu Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Square
    SquaredDifference StopGradient StringToHashBucketFast StringToHashBucketStrong Sub
    Tan Tanh TruncateDiv Xdivy Xlogy ZerosLike""".split()
)
_WINDOWED = frozenset(
    """AvgPool AvgPool3D Conv2D Conv3D DepthwiseConv2dNative LRN MaxPool MaxPool3D
    MaxPoolV2 ResizeArea ResizeBicubic ResizeBilinear ResizeNearestNeighbor""".split()
)
"""The first input holds examples along axis 0; other data-dependent inputs are SIZE."""
_REDUCING = frozenset(
    "All Any ArgMax ArgMin EuclideanNorm Max Mean Min Prod Sum Cumsum Cumprod".split()
)
_RANDOM = frozenset(
    """Fill StatelessRandomNormalV2 StatelessRandomUniformFullIntV2
    StatelessRandomUniformIntV2 StatelessRandomUniformV2
    StatelessTruncatedNormalV2""".split()
)
_SOURCES = frozenset(
    "Assert LookupTableFindV2 ReadVariableOp ResourceGather VarHandleOp".split()
)
"""Ops with a state that is the same for all examples; Assert gives nothing."""
_FIRST_STAYS = frozenset(
    "Cast ConcatV2 ExpandDims Identity Pack Reshape Squeeze".split()
)
"""Ops on sizes that leave the first one first."""
_OF_KEYS = frozenset(
    """Bitcast Cast ConcatV2 ExpandDims Identity Pack Reshape Squeeze
    StatelessRandomGetKeyCounter StridedSlice""".split()
)
"""Ops that make a key of a key."""
_LEAST_MOVES = {"Add": 0, "AddV2": 0, "FloorMod": 2**16, "Mul": 1}
"""Ops that make a key of a key and of a number so large."""
_OF_SIZES = frozenset(
    """Add AddV2 Cast ConcatV2 ExpandDims FloorDiv GatherV2 Identity Maximum Minimum Mul
    Pack Prod Reshape Slice Squeeze StridedSlice Sub""".split()
)


def check(
    inputs: Iterable[tf.Tensor],
    outputs: Iterable[tf.Tensor],
    apart: Iterable[tf.Tensor] = (),
    keys: Iterable[tf.Tensor] = (),
) -> Kinds:
    """Walks from inputs to outputs.

    Args:
        inputs: data tensors [b, ...]. Where b is a fixed number, the layers could read
            it as one: it must be public.
        outputs: predictions [b, ...], and what was made into `apart`.
        apart: tensors [b, ...] whose examples are known to be apart if those of what
            they were made of are.
        keys: what random layers may draw from: other numbers at every step.

    Returns:
        The kind of every tensor that depends on the data, by id.

    Raises:
        UnsupportedSiteError: an op may mix examples; the message names it.
    """
    inputs, outputs, apart = list(inputs), list(outputs), list(apart)
    keys = list(keys)
    fresh = {id(t) for t in keys}
    kinds: Kinds = {id(t): Examples(0, 1) for t in [*inputs, *apart]}
    batch = inputs[0].shape[0]
    needed = ancestors(outputs, {id(t.op) for t in [*apart, *keys]})
    graph = outputs[0].graph
    for op in graph.get_operations():  # in the order of creation: inputs come first
        if id(op) not in needed:
            continue
        if batch is not None and op.type in _RANDOM and op.outputs[0].shape.rank:
            # Drawn for a batch of fixed size, one row an example.
            if op.outputs[0].shape[0] == batch:
                kinds[id(op.outputs[0])] = Examples(0, 1)
        if op.op_def.is_stateful and op.type not in _SOURCES | _RANDOM:
            if op.type.startswith("IteratorGetNext"):
                raise UnsupportedSiteError(
                    "the batch is taken from its iterator inside the function that "
                    "makes the step, where it is no input; write "
                    "tf.function(step)(next(iterator)), as Keras does, instead of a "
                    "tf.function that calls next",
                    op,
                )
            # A queue, a generator, Python: what one example writes others read.
            raise _mixes(op)
        if op.type in _RANDOM and not _is_fresh(op, fresh):
            raise UnsupportedSiteError(
                f"{op.type} ({op.name}) draws the same numbers at every step, by the "
                "place of an example in the batch",
                op,
            )
        if not any(id(t) in kinds for t in op.inputs):
            continue
        if any(id(t) in kinds for t in op.outputs):
            continue
        for t, kind in zip(op.outputs, _kinds_of_outputs(op, kinds), strict=True):
            if kind is not None:
                kinds[id(t)] = kind
    for t in outputs:
        if kinds.get(id(t), Examples(0, 1)) != Examples(0, 1):
            raise UnsupportedSiteError(
                "predictions do not lie along the batch axis", t.op
            )
    return kinds


def ancestors(outputs: Iterable[tf.Tensor], ends: Iterable[int] = ()) -> set[int]:
    """ids of the ops that the outputs need, up to the ops in `ends`."""
    found = set(ends)
    waiting = [t.op for t in outputs]
    while waiting:
        op = waiting.pop()
        if id(op) not in found:
            found.add(id(op))
            waiting += [t.op for t in op.inputs]
    return found


def _kinds_of_outputs(op: tf.Operation, kinds: Kinds) -> list[Kind | None]:
    """Kinds of the op's outputs; None for one that reads no data.

    Raises:
        UnsupportedSiteError: the op may mix examples.
    """
    given = [kinds.get(id(t)) for t in op.inputs]
    if host.has_foreign_gradient(op):
        raise UnsupportedSiteError(
            f"{op.type} ({op.name}) has a gradient of its own, which may mix examples",
            op,
        )
    if op.type == "IdentityN":
        return given
    if op.type in ("Shape", "ShapeN"):
        return [SIZE] * len(op.outputs)
    if all(kind in (SIZE, None) for kind in given):
        if all(known(t) is not None for t in op.outputs):
            return [None] * len(op.outputs)
        if op.type in _OF_SIZES:
            return [SIZE] * len(op.outputs)
        return [_made_for_rows(op, given, kinds)]
    rule = _rule(op.type)
    kind = rule(op, given) if rule else None
    if kind is None:
        raise _mixes(op)
    return [kind] * len(op.outputs)


def _made_for_rows(op: tf.Operation, given: list[Kind | None], kinds: Kinds) -> Kind:
    """The op draws, or copies, as many rows for each example as another tensor has.

    A value that knows the batch size would tell each example of the others; what
    decides the number of rows may.
    """
    shape = op.outputs[0].shape
    at = 1 if op.type == "BroadcastTo" else 0
    is_known = op.type in _RANDOM or (
        op.type == "BroadcastTo" and _is_copied(op.inputs[0].shape, shape)
    )
    is_of_rows = shape[:1] == [None] and shape[1:].is_fully_defined()
    others = [kind for i, kind in enumerate(given) if i != at]
    rows = _first_size(op.inputs[at], kinds)
    if not is_known or not is_of_rows or rows is None or any(others):
        raise _mixes(op)
    return rows


def _is_copied(before: tf.TensorShape, after: tf.TensorShape) -> bool:
    """Whether a broadcast makes its first axis."""
    return before.rank is not None and (before.rank < after.rank or before[0] == 1)


def _first_size(shape: tf.Tensor, kinds: Kinds) -> Examples | None:
    """Of whose rows the first entry of a shape, or a size, is the number; or None.

    Anything but the very number (a minimum, a difference) would make of the batch size
    what it likes.
    """
    op = shape.op
    if shape.shape.rank not in (0, 1) or not shape.shape.num_elements():
        # The first of a matrix may be cut off, and what is empty has none: the next
        # part of a concatenation would take its place.
        return None
    if op.type == "Shape":
        kind = kinds.get(id(op.inputs[0]))
        return kind if isinstance(kind, Examples) and kind.axis == 0 else None
    if shape.dtype not in (tf.int32, tf.int64):
        return None  # a narrow one would wrap around
    if op.type in _FIRST_STAYS:
        return _first_size(op.inputs[0], kinds)
    if op.type not in ("Slice", "StridedSlice", "GatherV2"):
        return None
    begin, is_open = known(op.inputs[1]), False
    if op.type == "StridedSlice":
        strides = known(op.inputs[3])
        moved = op.get_attr("ellipsis_mask") | op.get_attr("new_axis_mask")
        if moved or strides is None or int(strides[0]) != 1:
            return None
        is_open = bool(op.get_attr("begin_mask") & 1)
    is_first = is_open or (begin is not None and int(np.ravel(begin)[0]) == 0)
    return _first_size(op.inputs[0], kinds) if is_first else None


def _is_fresh(op: tf.Operation, keys: set[int]) -> bool:
    """Whether a draw is keyed by one of the keys, not by a number in the code."""
    if not op.type.startswith("Stateless"):
        return True
    waiting = list(op.inputs[1:2])
    while waiting:
        t = waiting.pop()
        if id(t) in keys:
            return True
        if t.op.type in _OF_KEYS or _is_moved(t.op):
            waiting += list(t.op.inputs)
    return False


def _is_moved(op: tf.Operation) -> bool:
    """Whether a number in the code moves a key, and leaves a key of it."""
    if op.type not in _LEAST_MOVES:
        return False
    number, least = known(op.inputs[1]), _LEAST_MOVES[op.type]
    if number is None or (op.type == "Mul" and np.any(number % 2 != 1)):
        return False  # even numbers shift a key out, bit by bit
    return bool(np.all(np.abs(number) >= least))


def known(t: tf.Tensor) -> Any:
    """The value of a tensor that does not depend on any run, or None.

    The batch size is unknown while tracing (where it is not, it is public), so what is
    known then is the same for every batch, also if it was computed from sizes: a causal
    mask is made of the length of a sequence.
    """
    value = tf.get_static_value(t)
    if value is None and t.op.type == "Reshape":
        value, shape = map(known, t.op.inputs)
        return None if value is None or shape is None else value.reshape(shape)
    if value is None and t.op.type == "Pack":
        parts = [known(part) for part in t.op.inputs]
        is_known = all(part is not None for part in parts)
        return np.stack(parts, t.op.get_attr("axis")) if is_known else None
    return value


def _mixes(op: tf.Operation) -> UnsupportedSiteError:
    return UnsupportedSiteError(f"{op.type} ({op.name}) may mix examples", op)


Rule = Callable[[tf.Operation, list[Kind | None]], Kind | None]


def _rule(name: str) -> Rule | None:
    if name in _POINTWISE:
        return _pointwise
    if name in _WINDOWED:
        return _windowed
    if name in _REDUCING:
        return _reducing
    return _RULES.get(name)


def _only(
    given: list[Kind | None], at: int, *, may_know_sizes: bool = False
) -> Examples | None:
    """The kind of input `at`, if no other input depends on the data.

    Args:
        given: kinds of the inputs.
        at: place of the input.
        may_know_sizes: others may know the batch size: only where the shape of the
            result shows what they did.
    """
    kind = given[at]
    others = [k for i, k in enumerate(given) if i != at]
    allowed = (None, SIZE) if may_know_sizes else (None,)
    is_alone = all(k in allowed for k in others)
    return kind if isinstance(kind, Examples) and is_alone else None


def _pointwise(op: tf.Operation, given: list[Kind | None]) -> Kind | None:
    """All examples lie along one axis; what else there is broadcasts over it."""
    rank = op.outputs[0].shape.rank
    found: set[tuple[int, int]] = set()
    for t, kind in zip(op.inputs, given, strict=True):
        if kind == SIZE or isinstance(kind, Flat) or None in (t.shape.rank, rank):
            return None
        if isinstance(kind, Examples):
            found.add((rank - t.shape.rank + kind.axis, kind.blocks))
    if len(found) != 1:
        return None
    ((axis, blocks),) = found
    for t, kind in zip(op.inputs, given, strict=True):
        place = axis - (rank - t.shape.rank)
        if kind is None and place >= 0 and t.shape[place] != 1:
            return None
    return Examples(axis, blocks)


def _biased(op: tf.Operation, given: list[Kind | None]) -> Kind | None:
    """A bias lies along the last axis, or along the second."""
    kind = _only(given, 0)
    if op.get_attr("data_format") == b"NHWC":
        return _pointwise(op, given) if kind else None
    return kind if kind and kind.axis == 0 else None


def _selected(op: tf.Operation, given: list[Kind | None]) -> Kind | None:
    """Pointwise, unless a condition of one axis selects whole rows."""
    is_pointwise = len({t.shape.rank for t in op.inputs}) == 1
    return _pointwise(op, given) if is_pointwise else None


def _windowed(op: tf.Operation, given: list[Kind | None]) -> Kind | None:
    kind = _only(given, 0)
    has_batch_first = "data_format" not in op.node_def.attr or (
        op.get_attr("data_format").startswith(b"N")
    )
    return kind if kind and kind.axis == 0 and has_batch_first else None


def _transposed_convolution(op: tf.Operation, given: list[Kind | None]) -> Kind | None:
    sizes, _, images = given
    kind = _only([sizes, images], 1, may_know_sizes=True) if given[1] is None else None
    is_known = op.outputs[0].shape[1:].is_fully_defined()
    return kind if kind and kind.axis == 0 and is_known else None


def _reducing(op: tf.Operation, given: list[Kind | None]) -> Kind | None:
    kind, rank = _only(given, 0), op.inputs[0].shape.rank
    axes = known(op.inputs[1])
    if kind is None or axes is None or rank is None:
        return None
    dropped = sorted({int(a) % rank for a in axes.reshape(-1)})
    if kind.axis in dropped:
        return None
    if op.outputs[0].shape.rank == rank:
        return kind
    return Examples(kind.axis - sum(a < kind.axis for a in dropped), kind.blocks)


def _last_axis(op: tf.Operation, given: list[Kind | None]) -> Kind | None:
    """Softmax and the like work along the last axis."""
    kind, rank = _only(given, 0), op.inputs[0].shape.rank
    return kind if kind and rank and kind.axis < rank - 1 else None


def _matmul(op: tf.Operation, given: list[Kind | None]) -> Kind | None:
    left, right = given
    if isinstance(left, Flat):
        width = op.inputs[1].shape[0] if right is None else None
        is_plain = op.type == "MatMul" and not (
            op.get_attr("transpose_a") or op.get_attr("transpose_b")
        )
        if not is_plain or not width or left.entries % width:
            return None
        return Examples(0, left.entries // width)
    ranks = [t.shape.rank for t in op.inputs]
    if isinstance(left, Examples) and isinstance(right, Examples):
        is_batched = left == right and ranks[0] == ranks[1] and ranks[0] >= 3
        return left if is_batched and left.axis < ranks[0] - 2 else None
    kind = left if isinstance(left, Examples) else right
    if not isinstance(kind, Examples) or SIZE in given:
        return None
    data, other = (0, 1) if kind is left else (1, 0)
    flipped = any(
        op.get_attr(name)
        for name in (
            ("transpose_a", "adj_x") if data == 0 else ("transpose_b", "adj_y")
        )
        if name in op.node_def.attr
    )
    leading = op.inputs[other].shape[:-2]
    if ranks[other] > ranks[data] or any(d != 1 for d in leading):
        return None
    if kind.axis < ranks[data] - 2:
        return kind
    is_rows_of_left = data == 0 and kind.axis == ranks[0] - 2 and not flipped
    return kind if is_rows_of_left else None


def _reshape(op: tf.Operation, given: list[Kind | None]) -> Kind | None:
    """Examples stay whole: each has as many entries behind as before."""
    kind = _only(given, 0, may_know_sizes=True)
    before, after = op.inputs[0].shape, op.outputs[0].shape
    if kind is None or kind.axis != 0 or after.rank is None or after.rank < 1:
        return None
    if (after[0] is None) != (before[0] is None):
        return None
    if not before[1:].is_fully_defined():
        return None
    entries = kind.blocks * math.prod(before[1:])
    if after.rank == 2 and after[0] is None and after[1] is None:
        return Flat(entries)
    if not after[1:].is_fully_defined():
        return None
    size = math.prod(after[1:])
    return Examples(0, entries // size) if size and entries % size == 0 else None


def _expand(op: tf.Operation, given: list[Kind | None]) -> Kind | None:
    kind, place = _only(given, 0), known(op.inputs[1])
    if kind is None or place is None:
        return None
    place = int(place) % op.outputs[0].shape.rank
    return Examples(kind.axis + (place <= kind.axis), kind.blocks)


def _squeeze(op: tf.Operation, given: list[Kind | None]) -> Kind | None:
    kind, rank = _only(given, 0), op.inputs[0].shape.rank
    places = [a % rank for a in op.get_attr("squeeze_dims")]
    if kind is None or not places or kind.axis in places:
        return None
    return Examples(kind.axis - sum(a < kind.axis for a in places), kind.blocks)


def _transpose(op: tf.Operation, given: list[Kind | None]) -> Kind | None:
    kind, order = _only(given, 0), known(op.inputs[1])
    if kind is None or order is None:
        return None
    return Examples([int(a) for a in order].index(kind.axis), kind.blocks)


def _gather(op: tf.Operation, given: list[Kind | None]) -> Kind | None:
    table, ids, _ = given
    axis = known(op.inputs[2])
    batch_dims = op.get_attr("batch_dims")
    if axis is None:
        return None
    axis = int(axis) % op.inputs[0].shape.rank
    if isinstance(table, Examples) and isinstance(ids, Examples):
        return table if batch_dims >= 1 and table == ids and table.axis == 0 else None
    if isinstance(ids, Examples):
        is_table = batch_dims == 0 and axis == 0 and table is None
        return ids if is_table else None
    if isinstance(table, Examples) and ids is None and batch_dims == 0:
        if axis == table.axis:
            return None
        grown = (op.inputs[1].shape.rank - 1) * (axis < table.axis)
        return Examples(table.axis + grown, table.blocks)
    return None


def _strided_slice(op: tf.Operation, given: list[Kind | None]) -> Kind | None:
    """All examples are taken: the slice of their axis is a plain `:`."""
    kind, rank = _only(given, 0), op.inputs[0].shape.rank
    strides = known(op.inputs[3])
    if kind is None or strides is None or rank is None:
        return None
    masks = {
        name: op.get_attr(f"{name}_mask")
        for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")
    }

    def says(name: str, entry: int) -> bool:
        return bool(masks[name] >> entry & 1)

    dots = [i for i in range(len(strides)) if says("ellipsis", i)] or [len(strides)]
    entries = [i for i in range(len(strides)) if i != dots[0]]
    new = [i for i in entries if says("new_axis", i)]
    # Dots stand for all axes that no entry reads; without any they come last.
    left: list[int | None] = [None] * (rank - len(entries) + len(new))
    order = [*entries[: dots[0]], *left, *entries[dots[0] :]]
    axis = before = 0
    for entry in order:
        if entry in new:
            before += 1
            continue
        is_whole = entry is None or (
            says("begin", entry) and says("end", entry) and strides[entry] == 1
        )
        is_dropped = entry is not None and says("shrink_axis", entry)
        if axis == kind.axis:
            return (
                Examples(before, kind.blocks) if is_whole and not is_dropped else None
            )
        axis, before = axis + 1, before + (not is_dropped)
    return None


def _projective(op: tf.Operation, given: list[Kind | None]) -> Kind | None:
    """Each image by a transform of its own, or all by one."""
    images, transforms, *others = given
    is_one = transforms is None and op.inputs[1].shape[0] == 1
    is_apart = images == Examples(0, 1) and (is_one or transforms == images)
    return images if is_apart and all(k in (None, SIZE) for k in others) else None


def _looked_up(op: tf.Operation, given: list[Kind | None]) -> Kind | None:
    """Each key by itself, in a table that nothing writes to."""
    return _only(given, 1)


def _concat(op: tf.Operation, given: list[Kind | None]) -> Kind | None:
    *parts, _ = given
    place = known(op.inputs[-1])
    kinds = set(parts)
    if place is None or len(kinds) != 1:
        return None
    (kind,) = kinds
    is_apart = isinstance(kind, Examples) and (
        int(place) % op.outputs[0].shape.rank != kind.axis
    )
    return kind if is_apart else None


def _pack(op: tf.Operation, given: list[Kind | None]) -> Kind | None:
    kinds = set(given)
    place = op.get_attr("axis") % op.outputs[0].shape.rank
    if len(kinds) != 1:
        return None
    (kind,) = kinds
    if not isinstance(kind, Examples):
        return None
    return Examples(kind.axis + (place <= kind.axis), kind.blocks)


def _unpack(op: tf.Operation, given: list[Kind | None]) -> Kind | None:
    kind, place = _only(given, 0), op.get_attr("axis") % op.inputs[0].shape.rank
    if kind is None or place == kind.axis:
        return None
    return Examples(kind.axis - (place < kind.axis), kind.blocks)


def _split(op: tf.Operation, given: list[Kind | None]) -> Kind | None:
    data, place = (1, 0) if op.type == "Split" else (0, 2)
    kind, axis = _only(given, data), known(op.inputs[place])
    if kind is None or axis is None:
        return None
    return kind if int(axis) % op.inputs[data].shape.rank != kind.axis else None


def _along(is_untouched: Callable[[Any], bool]) -> Rule:
    """Ops whose second input says, for each axis, what happens to it."""

    def rule(op: tf.Operation, given: list[Kind | None]) -> Kind | None:
        kind, amounts = _only(given, 0), known(op.inputs[1])
        if kind is None or amounts is None or SIZE in given:
            return None
        return kind if is_untouched(amounts[kind.axis]) else None

    return rule


def _reverse(op: tf.Operation, given: list[Kind | None]) -> Kind | None:
    kind, axes = _only(given, 0), known(op.inputs[1])
    if kind is None or axes is None:
        return None
    rank = op.inputs[0].shape.rank
    return kind if kind.axis not in {int(a) % rank for a in axes} else None


def _einsum(op: tf.Operation, given: list[Kind | None]) -> Kind | None:
    """The letter of the examples stands in all operands with data and in the result."""
    terms, result = op.get_attr("equation").decode().split("->")
    if "." in terms + result:
        return None
    letters = set()
    for term, kind in zip(terms.split(","), given, strict=True):
        if isinstance(kind, Examples):
            if term.count(term[kind.axis]) > 1:
                return None
            letters.add((term[kind.axis], kind.blocks))
        elif kind is not None:
            return None
    if len(letters) != 1:
        return None
    ((letter, blocks),) = letters
    free = [t for t, kind in zip(terms.split(","), given, strict=True) if kind is None]
    is_kept = result.count(letter) == 1 and not any(letter in term for term in free)
    return Examples(result.index(letter), blocks) if is_kept else None


def _one_hot(op: tf.Operation, given: list[Kind | None]) -> Kind | None:
    kind = _only(given, 0)
    return kind if op.get_attr("axis") == -1 else None


_RULES: dict[str, Rule] = {
    "BatchMatMulV2": _matmul,
    "BiasAdd": _biased,
    "MatMul": _matmul,
    "Einsum": _einsum,
    "Conv2DBackpropInput": _transposed_convolution,
    "Conv3DBackpropInputV2": _transposed_convolution,
    "ConcatV2": _concat,
    "ExpandDims": _expand,
    "GatherV2": _gather,
    "ImageProjectiveTransformV3": _projective,
    "LogSoftmax": _last_axis,
    "LookupTableFindV2": _looked_up,
    "MirrorPad": _along(lambda amount: not any(amount)),
    "OneHot": _one_hot,
    "Pack": _pack,
    "Pad": _along(lambda amount: not any(amount)),
    "PadV2": _along(lambda amount: not any(amount)),
    "Reshape": _reshape,
    "ReverseV2": _reverse,
    "Select": _selected,
    "Softmax": _last_axis,
    "Split": _split,
    "SplitV": _split,
    "Squeeze": _squeeze,
    "StridedSlice": _strided_slice,
    "Tile": _along(lambda amount: amount == 1),
    "TopKV2": _last_axis,
    "Transpose": _transpose,
    "Unpack": _unpack,
}
