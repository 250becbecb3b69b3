"""Rewrites of an onnx-ir graph, in place, to the few forms every target reads: the portable spelling of a CNN.

Each function looks for one thing that exporters spell in several ways and leaves the one spelling that
TensorRT 8.6 to 11, OpenVINO and ONNX Runtime agree on. All need inferred shapes.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from resdeploy.graph.canonical.fold import add_constant, constant, insert_node, new_node, only_maker, operand, replace

POOL = "resdeploy.pool"  # a mark on nodes, read before the metadata is stripped (`metadata.Removed`)


def drop_no_ops(graph: ir.Graph) -> None:
    """Removes Identity, inference-mode Dropout, casts to the same type, and what slices, pads or pools nothing."""
    for node in tuple(graph):
        if not node.domain and _does_nothing(node):
            if node.op_type in ("AveragePool", "GlobalAveragePool") and (maker := operand(node).producer()) is not None:
                maker.metadata_props[POOL] = ""
            replace(graph, node.outputs[0], operand(node))
            graph.remove(node, safe=True)


def add_in_pairs(graph: ir.Graph) -> None:
    """Sum, as Caffe2 and MXNet write residual additions, becomes Add: a chain of them for more than two tensors."""
    for node in tuple(graph):
        if node.domain or node.op_type != "Sum":
            continue
        total = operand(node)
        for part in node.inputs[1:-1]:
            total = insert_node(graph, node, "Add", (total, part), node.outputs[0])
        if len(node.inputs) > 1:
            new_node(graph, node, "Add", (total, node.inputs[-1]), node.outputs[0])
        else:
            replace(graph, node.outputs[0], total)
        graph.remove(node, safe=True)


def clip_plainly(graph: ir.Graph) -> None:
    """Bounds written as Max, Min or several in a row become one Clip; one at zero alone is Relu, none is nothing."""
    for node in tuple(graph):
        if node.graph is None or (bounds := _bounds(node)) is None:
            continue
        (low, high), chain = bounds, [node]
        while (before := only_maker(_bounded(chain[-1]))) is not None and (inner := _bounds(before)) is not None:
            low, high = (min(max(bound, low), high) for bound in inner)
            chain.append(before)
        image = _bounded(chain[-1])
        if (low, high) == (-np.inf, np.inf):
            replace(graph, node.outputs[0], image)
        elif len(chain) > 1 or not _is_plain_bound(node, low, high):
            limits = [_limit(graph, image, bound) for bound in (low, high)][: 2 if high < np.inf else 1]
            relu = (low, high) == (0.0, np.inf)
            inputs = [image] if relu else [image, *limits]
            new_node(graph, node, "Relu" if relu else "Clip", inputs, node.outputs[0])
        else:
            continue
        graph.remove(chain, safe=True)


def _bounds(node: ir.Node | None) -> tuple[float, float] | None:
    """The lowest and the highest value that a node lets through, where that is all it does."""
    if node is None or node.domain:
        return None
    if node.op_type == "Relu":
        return 0.0, np.inf
    if node.op_type == "Clip":
        given = [None if v is None else constant(v) for v in (*node.inputs[1:], None, None)[:2]]
        known = all(a is not None for a, v in zip(given, node.inputs[1:], strict=False) if v is not None)
        low, high = (_finite_bound(a, sign) for a, sign in zip(given, (-1, 1), strict=True))
        return (low, high) if known and low <= high else None
    if node.op_type not in ("Max", "Min") or len(node.inputs) != 2:
        return None
    numbers = [a for v in node.inputs if (a := constant(v)) is not None and a.size == 1 and a.dtype.kind == "f"]
    rank = len(_bounded(node).shape or ())
    if len(numbers) != 1 or numbers[0].ndim > rank:
        return None
    number = float(numbers[0].ravel()[0])
    return (number, np.inf) if node.op_type == "Max" else (-np.inf, number)


def _finite_bound(array: np.ndarray | None, sign: int) -> float:
    """A bound of Clip; the largest finite number, which older opsets write where there is none, is none."""
    number = sign * np.inf if array is None else float(array.ravel()[0])
    return sign * np.inf if sign * number >= np.finfo(np.float32).max else number


def _bounded(node: ir.Node) -> ir.Value:
    """What a node of `_bounds` bounds."""
    return operand(node, 1 if constant(node.inputs[0]) is not None else 0)


def _is_plain_bound(node: ir.Node, low: float, high: float) -> bool:
    if node.op_type == "Relu":
        return True
    absent = [v is None for v in (*node.inputs[1:], None, None)[:2]]
    return node.op_type == "Clip" and (low, high) != (0.0, np.inf) and absent == [low == -np.inf, high == np.inf]


def _limit(graph: ir.Graph, image: ir.Value, bound: float) -> ir.Value | None:
    dtype = np.float32 if image.dtype is None else image.dtype.numpy()
    return add_constant(graph, "bound", np.array(bound, dtype)) if np.isfinite(bound) else None


def stored_names(graph: ir.Graph) -> frozenset[str]:
    """The initialisers, and the names that TorchScript's exporter gives those which are equal to another (Identity)."""
    names = {str(name) for name in graph.initializers}
    for node in graph:
        if node.op_type == "Identity" and not node.domain and operand(node).name in names:
            names.add(str(node.outputs[0].name))
    return frozenset(names)


def drop_made_up_biases(graph: ir.Graph, stored: Collection[str]) -> None:
    """Removes the zeros that exporters give a convolution without bias; what was stored as a parameter stays.

    Args:
        graph: with its constants folded.
        stored: its `stored_names` before they were.
    """
    for node in graph:
        if node.domain or node.op_type != "Conv" or len(node.inputs) < 3 or node.inputs[2] is None:
            continue
        bias = constant(node.inputs[2])
        if bias is not None and not bias.any() and node.inputs[2].name not in stored:
            node.resize_inputs(2)


def _does_nothing(node: ir.Node) -> bool:
    if (
        node.inputs
        and node.inputs[0] is not None
        and node.inputs[0].is_graph_input()
        and node.outputs[0].is_graph_output()
    ):
        return False
    if node.op_type == "Identity":
        return True
    if node.op_type == "Dropout":
        training = constant(node.inputs[2]) if len(node.inputs) > 2 else np.array(0)
        mask_used = len(node.outputs) > 1 and bool(node.outputs[1].uses())
        return training is not None and not training.any() and not mask_used
    if node.op_type == "Cast":
        return node.attributes["to"].as_int() == operand(node).dtype
    if node.op_type in ("AveragePool", "MaxPool") and len(node.outputs) == 1:
        return set(node.attributes["kernel_shape"].as_ints()) == {1} and _is_dense(node)
    if node.op_type in ("GlobalAveragePool", "GlobalMaxPool"):
        shape = operand(node).shape
        return shape is not None and len(shape) > 2 and set(shape[2:]) == {1}
    if node.op_type == "Pad":
        amounts = constant(node.inputs[1])
        return amounts is not None and not amounts.any()
    if node.op_type == "Slice":
        parameters = _slice_parameters(node)
        return parameters is not None and all(p[:3] == (0, p[1], 1) and p[1] >= p[3] for p in parameters)
    return False


def _is_dense(node: ir.Node) -> bool:
    """Stride 1 and no padding."""
    return set(node.attributes.get_ints("strides", ())) <= {1} and not any(node.attributes.get_ints("pads", ()))


def _slice_parameters(node: ir.Node) -> list[tuple[int, int, int, int]] | None:
    """(start, end, step, axis length) of each sliced axis; an unknown length counts as the largest integer."""
    axes = _slice_axes(node)
    shape = operand(node).shape
    if axes is None or shape is None:
        return None
    sizes = [shape[a] for a, *_ in axes]
    lengths = [size if isinstance(size, int) else np.iinfo(np.int64).max for size in sizes]
    return [(start, end, step, length) for (_, start, end, step), length in zip(axes, lengths, strict=True)]


def _slice_axes(node: ir.Node) -> list[tuple[int, int, int, int]] | None:
    """(axis, start, end, step) of a Slice with constant parameters."""
    arrays = [constant(v) for v in node.inputs[1:]]
    if any(a is None for a, v in zip(arrays, node.inputs[1:], strict=True) if v is not None) or len(arrays) < 2:
        return None
    starts, ends = ([int(i) for i in np.ravel(a)] for a in arrays[:2] if a is not None)
    axes = arrays[2] if len(arrays) > 2 and arrays[2] is not None else np.arange(len(starts))
    steps = arrays[3] if len(arrays) > 3 and arrays[3] is not None else np.ones(len(starts), dtype=np.int64)
    return list(zip((int(i) for i in axes), starts, ends, (int(i) for i in steps), strict=True))


def merge_slices(graph: ir.Graph) -> None:
    """`x[:, :, ::2, ::2]` is one Slice, not one an axis (shortcut option A)."""
    for node in tuple(graph):
        first = node.inputs[0].producer() if node.op_type == "Slice" and node.inputs[0] is not None else None
        if node.domain or first is None or first.op_type != "Slice" or len(first.outputs[0].uses()) != 1:
            continue
        before, after = _slice_axes(first), _slice_axes(node)
        if before is None or after is None or first.outputs[0].is_graph_output():
            continue
        merged = sorted([*before, *after])
        if any(a < 0 for a, *_ in merged) or len({a for a, *_ in merged}) != len(merged):
            continue
        axes, starts, ends, steps = (np.array(column, dtype=np.int64) for column in zip(*merged, strict=True))
        parameters = tuple(add_constant(graph, "slice", array) for array in (starts, ends, axes, steps))
        new_node(graph, node, "Slice", (first.inputs[0], *parameters), node.outputs[0])
        graph.remove([node, first], safe=True)


def split_plainly(graph: ir.Graph) -> None:
    """`torch.split`, which the dynamo exporter writes as a sequence and its elements, becomes Split."""
    for node in tuple(graph):
        if node.domain or node.op_type != "SplitToSequence" or len(node.inputs) != 2:
            continue
        axis = node.attributes.get_int("axis", 0)
        split, shape = constant(node.inputs[1]), operand(node).shape
        length = None if shape is None else shape[axis]
        users = [user for user, _ in node.outputs[0].uses()]
        if split is None or not isinstance(length, int) or any(user.op_type != "SequenceAt" for user in users):
            continue
        sizes = split if split.ndim else np.diff([*range(0, length, int(split)), length])
        positions = [int(np.ravel(p)[0]) for user in users if (p := constant(user.inputs[1])) is not None]
        if len(positions) < len(users):
            continue
        size_input = add_constant(graph, "split", sizes.astype(np.int64))
        plain = ir.Node(
            "",
            "Split",
            [operand(node), size_input],
            [ir.AttrInt64("axis", axis)],
            num_outputs=len(sizes),
            name=node.name,
            metadata_props=dict(node.metadata_props),
        )
        graph.insert_before(node, plain)
        for k, part in enumerate(plain.outputs):
            part.name = f"{node.outputs[0].name}_{k}"
        for user, position in zip(users, positions, strict=True):
            part = plain.outputs[position]
            part.shape, part.type = user.outputs[0].shape, operand(node).type
            replace(graph, user.outputs[0], part)
        graph.remove([*users, node], safe=True)


def pool_globally(graph: ir.Graph) -> None:
    """Means over height and width become GlobalAveragePool, plus a Flatten where the axes were dropped.

    TensorRT 8.6 silently misreads ReduceMean's axes given as an input (NVIDIA/TensorRT#3467).
    """
    for node in tuple(graph):
        keeps = _global_mean(node)
        if keeps is None:
            continue
        source, shape = node.inputs[0], operand(node).shape
        assert shape is not None
        pooled = new_node(graph, node, "GlobalAveragePool", (source,), node.outputs[0])
        pooled.shape = ir.Shape((shape[0], shape[1], *[1] * (len(shape) - 2)))
        if not keeps:
            flat = ir.Node("", "Flatten", [pooled], [ir.AttrInt64("axis", 1)], name="flatten")
            flat.outputs[0].shape, flat.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
            flat.outputs[0].name = f"{pooled.name}flat"
            replace(graph, pooled, flat.outputs[0])
            flat.replace_input_with(0, pooled)
            graph.insert_before(node, flat)
        graph.remove(node, safe=True)


def _global_mean(node: ir.Node) -> bool | None:
    """Whether the spatial axes are kept, for a node that averages all of them; else None."""
    if node.domain or node.op_type not in ("ReduceMean", "AveragePool") or node.inputs[0] is None:
        return None
    shape = operand(node).shape
    if shape is None or len(shape) != 4:
        return None
    if node.op_type == "AveragePool":
        kernel = node.attributes["kernel_shape"].as_ints()
        unpadded = not any(node.attributes.get_ints("pads", ()))
        automatic = node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
        return True if tuple(shape[2:]) == tuple(kernel) and unpadded and not automatic else None
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None and "axes" in node.attributes:
        axes = np.array(node.attributes["axes"].as_ints())
    if axes is None or sorted(int(a) % 4 for a in np.ravel(axes)) != [2, 3]:
        return None
    return bool(node.attributes.get_int("keepdims", 1) == 1)


def flatten(graph: ir.Graph) -> None:
    """Reshape and Squeeze that only join all axes but the batch become Flatten."""
    for node in tuple(graph):
        if node.domain or node.op_type not in ("Reshape", "Squeeze") or not _joins_all_but_batch(node):
            continue
        if len(operand(node).shape or ()) == 2:
            replace(graph, node.outputs[0], operand(node))
        else:
            new_node(graph, node, "Flatten", (operand(node),), node.outputs[0], attributes=(ir.AttrInt64("axis", 1),))
        graph.remove(node, safe=True)


def flatten_logits(graph: ir.Graph) -> None:
    """Logits (N, classes, 1, 1), of a classifier that ends in its pooling, become (N, classes)."""
    logits = graph.outputs[0]
    maker, shape = logits.producer(), logits.shape
    if maker is None or shape is None or len(shape) != 4 or tuple(shape[2:]) != (1, 1):
        return
    flat = ir.Node("", "Flatten", [logits], [ir.AttrInt64("axis", 1)], name="flatten")
    flat.outputs[0].name, flat.outputs[0].type = f"{logits.name}_flat", logits.type
    flat.outputs[0].shape = ir.Shape(shape[:2])
    graph.insert_after(maker, flat)
    graph.outputs[0] = flat.outputs[0]


def _joins_all_but_batch(node: ir.Node) -> bool:
    shape = operand(node).shape
    if shape is None or len(shape) < 2:
        return False
    rest = [d for d in shape[1:] if isinstance(d, int)]
    joined = int(np.prod(rest)) if len(rest) == len(shape) - 1 else None
    if node.op_type == "Squeeze":
        axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        named = None if axes is None else sorted(int(a) % len(shape) for a in np.ravel(axes))
        return named == list(range(2, len(shape))) and all(d == 1 for d in shape[2:])
    target = constant(node.inputs[1])
    if target is None or target.size != 2:
        return False
    first, second = (int(d) for d in target)
    zero_copies = not node.attributes.get_int("allowzero", 0)
    batch_kept = (first == 0 and zero_copies) or (isinstance(shape[0], int) and first == shape[0])
    return (batch_kept and second in (-1, joined)) or (first == -1 and second == joined and joined is not None)
