"""Images that INT8 ranges are taken from."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from resdeploy.pipeline import make
from resdeploy.records import Artifact


def test_calibration_images_are_each_there_once(tmp_path: Path) -> None:
    """A subset made of links that names one image five times: it does not weigh five times as much."""
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(3):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / f"data/{name}/{k}.png")
    for k in range(4):
        os.link(tmp_path / "data/a/0.png", tmp_path / f"data/a/0_{k}.png")
    source = Artifact(path="m.onnx", format="onnx", precision="fp32", sha256="0" * 64)
    found = make.calibration_images(source, make.CalibrationPlan(data=str(tmp_path / "data")))
    assert len(found) == 6
    assert len(found.repeats.again) == 4
