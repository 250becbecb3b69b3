"""deploy/calibration.py: in which arithmetic a network is watched."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from resdeploy.backends import machine
from resdeploy.deploy import calibration, export
from resdeploy.deploy.calibration import CalibrationPlan
from resdeploy.deploy.model_string import PreprocessingOverride, Request
from resdeploy.errors import MalformedInput
from resdeploy.quantize import calibrate
from resdeploy.records import Artifact
from tests.cli.test_quantize import lost

if TYPE_CHECKING:
    from resdeploy.quantize.calibrate import Predict

LARGEST_BF16 = (2 - 2**-7) * 2.0**127


@contextlib.contextmanager
def narrow(model: onnx.ModelProto, image_shape: tuple[int, int, int]) -> Iterator[Predict]:
    """A lane whose largest number is BF16's, on any CPU."""
    with calibrate.in_lane(model, image_shape) as predict:

        def rounded(images: NDArray[np.float32]) -> NDArray[np.float32]:
            seen = predict(images).astype(np.float64)
            return np.where(np.abs(seen) > LARGEST_BF16, np.sign(seen) * np.inf, seen).astype(np.float32)

        yield rounded


@pytest.fixture
def padded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    """A network that pads with -FLT_MAX before its max pool, on a CPU that has BF16."""
    monkeypatch.setattr(calibrate, "in_bf16_lane", narrow)
    monkeypatch.setattr(CalibrationPlan, "arithmetic_here", lambda plan: plan.arithmetic or "bf16")
    lost(tmp_path / "a.onnx")
    seen = PreprocessingOverride(mean=(0.5,) * 3, std=(0.5,) * 3, resize=16)
    return export.to_onnx(Request(model=str(tmp_path / "a.onnx"), override=seen), progress=lambda *_: None)


def test_what_is_infinite_in_bf16_alone_is_watched_in_fp32(padded: Artifact) -> None:
    """-FLT_MAX is a border that exporters really write; every image is counted once, though it was looked at twice."""
    seen = calibration.calibrate(
        padded, "openvino", CalibrationPlan(data="digits", samples=8), progress=lambda *_: None
    )
    assert seen.calibration.arithmetic == "fp32"
    assert seen.calibration.count == len(seen.calibration.images) == 8
    assert min(observed.extremes.lo for observed in seen.observed.values()) == np.finfo(np.float32).min


def test_bf16_that_was_asked_for_and_overflows_is_refused_with_its_reason(padded: Artifact) -> None:
    plan = CalibrationPlan(data="digits", samples=8, arithmetic="bf16")
    with pytest.raises(MalformedInput, match=r"pad\.out is not finite") as refused:
        calibration.calibrate(padded, "openvino", plan, progress=lambda *_: None)
    assert "--calib-precision bf16" in refused.value.fix
    assert "BF16" in refused.value.cause


def test_the_largest_numbers_are_as_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.4 % apart; and a CPU without BF16 is not asked for it."""
    assert 1 - LARGEST_BF16 / float(np.finfo(np.float32).max) == pytest.approx(0.004, abs=2e-4)
    monkeypatch.setattr(
        machine, "cpu", lambda: machine.Cpu(model="c", isa=frozenset(), vnni=False, amx=False, bf16=False)
    )
    assert CalibrationPlan().arithmetic_here() == "fp32"
