"""ResNet-18 in every form that the zoo's table has: kernels, bytes of activations, and sums inside convolutions.

The counts are for batch 1 and SM89, by 1.7.1.116. The whole zoo is `benchmarks/rtx_zoo.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import rtx_zoo
from resdeploy.deploy.calibration import CalibrationPlan
from resdeploy.deploy.model_string import Request
from resdeploy.records import Artifact
from resdeploy.verbs import audit, gate, gate_options


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return rtx_zoo.exported("resnet18", tmp_path_factory.mktemp("zoo") / "resnet18.onnx")


@pytest.mark.parametrize(
    ("variant", "kernels", "activation_mb", "fused", "sums"),
    [
        ("fp32", 24, 27.00, 8, 8),
        ("fp16", 24, 14.01, 8, 8),
        ("bf16", 25, 18.82, 8, 8),
        ("int8 tensorrt", 41, 26.78, 0, 8),
        ("int8 tensorrt-rtx", 41, 17.69, 8, 8),
        ("uint8 input", 24, 13.55, 8, 8),
        ("pruned", 22, 12.0, 7, 7),
    ],
)
def test_a_form_of_resnet18(
    resnet18: Artifact, tmp_path: Path, variant: str, kernels: int, activation_mb: float, fused: int, sums: int
) -> None:
    """Floats hold every sum, as one scale a weight does; a scale a channel holds none, and moves FP32's bytes."""
    made = rtx_zoo.made_of(resnet18, variant, tmp_path / "made.onnx")
    row = rtx_zoo.built_row(made, tmp_path / "made.engine")
    assert (row["kernels"], row["sums_fused"], row["sums"]) == (kernels, fused, sums)
    assert row["activation_mb"] == pytest.approx(activation_mb, abs=0.01)


def test_audit_and_gate_need_no_gpu(resnet18: Artifact) -> None:
    """All eight sums are found fused, by what the compiler listed; nothing is opened."""
    path = resnet18.path
    plan = audit.AuditPlan(backend="tensorrt-rtx", targets=(rtx_zoo.GPU,))
    found = audit.audit(Request(model=path), plan, CalibrationPlan(), progress=rtx_zoo.progress)
    assert found.verdict.state == "pass", found.verdict
    assert [block.fused for block in found.blocks] == [True] * 8
    assert "for GeForce RTX (SM89), not for H100 or H200" in found.notes
    judged = gate_options.plan_of(path, [path], require_fused=True, backend="tensorrt-rtx")
    assert gate.gate(judged, progress=rtx_zoo.progress).gate.verdict.state == "pass"
