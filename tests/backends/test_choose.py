"""Which backend is here and which is taken."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from resdeploy.backends import choose, cuda, tensorrt
from resdeploy.errors import BackendMissing, UnknownName, UsageError


def hide(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Makes packages look uninstalled."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in packages else find(name))


def test_survey_imports_no_vendor() -> None:
    """All backends are described without importing one."""
    code = (
        "import sys; from resdeploy.backends import choose; from resdeploy.registered_backends import BACKENDS;"
        "assert tuple(choose.survey()) == BACKENDS;"
        "print([m for m in sys.modules if m.split('.')[0] in"
        " {'torch','onnx','onnxruntime','openvino','tensorrt','tensorrt_rtx_bindings','pydantic','numpy.linalg'}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_survey_without_vendors_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every missing backend names its package and a command; null is always here."""
    hide(monkeypatch, "torch", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx_bindings")
    found = choose.survey()
    assert found.pop("null").ok
    for name, availability in found.items():
        assert not availability.ok
        assert name in availability.reason
        assert "pip install " in availability.install
    with pytest.raises(BackendMissing, match="pip install"):
        choose.pick("auto", "fp32")


def test_auto_takes_the_first_that_runs_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO before ONNX Runtime before torch, each with the reasons against those before it."""
    hide(monkeypatch, "tensorrt")
    assert choose.pick("auto", "int8")[0] == "openvino"
    hide(monkeypatch, "tensorrt", "openvino")
    name, why = choose.pick("auto", "int8")
    assert name == "onnxruntime"
    assert "openvino is not installed" in why
    assert choose.pick("auto", "bf16")[0] == "torch"


def test_asked_for_and_unavailable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no silent other choice."""
    hide(monkeypatch, "openvino")
    with pytest.raises(BackendMissing, match="pip install openvino") as caught:
        choose.pick("openvino", "fp32")
    assert caught.value.exit_status == 6
    with pytest.raises(UnknownName):
        choose.pick("tensorflow", "fp32")
    monkeypatch.undo()
    with pytest.raises(UsageError, match="openvino, onnxruntime"):
        choose.pick("torch", "int8")


def test_tensorrt_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Package, driver, the driver's version and the device are told apart; nothing is imported."""
    none = cuda.Driver(problem="this machine has no CUDA driver (libcuda.so.1)")
    monkeypatch.setattr(cuda, "driver", lambda: none)
    hide(monkeypatch, "tensorrt")
    assert "not installed; besides, this machine has no CUDA driver" in tensorrt.available().reason
    monkeypatch.setattr(tensorrt, "installed_version", lambda *names: "11.4.0")
    assert tensorrt.available().reason == "this machine has no CUDA driver (libcuda.so.1)"
    old = cuda.Driver(problem="", cuda=12040, devices=(cuda.Device(name="NVIDIA H100", capability=(9, 0)),))
    monkeypatch.setattr(cuda, "driver", lambda: old)
    assert "supports CUDA 12.4, TensorRT 11.4.0 needs 13" in tensorrt.available().reason
    assert "tensorrt" not in sys.modules
