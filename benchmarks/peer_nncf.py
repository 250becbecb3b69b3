"""NNCF's post-training INT8 of an ONNX file, with its defaults, in an interpreter that has nncf and nothing of ours.

    python peer_nncf.py FP32.onnx IMAGES.npy OUT.onnx

IMAGES.npy holds network inputs (N, C, H, W), float32.
"""

from __future__ import annotations

import sys


def main(source: str, images: str, out: str) -> None:
    import nncf
    import numpy as np
    import onnx

    inputs = np.load(images)
    model = onnx.load(source)
    name = model.graph.input[0].name
    data = nncf.Dataset([{name: inputs[k : k + 1]} for k in range(len(inputs))])
    onnx.save(nncf.quantize(model, data, subset_size=len(inputs)), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
