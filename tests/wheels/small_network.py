"""Writes a small residual network as ONNX, and labelled images to show it: `python small_network.py FOLDER`.

It runs where nothing but resdeploy's own requirements is installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

CLASSES, CHANNELS, SIZE, IMAGES = 4, 8, 16, 40


def network(path: Path) -> None:
    """Images (N, 3, 16, 16) -> logits (N, 4): a convolution, a residual block, the mean, a product."""
    rng = np.random.default_rng(0)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        values = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        return numpy_helper.from_array(values.astype(np.float32), name)

    def conv(given: str, name: str, out: str) -> onnx.NodeProto:
        return helper.make_node("Conv", [given, f"{name}.w"], [out], name=name, pads=[1, 1, 1, 1], kernel_shape=[3, 3])

    nodes = [
        conv("image", "stem", "a"),
        helper.make_node("Relu", ["a"], ["b"], name="stem.relu"),
        conv("b", "conv1", "c"),
        helper.make_node("Relu", ["c"], ["d"], name="relu1"),
        conv("d", "conv2", "e"),
        helper.make_node("Add", ["e", "b"], ["f"], name="add"),
        helper.make_node("Relu", ["f"], ["g"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["g"], ["h"], name="pool"),
        helper.make_node("Flatten", ["h"], ["i"], name="flat"),
        helper.make_node("Gemm", ["i", "fc.w"], ["logits"], name="fc", transB=1),
    ]
    constants = [
        weights("stem.w", CHANNELS, 3, 3, 3),
        weights("conv1.w", CHANNELS, CHANNELS, 3, 3),
        weights("conv2.w", CHANNELS, CHANNELS, 3, 3),
        weights("fc.w", CLASSES, CHANNELS),
    ]
    given = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])
    graph = helper.make_graph(nodes, "small", [given], [logits], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def images(folder: Path) -> None:
    """An ImageFolder with train/ and test/: four colours, noisy."""
    rng = np.random.default_rng(1)
    for split in ("train", "test"):
        for label in range(CLASSES):
            place = folder / split / f"colour{label}"
            place.mkdir(parents=True)
            for k in range(IMAGES):
                pixels = rng.normal(60 + 40 * label, 40, size=(SIZE, SIZE, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{k}.png")


if __name__ == "__main__":
    network(Path(sys.argv[1]) / "small.onnx")
    images(Path(sys.argv[1]) / "images")
