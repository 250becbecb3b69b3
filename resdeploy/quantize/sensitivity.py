"""What quantizing one layer, or one residual block, alone costs: how far the logits move and how many answers change.

All layers are tried in one run of one graph. Quantizing a layer changes nothing before it, so everything before is
shared: the graph computes the float network once, and where a layer is tried it appends that layer's quantized
result to the batch as further rows. From there on these rows run through the same nodes as the float ones do. So a
network of L layers costs about L / 2 forward passes instead of L, every weight is loaded once, and nothing but logits
leaves the runtime.

Where branches meet (residual additions), an operand that knows nothing of a trial takes the float network's rows.
Integer arithmetic is simulated: values are rounded as the INT8 file rounds them, sums are exact, as on a CPU with VNNI.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper

from resdeploy.errors import MissingInput, UsageError
from resdeploy.graph import qdq_placement
from resdeploy.graph.index import Index, add_constant, by_name, copy, node_name, set_nodes, set_output
from resdeploy.graph.residual import ResidualBlock
from resdeploy.quantize import calibrate, ptq, ranges
from resdeploy.records import Sensitivity

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resdeploy.quantize.calibrate import Predict, Runner
    from resdeploy.quantize.ptq import Calibrated
    from resdeploy.records import Progress

# Images of one run. In the last stages every trial has rows of its own: one image of 224 x 224 is a batch of 70 there.
IMAGE_ELEMENTS = 3 * 224 * 224
MAX_IMAGES = 8
TRIED = "tried"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Nodes that are quantized together, all others staying float."""

    name: str
    kind: str  # the operator of a layer, or "block"
    nodes: tuple[str, ...]  # in order of execution, by `node_name`
    output: str  # the tensor through which alone their results go on


def measure(
    seen: Calibrated,
    batches: Iterable[NDArray[np.float32]],
    *,
    portable: bool = False,
    run: Runner = calibrate.in_lane,
    progress: Progress | None = None,
) -> tuple[Sensitivity, ...]:
    """Tries every quantized layer and every residual block alone, in order of execution, blocks after the layers.

    Args:
        seen: the float graph and its calibration.
        batches: preprocessed images, each (n, C, H, W).
        portable: weights in 7 bits, as in `ptq.FileOptions`.
        run: opens a graph for running.
        progress: told after every batch.

    Raises:
        MissingInput: no images.
        UsageError: the file's batch size is fixed.
    """
    if seen.fixed_batch:
        raise UsageError(
            "sensitivity needs a file with a free batch size", fix="Export the model again with a dynamic batch size"
        )
    limit = ranges.weight_limit(seen.target, portable=portable)
    weights = ptq.quantized_weights(seen.model, seen.placement, seen.activations, limit)
    trials = list_trials(seen.model, seen.placement)
    errors = _Errors(len(trials))
    for logits in _logits(seen, trials, weights, batches, run):
        errors.add(logits)
        if progress is not None:
            progress("sensitivity", errors.images, max(seen.calibration.count, errors.images))
    if errors.images == 0:
        raise MissingInput("there are no images to measure sensitivity on", fix="Give a folder that holds images")
    layers = {site.node for site in seen.placement.weights}
    return tuple(
        Sensitivity(
            name=trial.name,
            kind=trial.kind,
            layers=tuple(name for name in trial.nodes if name in layers),
            images=errors.images,
            changed=int(errors.changed[i]),
            signal=errors.signal,
            noise=float(errors.noise[i]),
        )
        for i, trial in enumerate(trials)
    )


class _Errors:
    """How far the trials are off, over all images so far."""

    def __init__(self, trials: int) -> None:
        self.images = 0
        self.changed = np.zeros(trials, np.int64)  # answers
        self.signal = 0.0  # energy of the float network's logits
        self.noise = np.zeros(trials)  # energy of the differences from them

    def add(self, logits: NDArray[np.float32]) -> None:
        """Of a batch (n, 1 + trials, classes), the float network's first."""
        exact, others = logits[:, :1].astype(np.float64), logits[:, 1:].astype(np.float64)
        self.images += len(logits)
        self.changed += (others.argmax(axis=2) != exact.argmax(axis=2)).sum(axis=0)
        self.signal += float(np.square(exact).sum())
        self.noise += np.square(others - exact).sum(axis=(0, 2))


def _logits(
    seen: Calibrated,
    trials: Sequence[Trial],
    weights: Mapping[str, qdq_placement.Weight],
    batches: Iterable[NDArray[np.float32]],
    run: Runner,
) -> Iterator[NDArray[np.float32]]:
    """For each batch (n, 1 + trials, classes), the float network's first."""
    with contextlib.ExitStack() as lane:
        predict: Predict | None = None
        for images in batches:
            if not len(images):
                continue
            if predict is None:
                channels, height, width = images.shape[1:]
                size = max(1, min(MAX_IMAGES, IMAGE_ELEMENTS // (channels * height * width)))
                graph = trial_graph(seen, trials, weights, size)
                predict = lane.enter_context(run(graph, (channels, height, width)))
            yield predict(images).reshape(len(images), 1 + len(trials), -1)


def list_trials(model: onnx.ModelProto, placement: qdq_placement.Placement) -> tuple[Trial, ...]:
    """Every quantized layer, then every residual block that holds one."""
    index = Index(model)
    nodes = by_name(index.nodes)
    layers = [
        Trial(name=site.node, kind=nodes[site.node].op_type, nodes=(site.node,), output=nodes[site.node].output[0])
        for site in placement.weights
    ]
    quantized = {layer.name for layer in layers}
    blocks = [
        Trial(name=block.add.removesuffix(".add"), kind="block", nodes=inside, output=block.output)
        for block in placement.blocks
        if quantized & set(inside := _nodes_inside(index, block))
    ]
    return (*layers, *blocks)


def _nodes_inside(index: Index, block: ResidualBlock) -> tuple[str, ...]:
    """The nodes between a block's input and its output, in order of execution."""
    positions: set[int] = set()
    pending = [block.output]
    while pending:
        tensor = pending.pop()
        position = index.producer.get(tensor)
        if tensor == block.source or position is None or position in positions or tensor in index.constants:
            continue
        positions.add(position)
        pending += index.operands(index.nodes[position])
    return tuple(node_name(index.nodes[position]) for position in sorted(positions))


def trial_graph(
    seen: Calibrated, trials: Sequence[Trial], weights: Mapping[str, qdq_placement.Weight], size: int
) -> onnx.ModelProto:
    """The float graph for batches of `size`, its one output (size, 1 + trials, classes): float logits, then trials'.

    Raises:
        UsageError: the graph computes with its batch size, which differs from row to row here.
    """
    writer = _Writer(seen, weights, size)
    ends: dict[str, list[int]] = {}
    for number, trial in enumerate(trials, 1):
        ends.setdefault(trial.output, []).append(number)
    for node in seen.model.graph.node:
        writer.carry_over(node)
        for tensor in node.output:
            if tensor in ends:
                writer.append(tensor, {number: trials[number - 1] for number in ends[tensor]})
    logits = writer.align(seen.model.graph.output[0].name, tuple(range(1 + len(trials))))
    return writer.finish(logits, 1 + len(trials))


class _Writer:
    """Copies the float graph while every tensor's batch may hold more than the float network's rows.

    `holds` says of each tensor whose rows it carries, `size` rows each: 0 is the float network, always first.
    """

    def __init__(self, seen: Calibrated, weights: Mapping[str, qdq_placement.Weight], size: int) -> None:
        self.seen, self.weights, self.size = seen, weights, size
        self.index = Index(seen.model)
        self.float_nodes = by_name(self.index.nodes)
        self.sites = {site.node: site for site in seen.placement.weights}
        self.result = copy(seen.model)
        self.nodes: list[onnx.NodeProto] = []
        self.current: dict[str, str] = {}  # tensor of the float graph -> what stands for it now
        self.holds: dict[str, tuple[int, ...]] = {}  # by the name in the new graph
        self.written: set[str] = set()  # constants and rounded values, by name

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        if name not in self.written:
            self.written.add(name)
            add_constant(self.result.graph, name, value)
        return name

    def rows_of(self, tensor: str) -> tuple[int, ...]:
        """Of the tensor as it is now, as `holds` counts them."""
        return self.holds.get(self.current.get(tensor, tensor), (0,))

    def align(self, tensor: str, rows: tuple[int, ...]) -> str:
        """The tensor with the `rows`; the float network's where it knows nothing of a trial."""
        name, held = self.current.get(tensor, tensor), self.rows_of(tensor)
        if held == rows:
            return name
        twin = f"{TRIED}/{name}/{'-'.join(map(str, rows)) if len(rows) < 2 else len(self.written)}"
        if len(rows) == 1 and twin in self.holds:
            return twin
        places = [held.index(row) if row in held else 0 for row in rows]
        indices = np.concatenate([np.arange(self.size) + self.size * place for place in places])
        at = self.constant(f"{twin}/rows", indices.astype(np.int64))
        self.nodes.append(helper.make_node("Gather", [name, at], [twin], twin, axis=0))
        self.holds[twin] = rows
        return twin

    def carry_over(self, node: onnx.NodeProto) -> None:
        """A node of the float graph, on all rows that any of its operands has."""
        if node.op_type in ("Shape", "Size"):
            raise UsageError(
                f"node {node_name(node)} computes with the batch size, so layers cannot be tried side by side",
                fix="Export the model in the canonical form: resdeploy export FILE.onnx -o CANONICAL.onnx",
            )
        operands = self.index.operands(node)
        rows = tuple(sorted({row for name in operands for row in self.rows_of(name)}))
        twin = copy(node)
        twin.input[:] = [self.align(name, rows) if name in operands else name for name in node.input]
        self.nodes.append(twin)
        for name in node.output:
            self.holds[name] = rows or (0,)

    def append(self, tensor: str, here: Mapping[int, Trial]) -> None:
        """From now on `tensor` also holds the rows of these trials."""
        parts = [tensor, *(self.quantize(number, trial) for number, trial in here.items())]
        wider = f"{TRIED}/{tensor}/with"
        self.nodes.append(helper.make_node("Concat", parts, [wider], wider, axis=0))
        self.holds[wider] = (*self.rows_of(tensor), *here)
        self.current[tensor] = wider

    def quantize(self, number: int, trial: Trial) -> str:
        """A trial's nodes, quantized, on the float network's rows; the name of its result."""
        stem = f"{TRIED}/{number}"
        own = {name for node in trial.nodes for name in self.float_nodes[node].output}
        for name in trial.nodes:
            node = copy(self.float_nodes[name])
            node.name = f"{stem}/{name}"
            operands = self.index.operands(node)
            inputs = [f"{stem}/{i}" if i in own else self.align(i, (0,)) if i in operands else i for i in node.input]
            for k, tensor in enumerate(self.float_nodes[name].input):
                source = self.rounding_source(name, tensor)
                if source is not None:
                    inputs[k] = self.round_to_grid(inputs[k], source, stem)
            if name in self.sites:
                inputs[1] = self.weight(name)
            node.input[:] = inputs
            node.output[:] = [f"{stem}/{i}" for i in node.output]
            self.nodes.append(node)
        return f"{stem}/{trial.output}"

    def rounding_source(self, node: str, tensor: str) -> str | None:
        """The tensor whose range rounds what `node` reads in the INT8 file; None where it reads float values."""
        placement = self.seen.placement
        source = placement.activations.get(tensor) if placement.is_rounded_for(node) else None
        if source is None and node in self.sites and tensor == self.sites[node].data:
            return qdq_placement.range_source(self.index, tensor)  # rounded before it came here, to the same values
        return source

    def round_to_grid(self, tensor: str, source: str, stem: str) -> str:
        """On the INT8 grid of `source`, in plain float arithmetic.

        Not with QuantizeLinear: ONNX Runtime then rounds a convolution's float weights again, to one scale for all
        channels, where another QuantizeLinear reads its output (its WeightBiasQuantization).
        """
        grid, twin = self.seen.activations[source], f"{stem}/{tensor}/rounded"
        if twin in self.written:
            return twin
        self.written.add(twin)
        least, most = (-128, 127) if grid.signed else (-grid.zero_point, 255 - grid.zero_point)
        scale, low, high = (
            self.constant(f"{TRIED}/{source}/{name}", np.array(value, np.float32))
            for name, value in (("scale", grid.scale), ("least", least), ("most", most))
        )
        self.nodes += [
            helper.make_node("Div", [tensor, scale], [f"{twin}/steps"], f"{twin}/steps"),
            helper.make_node("Round", [f"{twin}/steps"], [f"{twin}/integers"], f"{twin}/integers"),
            helper.make_node("Clip", [f"{twin}/integers", low, high], [f"{twin}/clipped"], f"{twin}/clipped"),
            helper.make_node("Mul", [f"{twin}/clipped", scale], [twin], twin),
        ]
        return twin

    def weight(self, node: str) -> str:
        """The operator's weights as the INT8 file holds them, in float."""
        return self.constant(f"{TRIED}/{node}/weight", self.weights[node].in_float(self.sites[node].axis))

    def finish(self, logits: str, groups: int) -> onnx.ModelProto:
        """The graph with its one output, (size, groups, classes)."""
        graph = self.result.graph
        shape = self.constant(f"{TRIED}/shape", np.array([groups, self.size, -1], np.int64))
        self.nodes += [
            helper.make_node("Reshape", [logits, shape], [f"{TRIED}/grouped"]),
            helper.make_node("Transpose", [f"{TRIED}/grouped"], [TRIED], perm=[1, 0, 2]),
        ]
        del graph.value_info[:]
        set_nodes(graph, self.nodes)
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = self.size
        set_output(graph, TRIED, [self.size, groups, None])
        return self.result
