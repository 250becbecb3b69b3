"""deploy/candidates.py: which backend runs what somebody names."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from resdeploy import store
from resdeploy.backends import choose
from resdeploy.deploy import candidates
from resdeploy.deploy.model_string import Request
from resdeploy.graph import cast
from resdeploy.records import Artifact, ModelSpec, Precision
from tests.backends.conftest import tiny_network


@pytest.mark.parametrize(
    ("model", "asked", "picked"),
    [
        ("m.xml", "auto", "openvino"),
        ("m.engine", "auto", "tensorrt"),
        ("m.onnx", "auto", "auto"),
        ("m.xml", "onnxruntime", "onnxruntime"),
    ],
)
def test_auto_is_the_backend_that_built_the_file(
    model: str, asked: str, picked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is the best here otherwise; a backend that was named is that one."""
    monkeypatch.setattr(choose, "pick", lambda name, _precision, running: (name, "as asked"))
    assert candidates.pick_backend(Request(model=model), asked, None) == picked


@pytest.mark.parametrize("recorded", [True, False])
def test_auto_is_a_backend_for_the_precision_of_the_file(
    recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the record tells it, or the graph where there is none; one that cannot be opened counts as FP32."""
    monkeypatch.setattr(choose, "pick", lambda _name, precision, running: (f"one for {precision}", "the best here"))
    path = tmp_path / "m.onnx"
    onnx.save(tiny_network() if recorded else cast.to_half(tiny_network(), "bf16"), path)
    if recorded:
        spec = ModelSpec(name="m", family="foreign", classes=10, input_shape=(3, 32, 32), preprocessing=None)
        made = Artifact(path=str(path), format="onnx", precision="bf16", sha256=store.digest(path), model=spec)
        path = Path(store.copy_to(made, tmp_path / "recorded.onnx").path)

    def picked(precision: Precision | None) -> str:
        return candidates.pick_backend(Request(model=str(path)), "auto", precision)

    assert picked(None) == "one for bf16"
    assert picked("fp16") == "one for fp16"
    path.write_bytes(b"no model")
    assert picked(None) == "one for fp32"
