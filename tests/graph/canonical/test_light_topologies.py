"""A topology of ONNX's former model zoo and a network of timm; `benchmarks/foreign.py` has the others."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest


def assert_read_whole(row: dict[str, Any]) -> None:
    """Computed as in the original, counted as in the original, and every convolution and product in INT8."""
    assert row["fp32_rel_error"] < 1e-5
    assert row["macs_counted"] == {"original": row["macs"], "canonical": row["macs"]}
    assert row["quantized"] == {"Conv": row["convolutions"], "Gemm": 1}
    assert not row["in_float"]


def test_caffe2s_shufflenet_is_computed_counted_and_quantized_as_it_is_written() -> None:
    """Opset 9 with Sum, grouped convolutions between Reshape and Transpose, and norms apart, with random weights."""
    pytest.importorskip("torch")
    from benchmarks import foreign

    row = foreign.of_light("light_shufflenet")
    assert_read_whole(row)
    assert {"Sum", "BatchNormalization"}.isdisjoint(row["operators"])
    assert row["residual_adds"] == 13  # Zhang et al. 2017 (arXiv:1707.01083), table 1: 16 units, 3 of them concatenate


@pytest.mark.acceptance
@pytest.mark.parametrize("exporter", ["torchscript", "dynamo", "ours"])
def test_a_network_of_timm_is_computed_counted_and_quantized_by_each_exporter(
    exporter: str, torchvision: ModuleType
) -> None:
    """MobileNetV3: squeeze and excitation, hard activations, depthwise convolutions; logits and MACs are torch's."""
    pytest.importorskip("timm")
    from benchmarks import foreign

    assert_read_whole(foreign.of_timm("mobilenetv3_small_050", exporter))
