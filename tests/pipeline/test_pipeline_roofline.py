"""A network measured under its roofs, kernel by kernel, on real backends."""

from __future__ import annotations

import functools
from pathlib import Path

import onnx
import pytest

from resdeploy.errors import BackendCrash
from resdeploy.graph import peak
from resdeploy.measure import bench as timing
from resdeploy.pipeline import bench, roofline
from resdeploy.pipeline.request import Request
from resdeploy.records import Failure, Peaks, Roof

SHAPE = (32, 16, 3, 3)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_every_kernel_that_multiplies_is_found_and_timed(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever name the backend gives to a convolution with its activation inside."""
    monkeypatch.setenv("RESDEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(roofline, "TRACED_S", 0.02)
    quick = functools.partial(timing.run, blocks=8, processes=1, extensions=0)
    monkeypatch.setattr(timing, "run", quick)
    path = tmp_path / "chain.onnx"
    onnx.save(peak.chain(*SHAPE), path)
    roofs = Peaks(name="m", source="s", roofs={"fp32": Roof(rate=1e12)}, bandwidth=Roof(rate=1e15))
    plan = bench.BenchPlan(backends=(backend,), duration_s=0.05)
    (found,) = roofline.under(
        [Request(model=str(path))], roofs, ["fp32"], plan, measured=True, progress=lambda *_: None
    )
    convolutions = [layer for layer in found.layers if layer.flops]
    assert [layer.name.split(" + ")[0] for layer in convolutions] == ["conv0", "conv1", "conv2"]
    assert all(layer.measured_s and layer.reached for layer in convolutions)
    assert found.backend == backend
    assert found.p50_s is not None
    assert found.reached == pytest.approx(2 * peak.macs(*SHAPE) / 1e12 / found.p50_s, rel=1e-3)


def test_a_network_that_cannot_be_timed_is_an_error_and_not_an_empty_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for a measurement, the command must not end well without one."""
    monkeypatch.setenv("RESDEPLOY_CACHE", str(tmp_path / "cache"))

    def crashes(candidates: list[timing.Candidate], **_: object) -> tuple[Failure, ...]:
        return tuple(timing.failure(candidate, BackendCrash("died of SIGSEGV")) for candidate in candidates)

    monkeypatch.setattr(timing, "run", crashes)
    onnx.save(peak.chain(*SHAPE), path := tmp_path / "chain.onnx")
    roofs = Peaks(name="m", source="s", roofs={"fp32": Roof(rate=1e12)}, bandwidth=Roof(rate=1e15))
    plan = bench.BenchPlan(backends=("onnxruntime",), duration_s=0.05)
    with pytest.raises(BackendCrash, match="SIGSEGV"):
        roofline.under([Request(model=str(path))], roofs, ["fp32"], plan, measured=True, progress=lambda *_: None)
