"""Real engines on a real GPU; skipped where there is none. `pytest tests/gpu` runs what no double can show."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks import gpu_pack
from resdeploy import store
from resdeploy.backends import tensorrt
from resdeploy.backends.lane import Lane
from resdeploy.deploy import engines
from resdeploy.graph import intent
from resdeploy.judge import fusion
from resdeploy.records import Artifact, Execution
from tests.backends.conftest import SPEC, artifact_of, tiny_network
from tests.graph.test_intent import quantized

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not tensorrt.available().ok, reason=f"no TensorRT here: {tensorrt.available().reason}"),
]
HOW = Execution(batch_size=4, input_shape=(3, 32, 32))


@pytest.fixture
def engine(tmp_path: Path) -> Artifact:
    path = tmp_path / "tiny.onnx"
    onnx.save(tiny_network(channels=64), path)
    return engines.build_engine(artifact_of(path), HOW, tmp_path / "tiny.engine", None)


def test_an_fp32_engine_answers_as_onnxruntime_does(engine: Artifact, tmp_path: Path, images: np.ndarray) -> None:
    """TF32 convolutions have ten bits of mantissa: one part in a hundred, not one in ten thousand."""
    with Lane("onnxruntime") as lane:
        lane.open(artifact_of(tmp_path / "tiny.onnx"), dataclasses.replace(HOW, batch_size=5))
        expected: np.ndarray = lane.predict(images)
    with Lane("tensorrt") as lane:
        opened = lane.open(engine, HOW)
        got: np.ndarray = lane.predict(images)
        block = lane.block(20, warmup=5)
    assert opened.settings["cuda_graph"] == "yes"
    assert np.abs(got - expected).max() < 1e-2 * np.abs(expected).max()
    assert len(block.device_s) == 20
    # The clock is read outside the events: it can never show less.
    assert all(device < run for device, run in zip(block.device_s, block.run_s, strict=True))


def test_several_streams_run_side_by_side(engine: Artifact) -> None:
    with Lane("tensorrt") as lane:
        lane.open(engine, dataclasses.replace(HOW, streams=3))
        assert len(lane.block(30).run_s) >= 30


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_residual_add_is_fused_in_the_precision_asked_for(tmp_path: Path, precision: str) -> None:
    from resdeploy.graph import cast

    model = onnx.shape_inference.infer_shapes(tiny_network(channels=64))
    gpu_pack.give_seeded_weights(model)
    model = cast.to_half(model, "fp16") if precision == "fp16" else quantized(model, "tensorrt")
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    source = Artifact(path=str(path), format="onnx", precision=precision, sha256=store.digest(path), model=SPEC)  # type: ignore[arg-type]
    built = engines.build_engine(source, HOW, tmp_path / "model.engine", None)
    with Lane("tensorrt") as lane:
        lane.open(built, HOW, trace=True)
        lane.block(5)
        layers = lane.layers()
    found = fusion.judge("tiny", layers, intent=intent.of(model), asked=precision)  # type: ignore[arg-type]
    assert [(block.fused, block.precision) for block in found.blocks] == [(True, precision)], found
    assert found.time_s
