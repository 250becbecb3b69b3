"""Padding in one spelling: explicit numbers on the convolution or pool itself, rounding down.

Exporters also write it as a Pad before (TensorFlow, timm's "same" layers), as `auto_pad`, or as `ceil_mode`. Of the
last, runtimes make different sizes: where a window would begin in the padding, torch, ONNX's inference and ONNX Runtime
leave it out, and OpenVINO 2026.4 and TensorRT's parser do not. All need inferred shapes, and opset 17.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from resdeploy.graph.canonical.fold import add_constant, constant, insert_node, operand
from resdeploy.graph.windows import end_of_last

_LOWEST = float(np.finfo(np.float32).min)
# Operators whose output is nowhere below zero, and those whose output is nowhere below that of their first input.
_NOT_NEGATIVE = frozenset({"Relu", "Sigmoid", "Softmax", "HardSigmoid", "Abs", "Exp", "Sqrt"})
_NOT_LOWER = frozenset({
    *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Flatten", "Reshape", "Transpose", "Slice"),
    *("Identity", "Squeeze", "Unsqueeze", "Dropout"),
})  # fmt: skip
_MAX_STEPS = 32  # how far back a lower bound is looked for

Pads = list[tuple[int, int]]  # along each spatial axis, before and after


def make_explicit(graph: ir.Graph) -> None:
    """`auto_pad` becomes pads, where the image's size or a stride of 1 decides them; zeros are what Pad pads anyway."""
    for node in graph:
        if not node.domain and node.op_type == "Pad" and len(node.inputs) == 3:
            filler = constant(node.inputs[2])
            if node.inputs[2] is None or (filler is not None and not filler.any()):
                node.resize_inputs(2)
        if node.domain or node.op_type not in ("Conv", "MaxPool", "AveragePool"):
            continue
        auto = node.attributes.get_string("auto_pad", "NOTSET")
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            if (pads := _same(node, upper=auto == "SAME_UPPER")) is None:
                continue
            _set_pads(node, pads)
        elif auto == "VALID":
            node.attributes.pop("pads", None)
        if auto != "NOTSET":
            node.attributes.pop("ceil_mode", None)  # these decide the number of windows by themselves
        node.attributes.pop("auto_pad", None)


def take_in(graph: ir.Graph) -> None:
    """A Pad of zeros before a convolution, or below all data before a max pool, becomes the padding of that."""
    for node in tuple(graph):
        if node.domain or node.op_type not in ("Conv", "MaxPool") or node.attributes.get_int("ceil_mode", 0) == 1:
            continue
        if _windows(node) is None or len(node.outputs) > 1:  # a second output holds indices, which padding moves
            continue
        pad = operand(node).producer()
        if pad is None or pad.domain or pad.op_type != "Pad" or (outer := _constant_pad(pad)) is None:
            continue
        amounts, value = outer
        neutral = value == 0.0 if node.op_type == "Conv" else value <= _lower_bound(operand(pad))
        pads = [(b + more, a + extra) for (b, a), (more, extra) in zip(_pads(node), amounts, strict=True)]
        if neutral and _is_padding(node, pads):
            node.replace_input_with(0, operand(pad))
            _set_pads(node, pads)


def round_down(graph: ir.Graph) -> None:
    """`ceil_mode` becomes more padding at the end, as much as torch's windows reach; an average leaves that out.

    torch's rule (aten/src/ATen/native/Pool.h, pooling_output_shape): one more window where the last is not whole, and
    none that begins in the padding at the end.
    """
    for node in tuple(graph):
        if node.domain or node.op_type not in ("MaxPool", "AveragePool") or not node.attributes.get_int("ceil_mode", 0):
            continue
        windows, sizes = _windows(node), _sizes(operand(node))
        if windows is None or sizes is None or len(node.outputs) > 1:
            continue
        given = _pads(node)
        pads = [_reach(size, *window, *pad) for size, window, pad in zip(sizes, windows, given, strict=True)]
        if not _is_padding(node, pads):
            continue
        node.attributes.pop("ceil_mode")
        counted = [(before, min(reach, after)) for (before, reach), (_, after) in zip(pads, given, strict=True)]
        if node.attributes.get_int("count_include_pad", 0) and counted != pads:
            _count_only(graph, node, counted)
            pads = [(0, reach - after) for (_, reach), (_, after) in zip(pads, counted, strict=True)]
        _set_pads(node, pads)


def _count_only(graph: ir.Graph, node: ir.Node, counted: Pads) -> None:
    """The padding that an average counts becomes a Pad of its own, so that what is added to it is not counted."""
    node.attributes.pop("count_include_pad")
    if not any(map(any, counted)):
        return
    image = operand(node)
    amounts = np.array([0, 0, *(b for b, _ in counted), 0, 0, *(a for _, a in counted)], dtype=np.int64)
    padded = insert_node(graph, node, "Pad", [image, add_constant(graph, "pads", amounts)], image)
    if image.shape is not None and (sizes := _sizes(image)) is not None:
        sizes_after = (size + before + after for size, (before, after) in zip(sizes, counted, strict=True))
        padded.shape = ir.Shape((*image.shape[:2], *sizes_after))
    node.replace_input_with(0, padded)


def _reach(size: int, kernel: int, stride: int, before: int, after: int) -> tuple[int, int]:
    """The padding along one axis with which rounding down gives what `ceil_mode` does.

    Args:
        size: of the image.
        kernel: from a window's first to its last element.
        stride: from window to window.
        before: padding at the beginning.
        after: padding at the end.
    """
    least = end_of_last(size, kernel, stride, before, after)
    return before, min(max(after, least), least + stride - 1)


def _windows(node: ir.Node) -> list[tuple[int, int]] | None:
    """(kernel with its dilation, stride) along each of two spatial axes; None where they are not known.

    Nor does anything here know what an `auto_pad` that is left comes to.
    """
    if "auto_pad" in node.attributes:
        return None
    if node.op_type == "Conv":
        sizes = tuple(operand(node, 1).shape or ())[2:]
    else:
        sizes = tuple(node.attributes.get_ints("kernel_shape", ()))
    kernel = [size for size in sizes if isinstance(size, int)]
    if len(kernel) != 2:
        return None
    dilations = node.attributes.get_ints("dilations", (1, 1))
    strides = node.attributes.get_ints("strides", (1, 1))
    return [((k - 1) * d + 1, s) for k, d, s in zip(kernel, dilations, strides, strict=True)]


def _sizes(image: ir.Value) -> tuple[int, int] | None:
    """Height and width, where the file fixes them."""
    if image.shape is None or len(image.shape) != 4:
        return None
    height, width = image.shape[2:]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _pads(node: ir.Node) -> Pads:
    begin_and_end = node.attributes.get_ints("pads", (0, 0, 0, 0))
    return list(zip(begin_and_end[:2], begin_and_end[2:], strict=True))


def _set_pads(node: ir.Node, pads: Pads) -> None:
    node.attributes["pads"] = ir.AttrInt64s("pads", [*(b for b, _ in pads), *(a for _, a in pads)])


def _is_padding(node: ir.Node, pads: Pads) -> bool:
    """Whether these may be the operator's own pads: none negative, and every window of a pool reads data.

    ONNX Runtime wants a pool's pads smaller than its kernel; a window with holes may miss all data even then.
    """
    if any(min(pad) < 0 for pad in pads):
        return False
    if node.op_type == "Conv":
        return True
    kernel = node.attributes.get_ints("kernel_shape", ())
    dense = set(node.attributes.get_ints("dilations", (1, 1))) == {1}
    return dense and all(max(pad) < k for pad, k in zip(pads, kernel, strict=True))


def _same(node: ir.Node, *, upper: bool) -> Pads | None:
    """Pads such that there are ceil(size / stride) windows, the odd one at the end (SAME_UPPER) or before."""
    sizes, auto = _sizes(operand(node)), node.attributes.pop("auto_pad")
    windows = _windows(node)
    node.attributes["auto_pad"] = auto
    if windows is None or (sizes is None and any(stride != 1 for _, stride in windows)):
        return None
    totals = [
        max(0, (-(-size // stride) - 1) * stride + kernel - size)
        for size, (kernel, stride) in zip(sizes or (1, 1), windows, strict=True)
    ]
    return [(total // 2, total - total // 2) if upper else (total - total // 2, total // 2) for total in totals]


def _constant_pad(pad: ir.Node) -> tuple[Pads, float] | None:
    """What a Pad adds to height and width and with which value; None: elsewhere too, or not known."""
    amounts, shape = constant(pad.inputs[1]), operand(pad).shape
    if amounts is None or amounts.size != 8 or shape is None or len(shape) != 4 or len(pad.inputs) > 3:
        return None
    if pad.attributes.get_string("mode", "constant") != "constant":
        return None
    value = pad.inputs[2] if len(pad.inputs) > 2 else None
    filler = np.zeros(()) if value is None else constant(value)
    begin, end = (int(n) for n in amounts[:4]), (int(n) for n in amounts[4:])
    batch, channels, *rest = zip(begin, end, strict=True)
    if filler is None or filler.size != 1 or any(batch) or any(channels) or any(min(pair) < 0 for pair in rest):
        return None
    return rest, float(filler.ravel()[0])


def _lower_bound(value: ir.Value, steps: int = _MAX_STEPS) -> float:
    """A number up to 0 that no element of a value is below: the lowest finite one where nothing is known."""
    node = value.producer()
    if node is None or node.domain or not steps:
        return _LOWEST
    if node.op_type in _NOT_NEGATIVE:
        return 0.0
    if node.op_type == "Clip" and len(node.inputs) > 1 and (low := constant(node.inputs[1])) is not None:
        return min(0.0, float(low.ravel()[0]))
    if node.op_type in ("Concat", "Add"):
        bound = min(_lower_bound(operand(node, k), steps // 2) for k in range(len(node.inputs)))
        return bound if node.op_type == "Concat" or bound == 0 else _LOWEST
    return _lower_bound(operand(node), steps - 1) if node.op_type in _NOT_LOWER else _LOWEST
