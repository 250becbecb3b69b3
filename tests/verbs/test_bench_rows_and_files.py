"""Which file a row of `bench` is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from resdeploy.deploy import calibration, candidates, lower
from resdeploy.deploy.model_string import Request
from resdeploy.errors import EnvironmentFailure, MalformedInput
from resdeploy.records import Target
from resdeploy.verbs.bench import BenchPlan, _cells, _most_like, bench
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


def test_a_row_that_cannot_be_made_says_why_as_one_that_cannot_be_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In sentences, without the code, which stands beside them."""
    source_for = candidates.source_for

    def broken(request: Request, backend: str, *args: Any, **options: Any) -> Any:
        if backend == "onnxruntime":
            raise EnvironmentFailure(
                "x cannot be imported", cause="It raised E", fix="Mend it", code="E-BROKEN-PACKAGE"
            )
        return source_for(request, "null", *args, **options)

    monkeypatch.setattr(candidates, "source_for", broken)
    onnx.save(tiny_network(), tmp_path / "tiny.onnx")
    plan = BenchPlan(backends=("null", "onnxruntime"), duration_s=0.1)
    found = bench(
        [Request(model=str(tmp_path / "tiny.onnx"))], plan, calibration.CalibrationPlan(), progress=lambda *_: None
    )
    (failure,) = found.failures
    assert (failure.error_code, failure.exit_status) == ("E-BROKEN-PACKAGE", 6)
    assert failure.message == "x cannot be imported. It raised E. Mend it."


def test_rows_are_compared_like_with_like(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another model at the same batch size on the same backend; not everything with the first row."""
    for name in ("a.onnx", "b.onnx"):
        onnx.save(tiny_network(), tmp_path / name)
    plan = BenchPlan(backends=("openvino", "onnxruntime"), batch_sizes=(1, 8))
    monkeypatch.setattr(candidates, "pick_backend", lambda _request, name, _precision: name)
    requests = [Request(model=str(tmp_path / name)) for name in ("a.onnx", "b.onnx")]
    cells = list(_cells(requests, plan))
    found = {cell.label: _most_like(cell, cells[:k]) for k, cell in enumerate(cells)}
    assert found == {
        "a openvino b1": (),
        "a onnxruntime b1": ("a openvino b1",),
        "a openvino b8": ("a openvino b1",),
        "a onnxruntime b8": ("a onnxruntime b1",),
        "b openvino b1": ("a openvino b1",),
        "b onnxruntime b1": ("a onnxruntime b1",),
        "b openvino b8": ("a openvino b8",),
        "b onnxruntime b8": ("a onnxruntime b8",),
    }
