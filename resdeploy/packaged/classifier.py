"""Images in, classes out: what `resdeploy eval` computes, to the bit, without resdeploy.

    from classifier import Classifier

    model = Classifier()                 # spec.json and the model lie beside this file
    model.predict(["cat.jpg"], top=2)    # [[("tabby", 0.83), ("tiger cat", 0.09)]]
    model.logits(["cat.jpg"])            # float32, (images, classes)

    python classifier.py cat.jpg         # a line of JSON for each image

It needs numpy, Pillow and the runtime that spec.json names. The same bits take the same versions of these, as many
threads and the same batch size; requirements.txt has the versions.
"""

from __future__ import annotations

import io
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MAX_PIXELS = 89_478_485  # of an image; more may be a decompression bomb
TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}  # ONNX Runtime's names


class Classifier:
    """A model that is open and answers; threads that ask at the same time are answered one after the other.

    Attributes:
        spec: what spec.json says.
        classes: their names in the order of the logits; numbers where the model knows none.
    """

    def __init__(self, folder: str | Path | None = None, *, threads: int | None = None) -> None:
        """Opens it.

        Args:
            folder: of spec.json and the model; None: this file's.
            threads: None: what spec.json says, or else all cores that this process may run on. A container's quota is
                not looked at: with one, give the number.
        """
        folder = Path(__file__).parent if folder is None else Path(folder)
        self.spec: dict[str, Any] = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
        self.classes: list[str] = self.spec["labels"] or [str(number) for number in range(self.spec["classes"])]
        runtime: Any = {"onnxruntime": _OnnxRuntime, "openvino": _OpenVino}[self.spec["runtime"]]
        self._run = runtime(folder / self.spec["model"], self.spec, threads or self.spec["threads"] or _cores())
        self._lock = threading.Lock()

    def predict(self, images: Any, *, top: int = 5) -> list[list[tuple[str, float]]]:
        """Of each image the likeliest classes by name, each with its probability.

        Args:
            images: one or several, as `logits` takes them.
            top: how many classes of each.

        Raises:
            OSError, ValueError: as `logits`.
        """
        logits = self.logits(images)
        best = np.argsort(-logits, axis=1, kind="stable")[:, :top]
        answers = zip(best, _probabilities(logits), strict=True)
        return [[(self.classes[k], float(share[k])) for k in row] for row, share in answers]

    def logits(self, images: Any) -> np.ndarray[Any, Any]:
        """What the model computes: float32, (images, classes).

        Args:
            images: one or several, each a path of a JPEG or PNG file, the bytes of one, an image of Pillow, or uint8
                pixels of shape (H, W, 3) in RGB or (H, W) in grey.

        Raises:
            OSError: a file that cannot be read.
            ValueError: no image, what is none, another size where the model does not resize, or logits that are not
                finite.
        """
        one = isinstance(images, (str, Path, bytes, Image.Image)) or getattr(images, "ndim", 4) < 4
        given = [images] if one else list(images)
        if not given:
            raise ValueError("no images were given")
        size, rows = self.spec["batch_size"], []
        for start in range(0, len(given), size):
            chunk = [preprocess(decode(image), self.spec["preprocessing"]) for image in given[start : start + size]]
            batch = np.stack(chunk + chunk[-1:] * (size - len(chunk)))  # the model runs full batches only
            with self._lock:
                rows.append(self._run(batch)[: len(chunk)])
        logits = np.concatenate(rows).astype(np.float32).reshape(len(given), -1)
        if not np.isfinite(logits).all():
            raise ValueError("the model gave logits that are NaN or infinite")
        return logits


def decode(image: Any) -> Image.Image:
    """An image as `Classifier.logits` takes it, not yet converted. EXIF's orientation is ignored, as in training.

    Raises:
        OSError: a file that cannot be read.
        ValueError: neither JPEG nor PNG, damaged, of too many pixels or of more than 8 bits, or no pixels.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if not isinstance(image, (str, Path, bytes)):
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8 or not pixels.size or not (pixels.ndim == 2 or pixels.shape[2:] == (3,)):
            raise ValueError(f"{pixels.dtype} of shape {pixels.shape} is no image: give uint8, (H, W, 3) or (H, W)")
        return Image.fromarray(pixels)
    data = image if isinstance(image, bytes) else Path(image).read_bytes()
    name = "the image" if isinstance(image, bytes) else str(image)
    try:
        picture = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
        if picture.width * picture.height <= MAX_PIXELS:
            picture.load()
    except Exception as e:  # Pillow's decoders raise whatever they stumble over
        raise ValueError(f"{name} is no JPEG or PNG file that can be read: {e}") from e
    if picture.width * picture.height > MAX_PIXELS or picture.mode.startswith(("I", "F")):
        raise ValueError(f"{name} has {picture.width}x{picture.height} pixels in mode {picture.mode}, which is refused")
    return picture


def preprocess(image: Image.Image, how: dict[str, Any]) -> np.ndarray[Any, Any]:
    """The model's input for one decoded image, (channels, height, width): float32, or uint8 where the model normalises.

    Args:
        image: as `decode` gives it.
        how: `preprocessing` of spec.json. Resized (`shorter`: the shorter side to `resize`, the longer one truncated;
            `squash`: both), cropped from the centre, then (value / 255 - mean) / std, each step in float32.

    Raises:
        ValueError: too small a crop, or another size than the model's where nothing is resized.
    """
    height, width = how["size"]
    image = image.convert("L" if how["channels"] == "L" else "RGB")
    if how["resize"] is not None:
        target, (short, long) = how["resize"], sorted(image.size)
        other = target if how["resize_mode"] == "squash" else int(target * long / short)
        size = (target, other) if image.width <= image.height else (other, target)
        image = image.resize(size, Image.Resampling[how["interpolation"].upper()])
        if image.width < width or image.height < height:
            raise ValueError(f"a crop of {height}x{width} from {image.height}x{image.width} pixels")
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)  # half to even
        image = image.crop((left, top, left + width, top + height))
    elif image.size != (width, height):
        raise ValueError(f"{image.height}x{image.width} pixels, where the model takes {height}x{width}")
    pixels = np.asarray(image).reshape(height, width, -1)
    if how["channels"] == "BGR":
        pixels = pixels[..., ::-1]
    if how["dtype"] == "uint8":
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))
    mean, std = (np.array(how[name], np.float32) for name in ("mean", "std"))
    unit = pixels.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(((unit - mean) / std).transpose(2, 0, 1))


class _OnnxRuntime:
    def __init__(self, path: Path, _spec: dict[str, Any], threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (self.input,) = self.session.get_inputs()

    def __call__(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        feed = {self.input.name: batch.astype(TYPES[self.input.type], copy=False)}
        return np.asarray(self.session.run(None, feed)[0])


class _OpenVino:
    def __init__(self, path: Path, spec: dict[str, Any], threads: int) -> None:
        import openvino

        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": spec["precision"].replace("fp", "f"),  # left alone, BF16 where the CPU has it
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
        }
        compiled = openvino.Core().compile_model(str(path), "CPU", settings)
        self.request = compiled.create_infer_request()
        self.type = np.dtype(compiled.input(0).element_type.to_dtype())

    def __call__(self, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.request.infer({0: batch.astype(self.type, copy=False)})
        return np.array(self.request.get_output_tensor(0).data)


def _probabilities(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Softmax, but of a network that ends in one by itself (none below 0, with a sum of 1) the output as it is."""
    values = logits.astype(np.float64)
    if (values >= 0).all() and np.allclose(values.sum(axis=1), 1, rtol=0, atol=1e-3):
        return values
    powers: np.ndarray[Any, Any] = np.exp(values - values.max(axis=1, keepdims=True))
    shares: np.ndarray[Any, Any] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    model = Classifier()
    for path in sys.argv[1:]:
        (answer,) = model.predict(path)
        print(json.dumps({"image": path, "classes": [{"name": n, "probability": p} for n, p in answer]}))  # noqa: T201
