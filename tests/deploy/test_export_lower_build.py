"""Images that INT8 ranges are taken from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from resdeploy.data.datasets import Dataset
from resdeploy.deploy import calibration, lower
from resdeploy.errors import OutputLost
from resdeploy.quantize import fidelity
from resdeploy.records import Artifact, Precision
from tests.backends.conftest import artifact_of, tiny_network

FP32 = Artifact(path="m.onnx", format="onnx", precision="fp32", sha256="0" * 64)


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """Ten files of six contents: a subset made of links that names one image five times."""
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(3):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / f"data/{name}/{k}.png")
    for k in range(4):
        os.link(tmp_path / "data/a/0.png", tmp_path / f"data/a/0_{k}.png")
    return tmp_path / "data"


def test_calibration_images_are_each_there_once(linked: Path) -> None:
    """The one does not weigh five times as much."""
    found = calibration.calibration_images(FP32, calibration.CalibrationPlan(data=str(linked)))
    assert len(found) == 6
    assert len(found.repeats.again) == 4


def test_a_hit_of_the_cache_reads_no_calibration_image(linked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they held is remembered by names, sizes and times; a file that was only touched is the same image."""
    plan = calibration.CalibrationPlan(data=str(linked))

    def keys() -> list[object]:
        precisions: tuple[Precision, ...] = ("int8", "fp16")
        return [lower.lower_key(FP32, precision, "openvino", plan) for precision in precisions]

    first = keys()
    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "read", lambda *_: pytest.fail("read"))
        assert keys() == first
    os.utime(linked / "b/0.png", ns=(0, 0))
    assert keys() == first
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(linked / "b/0.png")
    assert not set(map(str, keys())) & set(map(str, first))


def test_a_lost_file_is_made_once_and_given_out_to_who_forces_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a name of the user's nothing is written there; in the cache it stays, refused each time."""
    monkeypatch.setenv("RESDEPLOY_CACHE", str(tmp_path / "cache"))
    onnx.save(tiny_network(), tmp_path / "m.onnx")
    source, compare = artifact_of(tmp_path / "m.onnx"), fidelity.compare_half
    made: list[object] = []

    def compared(*models: Any) -> Any:
        made.append(models)
        return compare(*models)

    monkeypatch.setattr(fidelity, "compare_half", compared)
    monkeypatch.setattr(fidelity, "LOST_DB", fidelity.LIMIT_DB + 1)  # whatever the output
    plain, forced = calibration.CalibrationPlan(), calibration.CalibrationPlan(force=True)

    def lowered(plan: calibration.CalibrationPlan, out: Path | None = None) -> Artifact:
        return lower.lower(source, "fp16", "onnxruntime", plan, out, progress=lambda *_: None)

    for _ in range(2):
        with pytest.raises(OutputLost):
            lowered(plain)
    assert lowered(forced).precision == "fp16"
    assert len(made) == 1
    with pytest.raises(OutputLost):
        lowered(plain, tmp_path / "new/out.onnx")
    assert not list((tmp_path / "new").iterdir())
