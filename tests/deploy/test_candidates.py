"""deploy/candidates.py: which backend runs what somebody names."""

from __future__ import annotations

import pytest

from resdeploy.backends import choose
from resdeploy.deploy import candidates
from resdeploy.deploy.model_string import Request


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
    monkeypatch.setattr(choose, "pick", lambda name, _precision: (name, "as asked"))
    assert candidates.pick_backend(Request(model=model), asked, None) == picked
