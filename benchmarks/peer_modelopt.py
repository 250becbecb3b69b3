"""NVIDIA Model Optimizer's INT8 of an ONNX file, in an interpreter that has modelopt and nothing of ours.

    python peer_modelopt.py FP32.onnx IMAGES.npy OUT.onnx [OPTIONS as JSON]

IMAGES.npy holds network inputs (N, C, H, W), float32.
"""

from __future__ import annotations

import json
import sys


def main(source: str, images: str, out: str, options: str = "{}") -> None:
    import numpy as np
    from modelopt.onnx.quantization import quantize

    quantize(
        source,
        quantize_mode="int8",
        calibration_data=np.load(images),
        calibration_eps=["cpu"],
        output_path=out,
        **json.loads(options),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
