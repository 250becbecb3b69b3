"""What TensorRT-RTX cannot do for a GPU: the answers of the compiler itself, of which tests/rtx asks it again."""

from __future__ import annotations

import pytest
from onnx import ModelProto

from resdeploy.errors import UsageError
from resdeploy.graph import rtx_targets
from tests.graph.rtx_graphs import REFUSED, of


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_target_cannot_do_is_refused(kind: str) -> None:
    """By name, and where SM75 is but one of several too; without targets nothing is."""
    model = of(kind)
    for target in rtx_targets.TARGETS:
        for targets in ((target,), ("sm120", target)):
            if target not in REFUSED[kind]:
                rtx_targets.refuse(model, targets=targets, path="m.onnx")
                continue
            with pytest.raises(UsageError, match=target) as refused:
                rtx_targets.refuse(model, targets=targets, path="m.onnx")
            assert "m.onnx holds " in refused.value.what
            assert "--targets sm" in refused.value.fix
            assert "quantize F.onnx --precision fp16" in refused.value.fix
    rtx_targets.refuse(model, targets=(), path="m.onnx")


@pytest.mark.parametrize("name", ["sm90", "sm100", "sm87", "89"])
def test_a_gpu_that_it_does_not_compile_for_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"does not compile for {name}") as refused:
        rtx_targets.refuse(ModelProto(), targets=("sm89", name), path="m.onnx")
    assert "for H100, H200 and Jetson build with --backend tensorrt on the device" in refused.value.fix
