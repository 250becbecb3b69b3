"""Clips that a quantizer does anyhow, and that would keep ONNX Runtime from convolving in integers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from resdeploy.graph import clips, qdq_placement
from tests.backends.conftest import tiny_network
from tests.sessions import session


@pytest.mark.parametrize(
    ("bounds", "scale", "zero_point", "integers"),
    [
        ((0.0, 6.0), 6 / 255, 0, True),  # ReLU6, calibrated to its bound
        ((-1.3, 2.0), 3.3 / 255, 100, True),  # the zero point is rounded: a part of a step short below, beyond above
        ((-1.0, 1.0), 2 / 255, 128, True),  # Hardtanh: half a step beyond it below, half a step short above
        ((0.0, 6.0), 0.03, 0, False),  # a range that no calibration gives: the Clip is needed
    ],
)
def test_onnx_runtime_convolves_in_integers_before_a_clip(
    tmp_path: Path, bounds: tuple[float, float], scale: float, zero_point: int, integers: bool
) -> None:
    """By the graph that it says it runs; the integers are those of the file that keeps its Clips."""
    model = tiny_network(channels=16)
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Clip"
            node.input.extend(["low", "high"])
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(b, np.float32), n) for b, n in zip(bounds, ("low", "high"), strict=True)
    )
    model = onnx.shape_inference.infer_shapes(model)
    placement = qdq_placement.plan(model, "onnxruntime")
    how = qdq_placement.Activation(scale=scale, zero_point=zero_point, signed=False)
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    random = np.random.default_rng(0)
    weights = {}
    for site in placement.weights:
        scales = np.full(held[site.tensor].shape[site.axis], 0.01, np.float32)
        values = random.integers(-20, 20, held[site.tensor].shape).astype(np.int8)
        weights[site.node] = qdq_placement.Weight(values=values, scale=scales)
    activations = dict.fromkeys(placement.observed, how)
    result = qdq_placement.insert(model, placement, activations, weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clips, "leave_to_quantizers", lambda _: None)
        kept = qdq_placement.insert(model, placement, activations, weights)
    images = random.standard_normal((2, 3, 32, 32)).astype(np.float32)
    found, expected = (session(each, exactly=True).run(None, {"input": images})[0] for each in (result, kept))
    # At half a step either integer is as near: one step, 20 times the weights' 0.01, in 144 products and a pooling.
    assert np.abs(found - expected).max() <= (scale * 0.2 * 144 if bounds == (-1.0, 1.0) else 0)
    session(result, save=tmp_path / "optimised.onnx")
    ops = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert (ops["QLinearConv"] == 2, ops["FusedConv"] == 0) == (integers, integers)
