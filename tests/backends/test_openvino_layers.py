"""In which precision OpenVINO's kernels compute: their names tell, `runtimePrecision` does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resdeploy.backends import openvino
from resdeploy.graph.intent import Intent
from resdeploy.judge import fusion
from resdeploy.records import Artifact, Execution, Layer
from tests.backends.conftest import SPEC, artifact_of

# (name, type, primitiveType, runtimePrecision), as a CPU with AMX lists an INT8 ResNet-18 whose activations are int8
# with a zero point: every convolution is FP32 and reported as i8.
ON_AMX = [
    ("input/Q", "Subgraph", "jit_avx512_f32", "f32"),
    *((f"conv{i}", "Convolution", "brgconv_avx512_f32", "i8") for i in range(20)),
    ("fc", "FullyConnected", "brgemm_avx512_amx_i8", "i8"),
]


class Node:
    """One node of an executed graph."""

    def __init__(self, name: str, kind: str, kernel: str, reported: str) -> None:
        self.name = name
        self.info = {
            "layerType": kind, "primitiveType": kernel, "runtimePrecision": reported, "originalLayersNames": name,
            "outputPrecisions": "f32", "execTimeMcs": "10",
        }  # fmt: skip

    def get_friendly_name(self) -> str:
        return self.name

    def get_rt_info(self) -> dict[str, Any]:
        return {key: type("Any", (), {"value": value}) for key, value in self.info.items()}

    def get_output_partial_shape(self, number: int) -> Any:
        return type("Shape", (), {"is_static": False})

    def input_values(self) -> list[Any]:
        return []


def layers(rows: list[tuple[str, str, str, str]]) -> list[Layer]:
    return [openvino._layer(node, node.info) for node in (Node(*row) for row in rows)]


def test_convolutions_in_fp32_kernels_are_not_int8_whatever_is_reported() -> None:
    names = [f"conv{i}" for i in range(20)]
    graph = Intent(
        blocks=(), asked=dict.fromkeys(names, "int8"), followers={}, producers={n: n for n in names},
        nodes=frozenset([*names, "fc"]), pairs=frozenset(["input/Q"]), edges=frozenset(["input/Q"]),
    )  # fmt: skip
    result = fusion.judge("r18", layers(ON_AMX), intent=graph, asked="int8", target="openvino")
    check = next(check for check in result.verdict.checks if check.name.startswith("convolutions in"))
    assert (check.state, check.observed, check.limit) == ("fail", 0, 20)
    assert "in fp32 (i8 by runtimePrecision, but its kernel brgconv_avx512_f32 is FP32): conv0, conv1" in check.note
    assert any("another type than the runtime reports" in note for note in result.notes)


@pytest.mark.parametrize(
    ("kernel", "reported", "precision", "doubted"),
    [
        ("jit_avx2_I8", "u8", "int8", False),
        ("brgconv_avx512_amx_i8", "i8", "int8", False),
        ("brgconv_avx2_f32", "f32", "fp32", False),
        ("brgconv_avx512_amx_bf16", "bf16", "bf16", False),
        ("jit_gemm_FP32", "I8", "fp32", True),
        ("brgemm_avx2_f32", "i8", "fp32", True),
        ("brgconv_avx512_core_amx_f16", "u8", "fp16", True),
        ("unknown", "i8", "int8", False),
        ("", "bf16", "bf16", False),
        ("ref_any_i64", "i64", "i64", False),
    ],
)
def test_a_kernels_name_decides_where_it_tells(kernel: str, reported: str, precision: str, doubted: bool) -> None:
    (layer,) = layers([("n", "Convolution", kernel, reported)])
    assert (layer.precision, bool(layer.doubt)) == (precision, doubted)


def weights_alone() -> onnx.ModelProto:
    """A linear layer with int8 weights that reads floats."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Flatten", ["input"], ["f"], "flatten"),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["w"], "w/DQ"),
        helper.make_node("Gemm", ["f", "w", "b"], ["logits"], "fc", transB=1),
    ]
    held = {
        "wq": rng.integers(-60, 60, (10, 192)).astype(np.int8), "ws": np.float32(0.01), "wz": np.int8(0),
        "b": np.zeros(10, np.float32),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes, "t", [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_no_executed_kernel_is_narrower_than_its_name(tmp_path: Path) -> None:
    """Int8 weights alone: with AVX2 an FP32 kernel that is reported as i8; on other CPUs both may agree."""
    pytest.importorskip("openvino")
    onnx.save(weights_alone(), tmp_path / "w.onnx")
    source: Artifact = artifact_of(tmp_path / "w.onnx")
    assert source.model == SPEC
    with openvino.open(source, Execution(input_shape=(3, 8, 8)), trace=True) as loaded:
        loaded.session().run()
        found = [layer for layer in loaded.layers() if layer.kind.startswith("FullyConnected")]
    assert found
    for layer in found:
        assert layer.kind.endswith("_f32") == (layer.precision == "fp32"), layer
