"""The graphs whose speed is a machine's roof."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from resdeploy.cost import peak_graphs
from resdeploy.graph import counts
from tests.sessions import session

SMALL = (16, 8, 3, 3)


def run(model: onnx.ModelProto, inputs: np.ndarray) -> np.ndarray:
    opened = session(model)
    return opened.run(None, {"input": inputs})[0]


@pytest.mark.parametrize("shape", [SMALL, *peak_graphs.SHAPES])
def test_a_chain_has_the_multiplications_it_is_said_to_have(shape: tuple[int, int, int, int]) -> None:
    """Counted on its graph, from its shapes alone."""
    counted = counts.count(peak_graphs.chain(*shape), peak_graphs.spec(*shape))
    assert counted.macs == peak_graphs.macs(*shape)
    assert counted.unknown == ()


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_the_int8_chain_computes_what_the_fp32_chain_does(target) -> None:
    """Its weights are the same numbers; only activations are rounded, to some 255 steps."""
    model = peak_graphs.chain(*SMALL)
    narrow = peak_graphs.quantize(model, target)
    inputs = np.random.default_rng(1).standard_normal((2, 16, 8, 8)).astype(np.float32)
    exact, found = run(model, inputs), run(narrow, inputs)
    assert 0.1 < exact.std() < 10  # neither dead nor exploding over depth
    assert np.abs(found - exact).max() < 0.05 * np.abs(exact).max()
    # TensorRT's files keep float weights under Q/DQ, the others the integers.
    kind, scale = (onnx.TensorProto.FLOAT, 1.0) if target == "tensorrt" else (onnx.TensorProto.INT8, None)
    stored = [numpy_helper.to_array(t) for t in narrow.graph.initializer if t.data_type == kind and len(t.dims) == 4]
    scales = (numpy_helper.to_array(t) for t in narrow.graph.initializer)
    scale = scale or next(values for values in scales if values.shape == (16,))[0]
    assert len(stored) == 3
    assert np.array_equal(stored[0] * scale, numpy_helper.to_array(model.graph.initializer[0]))


def test_a_chain_of_another_seed_is_not_quantized_with_this_ones_weights() -> None:
    """The integers come from the seed, so a wrong one would change the network unseen."""
    with pytest.raises(ValueError, match="seed=1"):
        peak_graphs.quantize(peak_graphs.chain(*SMALL, seed=0), "openvino", seed=1)


def test_a_stream_reads_two_arrays_and_writes_one_of_the_size_asked() -> None:
    """The bytes that a bandwidth is computed from."""
    model = peak_graphs.stream(1 << 20)
    assert [tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in model.graph.input] == [
        (1, 64, 4, 1024)
    ] * 2
    assert 4 * np.prod(peak_graphs.stream_shape(1 << 20)) == 1 << 20
