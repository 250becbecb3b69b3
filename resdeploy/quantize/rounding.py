"""Second-order rounding of weights, layer by layer, in closed form (`--effort high`).

Rounding each weight to the nearest step is best for the weight and not for the layer's output. Let x be what a layer
reads in the float network and y what it reads in the quantized one, all layers before it quantized already. Wanted are
integers Q and scales s such that `s Q y` is as near to `W x` as can be, on average over images and positions. With
second moments about the means, S = E[y y'] and C = E[x y']:

1. The real-valued optimum is `V = W C S^-1` (least squares): it undoes what part of the error in y can be told from y.
   Both moments get the same ridge, so that directions seldom seen keep their weights.
2. V is rounded one input at a time, the error of each spread over the inputs not yet rounded by the inverse of S
   (GPTQ: Frantar et al. 2022, arXiv:2210.17323, section 3; inputs in order of falling variance, ridge of 1 % of the
   mean variance as there).
3. Each output channel's scale is fitted again, `s = (W C Q') / (Q S Q')`, and its bias takes the difference of the
   means.

Moments are sums over a stream of images, at seeded positions of each; memory depends on the layer's fan-in alone. A
quarter of the images is held out: of nearest rounding, GPTQ of W and GPTQ of V, a layer takes what errs least there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

from resdeploy.graph import qdq_placement
from resdeploy.graph.index import Index, attribute, by_name, integers, prune, set_nodes, set_output
from resdeploy.quantize import bias, ranges, simulated
from resdeploy.records import Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resdeploy.graph.qdq_placement import Activation, Placement, Weight, WeightSite
    from resdeploy.quantize.calibrate import Runner

# Each layer is another run of all before it, so a bounded number of images is taken, with many positions of each: 9 or
# more samples for each of 576 inputs, the largest fan-in of a CIFAR ResNet.
IMAGES = 128
POSITIONS = 128
# Frantar et al. 2022, section 3.3: 1 % of the mean of the diagonal.
RIDGE = 0.01
# Columns whose errors are gathered before the rest of the matrix is updated (section 3.3's lazy batches).
COLUMNS = 128
# One image in four judges what the others suggest.
HELD_OUT = 4
# A scale may be refitted by this factor at most: more means that a channel was hardly seen.
REFIT = 1.1
READ = "read"


@dataclass(kw_only=True, eq=False)
class Moments:
    """Sums over samples of one group of inputs; y comes from the quantized network, x from the float one."""

    yy: NDArray[np.float32]  # (fan-in, fan-in)
    xy: NDArray[np.float32]
    y: NDArray[np.float64]  # (fan-in,)
    x: NDArray[np.float64]
    count: int = 0

    @classmethod
    def empty(cls, size: int) -> Moments:
        return cls(
            yy=np.zeros((size, size), np.float32),
            xy=np.zeros((size, size), np.float32),
            y=np.zeros(size),
            x=np.zeros(size),
        )

    def add(self, x: NDArray[np.float32], y: NDArray[np.float32]) -> None:
        """Samples (n, fan-in)."""
        self.yy += y.T @ y
        self.xy += x.T @ y
        self.y += y.sum(axis=0, dtype=np.float64)
        self.x += x.sum(axis=0, dtype=np.float64)
        self.count += len(y)

    def central(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """S and C about the means, each (fan-in, fan-in)."""
        mean_x, mean_y = self.x / self.count, self.y / self.count
        return (
            (self.yy / self.count - np.outer(mean_y, mean_y)).astype(np.float32),
            (self.xy / self.count - np.outer(mean_x, mean_y)).astype(np.float32),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Rounding:
    """How a float graph is rounded: all that its INT8 graph is made of."""

    model: onnx.ModelProto  # the float graph
    placement: Placement
    activations: Mapping[str, Activation]  # for every tensor of `placement.observed`
    weights: Mapping[str, Weight]  # for every operator of `placement.weights`
    limit: int  # their largest integer magnitude
    shifts: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)  # operator -> what its bias is shifted by

    def graph(self) -> onnx.ModelProto:
        """The graph with Q/DQ pairs, its biases shifted."""
        shifted = bias.shift_biases(self.model, self.shifts)
        return qdq_placement.insert(shifted, self.placement, self.activations, self.weights)


def refine(
    rounding: Rounding, images: Sequence[NDArray[Any]], run: Runner, *, seed: int = 0, progress: Progress | None = None
) -> Rounding:
    """The weights rounded anew, and biases shifted by what each layer then lacks.

    Args:
        rounding: to nearest, the graph's batch dimension symbolic; the weights' scales are where the search starts.
        images: each (C, H, W).
        run: opens a graph for running.
        seed: of the positions sampled.
        progress: told after every layer.
    """
    images = images[:IMAGES]
    index = Index(rounding.model)
    nodes = by_name(index.nodes)
    for done, site in enumerate(rounding.placement.weights, 1):
        if nodes[site.node].op_type in ("Conv", "Gemm"):
            fit, held_out = _observe(rounding, site, images, run, seed)
            exact = _rows(index.array(site.tensor), site.axis)
            start, one_scale = rounding.weights[site.node], rounding.placement.one_scale
            weight = _best(exact, start, site.axis, fit, held_out, rounding.limit, one_scale=one_scale)
            shift = _shift(exact, weight, site.axis, fit, held_out)
            rounding = replace(
                rounding,
                weights={**rounding.weights, site.node: weight},
                shifts={**rounding.shifts, site.node: shift},
            )
        if progress is not None:
            progress("rounding weights", done, len(rounding.placement.weights))
    return rounding


def _rows(values: NDArray[Any], axis: int) -> NDArray[Any]:
    """(out, fan-in)."""
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def _observe(
    rounding: Rounding, site: WeightSite, images: Sequence[NDArray[Any]], run: Runner, seed: int
) -> tuple[list[Moments], list[Moments]]:
    """Moments of each group of one layer's inputs, of the images to fit on and of those held out."""
    node, weight = by_name(rounding.model.graph.node)[site.node], rounding.weights[site.node]
    groups = attribute(node, "group", 1) if node.op_type == "Conv" else 1
    fan_in = weight.values.size // weight.scale.size
    fit, held_out = ([Moments.empty(fan_in) for _ in range(groups)] for _ in range(2))
    shape = images[0].shape
    size = min(bias.MAX_BATCH_SIZE, max(1, bias.BATCH_ELEMENTS // images[0].size))
    graph = cut_before(site, rounding.model, rounding.graph())
    with run(graph, (shape[0], shape[1], shape[2])) as predict:
        for start in range(0, len(images), size):
            both = predict(np.stack(images[start : start + size]))
            x, y = (samples(node, part, weight.values.shape, seed + start) for part in np.split(both, 2, 1))
            judges = np.arange(start, start + len(both)) % HELD_OUT == HELD_OUT - 1
            for moments, chosen in ((fit, ~judges), (held_out, judges)):
                if chosen.any():
                    _add_samples(moments, x[chosen], y[chosen])
    return fit, held_out


def _add_samples(moments: list[Moments], x: NDArray[np.float32], y: NDArray[np.float32]) -> None:
    """Samples (images, positions, fan-in of all groups), to each group's moments its own."""
    fan_in = len(moments[0].y)
    for group, moment in enumerate(moments):
        columns = slice(group * fan_in, (group + 1) * fan_in)
        moment.add(*(np.ascontiguousarray(part[..., columns]).reshape(-1, fan_in) for part in (x, y)))


def cut_before(site: WeightSite, model: onnx.ModelProto, quantized: onnx.ModelProto) -> onnx.ModelProto:
    """Both networks up to one layer, with one output: what it reads in the float and in the quantized one, joined."""
    result = simulated.in_float(quantized)
    graph = result.graph
    nodes = bias.float_twins(model, graph) + list(graph.node)
    reader, twin = by_name(quantized.graph.node)[site.node], by_name(nodes)[bias.FLOAT + site.node]
    nodes.append(helper.make_node("Concat", [twin.input[0], reader.input[0]], [READ], axis=1))
    set_nodes(graph, nodes)
    set_output(graph, READ, None)
    prune(graph)
    return result


def samples(
    node: onnx.NodeProto, values: NDArray[np.float32], weight_shape: tuple[int, ...], seed: int
) -> NDArray[np.float32]:
    """What the layer multiplies at some positions: (images, positions, channels of all groups x kernel)."""
    if node.op_type == "Gemm":
        return values.reshape(len(values), 1, -1)
    kernel = weight_shape[2:]
    strides, dilations = (integers(node, name, (1, 1)) for name in ("strides", "dilations"))
    top, left, bottom, right = integers(node, "pads", (0, 0, 0, 0))
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    height, width = windows.shape[2:4]
    count = min(POSITIONS, height * width)
    # The same positions in both networks: the seed is of the batch.
    places = np.random.default_rng(seed).choice(height * width, count, replace=False)
    taken = windows[:, :, places // width, places % width]  # (images, channels, positions, *kernel)
    return np.ascontiguousarray(np.moveaxis(taken, 2, 1)).reshape(len(values), count, -1)


def _best(
    weight: NDArray[Any],
    start: Weight,
    axis: int,
    fit: list[Moments],
    held_out: list[Moments],
    limit: int,
    *,
    one_scale: bool,
) -> Weight:
    """Of the candidates the one with the least error on what is held out (or on the rest, where nothing is)."""
    judge = held_out if held_out[0].count else fit
    real = weight.astype(np.float32)
    targets, hessians = _optimum(real, fit)
    candidates = {"nearest": start}
    for name, values in (("gptq", real), ("least squares", targets)):
        integers = np.concatenate(
            [
                gptq(part, hessian, scale, limit)
                for part, hessian, scale in zip(
                    np.split(values, len(fit)), hessians, np.split(start.scale, len(fit)), strict=True
                )
            ]
        )
        candidates[name] = _refit_scales(real, integers, start, axis, fit, limit, one_scale=one_scale)
    errors = {name: _error(real, _rows(w.values, axis) * w.scale[:, None], judge) for name, w in candidates.items()}
    return candidates[min(errors, key=lambda name: errors[name])]


def _ridge(matrix: NDArray[np.float32]) -> float:
    return float(RIDGE * np.mean(np.diag(matrix))) or 1.0


def _optimum(weight: NDArray[np.float32], fit: list[Moments]) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    """V of step 1 (out, fan-in), and for each group S with its ridge (inputs, inputs), the Hessian of step 2."""
    rows, hessians = [], []
    for part, moments in zip(np.split(weight, len(fit)), fit, strict=True):
        s, c = moments.central()
        ridge = _ridge(s) * np.eye(len(s), dtype=np.float32)
        rows.append(np.linalg.solve(s + ridge, (part @ (c + ridge)).T).T)
        hessians.append(s + ridge)
    return np.concatenate(rows), hessians


def gptq(
    weight: NDArray[np.float32], hessian: NDArray[np.float32], scale: NDArray[np.float32], limit: int
) -> NDArray[np.int8]:
    """Integers (out, fan-in) for which `weight - scale integers` is small as the Hessian weighs it."""
    order = np.argsort(-np.diag(hessian), kind="stable")
    rest = weight[:, order].astype(np.float64) / scale[:, None]
    # The transposed lower factor of the inverse: row i holds what an error of input i means for those after it.
    upper = np.linalg.cholesky(np.linalg.inv(hessian[np.ix_(order, order)].astype(np.float64))).T
    integers = np.zeros_like(rest)
    for first in range(0, len(order), COLUMNS):
        last = min(first + COLUMNS, len(order))
        errors = np.zeros((len(rest), last - first))
        for i in range(first, last):
            integers[:, i] = np.clip(np.rint(rest[:, i]), -limit, limit)
            errors[:, i - first] = (rest[:, i] - integers[:, i]) / upper[i, i]
            rest[:, i:last] -= np.outer(errors[:, i - first], upper[i, i:last])
        rest[:, last:] -= errors @ upper[first:last, last:]
    result = np.empty(integers.shape, np.int8)
    result[:, order] = integers
    return result


def _refit_scales(
    weight: NDArray[np.float32],
    integers: NDArray[np.int8],
    start: Weight,
    axis: int,
    fit: list[Moments],
    limit: int,
    *,
    one_scale: bool,
) -> Weight:
    """Step 3: the scale of each output channel, or the one of all, for these integers."""
    sums: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
    parts = zip(np.split(weight, len(fit)), np.split(integers.astype(np.float32), len(fit)), fit, strict=True)
    for part, q, moments in parts:
        s, c = moments.central()
        sums.append((((part @ c) * q).sum(axis=1), ((q @ s) * q).sum(axis=1)))
    above, below = (np.concatenate(part) for part in zip(*sums, strict=True))
    if one_scale:
        above, below = (np.full_like(part, part.sum()) for part in (above, below))
    # Where no integer is at the limit, a bias too large for int32 has made the scale what it is.
    free = one_scale | (np.abs(_rows(start.values, axis)).max(axis=1) >= limit)
    fitted = np.divide(above, below, out=start.scale.copy(), where=(below > 0) & free)
    scale = np.clip(fitted, start.scale / REFIT, start.scale * REFIT).astype(np.float32)
    if one_scale:
        scale = np.full_like(scale, ranges.in_half(float(scale[0])))
    shape = np.moveaxis(start.values, axis, 0).shape
    values = np.moveaxis(integers.reshape(shape), 0, axis)
    return replace(start, values=np.ascontiguousarray(values), scale=scale)


def _error(weight: NDArray[np.float32], rounded: NDArray[np.floating], moments: list[Moments]) -> float:
    """E |W x - rounded y|^2 about the means, without the part that does not depend on `rounded`."""
    total = 0.0
    for part, other, moment in zip(
        np.split(weight, len(moments)), np.split(rounded, len(moments)), moments, strict=True
    ):
        s, c = moment.central()
        total += float((((other @ s) - 2 * (part @ c)) * other).sum())
    return total


def _shift(
    weight: NDArray[Any], rounded: Weight, axis: int, fit: list[Moments], held_out: list[Moments]
) -> NDArray[np.float64]:
    """What the outputs lack on average, (out,)."""
    rows = _rows(rounded.values, axis).astype(np.float64) * rounded.scale[:, None]
    parts = []
    for w, q, a, b in zip(np.split(weight, len(fit)), np.split(rows, len(fit)), fit, held_out, strict=True):
        count = a.count + b.count
        parts.append(w.astype(np.float64) @ ((a.x + b.x) / count) - q @ ((a.y + b.y) / count))
    return np.concatenate(parts)
