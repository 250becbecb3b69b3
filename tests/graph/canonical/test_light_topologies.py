"""A topology of ONNX's former model zoo; `benchmarks/foreign.py` has the others, and timm's families."""

from __future__ import annotations

import pytest


def test_caffe2s_shufflenet_is_computed_counted_and_quantized_as_it_is_written() -> None:
    """Opset 9 with Sum, grouped convolutions between Reshape and Transpose, and norms apart, with random weights."""
    pytest.importorskip("torch")
    from benchmarks import foreign

    row = foreign.of_light("light_shufflenet")
    assert row["fp32_rel_error"] < 1e-5
    assert row["macs_counted"] == {"original": row["macs"], "canonical": row["macs"]}
    assert row["quantized"] == {"Conv": row["convolutions"], "Gemm": 1}
    assert not row["in_float"]
    assert {"Sum", "BatchNormalization"}.isdisjoint(row["operators"])
    assert row["residual_adds"] == 13  # Zhang et al. 2017 (arXiv:1707.01083), table 1: 16 units, 3 of them concatenate
