"""Preprocessing equals torchvision's and timm's, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from resdeploy.data import preprocess
from resdeploy.errors import UsageError
from resdeploy.records import Preprocessing
from resdeploy.vocabulary import Interpolation

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def photographs(shared: Path) -> list[Path]:
    return sorted((shared / "data/imagenet-samples").iterdir())


@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (232, 224), (235, 224), (330, 299)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_it_equals_torchvision_on_photographs(
    shared: Path, torchvision: ModuleType, resize: int, crop: int, interpolation: Interpolation
) -> None:
    """V1 (256/224), V2 (232/224) and others give torchvision's tensor exactly, at odd native sizes."""
    transforms = torchvision.transforms
    oracle = transforms.Compose(
        [
            transforms.Resize(resize, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(crop),
            transforms.ToTensor(),
            transforms.Normalize(**IMAGENET),
        ]
    )
    spec = Preprocessing(size=(crop, crop), resize=resize, interpolation=interpolation)
    for path in photographs(shared)[::2]:
        image = Image.open(path).convert("RGB")
        np.testing.assert_array_equal(preprocess.apply(image, spec), oracle(image).numpy(), err_msg=path.name)


@pytest.mark.parametrize(("mode", "crop_pct"), [("center", 0.95), ("center", 0.875), ("squash", 0.9), ("squash", 1.0)])
def test_it_equals_timm(shared: Path, torchvision: ModuleType, mode: str, crop_pct: float) -> None:
    """timm's `center` and `squash` crops at its crop_pct are `shorter` and `squash` at floor(size / crop_pct)."""
    create = pytest.importorskip("timm.data").create_transform
    oracle = create((3, 224, 224), interpolation="bicubic", crop_pct=crop_pct, crop_mode=mode, **IMAGENET)
    spec = Preprocessing(
        size=(224, 224),
        resize=int(224 / crop_pct),
        resize_mode="squash" if mode == "squash" else "shorter",
        interpolation="bicubic",
    )
    for path in photographs(shared)[::4]:
        image = Image.open(path).convert("RGB")
        np.testing.assert_array_equal(preprocess.apply(image, spec), oracle(image).numpy(), err_msg=path.name)


def test_bgr_and_grey_are_rgb_reordered_and_pillows_luma() -> None:
    """BGR is the same pixels with the channels reversed; L has one channel."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    rgb = Preprocessing(size=(8, 8))
    np.testing.assert_array_equal(
        preprocess.pixels(image, replace(rgb, channels="BGR")), preprocess.pixels(image, rgb)[..., ::-1]
    )
    grey = preprocess.pixels(image, replace(rgb, channels="L", mean=(0.5,), std=(0.5,)))
    np.testing.assert_array_equal(grey[..., 0], np.asarray(image.convert("L")))


def test_an_image_of_another_size_is_refused_where_nothing_resizes() -> None:
    """Without `resize` a wrong size is an error that names --resize, never a silent stretch."""
    with pytest.raises(UsageError, match="8x9") as caught:
        preprocess.pixels(Image.new("RGB", (9, 8)), Preprocessing(size=(32, 32)))
    assert "--resize 32" in caught.value.fix


def test_a_crop_larger_than_the_image_is_refused() -> None:
    """torchvision would pad with black; we ask."""
    with pytest.raises(UsageError, match="crop"):
        preprocess.pixels(Image.new("RGB", (90, 80)), Preprocessing(size=(64, 64), resize=32))


def test_mean_and_std_must_fit_the_channels() -> None:
    """A grey image with three means is a mistake that is named."""
    with pytest.raises(UsageError, match="1 channels"):
        preprocess.apply(Image.new("RGB", (8, 8)), Preprocessing(size=(8, 8), channels="L"))


def test_the_fingerprint_changes_with_the_spec_and_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another crop or another Pillow is another preprocessing."""
    spec = Preprocessing(size=(224, 224), resize=256)
    before = preprocess.fingerprint(spec)
    assert before == preprocess.fingerprint(replace(spec))
    assert before != preprocess.fingerprint(replace(spec, resize=232))
    monkeypatch.setattr("PIL.__version__", "0.0")
    assert before != preprocess.fingerprint(spec)
