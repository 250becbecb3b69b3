"""Whose file runs where: said before anything is timed or judged, from the kernels that a runtime executes."""

from __future__ import annotations

import logging
from pathlib import Path

import onnx
import pytest

from resdeploy import store
from resdeploy.errors import UsageError
from resdeploy.graph import qdq_placement
from resdeploy.measure.interleaved import Candidate
from resdeploy.records import Artifact, BackendName, Execution, ModelSpec, Target
from resdeploy.verbs import float_fallback
from tests.backends.conftest import tiny_network
from tests.graph.test_intent import quantized


def file_for(target: Target, folder: Path) -> Artifact:
    path = folder / f"{target}.onnx"
    onnx.save(quantized(onnx.shape_inference.infer_shapes(tiny_network(channels=16)), target), path)
    spec = ModelSpec(name="tiny", family="f", classes=10, input_shape=(3, 32, 32))
    return Artifact(path=str(path), format="onnx", precision="int8", sha256=store.digest(path), model=spec)


def words_on(artifact: Artifact, backend: BackendName, caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    candidate = Candidate(label="tiny", backend=backend, artifact=artifact, execution=Execution())
    with caplog.at_level(logging.WARNING):
        float_fallback.warn(artifact, candidate)
    return caplog.text


def test_a_file_for_another_runtime_is_told_from_one_that_serves_both(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """TensorRT's symmetric form is all float in ONNX Runtime; ONNX Runtime's is INT8 in OpenVINO too."""
    symmetric = file_for("tensorrt", tmp_path)
    said = words_on(symmetric, "onnxruntime", caplog)
    assert "tensorrt.onnx: 0 of 2 convolutions in INT8 in onnxruntime" in said
    assert "tensors are int8" in said
    assert "quantize it with --target onnxruntime" in said
    both = file_for(qdq_placement.form_for(["openvino", "onnxruntime"]), tmp_path)
    assert [words_on(both, name, caplog) for name in ("onnxruntime", "openvino")] == ["", ""]
    with pytest.raises(UsageError, match="no form of Q/DQ is INT8 in all of onnxruntime, tensorrt"):
        qdq_placement.form_for(["tensorrt", "onnxruntime"])
