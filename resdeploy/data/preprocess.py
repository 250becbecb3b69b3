"""From a decoded image to the network's input, exactly as torchvision and timm do it with Pillow.

    resize (Pillow, always antialiased) -> centre crop -> value / 255 -> (value - mean) / std

One record, `Preprocessing`, covers the conventions in use: torchvision V1 (shorter side 256, crop 224) and V2
(232, 224), timm's `center` (shorter side floor(size / crop_pct)) and `squash` (both sides), and CIFAR (no resizing).
Resizers differ more between libraries than INT8 differs from FP32 (mlcommons/inference #201: the same ResNet-50
reaches 78.47 or 77.51 %), so the library and its version are part of the fingerprint. Like torchvision's loader
this ignores EXIF orientation, and it never uses JPEG's scaled decoding (`draft`), which changes pixels.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
from PIL import Image, features

from resdeploy import store
from resdeploy.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from resdeploy.records import Preprocessing

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def apply(image: Image.Image, spec: Preprocessing) -> NDArray[Any]:
    """The network's input (C, H, W) for one decoded image: `normalise(pixels(image))`, or the pixels for uint8.

    Raises:
        UsageError: as `pixels`.
    """
    values = pixels(image, spec)
    return np.ascontiguousarray(values.transpose(2, 0, 1)) if spec.dtype == "uint8" else normalise(values, spec)


def pixels(image: Image.Image, spec: Preprocessing) -> NDArray[np.uint8]:
    """The image converted, resized and cropped: (H, W, C), 0..255, not yet normalised.

    Raises:
        UsageError: no resizing is asked for and the image is not `spec.size`, or the crop is larger than the
            resized image (torchvision would pad it with black, unasked).
    """
    height, width = spec.size
    image = image.convert("L" if spec.channels == "L" else "RGB")
    if spec.resize is None:
        if image.size != (width, height):
            raise UsageError(
                f"an image of {image.height}x{image.width} pixels where the model takes {height}x{width}",
                cause="The model's preprocessing does not resize",
                fix=f"Ask for it with --resize {min(height, width)}",
            )
    else:
        image = _crop(image.resize(_resized_size(image, spec), INTERPOLATIONS[spec.interpolation]), height, width)
    array = np.asarray(image).reshape(height, width, -1)
    return array[..., ::-1] if spec.channels == "BGR" else array


def _resized_size(image: Image.Image, spec: Preprocessing) -> tuple[int, int]:
    """Width and height after resizing; the longer side is truncated, as torchvision does."""
    target = spec.resize
    assert target is not None
    if spec.resize_mode == "squash":
        return target, target
    short, long = sorted(image.size)
    scaled = int(target * long / short)
    return (target, scaled) if image.width <= image.height else (scaled, target)


def _crop(image: Image.Image, height: int, width: int) -> Image.Image:
    if image.height < height or image.width < width:
        raise UsageError(
            f"a crop of {height}x{width} from an image resized to {image.height}x{image.width}",
            fix=f"Use --resize {max(height, width)} or more, or a smaller --img-size",
        )
    # Half to even, as torchvision: Python's round.
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))


def normalise(values: NDArray[np.uint8], spec: Preprocessing) -> NDArray[np.float32]:
    """`(value / 255 - mean) / std`, each step rounded to float32 like torchvision's: (H, W, C) to (C, H, W).

    A look-up per channel: 256 results are all there are.

    Raises:
        UsageError: mean and std are not for that many channels.
    """
    table = _table(spec.mean, spec.std)
    if values.shape[2] != len(table):
        raise UsageError(
            f"{values.shape[2]} channels, but a mean and std for {len(table)}",
            fix="Give --mean and --std one number per channel",
        )
    out = np.empty((values.shape[2], *values.shape[:2]), np.float32)
    for channel, plane in enumerate(out):
        np.take(table[channel], values[..., channel], out=plane, mode="clip")  # clip skips a bounds check
    return out


@functools.lru_cache(maxsize=64)
def _table(mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """The normalised value of every byte: (C, 256)."""
    unit = np.arange(256, dtype=np.float32) / np.float32(255)
    table: NDArray[np.float32] = (unit - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]
    return table


def fingerprint(spec: Preprocessing) -> str:
    """SHA-256 of the preprocessing and of what decodes and resizes: runs that differ in it do not compare.

    Who normalises, the model or its caller, makes no difference to what the model sees.
    """
    as_floats = replace(spec, dtype="float32")
    return store.fingerprint(
        {
            "spec": as_floats,
            "pillow": PIL.__version__,
            "jpeg": features.version("libjpeg_turbo") or features.version("jpg"),
        }
    )
