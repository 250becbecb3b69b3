"""Which nodes of a float graph FP16 cannot hold, found by running calibration images through it in FP32.

FP16 ends at 65,504; what is beyond becomes infinity and then NaN. Weights show themselves (`graph.cast`), activations
only when the network runs. A tensor that comes near the end stays in FP32, together with the node that makes it and all
that read it: in between, any cast to FP16 would overflow too. BF16 has FP32's range and needs none of this.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import onnx

from resdeploy.graph.cast import FP16_MAX
from resdeploy.graph.index import Index, node_name
from resdeploy.quantize import calibrate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resdeploy.quantize.calibrate import Runner
    from resdeploy.records import Progress

# Images not seen may reach further than those seen: FP16 is left to tensors that use half of its range at most.
HEADROOM = 2.0


def find_overflowing(
    model: onnx.ModelProto,
    batches: Iterable[NDArray[np.float32]],
    *,
    run: Runner = calibrate.in_lane,
    total: int = 0,
    progress: Progress | None = None,
) -> dict[str, float]:
    """The nodes that must stay in FP32, each with the largest magnitude it makes or reads.

    Args:
        model: FP32, canonical.
        batches: preprocessed images, each (n, C, H, W).
        run: opens a graph for running.
        total: the number of images expected, for the progress report.
        progress: told after every batch.

    Raises:
        MissingInput: no images.
        MalformedInput: images or activations that are not finite in FP32 either.
    """
    index = Index(model)
    floats = float_tensors(model, index)
    observed, _ = calibrate.observe(
        model, dict.fromkeys(floats, np.ones(1)), batches, run=run, total=total, progress=progress
    )
    largest = {name: max(-seen.extremes.lo, seen.extremes.hi) for name, seen in observed.items()}
    beyond = {name: value for name, value in largest.items() if value > FP16_MAX / HEADROOM}
    magnitudes: dict[str, float] = {}
    for node in index.nodes:
        values = [beyond[name] for name in (*node.input, *node.output) if name in beyond]
        if values:
            magnitudes[node_name(node)] = max(values)
    return magnitudes


def float_tensors(model: onnx.ModelProto, index: Index) -> tuple[str, ...]:
    """The input and every float tensor that a node computes from it."""
    kinds = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
    computed = [name for node in index.nodes for name in node.output if name and name not in index.constants]
    floats = [name for name in computed if kinds.get(name, onnx.TensorProto.FLOAT) == onnx.TensorProto.FLOAT]
    return (model.graph.input[0].name, *floats)
