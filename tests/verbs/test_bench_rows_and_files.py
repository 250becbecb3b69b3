"""Which file a row of `bench` is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from resdeploy.deploy import calibration, lower
from resdeploy.deploy.model_string import Request
from resdeploy.errors import MalformedInput
from resdeploy.records import Target
from resdeploy.verbs.bench import BenchPlan, bench
from tests.backends.conftest import tiny_network


@pytest.mark.parametrize(
    ("provider", "target"), [("cpu", "onnxruntime"), ("cuda", "onnxruntime"), ("tensorrt", "tensorrt")]
)
def test_int8_follows_the_rules_of_what_computes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, provider: Any, target: Target
) -> None:
    """TensorRT behind ONNX Runtime takes TensorRT's Q/DQ: ONNX Runtime's own would be misread there."""
    asked: dict[str, Target] = {}

    def lowered(source: Any, precision: str, target: Target, *_: Any, **__: Any) -> Any:
        asked[precision] = target
        raise MalformedInput("far enough")

    monkeypatch.setattr(lower, "lower", lowered)
    onnx.save(tiny_network(), tmp_path / "tiny.onnx")
    plan = BenchPlan(precision="int8", backends=("onnxruntime",), provider=provider)
    with pytest.raises(MalformedInput, match="far enough"):
        bench([Request(model=str(tmp_path / "tiny.onnx"))], plan, calibration.CalibrationPlan(), progress=print)
    assert asked["int8"] == target
