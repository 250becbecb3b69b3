"""Channels balanced for one scale per weight: the same function, even rows, and factors that no others beat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resdeploy.graph import qdq_placement
from resdeploy.graph.index import Index, by_name
from resdeploy.quantize import balance
from resdeploy.records import Effort
from tests.quantize.test_prepare import here, logits, network, normalised, pictures, quantized
from tests.quantize.test_rounding import network as grouped_network


@pytest.mark.parametrize("grouped", [False, True])
def test_the_function_stays_and_rows_come_out_even(grouped: bool) -> None:
    """Residual sums and grouped convolutions; sums read the stream itself, not what is multiplied for a layer."""
    images = normalised(pictures(24, 1))
    model = onnx.shape_inference.infer_shapes(grouped_network(np.random.default_rng(2))) if grouped else network()
    made = balance.balance(model, qdq_placement.plan(model, "tensorrt-rtx"), [images], here)
    onnx.checker.check_model(made, full_check=True)
    expected = logits(model, images)
    np.testing.assert_allclose(logits(made, images), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    index = Index(made)
    alone = by_name(index.nodes)["grouped" if grouped else "first0"]  # the block's inner convolution
    rows = np.abs(index.array(alone.input[1])).max(axis=(1, 2, 3))
    np.testing.assert_allclose(rows, rows[0], rtol=2e-3)  # the factors are numbers of FP16
    adds = [node for node in made.graph.node if node.op_type == "Add"]
    assert not any(name.endswith("/scaled") for node in adds for name in node.input)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), channels=st.integers(1, 6))
def test_no_random_factors_err_less(seed: int, channels: int) -> None:
    """The error by the module's formula, of the factors found and of a thousand others around them."""
    random = np.random.default_rng(seed)
    largest = np.exp2(random.uniform(-4, 4, channels))
    squares = np.square(largest) * random.uniform(0.01, 0.5, channels)
    columns = random.standard_normal((channels, 18)) * np.exp2(random.uniform(-4, 4, (channels, 1)))

    def error(factors: np.ndarray) -> float:
        activation = (factors * largest).max() / 255
        weight = (np.abs(columns).max(axis=1) / factors).max() / 127
        rounded = activation**2 * (np.square(columns).sum(axis=1) / factors**2).sum()
        return float(rounded + weight**2 * (18 * squares * factors**2).sum())

    found = balance.best_factors(largest, squares, columns)
    others = found * np.exp2(random.standard_normal((1000, channels)) * random.uniform(0, 2, (1000, 1)))
    # The grid of the search is 9 % wide, and the minimum flat.
    assert error(found) <= 1.01 * min(error(factors) for factors in others)
    assert (found * largest).max() == pytest.approx(largest.max())


@pytest.mark.parametrize("effort", ["normal", "high"])
def test_a_file_for_tensorrt_rtx_is_what_its_parser_takes_and_errs_less_than_tensorrts(
    tmp_path: Path, effort: Effort
) -> None:
    """FP16 around pairs in INT8 with zero point 0, integers stored; other images judge, in ONNX Runtime."""
    model, images = network(), normalised(pictures(64, 1))
    other = normalised(pictures(64, 2))
    errors = {}
    for target in ("tensorrt", "tensorrt-rtx"):
        path = Path(quantized(model, tmp_path, target, images, effort).path)
        errors[target] = float(np.square(logits(path, other) - logits(model, other)).mean())
    assert errors["tensorrt-rtx"] < errors["tensorrt"]
    written = onnx.load(path)
    assert {o.version for o in written.opset_import if not o.domain} == {19}
    assert {p.type.tensor_type.elem_type for p in (*written.graph.input, *written.graph.output)} == {1}
    index = Index(written)
    pairs = [node for node in index.nodes if node.op_type == "DequantizeLinear"]
    assert all(index.array(node.input[1]).dtype == np.float16 for node in pairs)
    assert all(index.array(node.input[1]).shape == () for node in pairs)
    assert sum(node.input[0] in index.initializers for node in pairs) == 6
    assert not any(index.array(node.input[2]).any() for node in pairs)
