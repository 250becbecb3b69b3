"""A network measured under its roofs, kernel by kernel, on real backends."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from resdeploy.cost import peak_graphs, under_roofs
from resdeploy.deploy.model_string import Request
from resdeploy.errors import BackendCrash
from resdeploy.measure import entrant, interleaved
from resdeploy.records import Failure, Peaks, Roof
from resdeploy.verbs.bench import BenchPlan
from tests.shortly import time_shortly

SHAPE = (32, 16, 3, 3)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_every_kernel_that_multiplies_is_found_and_timed(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever name the backend gives to a convolution with its activation inside."""
    monkeypatch.setenv("RESDEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(under_roofs, "TRACED_S", 0.02)
    time_shortly(monkeypatch.setattr, blocks=8)
    path = tmp_path / "chain.onnx"
    onnx.save(peak_graphs.chain(*SHAPE), path)
    roofs = Peaks(name="m", source="s", roofs={"fp32": Roof(rate=1e12)}, bandwidth=Roof(rate=1e15))
    plan = BenchPlan(backends=(backend,), duration_s=0.05)
    (found,) = under_roofs.time_under_roofs([Request(model=str(path))], roofs, ["fp32"], plan, progress=lambda *_: None)
    convolutions = [layer for layer in found.layers if layer.flops]
    assert [layer.name.split(" + ")[0] for layer in convolutions] == ["conv0", "conv1", "conv2"]
    assert all(layer.measured_s and layer.reached for layer in convolutions)
    assert found.backend == backend
    assert found.p50_s is not None
    assert found.reached == pytest.approx(2 * peak_graphs.macs(*SHAPE) / 1e12 / found.p50_s, rel=1e-3)


def test_a_network_that_cannot_be_timed_is_an_error_and_not_an_empty_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for a measurement, the command must not end well without one."""
    monkeypatch.setenv("RESDEPLOY_CACHE", str(tmp_path / "cache"))

    def crashes(candidates: list[interleaved.Candidate], *_: object, **__: object) -> tuple[Failure, ...]:
        return tuple(entrant.failure(candidate, BackendCrash("died of SIGSEGV")) for candidate in candidates)

    monkeypatch.setattr(interleaved, "run", crashes)
    onnx.save(peak_graphs.chain(*SHAPE), path := tmp_path / "chain.onnx")
    roofs = Peaks(name="m", source="s", roofs={"fp32": Roof(rate=1e12)}, bandwidth=Roof(rate=1e15))
    plan = BenchPlan(backends=("onnxruntime",), duration_s=0.05)
    with pytest.raises(BackendCrash, match="SIGSEGV"):
        under_roofs.time_under_roofs([Request(model=str(path))], roofs, ["fp32"], plan, progress=lambda *_: None)
